"""From the folder of a data set as it is downloaded to recordings with captions.

Each function takes the folder and gives, in the order of the annotations, recordings and what it
had to leave out of them. It reads annotations only: whether a file is there and whole is looked at
when it is decoded. docs/data.md says where the parts of each folder come from.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from audiosep_jax.data import sources
from audiosep_jax.data.recordings import Recording, Skipped, expected
from audiosep_jax.data.synthetic import SyntheticSource
from audiosep_jax.errors import InputError

Items = Iterator[Recording | Skipped]
ESC50_FOLDS = (1, 2, 3, 4, 5)
# Most seconds of clips whose annotations give no length; where a video ends they are shorter.
AUDIOCAPS_SECONDS = VGGSOUND_SECONDS = 10.0
FSD50K_SECONDS = 30.0
CLOTHO_RATE_HZ = 44100
SPEECH = "a person speaking"
NOISY_SPEECH = "a person speaking in noise"
_HINT = "docs/data.md says what belongs there"


def recordings(
    source: str,
    root: Path | None,
    *,
    valid_root: Path | None = None,
    valid_folds: Sequence[int] = (5,),
    num_clips: int = 20000,
) -> Items:
    """Of the source that is called so in `prepare --help`; `root` is None for synthetic only."""
    if source == "synthetic":
        return synthetic(num_clips)
    if root is None:
        raise InputError(f"{source}: lies where? give --root")
    if source in ("manifest", "folders"):
        return _clip_lists(source, root, valid_root)
    if source == "esc50":
        return esc50(root, valid_folds)
    named = {
        "audioset": audioset,
        "vggsound": vggsound,
        "audiocaps": audiocaps,
        "clotho": clotho,
        "wavcaps": wavcaps,
        "fsd50k": fsd50k,
        "music": music,
        "voicebank_demand": voicebank_demand,
    }
    return named[source](root)


# ----------------------------------------------------------- what training reads directly too


def synthetic(num_clips: int) -> Items:
    """Clips made by arithmetic; a tenth as many, and at least one, to validate with."""
    for split, count in (("train", num_clips), ("valid", max(1, num_clips // 10))):
        seed = sources._SYNTHETIC_SEEDS[split]
        clips = SyntheticSource(count, seed, 32000)
        for index in range(count):
            yield Recording(
                clips.name(index), split, clips.captions(index), synthetic=(seed, index)
            )


def _clip_lists(source: str, root: Path, valid_root: Path | None) -> Items:
    for split, place in (("train", root), ("valid", valid_root)):
        if place is None:
            continue
        listed = sources.manifest_clips if source == "manifest" else sources.class_folder_clips
        base = place.parent if source == "manifest" else place
        captions: dict[Path, list[str]] = {}  # a manifest may list a file once for each caption
        for clip in listed(place):
            known = captions.setdefault(clip.path, [])
            known += [caption for caption in clip.captions if caption not in known]
        for path, sentences in captions.items():
            name = _text(path.relative_to(base) if path.is_relative_to(base) else path)
            yield Recording(name, split, tuple(sentences), (str(path),))


def esc50(root: Path, valid_folds: Sequence[int]) -> Items:
    """ESC-50: the folds that are not held out are to train with."""
    train_folds = set(ESC50_FOLDS) - set(valid_folds)
    for split, folds in (("train", train_folds), ("valid", set(valid_folds))):
        if not folds:
            raise InputError("--valid_folds leaves no fold to train with")
        for clip in sources.esc50_clips(root, folds):
            # ESC-50's clips last 5 s, some of ESC-10's do not, and the table states no length.
            yield Recording(clip.path.name, split, clip.captions, (str(clip.path),))


# ------------------------------------------------------------------------------- YouTube clips


def audioset(root: Path) -> Items:
    """AudioSet: `*segments*.csv` and `ontology.json` or `class_labels_indices.csv`."""
    names, tables = _audioset_labels(root), sorted(root.glob("*segments*.csv"))
    if not tables:
        raise InputError(f"{root}: has no segments CSV of AudioSet; {_HINT}")
    for table in tables:
        split = "test" if table.stem.startswith("eval") else "train"
        places = [
            *(root / top / table.stem for top in ("audio", "audios", ".")),
            root / "audios" / "unbalanced_train_segments" / table.stem,
            root / "audio",
        ]
        folders = _existing(places, root / "audio")
        for line, row in _lines(table, skip_spaces=True):
            if row and not row[0].startswith("#"):
                yield _segment(f"{table.name} line {line}", row, split, names, folders)


def _audioset_labels(root: Path) -> dict[str, str]:
    if (root / "ontology.json").is_file():
        rows = _json(root / "ontology.json")
        return {row["id"]: row["name"] for row in _dicts(rows, root / "ontology.json")}
    table = root / "class_labels_indices.csv"
    return {row["mid"]: row["display_name"] for _, row in _rows(table, ("mid", "display_name"))}


def _segment(
    where: str, row: list[str], split: str, names: Mapping[str, str], folders: Iterable[Path]
) -> Recording | Skipped:
    try:
        video, start, end = row[0], float(row[1]), float(row[2])
        labels = [names[mid.strip()] for mid in row[3].split(",") if mid.strip() in names]
    except (IndexError, ValueError):
        return Skipped(where, split, "is not: id, start, end, labels")
    if not video or not 0 <= start < end:
        return Skipped(where, split, f"no segment of a video: {video!r} {start:g} to {end:g} s")
    if not labels:
        return Skipped(video, split, f"no label of the ontology: {row[3]}")
    files = (f"Y{video}", f"{video}_{_ms(start)}_{_ms(end)}", *_youtube_names(video, start))
    return Recording(
        video, split, (", ".join(labels),), _places(folders, files), expected(end - start)
    )


def vggsound(root: Path) -> Items:
    """VGGSound: `vggsound.csv` with rows of video, start, label, split."""
    table, folders = root / "vggsound.csv", _existing([root / "audio"], root / "audio")
    for line, row in _lines(table):
        where = f"{table.name} line {line}"
        if len(row) != 4 or not row[0] or not row[1].strip().isdecimal() or not row[2].strip():
            yield Skipped(where, "", "is not: video, start, label, split")
        elif row[3].strip() not in ("train", "test"):
            yield Skipped(where, "", f"split {row[3]!r} is neither train nor test")
        else:
            video, start, label, split = (field.strip() for field in row)
            places = _places(folders, _youtube_names(video, float(start)))
            seconds = (0.0, expected(VGGSOUND_SECONDS)[1])
            yield Recording(f"{video}_{int(start):06d}", split, (label,), places, seconds)


def audiocaps(root: Path) -> Items:
    """AudioCaps: `train.csv`, `val.csv`, `test.csv`; clips of the last two have five captions."""
    for name, split in (("train", "train"), ("val", "valid"), ("test", "test")):
        table = root / f"{name}.csv"
        folders = _existing([root / "audio" / name, root / name, root / "audio"], root / "audio")
        captions: dict[tuple[str, int], list[str]] = {}
        numbers: dict[tuple[str, int], str] = {}
        for line, row in _rows(table, ("audiocap_id", "youtube_id", "start_time", "caption")):
            video, start = row["youtube_id"].strip(), row["start_time"].strip()
            caption = " ".join(row["caption"].split())
            if not video or not start.isdecimal() or not caption:
                yield Skipped(f"{table.name} line {line}", split, "no video, start or caption")
                continue
            captions.setdefault((video, int(start)), []).append(caption)
            numbers.setdefault((video, int(start)), row["audiocap_id"].strip())
        for (video, start_seconds), sentences in captions.items():
            files = (
                f"Y{video}",
                *_youtube_names(video, start_seconds),
                numbers[video, start_seconds],
            )
            places = _places(folders, [file for file in files if file])
            seconds = (0.0, expected(AUDIOCAPS_SECONDS)[1])
            name_ = f"{video}_{start_seconds}"
            yield Recording(name_, split, tuple(dict.fromkeys(sentences)), places, seconds)


def music(root: Path) -> Items:
    """MUSIC: `MUSIC*.json` with lists of videos by instrument or pair of instruments."""
    tables = sorted(root.glob("MUSIC*.json"))
    if not tables:
        raise InputError(f"{root}: has no MUSIC_solo_videos.json; {_HINT}")
    for table in tables:
        content = _json(table)
        videos = content.get("videos") if isinstance(content, dict) else None
        if not isinstance(videos, dict):
            raise InputError(f'{table}: has no "videos" by instrument')
        for instruments, names in videos.items():
            caption = " and ".join(instruments.split()).replace("_", " ")
            folders = _existing([root / "audio" / instruments, root / "audio"], root / "audio")
            for name in names if isinstance(names, list) else [names]:
                if not isinstance(name, str) or not name.strip() or not caption:
                    yield Skipped(f"{table.name} {instruments}", "train", f"no video: {name!r}")
                    continue
                places = _places(folders, (name, f"Y{name}"))
                yield Recording(name, "train", (caption,), places)


# ------------------------------------------------------------------------- captioned Freesound


def clotho(root: Path) -> Items:
    """Clotho v2: folders and five captions a file for development, validation, evaluation."""
    columns = ("file_name", *(f"caption_{number}" for number in range(1, 6)))
    for name, split in (("development", "train"), ("validation", "valid"), ("evaluation", "test")):
        table = root / f"clotho_captions_{name}.csv"
        seconds = _clotho_seconds(root / f"clotho_metadata_{name}.csv")
        folders = _existing([root / name, root / f"clotho_audio_{name}" / name], root / name)
        for line, row in _rows(table, columns):
            file = row["file_name"].strip()
            sentences = (" ".join(row[column].split()) for column in columns[1:])
            captions = tuple(dict.fromkeys(filter(None, sentences)))
            if not file or not captions:
                yield Skipped(f"{table.name} line {line}", split, "no file or no caption")
                continue
            yield Recording(file, split, captions, _places(folders, (file,)), seconds.get(file))


def _clotho_seconds(table: Path) -> dict[str, tuple[float, float]]:
    """Of each file, by where it was cut out of a sound of Freesound; not all rows tell it."""
    found: dict[str, tuple[float, float]] = {}
    if not table.is_file():
        return found
    for _, row in _rows(table, ("file_name", "start_end_samples"), encoding="latin-1"):
        bounds = row["start_end_samples"].strip(" []").split(",")
        if len(bounds) == 2 and all(bound.strip().isdecimal() for bound in bounds):
            seconds = (int(bounds[1]) - int(bounds[0])) / CLOTHO_RATE_HZ
            found[row["file_name"].strip()] = expected(seconds)
    return found


def wavcaps(root: Path) -> Items:
    """WavCaps: the parts whose JSON is there, without what the blacklists of the set name."""
    files = {
        "AudioSet_SL": "as_final.json",
        "BBC_Sound_Effects": "bbc_final.json",
        "FreeSound": "fsd_final.json",
        "SoundBible": "sb_final.json",
    }
    tables = {part: root / "json_files" / part / file for part, file in files.items()}
    if not any(table.is_file() for table in tables.values()):
        raise InputError(f"{root / 'json_files'}: has no part of WavCaps; {_HINT}")
    barred = _wavcaps_barred(root / "json_files" / "blacklist")
    for part, table in tables.items():
        if not table.is_file():
            continue
        content = _json(table)
        folders = _existing(
            [root / top / f"{part}_flac" for top in ("waveforms", "audio", ".")] + [root / part],
            root / "waveforms" / f"{part}_flac",
        )
        for number, row in enumerate(content["data"] if isinstance(content, dict) else content):
            yield _wavcaps_row(f"{table.name} row {number + 1}", row, part, folders, barred)


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
        return Skipped(name, "train", "on a blacklist of WavCaps: in a data set to evaluate with")
    seconds = row.get("duration")
    known = isinstance(seconds, int | float) and seconds > 0
    return Recording(
        name, "train", (caption,), _places(folders, (file,)), expected(seconds) if known else None
    )


def _wavcaps_barred(folder: Path) -> set[str]:
    """Clips of the test sets of AudioCaps and Clotho, and of UrbanSound8K, ESC-50, VGGSound."""
    barred = set()
    for name in ("blacklist_exclude_test_ac.json", "blacklist_exclude_ub8k_esc50_vggsound.json"):
        if (folder / name).is_file():
            for part, files in _json(folder / name).items():
                barred.update(f"{part}/{str(file).removesuffix('.wav')}" for file in files)
    return barred


def fsd50k(root: Path) -> Items:
    """FSD50K: development audio as train and valid, evaluation audio as test."""
    truth = root / "FSD50K.ground_truth"
    known = {row[1] for _, row in _lines(truth / "vocabulary.csv") if len(row) == 3}
    for name in ("dev", "eval"):
        table = truth / f"{name}.csv"
        folder = root / f"FSD50K.{name}_audio"
        columns = ("fname", "labels", "split") if name == "dev" else ("fname", "labels")
        for line, row in _rows(table, columns):
            where, file = f"{table.name} line {line}", row["fname"].strip()
            split = {"train": "train", "val": "valid"}.get(row.get("split", ""), "test")
            labels = [label for label in row["labels"].split(",") if label in known]
            if not file or (name == "dev" and split == "test"):
                yield Skipped(where, split, "no file, or split neither train nor val")
            elif not labels:
                yield Skipped(file, split, f"no label of the vocabulary: {row['labels']!r}")
            else:
                caption = ", ".join(labels).replace("_", " ")
                seconds = (0.0, expected(FSD50K_SECONDS)[1])
                places = _places([folder], (f"{file}.wav",))
                yield Recording(file, split, (caption,), places, seconds)


# -------------------------------------------------------------------------------------- speech


def voicebank_demand(root: Path) -> Items:
    """Voicebank-DEMAND: clean speech as train and test, in noise as train_noisy and test_noisy.

    A clean file and its noisy twin have one id and must be equally long. Where the folders of
    transcripts are there, what is said is a second caption.
    """
    found = False
    for kind, split in (
        ("trainset_28spk", "train"),
        ("trainset_56spk", "train"),
        ("testset", "test"),
    ):
        clean, noisy = root / f"clean_{kind}_wav", root / f"noisy_{kind}_wav"
        if not clean.is_dir():
            continue
        found = True
        for path in sorted(clean.glob("*.wav")):
            said = _transcript(root / f"{kind}_txt" / f"{path.stem}.txt")
            twin = noisy / path.name
            yield Recording(path.stem, split, (SPEECH, *said), (str(path),), twin=str(twin))
            yield Recording(
                path.stem, f"{split}_noisy", (NOISY_SPEECH,), (str(twin),), twin=str(path)
            )
        for path in sorted(noisy.glob("*.wav")):
            if not (clean / path.name).is_file():
                yield Skipped(path.stem, f"{split}_noisy", "has no clean recording")
    if not found:
        raise InputError(f"{root}: has no clean_trainset_28spk_wav or clean_testset_wav; {_HINT}")


def _transcript(path: Path) -> tuple[str, ...]:
    try:
        words = " ".join(path.read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return ()
    return (f"a person says: {words}",) if words else ()


# ------------------------------------------------------------------------------------ reading


def _lines(
    table: Path, *, skip_spaces: bool = False, encoding: str = "utf-8-sig"
) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of a CSV file."""
    try:
        with table.open(newline="", encoding=encoding) as file:
            reader = csv.reader(file, skipinitialspace=skip_spaces)
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise InputError(f"{table}: cannot be read ({error.strerror}); {_HINT}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{table}: is no CSV file in UTF-8 ({error})") from error


def _rows(
    table: Path, columns: Sequence[str], *, encoding: str = "utf-8-sig"
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, fields by column) of a CSV file with a header; what is missing is empty."""
    lines = _lines(table, encoding=encoding)
    _, header = next(lines, (0, []))
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(f"{table}: its first line names no column {missing[0]!r}; {_HINT}")
    for line, fields in lines:
        if fields:
            padded = [*fields, *[""] * (len(header) - len(fields))]
            yield line, dict(zip(header, padded, strict=False))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {_HINT}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from error


def _dicts(rows: Any, path: Path) -> list[dict[str, str]]:
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"id", "name"} <= set(row) for row in rows
    ):
        raise InputError(f'{path}: is no list of labels with "id" and "name"; {_HINT}')
    return rows


def _existing(folders: Sequence[Path], default: Path) -> list[Path]:
    """Those that are there; where none is, the one that should be."""
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir())) or [default]


def _places(folders: Iterable[Path], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(os.path.join(folder, name) for name in names for folder in folders)


def _youtube_names(video: str, start_seconds: float) -> tuple[str, ...]:
    """How tools that fetch clips call the one of ten seconds that starts there."""
    whole, begin = int(start_seconds), _ms(start_seconds)
    return (
        f"{video}_{whole:06d}",
        f"{video}_{whole}",
        f"{video}_{begin}_{begin + 10_000}",
        f"{video}_{begin}",
        video,
    )


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def _text(path: Path) -> str:
    """The path with slashes; a name that is no UTF-8 is shown with question marks."""
    return path.as_posix().encode(errors="replace").decode()
