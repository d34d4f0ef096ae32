"""Make a corpus of speakers from the voices in Debian's packages, for `configs/voice.py`.

    mkdir debs && cd debs
    apt-get download asterisk-core-sounds-{en,es,fr,it,ru}-g722 asterisk-prompt-es-co \
        asterisk-prompt-fr-armelle asterisk-prompt-it-menardi-wav fillets-ng-data-{cs,nl} \
        hedgewars-data klettres-data ktuberling-data tuxpaint-stamps-default
    for package in *.deb; do dpkg-deb -x $package root; done && cd ..
    python examples/voices.py --data debs/root/usr/share --output voices

It writes `voices/train/<speaker>/*.flac`, and other speakers to `voices/valid`. With `--speeds 0.84
1.19` each speaker of the training is written again at these speeds, as a speaker of his own: pitch
and timbre change with the speed. ffmpeg is needed.
"""

import argparse
import concurrent.futures
import functools
import itertools
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from small_corpus import RATE_HZ, levelled, read, trim

from audiosep_jax.audio import files as audio_files

PIECE_SECONDS = 5.0  # prompts are joined to recordings of at least this, enough to know a voice
MOST_SECONDS = 480.0  # of a speaker
STAMPS = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")  # languages, a speaker each
ACTORS = ("cs_m", "cs_v", "nl_m", "nl_v")
# Places of each speaker's prompts.
SPEAKERS = {
    "allison": "asterisk/sounds/e*_f_Allison/**/*.g722",  # in English and in Spanish
    "june": "asterisk/sounds/fr_CA_f_June/**/*.g722",
    "carlo": "asterisk/sounds/it_IT_m_Carlo/**/*.g722",
    "ivrvoice": "asterisk/sounds/ru_RU_f_IvrvoiceRU/**/*.g722",
    "menardi": "asterisk/sounds/it_IT_f_Menardi/**/*.wav",
    "colombian": "asterisk/sounds/es/**/*.gsm",
    "armelle": "asterisk/sounds/fr/**/*.gsm",
}
SPEAKERS |= {f"fillets_{x}": f"games/fillets-ng/sound/**/{x[:2]}/*-{x[3]}-*.ogg" for x in ACTORS}
SPEAKERS |= {f"stamps_{x}": f"tuxpaint/stamps/**/*_desc_{x}.ogg" for x in STAMPS}
# Folders of folders that hold a speaker each.
FOLDERS = {
    "hedgewars": "games/hedgewars/Data/Sounds/voices",
    "klettres": "klettres",
    "ktuberling": "ktuberling/sounds",
}
HELD_OUT = ("carlo", "june", "fillets_nl_m", "fillets_nl_v", "stamps_el", "stamps_ro")


def speakers(data: Path) -> dict[str, list[Path]]:
    """Sorted prompts by speaker."""
    places = dict(SPEAKERS)
    for name, folder in FOLDERS.items():
        for path in sorted((data / folder).iterdir()):
            if "@" not in path.name:  # another alphabet of the same speaker
                places[f"{name}_{path.name}"] = f"{folder}/{path.name}/**/*.[ow][ga][gv]"
    found = {name: sorted(data.glob(place)) for name, place in places.items()}
    return {name: paths for name, paths in found.items() if paths}


def decode(path: Path) -> np.ndarray:
    """Mono samples at 16 kHz; ffmpeg reads the formats of telephones."""
    if path.suffix not in (".g722", ".gsm"):
        return read(path)
    command = ["ffmpeg", "-v", "error", "-f", path.suffix[1:], "-i", str(path), "-ac", "1"]
    raw = subprocess.run([*command, "-ar", str(RATE_HZ), "-f", "f32le", "-"], capture_output=True)
    return np.frombuffer(raw.stdout, np.float32)


def pieces(prompts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Join prompts without their silence to recordings of `PIECE_SECONDS` and a little more."""
    joined: list[np.ndarray] = []
    for audio_S in prompts:
        if len(audio_S) and np.max(np.abs(audio_S)) > 1e-3:
            joined.append(levelled(trim(audio_S)))
        if sum(map(len, joined)) >= PIECE_SECONDS * RATE_HZ:
            yield np.concatenate(joined)
            joined = []


def write_copies(folder: Path, speeds: Iterable[float]) -> None:
    """Write the recordings of a speaker again at each speed, to folders beside his."""
    for speed, path in itertools.product(speeds, sorted(folder.glob("*.flac"))):
        audio_S = audio_files.resample(read(path)[None], round(RATE_HZ * speed), RATE_HZ)[0]
        copy = folder.with_name(f"{folder.name}_{speed:g}") / path.name
        copy.parent.mkdir(exist_ok=True)
        soundfile.write(copy, audio_S, RATE_HZ)


def write_speaker(output: Path, speeds: Iterable[float], name: str, paths: list[Path]) -> str:
    """Write the recordings of a speaker, and copies for training; return what was written."""
    folder = output / ("valid" if name in HELD_OUT else "train") / name
    folder.mkdir(parents=True)
    seconds = 0.0
    for number, audio_S in enumerate(pieces(map(decode, paths))):
        soundfile.write(folder / f"{number:03d}.flac", audio_S, RATE_HZ)
        seconds += len(audio_S) / RATE_HZ
        if seconds >= MOST_SECONDS:
            break
    if len(list(folder.iterdir())) < 2:  # each is an enrolment for the others
        shutil.rmtree(folder)
    if name not in HELD_OUT:
        write_copies(folder, speeds)
    return f"{name}: {seconds:.0f} s"


def main() -> None:
    """Write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder usr/share of the packages")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--speeds", type=float, nargs="+", default=[])
    arguments = parser.parse_args()
    shutil.rmtree(arguments.output, ignore_errors=True)
    write = functools.partial(write_speaker, arguments.output, arguments.speeds)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for done in pool.map(write, *zip(*speakers(arguments.data).items(), strict=True)):
            print(done, flush=True)


if __name__ == "__main__":
    main()
