"""Data sets: from a downloaded folder to recordings with captions.

Each function takes a folder and yields, in the order of the annotations, recordings and the rows
that describe none. It reads annotations only; whether a file exists and is whole is checked when it
is decoded. docs/data.md says where the parts of each folder come from. A new data set is a function
and a row of DATASETS.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from audiosep_jax import files
from audiosep_jax.data import sources
from audiosep_jax.data.clips import Clips, class_folder_clips, esc50_clips, manifest_clips
from audiosep_jax.encoders.encoder import query_of
from audiosep_jax.errors import InputError
from audiosep_jax.preparing.recordings import Recording, Skipped, expected

Items = Iterator[Recording | Skipped]
CLOTHO_RATE_HZ = 44100
SPEECH, NOISY_SPEECH = "a person speaking", "a person speaking in noise"
# Bounds where the annotations state no length; a clip at the end of a video is shorter than 10 s.
UP_TO_10_SECONDS, UP_TO_30_SECONDS = (0.0, expected(10.0)[1]), (0.0, expected(30.0)[1])
LONGEST_SECONDS = 1e6  # an annotation beyond it is wrong
HINT = "docs/data.md says what belongs there"


class Dataset(NamedTuple):
    """Function that reads a data set, its line of the help, and the options that it takes."""

    read: Callable[..., Items]
    help: str
    options: tuple[str, ...] = ("root",)


# ------------------------------------------------------------- sources that training reads too


def synthetic(num_clips: int = 20000) -> Items:
    """Clips made by arithmetic, and a tenth as many, at least one, for validation."""
    from audiosep_jax.data.synthetic import SyntheticSource

    for split, count in (("train", num_clips), ("valid", max(1, num_clips // 10))):
        seed = sources.SYNTHETIC_SEEDS[split]
        clips = SyntheticSource(count, seed, 32000)
        for index in range(count):
            name, captions = clips.name(index), clips.captions[index]
            yield Recording(name, split, captions, synthetic=(seed, index))


def clip_lists(read: Callable[[Path], Clips], root: Path, valid_root: Path | None = None) -> Items:
    """Manifests or folders of classes: `root` for training, `valid_root` for validation."""
    for split, place in (("train", root), ("valid", valid_root)):
        if place is None:
            continue
        clips = read(place)
        if clips.captions.most_sounds()[1] > 1:
            raise InputError(f'{place}: prepared records hold no "sources"; train from it directly')
        base = place if place.is_dir() else place.parent
        if any(query_of(caption)[0] != "text" for caption in clips.captions.texts):
            raise InputError(f'{place}: prepared records hold no "image"; train from it directly')
        for clip, class_name in zip(clips, clips.captions.classes(), strict=True):
            inside = clip.path.is_relative_to(base)
            name = (clip.path.relative_to(base) if inside else clip.path).as_posix()
            places = (str(clip.path),)
            yield Recording(name, split, clip.captions, places, class_name=class_name)
        for path in clips.left_out:
            yield Skipped(os.path.relpath(path, base), split, "is no recording in a class folder")


def esc50(root: Path, valid_folds: Sequence[int] = (5,)) -> Items:
    """ESC-50; the folds that are not held out are for training."""
    train_folds = set(range(1, 6)) - set(valid_folds)
    for split, folds in (("train", train_folds), ("valid", set(valid_folds))):
        if not folds:
            raise InputError(f"valid_folds={tuple(valid_folds)} leaves no fold for training")
        for clip in esc50_clips(root, folds):
            # ESC-50's clips last 5 s, some of ESC-10's do not, and the table states no length.
            yield Recording(clip.path.name, split, clip.captions, (str(clip.path),))


# ---------------------------------------------------------------------------- clips of videos


def audioset(root: Path) -> Items:
    """AudioSet: `*segments*.csv` and `ontology.json` or `class_labels_indices.csv`."""
    names, segments = _audioset_labels(root), sorted(root.glob("*segments*.csv"))
    if not segments:
        raise InputError(f"{root}: has no segments CSV of AudioSet; {HINT}")
    for table in segments:
        split = "test" if table.stem.startswith("eval") else "train"
        folders = _existing(
            *(root / top / table.stem for top in ("audio", "audios", ".")),
            root / "audios" / "unbalanced_train_segments" / table.stem,
            root / "audio",
        )
        for line, row in files.csv_lines(table):
            if not row[0].startswith("#"):
                yield _segment(f"{table.name} line {line}", row, split, names, folders)


def _audioset_labels(root: Path) -> dict[str, str]:
    ontology = root / "ontology.json"
    if ontology.is_file():
        try:
            return {row["id"]: str(row["name"]) for row in files.read_json(ontology)}
        except (KeyError, TypeError) as error:
            message = f'{ontology}: is not a list of labels with "id" and "name"; {HINT}'
            raise InputError(message) from error
    table = root / "class_labels_indices.csv"
    rows = files.read_csv(table, ("mid", "display_name"))
    return {row["mid"]: row["display_name"] for _, row in rows}


def _segment(
    where: str, row: list[str], split: str, names: Mapping[str, str], folders: Iterable[Path]
) -> Recording | Skipped:
    try:
        video, start, end = row[0], float(row[1]), float(row[2])
        labels = [names[mid.strip()] for mid in row[3].split(",") if mid.strip() in names]
    except (IndexError, ValueError):
        return Skipped(where, split, "is not: id, start, end, labels")
    if not video or not 0 <= start < end < LONGEST_SECONDS:
        reason = f"is not a segment of a video: {video!r} {start:g} to {end:g} s"
        return Skipped(where, split, reason)
    if not labels:
        return Skipped(video, split, f"no label of the ontology: {row[3]}")
    segment = f"{video}_{round(1000 * start)}_{round(1000 * end)}"
    places = _places(folders, (f"Y{video}", segment, *_youtube_names(video, start)))
    return Recording(video, split, (", ".join(labels),), places, expected(end - start))


def vggsound(root: Path) -> Items:
    """VGGSound: `vggsound.csv`, rows of video, start, label, split."""
    table = root / "vggsound.csv"
    for line, row in files.csv_lines(table):
        where = f"{table.name} line {line}"
        if len(row) != 4 or not row[0] or not row[1].isdecimal() or not row[2]:
            yield Skipped(where, "", "is not: video, start, label, split")
        elif row[3] not in ("train", "test"):
            yield Skipped(where, "", f"split {row[3]!r} is neither train nor test")
        else:
            video, start, label, split = row
            places = _places([root / "audio"], _youtube_names(video, float(start)))
            name = f"{video}_{int(start):06d}"
            yield Recording(name, split, (label,), places, UP_TO_10_SECONDS)


def audiocaps(root: Path) -> Items:
    """AudioCaps: `train.csv`, `val.csv`, `test.csv`; clips of the last two have five captions."""
    for name, split in (("train", "train"), ("val", "valid"), ("test", "test")):
        table = root / f"{name}.csv"
        folders = _existing(root / "audio" / name, root / name, root / "audio")
        clips: dict[tuple[str, int], tuple[str, list[str]]] = {}
        columns = ("audiocap_id", "youtube_id", "start_time", "caption")
        for line, row in files.read_csv(table, columns, ragged=True):
            video, start = row["youtube_id"], row["start_time"]
            caption = " ".join(row["caption"].split())
            if not video or not start.isdecimal() or not caption:
                yield Skipped(f"{table.name} line {line}", split, "no video, start or caption")
                continue
            clips.setdefault((video, int(start)), (row["audiocap_id"], []))[1].append(caption)
        for (video, begin), (number, sentences) in clips.items():
            names = (f"Y{video}", *_youtube_names(video, begin), number)
            places, distinct = _places(folders, filter(None, names)), dict.fromkeys(sentences)
            yield Recording(f"{video}_{begin}", split, tuple(distinct), places, UP_TO_10_SECONDS)


def music(root: Path) -> Items:
    """MUSIC: `MUSIC*.json` with lists of videos by instrument or pair of instruments."""
    lists = sorted(root.glob("MUSIC*.json"))
    if not lists:
        raise InputError(f"{root}: has no MUSIC_solo_videos.json; {HINT}")
    for table in lists:
        videos = files.read_json_object(table).get("videos")
        if not isinstance(videos, dict):
            raise InputError(f'{table}: has no "videos" by instrument')
        for instruments, names in videos.items():
            caption = " and ".join(instruments.split()).replace("_", " ")
            folders = _existing(root / "audio" / instruments, root / "audio")
            for name in names if isinstance(names, list) else [names]:
                if not isinstance(name, str) or not name.strip() or not caption:
                    yield Skipped(f"{table.name} {instruments}", "train", f"no video: {name!r}")
                    continue
                places = _places(folders, (name, f"Y{name}"))
                yield Recording(name, "train", (caption,), places)


def _youtube_names(video: str, start_seconds: float) -> tuple[str, ...]:
    """Names that download tools give to the clip of ten seconds that starts there."""
    whole, begin = int(start_seconds), round(1000 * start_seconds)
    return (
        f"{video}_{whole:06d}",
        f"{video}_{whole}",
        f"{video}_{begin}_{begin + 10_000}",
        f"{video}_{begin}",
        video,
    )


# ------------------------------------------------------------------------- captioned Freesound


def clotho(root: Path) -> Items:
    """Clotho v2: five captions for each file of development, validation and evaluation."""
    columns = ("file_name", *(f"caption_{number}" for number in range(1, 6)))
    for name, split in (("development", "train"), ("validation", "valid"), ("evaluation", "test")):
        table = root / f"clotho_captions_{name}.csv"
        seconds = _clotho_seconds(root / f"clotho_metadata_{name}.csv")
        folders = _existing(root / name, root / f"clotho_audio_{name}" / name)
        for line, row in files.read_csv(table, columns, ragged=True):
            file = row["file_name"]
            sentences = (" ".join(row[column].split()) for column in columns[1:])
            captions = tuple(dict.fromkeys(filter(None, sentences)))
            if not file or not captions:
                yield Skipped(f"{table.name} line {line}", split, "no file or no caption")
                continue
            yield Recording(file, split, captions, _places(folders, (file,)), seconds.get(file))


def _clotho_seconds(table: Path) -> dict[str, tuple[float, float]]:
    """Bounds of the length of each file, from the samples between which it was cut.

    Not all rows state them.
    """
    found: dict[str, tuple[float, float]] = {}
    if not table.is_file():
        return found
    columns = ("file_name", "start_end_samples")
    for _, row in files.read_csv(table, columns, ragged=True, encoding="latin-1"):
        bounds = row["start_end_samples"].strip(" []").split(",")
        if len(bounds) == 2 and all(bound.strip().isdecimal() for bound in bounds):
            seconds = (int(bounds[1]) - int(bounds[0])) / CLOTHO_RATE_HZ
            found[row["file_name"]] = expected(seconds)
    return found


def wavcaps(root: Path) -> Items:
    """WavCaps: the parts whose JSON exists, without the recordings on the set's blacklists."""
    names = {
        "AudioSet_SL": "as_final.json",
        "BBC_Sound_Effects": "bbc_final.json",
        "FreeSound": "fsd_final.json",
        "SoundBible": "sb_final.json",
    }
    tables = {part: root / "json_files" / part / file for part, file in names.items()}
    tables = {part: table for part, table in tables.items() if table.is_file()}
    if not tables:
        raise InputError(f"{root / 'json_files'}: has no part of WavCaps; {HINT}")
    barred = _wavcaps_barred(root / "json_files" / "blacklist")
    for part, table in tables.items():
        content = files.read_json(table)
        rows = content.get("data") if isinstance(content, dict) else content
        if not isinstance(rows, list):
            raise InputError(f"{table}: holds no list of recordings; {HINT}")
        tops = ("waveforms", "audio", ".")
        folders = _existing(*(root / top / f"{part}_flac" for top in tops), root / part)
        for number, row in enumerate(rows, start=1):
            yield _wavcaps_row(f"{table.name} row {number}", row, part, folders, barred)


def _wavcaps_row(
    where: str, row: Any, part: str, folders: Iterable[Path], barred: set[str]
) -> Recording | Skipped:
    if not isinstance(row, dict) or not row.get("id") or not isinstance(row.get("caption"), str):
        return Skipped(where, "train", "no id or no caption")
    file = str(row["id"]).removesuffix(".wav")
    name, caption = f"{part}/{file}", " ".join(row["caption"].split())
    if not caption:
        return Skipped(name, "train", "no caption")
    if f"{part.split('_')[0]}/{file}" in barred:
        return Skipped(name, "train", "on a blacklist of WavCaps: it is part of an evaluation set")
    seconds, bounds = row.get("duration"), None
    if isinstance(seconds, int | float) and 0 < seconds < LONGEST_SECONDS:
        bounds = expected(seconds)
    return Recording(name, "train", (caption,), _places(folders, (file,)), bounds)


def _wavcaps_barred(folder: Path) -> set[str]:
    """Recordings on WavCaps' blacklists: clips of data sets that are used for evaluation."""
    barred: set[str] = set()
    for name in ("blacklist_exclude_test_ac.json", "blacklist_exclude_ub8k_esc50_vggsound.json"):
        if (folder / name).is_file():
            for part, listed in files.read_json_object(folder / name).items():
                if not isinstance(listed, list):
                    raise InputError(f"{folder / name}: {part!r} is no list of recordings")
                barred.update(f"{part}/{str(file).removesuffix('.wav')}" for file in listed)
    return barred


def fsd50k(root: Path) -> Items:
    """FSD50K: development audio as train and valid, evaluation audio as test."""
    truth = root / "FSD50K.ground_truth"
    known = {row[1] for _, row in files.csv_lines(truth / "vocabulary.csv") if len(row) == 3}
    for name in ("dev", "eval"):
        table = truth / f"{name}.csv"
        folder = root / f"FSD50K.{name}_audio"
        columns = ("fname", "labels", "split") if name == "dev" else ("fname", "labels")
        for line, row in files.read_csv(table, columns, ragged=True):
            where, file = f"{table.name} line {line}", row["fname"]
            split = {"train": "train", "val": "valid"}.get(row.get("split", ""), "test")
            labels = [label for label in row["labels"].split(",") if label in known]
            if not file or (name == "dev" and split == "test"):
                yield Skipped(where, split, "no file, or split neither train nor val")
            elif not labels:
                yield Skipped(file, split, f"no label of the vocabulary: {row['labels']!r}")
            else:
                caption = ", ".join(labels).replace("_", " ")
                places = _places([folder], (f"{file}.wav",))
                yield Recording(file, split, (caption,), places, UP_TO_30_SECONDS)


# -------------------------------------------------------------------------------------- speech


def voicebank_demand(root: Path) -> Items:
    """Voicebank-DEMAND: clean speech as train and test, in noise as train_noisy and test_noisy.

    A clean file and its noisy version have one id. Where the folders of transcripts exist, the
    transcript is a second caption.
    """
    found = False
    for kind in ("trainset_28spk", "trainset_56spk", "testset"):
        split = "test" if kind == "testset" else "train"
        clean, noisy = root / f"clean_{kind}_wav", root / f"noisy_{kind}_wav"
        if not clean.is_dir():
            continue
        found = True
        for path in sorted(clean.glob("*.wav")):
            said = _transcript(root / f"{kind}_txt" / f"{path.stem}.txt")
            yield Recording(path.stem, split, (SPEECH, *said), (str(path),))
            place = str(noisy / path.name)
            yield Recording(path.stem, f"{split}_noisy", (NOISY_SPEECH,), (place,))
        for path in sorted(noisy.glob("*.wav")):
            if not (clean / path.name).is_file():
                yield Skipped(path.stem, f"{split}_noisy", "has no clean recording")
    if not found:
        raise InputError(f"{root}: has no clean_trainset_28spk_wav or clean_testset_wav; {HINT}")


def _transcript(path: Path) -> tuple[str, ...]:
    words = files.read_text(path).split() if path.is_file() else []
    return (f"a person says: {' '.join(words)}",) if words else ()


# ------------------------------------------------------------------------------------- helpers


def _existing(*folders: Path) -> list[Path]:
    """Folders that exist; if none does, the first, which messages then name."""
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir())) or [folders[0]]


def _places(folders: Iterable[Path], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(os.path.join(folder, name) for name in names for folder in folders)


DATASETS = {
    "manifest": Dataset(
        functools.partial(clip_lists, manifest_clips),
        '--root FILE.json: {"data": [{"wav": ..., "caption": ...}]}; also --valid_root',
        ("root", "valid_root"),
    ),
    "folders": Dataset(
        functools.partial(clip_lists, class_folder_clips),
        "--root DIR: a folder for each class; also --valid_root",
        ("root", "valid_root"),
    ),
    "synthetic": Dataset(synthetic, "sounds made by arithmetic; --num_clips", ("num_clips",)),
    "esc50": Dataset(esc50, "--root DIR: ESC-50; also --valid_folds", ("root", "valid_folds")),
    "audioset": Dataset(audioset, "--root DIR: AudioSet"),
    "vggsound": Dataset(vggsound, "--root DIR: VGGSound"),
    "audiocaps": Dataset(audiocaps, "--root DIR: AudioCaps"),
    "clotho": Dataset(clotho, "--root DIR: Clotho v2"),
    "wavcaps": Dataset(wavcaps, "--root DIR: WavCaps"),
    "fsd50k": Dataset(fsd50k, "--root DIR: FSD50K"),
    "music": Dataset(music, "--root DIR: MUSIC"),
    "voicebank_demand": Dataset(voicebank_demand, "--root DIR: Voicebank-DEMAND"),
}
