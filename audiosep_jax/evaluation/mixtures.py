"""The mixtures of a list as sound: read or mixed, written in the published layout, and lists made.

Mixing is a function of the files and the list alone, so it gives the same samples wherever and in
whatever order it is done.
"""

import csv
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data import sources
from audiosep_jax.data.mixing import caption_key, energy, mix_at_snr
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.lists import Item, Row, path_of
from audiosep_jax.evaluation.protocols import Protocol

NUMBERED = ("segment-{id}.wav", "mixture-{id}.wav")
PAIR_COLUMNS = ("id", "query", "class", "target", "noise", "noise_query", "snr")
RENDERED_COLUMNS = ("id", "query", "class", "target", "mixture", "noise_query")
LIST_NAME = "mixtures.csv"


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """One mixture at the rate of scoring, and the fingerprint of the files it came from."""

    mixture_S: np.ndarray
    target_S: np.ndarray
    fingerprint: str


def planned_samples(item: Item, sample_rate_hz: int) -> int:
    """How long the mixture will be, by the headers of its files; AudioError where one is short."""
    target = _planned(item.target, item.target_start_seconds, item.seconds, sample_rate_hz)
    if item.mixture is None:
        for path in item.noises:
            _planned(path, item.noise_start_seconds, None, sample_rate_hz)
        return target
    mixture = _planned(item.mixture, item.target_start_seconds, item.seconds, sample_rate_hz)
    return _common_length(item, target, mixture)


def load(item: Item, sample_rate_hz: int) -> Mixture:
    """The mixture and the target in it, float32; AudioError names the file that will not do."""

    def read(path: Path, start_seconds: float, seconds: float | None) -> np.ndarray:
        audio_CS, rate_hz = audio_files.read(path)
        first, last = _span(path, audio_CS.shape[1], rate_hz, start_seconds, seconds)
        audio_S = audio_files.to_mono(audio_CS[:, first:last])
        return audio_files.resample(audio_S[None], rate_hz, sample_rate_hz)[0]

    target_S = read(item.target, item.target_start_seconds, item.seconds)
    if item.mixture is not None:
        mixture_S = read(item.mixture, item.target_start_seconds, item.seconds)
        num_samples = _common_length(item, len(target_S), len(mixture_S))
        mixture_S, target_S = mixture_S[:num_samples], target_S[:num_samples]
    else:
        noises = [read(path, item.noise_start_seconds, None) for path in item.noises]
        mixture_S, target_S = _mixed(item, target_S, noises)
    return Mixture(mixture_S, target_S, fingerprint_of(item))


def fingerprint_of(item: Item) -> str:
    """Hash of an item's files and of how they are mixed; OSError where one cannot be read."""
    digest = hashlib.blake2b(repr((item.snr_db, item.seconds)).encode(), digest_size=8)
    digest.update(repr((item.target_start_seconds, item.noise_start_seconds)).encode())
    for path in item.files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def render(
    protocol: Protocol,
    items: Sequence[Item],
    rows: Sequence[Row],
    output: Path,
    sample_rate_hz: int,
    *,
    num_threads: int,
    shard: tuple[int, int] = (0, 1),
) -> None:
    """Writes target and mixture of every item in the published layout, the same bytes every time.

    Own lists get a list of their own, `mixtures.csv`. `shard` (i, n) writes each n-th from i on.
    """
    paths = [_rendered_paths(protocol, item, rows[item.row], output) for item in items]
    if len({path for pair in paths for path in pair}) < 2 * len(items):
        raise InputError(f"{output}: two mixtures of the list would have one name; see their ids")

    def write(position: int) -> None:
        made = load(items[position], sample_rate_hz)
        for path, audio_S in zip(paths[position], (made.target_S, made.mixture_S), strict=True):
            audio_files.write(path, audio_S[None], sample_rate_hz)

    mine = range(shard[0], len(items), shard[1])
    with ThreadPoolExecutor(num_threads) as pool, tqdm(total=len(mine), unit="mixture") as bar:
        for _ in pool.map(write, mine):
            bar.update()
    if protocol.name == "mixtures" and shard[0] == 0:
        _write_rendered_list(items, output)


def make_pairs(
    clips: Sequence[sources.Clip],
    root: Path,
    path: Path,
    *,
    num_pairs: int,
    snrs_db: Sequence[float],
    seed: int,
) -> None:
    """Writes a list of `num_pairs` random mixtures of two clips with different captions.

    Every clip is a target equally often, give or take one; SNRs go round. The list depends on the
    clips' names and captions and on the seed alone, and may be read with `--protocol mixtures`.
    """
    if len({caption_key(clip.captions[0]) for clip in clips}) < 2:
        raise InputError("a mixture needs two different captions; the clips have one")
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    rounds = -(-num_pairs // len(clips))
    order = np.concatenate([rng.permutation(len(clips)) for _ in range(rounds)])[:num_pairs]
    lines = []
    for number, index in enumerate(order):
        target = clips[index]
        others = [clip for clip in clips if not _share_caption(clip, target)]
        if not others:
            raise InputError(f"{target.path}: no clip has other captions than this one")
        noise = others[int(rng.integers(len(others)))]
        query = target.captions[int(rng.integers(len(target.captions)))]
        names = [Path(os.path.relpath(clip.path, root)).as_posix() for clip in (target, noise)]
        snr_db = snrs_db[number % len(snrs_db)]
        lines.append([number, query, query, *names, noise.captions[0], f"{snr_db:g}"])
    _write_csv(path, PAIR_COLUMNS, lines)


def clips_of(place: Path, folds: Sequence[int]) -> list[sources.Clip]:
    """Clips of a manifest, of a folder laid out as ESC-50, or of a folder of class folders."""
    if place.is_file():
        return sources.manifest_clips(place)
    if (place / "meta" / "esc50.csv").is_file():
        return sources.esc50_clips(place, folds or range(1, 6))
    return sources.class_folder_clips(place)


def _mixed(
    item: Item, target_S: np.ndarray, noises: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(mixture, target): several noises are made equally loud and added first."""
    # A noise that ends early starts again.
    parts = [np.resize(noise_S, len(target_S)) for noise_S in noises]
    if item.snr_db is None:  # as they are, even above full scale
        return np.asarray(target_S + sum(parts)), target_S
    for path, audio_S in zip(item.files, (target_S, *parts), strict=True):
        if energy(audio_S) == 0:
            raise AudioError(f"{path}: is silent, so that there is no SNR to mix it at")
    if len(parts) > 1:
        parts = [part_S / np.float32(np.sqrt(energy(part_S))) for part_S in parts]
    noise_S = np.asarray(np.sum(parts, axis=0, dtype=np.float32))
    return mix_at_snr(target_S, noise_S, item.snr_db)


def _planned(path: Path, start_seconds: float, seconds: float | None, sample_rate_hz: int) -> int:
    with audio_files.AudioReader(path) as recording:
        num_samples, rate_hz = recording.num_samples, recording.sample_rate_hz
    first, last = _span(path, num_samples, rate_hz, start_seconds, seconds)
    return -(-(last - first) * sample_rate_hz // rate_hz)


def _span(
    path: Path, num_samples: int, rate_hz: int, start_seconds: float, seconds: float | None
) -> tuple[int, int]:
    """First sample and the one behind the last of what is taken of a file."""
    first = round(start_seconds * rate_hz)
    last = num_samples if seconds is None else first + max(1, round(seconds * rate_hz))
    if last > num_samples or first >= num_samples:
        wanted = f"{last / rate_hz:g}" if seconds is not None else f"more than {start_seconds:g}"
        raise AudioError(f"{path}: is {num_samples / rate_hz:g} s long, {wanted} s are needed")
    return first, last


def _common_length(item: Item, target: int, mixture: int) -> int:
    """The shorter; one sample between them may come from rounding at another rate, not more."""
    if abs(target - mixture) > 1:
        short, other = (item.mixture, item.target)[:: 1 if mixture < target else -1]
        samples = f"{min(target, mixture)} samples, {max(target, mixture)} are needed"
        raise AudioError(f"{short}: is short, {samples} to match {other}")
    return min(target, mixture)


def _rendered_paths(protocol: Protocol, item: Item, row: Row, output: Path) -> tuple[Path, Path]:
    if protocol.name == "mixtures" or protocol.rendered is None:
        names = [name.format(id=item.id) for name in NUMBERED]
    else:
        names = [path_of(template, row) for template in protocol.rendered]
    for name in names:
        if not Path(os.path.normpath(output / name)).is_relative_to(os.path.normpath(output)):
            raise InputError(f"row {item.row + 2} of the list would be written outside {output}")
    return output / names[0], output / names[1]


def _write_rendered_list(items: Sequence[Item], output: Path) -> None:
    names = [[name.format(id=item.id) for name in NUMBERED] for item in items]
    lines = [
        [item.id, item.query, item.label, *pair, item.noise_query]
        for item, pair in zip(items, names, strict=True)
    ]
    _write_csv(output / LIST_NAME, RENDERED_COLUMNS, lines)


def _write_csv(path: Path, header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *lines])
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _share_caption(first: sources.Clip, second: sources.Clip) -> bool:
    keys = [{caption_key(caption) for caption in clip.captions} for clip in (first, second)]
    return bool(keys[0] & keys[1])
