"""Mixtures of a list as samples: read or mixed, rendered to files; and lists of random pairs.

Mixing depends on the files and the list alone, so every process gives the same samples, in any
order.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from audiosep_jax import files
from audiosep_jax.audio import files as audio_files
from audiosep_jax.audio.files import AudioError
from audiosep_jax.data.clips import Clip, class_folder_clips, esc50_clips, manifest_clips
from audiosep_jax.data.mixing import caption_key, energy, mix_at_snr
from audiosep_jax.encoders.encoder import query_of
from audiosep_jax.errors import InputError
from audiosep_jax.evaluation.lists import WRONG_QUERY, Item, list_fingerprint
from audiosep_jax.metrics import POWER_FLOOR, fitted

RENDERED = "rendered.json"  # list and sample rate of the mixtures in a folder
OTHER_FOLDER = "choose another output folder"


class SilentError(AudioError):
    """The target or the noise of a mixture is silent, so no score of it has a meaning."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Samples of one mixture at the sample rate of scoring, and the hash of its files."""

    mixture_S: np.ndarray
    target_S: np.ndarray
    fingerprint: str


def load(item: Item, sample_rate_hz: int) -> Mixture:
    """Read or mix one mixture, float32, between those that are joined to it.

    The others are brought to its power, and have no target. AudioError names a file that cannot be
    used.
    """
    digest = _digest(item)
    mixture_S, target_S = _load_alone(item, sample_rate_hz, digest)
    others = []
    for other in (*item.before, *item.after):
        made = load(other, sample_rate_hz)
        digest.update(made.fingerprint.encode())
        gain = np.sqrt(energy(mixture_S) / max(energy(made.mixture_S), POWER_FLOOR))
        others.append(made.mixture_S * np.float32(gain))
    before, after = others[: len(item.before)], others[len(item.before) :]
    target_S = np.pad(target_S, (sum(map(len, before)), sum(map(len, after))))
    return Mixture(np.concatenate([*before, mixture_S, *after]), target_S, digest.hexdigest())


def _load_alone(
    item: Item, sample_rate_hz: int, digest: "hashlib.blake2b"
) -> tuple[np.ndarray, np.ndarray]:
    """(mixture, target) of one mixture, whose files the digest gets."""

    def read(path: Path, start_seconds: float, seconds: float | None) -> np.ndarray:
        with audio_files.AudioReader(path) as recording:
            digest.update(recording.local.read_bytes())
            rate_hz, audio_CS = recording.sample_rate_hz, recording.read_rest()
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
    for path in item.query_files:
        digest.update(files.read_bytes(path))
    return mixture_S, target_S


def seconds_of(item: Item) -> float:
    """Length of a mixture in ms, rounded up, as its target's file states; 0 if it is unusable."""
    try:
        with audio_files.AudioReader(item.target) as recording:
            size = recording.num_samples, recording.sample_rate_hz
        first, last = _span(item.target, *size, item.target_start_seconds, item.seconds)
        return -(-(last - first) * 1000 // size[1]) / 1000
    except AudioError:
        return 0.0


def check_sounds(item: Item, made: Mixture) -> None:
    """Raise SilentError if the target, the mixture, or what it adds to the target, is silent.

    Silent means a mean square of at most 1e-10, the floor of SDR: an improvement over such a
    mixture measures the floor, not the separation.
    """
    if energy(made.target_S) <= POWER_FLOOR:
        raise SilentError(f"{item.target}: the target is silent")
    path = item.mixture or item.noises[0]
    if energy(made.mixture_S) <= POWER_FLOOR:
        raise SilentError(f"{path}: the mixture is silent")
    if energy(made.mixture_S - made.target_S) <= POWER_FLOOR:
        raise SilentError(f"{path}: the noise is silent, the mixture equals its target")


def estimate_paths(item: Item, folder: Path) -> list[Path]:
    """Files that another system wrote for an item: its estimate, and that of the wrong query."""
    name = item.rendered[1]
    return [folder / name, folder / WRONG_QUERY / name] if item.wrong_query else [folder / name]


def load_estimate(path: Path, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """Read an estimate; AudioError if its rate or its length is not that of its mixture."""
    audio_CS, rate_hz = audio_files.read(path)
    if rate_hz != sample_rate_hz:
        raise AudioError(f"{path}: has {rate_hz} Hz, but is scored at {sample_rate_hz} Hz")
    if abs(audio_CS.shape[1] - num_samples) > 1:
        raise AudioError(f"{path}: has {audio_CS.shape[1]} samples, its mixture has {num_samples}")
    return fitted(audio_files.to_mono(audio_CS), num_samples)


def estimates_fingerprint(items: Sequence[Item], folder: Path) -> str:
    """Hash of the files of all estimates that exist."""
    digest = hashlib.blake2b(digest_size=8)
    for path in (path for item in items for path in estimate_paths(item, folder)):
        content = files.read_bytes(path) if path.is_file() else b""
        digest.update(path.name.encode() + content)
    return digest.hexdigest()


def fingerprint_of(item: Item) -> str:
    """Hash of an item's files and of how they are mixed; OSError if one cannot be read."""
    digest = _digest(item)
    for path in item.files:
        digest.update(files.read_bytes(path))
    for other in (*item.before, *item.after):
        digest.update(fingerprint_of(other).encode())
    return digest.hexdigest()


def _digest(item: Item) -> "hashlib.blake2b":
    """Hash of how an item is mixed."""
    how = repr((item.snr_db, item.seconds))
    how += repr((item.target_start_seconds, item.noise_start_seconds))
    return hashlib.blake2b(how.encode(), digest_size=8)


def check_unchanged(items: Sequence[Item], done: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise InputError if files of mixtures that are done have other content now."""
    for item in items:
        if item.row not in done:
            continue
        try:
            changed = fingerprint_of(item) != done[item.row]["fingerprint"]
        except OSError:  # removed since; its scores count
            continue
        if changed:
            raise InputError(
                f"{item.target}, or what it is mixed with, has changed since it was scored; "
                "choose another output folder, or overwrite it"
            )


def render(
    items: Sequence[Item],
    output: Path,
    sample_rate_hz: int,
    *,
    num_threads: int,
    shard: tuple[int, int] = (0, 1),
) -> None:
    """Write target and mixture of every n-th item, from item i of shard (i, n).

    The files have the published layout and the same bytes every time. `mixtures.csv` lists them.
    """
    paths = [_rendered_paths(item, output) for item in items]
    if len({path for pair in paths for path in pair}) < 2 * len(items):
        raise InputError(f"{output}: two mixtures of the list have the same id and file name")
    read = {os.path.realpath(path) for item in items for path in item.files}
    for path in (path for pair in paths for path in pair if os.path.realpath(path) in read):
        raise InputError(
            f"{path}: would be replaced, but it is a sound of the list; {OTHER_FOLDER}"
        )
    about = {"list": list_fingerprint(items), "sample_rate_hz": sample_rate_hz}
    mark = output / RENDERED
    if mark.exists() and files.read_json_object(mark) != about:
        raise InputError(f"{output}: holds mixtures of another list or sample rate; {OTHER_FOLDER}")
    files.write_json(mark, about)

    def write(position: int) -> None:
        made = load(items[position], sample_rate_hz)
        for path, audio_S in zip(paths[position], (made.target_S, made.mixture_S), strict=True):
            audio_files.write(path, audio_S[None], sample_rate_hz)

    mine = range(shard[0], len(items), shard[1])
    with ThreadPoolExecutor(num_threads) as pool:
        list(tqdm(pool.map(write, mine), total=len(mine), unit="mixture"))
    if shard[0] == 0:
        columns = ("id", "query", "class", "target", "mixture", "noise_query", "wrong_query")
        rows = [[x.id, x.query, x.label, *x.rendered, x.noise_query, x.wrong_query] for x in items]
        files.write_csv(output / "mixtures.csv", columns, rows)


def make_pairs(
    clips: Sequence[Clip],
    root: Path,
    path: Path,
    *,
    num_pairs: int,
    snrs_db: Sequence[float],
    seed: int,
) -> None:
    """Write a list of random mixtures of two clips with different captions.

    Every clip is a target equally often, to within one; the SNRs are used in turn. The list depends
    on the names and captions of the clips and on the seed alone.
    """
    if len({caption_key(clip.captions[0]) for clip in clips}) < 2:
        raise InputError("a mixture needs two different captions; all clips have the same one")
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    keys = [{caption_key(caption) for caption in clip.captions} for clip in clips]
    rounds = -(-num_pairs // len(clips))
    order = np.concatenate([rng.permutation(len(clips)) for _ in range(rounds)])[:num_pairs]
    lines = []
    for number, index in enumerate(order):
        target = clips[index]
        others = [clip for clip, key in zip(clips, keys, strict=True) if not key & keys[index]]
        if not others:
            raise InputError(f"{target.path}: no clip has other captions than this one")
        noise = others[int(rng.integers(len(others)))]
        query = target.captions[int(rng.integers(len(target.captions)))]
        names = [Path(os.path.relpath(clip.path, root)).as_posix() for clip in (target, noise)]
        snr_db = snrs_db[number % len(snrs_db)]
        lines.append([number, query, query, *names, noise.captions[0], f"{snr_db:g}"])
    columns = ("id", "query", "class", "target", "noise", "noise_query", "snr")
    files.write_csv(path, columns, lines)


def clips_of(place: Path, folds: Sequence[int]) -> Sequence[Clip]:
    """Clips of a manifest, of these folds of ESC-50 (default: all), or of class folders.

    A manifest's pictures are left out, and clips that have no sentence.
    """
    if (place / "meta" / "esc50.csv").is_file():
        return list(esc50_clips(place, folds or range(1, 6)))
    if folds:
        raise InputError(f"{place}: has no folds, since it is not laid out as ESC-50")
    clips = manifest_clips(place) if place.is_file() else class_folder_clips(place)
    texts = [tuple(x for x in clip.captions if query_of(x)[0] == "text") for clip in clips]
    return [Clip(clip.path, own) for clip, own in zip(clips, texts, strict=True) if own]


def _mixed(
    item: Item, target_S: np.ndarray, noises: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(mixture, target). Several noises are scaled to equal power and added first."""
    # A noise that is shorter than the target is repeated.
    parts = [np.resize(noise_S, len(target_S)) for noise_S in noises]
    if item.snr_db is None:  # added unscaled, even above full scale
        return np.asarray(target_S + sum(parts)), target_S
    for path, audio_S in zip((item.target, *item.noises), (target_S, *parts), strict=True):
        if energy(audio_S) == 0:
            raise SilentError(f"{path}: is silent, so it cannot be mixed at an SNR")
    if len(parts) > 1:
        parts = [part_S / np.float32(np.sqrt(energy(part_S))) for part_S in parts]
    noise_S = np.asarray(np.sum(parts, axis=0, dtype=np.float32))
    return mix_at_snr(target_S, noise_S, item.snr_db)


def _span(
    path: Path, num_samples: int, rate_hz: int, start_seconds: float, seconds: float | None
) -> tuple[int, int]:
    """Samples (first, last + 1) of a file that belong to the mixture."""
    first = round(start_seconds * rate_hz)
    last = num_samples if seconds is None else first + max(1, round(seconds * rate_hz))
    if last > num_samples or first >= num_samples:
        wanted = f"{last / rate_hz:g}" if seconds is not None else f"more than {start_seconds:g}"
        raise AudioError(f"{path}: is {num_samples / rate_hz:g} s long, {wanted} s are needed")
    return first, last


def _common_length(item: Item, target: int, mixture: int) -> int:
    """The shorter length. Resampling may round them one sample apart; more is an error."""
    if abs(target - mixture) > 1:
        short, other = (item.mixture, item.target)[:: 1 if mixture < target else -1]
        samples = f"{min(target, mixture)} samples, {max(target, mixture)} are needed"
        raise AudioError(f"{short}: is short, {samples} to match {other}")
    return min(target, mixture)


def _rendered_paths(item: Item, output: Path) -> tuple[Path, Path]:
    for name in item.rendered:
        if not Path(os.path.normpath(output / name)).is_relative_to(os.path.normpath(output)):
            raise InputError(f"line {item.line} of the list would be written outside {output}")
    return output / item.rendered[0], output / item.rendered[1]
