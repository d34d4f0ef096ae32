"""Data sets of clips of videos; see annotations.py for what the functions have in common."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from audiosep_jax.errors import InputError
from audiosep_jax.preparing import tables
from audiosep_jax.preparing.recordings import Recording, Skipped, expected

Items = Iterator[Recording | Skipped]
# Most seconds of clips whose annotations give no length; where a video ends they are shorter.
AUDIOCAPS_SECONDS = VGGSOUND_SECONDS = 10.0


def audioset(root: Path) -> Items:
    """AudioSet: `*segments*.csv` and `ontology.json` or `class_labels_indices.csv`."""
    names, segments = _audioset_labels(root), sorted(root.glob("*segments*.csv"))
    if not segments:
        raise InputError(f"{root}: has no segments CSV of AudioSet; {tables.HINT}")
    for table in segments:
        split = "test" if table.stem.startswith("eval") else "train"
        places = [
            *(root / top / table.stem for top in ("audio", "audios", ".")),
            root / "audios" / "unbalanced_train_segments" / table.stem,
            root / "audio",
        ]
        folders = tables.existing(places, root / "audio")
        for line, row in tables.lines(table, skip_spaces=True):
            if row and not row[0].startswith("#"):
                yield _segment(f"{table.name} line {line}", row, split, names, folders)


def _audioset_labels(root: Path) -> dict[str, str]:
    if (root / "ontology.json").is_file():
        rows = tables.read_json(root / "ontology.json")
        return {row["id"]: row["name"] for row in _dicts(rows, root / "ontology.json")}
    table = root / "class_labels_indices.csv"
    return {
        row["mid"]: row["display_name"] for _, row in tables.rows(table, ("mid", "display_name"))
    }


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
        video, split, (", ".join(labels),), tables.places(folders, files), expected(end - start)
    )


def vggsound(root: Path) -> Items:
    """VGGSound: `vggsound.csv` with rows of video, start, label, split."""
    table, folders = root / "vggsound.csv", tables.existing([root / "audio"], root / "audio")
    for line, row in tables.lines(table):
        where = f"{table.name} line {line}"
        if len(row) != 4 or not row[0] or not row[1].strip().isdecimal() or not row[2].strip():
            yield Skipped(where, "", "is not: video, start, label, split")
        elif row[3].strip() not in ("train", "test"):
            yield Skipped(where, "", f"split {row[3]!r} is neither train nor test")
        else:
            video, start, label, split = (field.strip() for field in row)
            places = tables.places(folders, _youtube_names(video, float(start)))
            seconds = (0.0, expected(VGGSOUND_SECONDS)[1])
            yield Recording(f"{video}_{int(start):06d}", split, (label,), places, seconds)


def audiocaps(root: Path) -> Items:
    """AudioCaps: `train.csv`, `val.csv`, `test.csv`; clips of the last two have five captions."""
    for name, split in (("train", "train"), ("val", "valid"), ("test", "test")):
        table = root / f"{name}.csv"
        folders = tables.existing(
            [root / "audio" / name, root / name, root / "audio"], root / "audio"
        )
        captions: dict[tuple[str, int], list[str]] = {}
        numbers: dict[tuple[str, int], str] = {}
        for line, row in tables.rows(table, ("audiocap_id", "youtube_id", "start_time", "caption")):
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
            places = tables.places(folders, [file for file in files if file])
            seconds = (0.0, expected(AUDIOCAPS_SECONDS)[1])
            name_ = f"{video}_{start_seconds}"
            yield Recording(name_, split, tuple(dict.fromkeys(sentences)), places, seconds)


def music(root: Path) -> Items:
    """MUSIC: `MUSIC*.json` with lists of videos by instrument or pair of instruments."""
    lists = sorted(root.glob("MUSIC*.json"))
    if not lists:
        raise InputError(f"{root}: has no MUSIC_solo_videos.json; {tables.HINT}")
    for table in lists:
        content = tables.read_json(table)
        videos = content.get("videos") if isinstance(content, dict) else None
        if not isinstance(videos, dict):
            raise InputError(f'{table}: has no "videos" by instrument')
        for instruments, names in videos.items():
            caption = " and ".join(instruments.split()).replace("_", " ")
            folders = tables.existing(
                [root / "audio" / instruments, root / "audio"], root / "audio"
            )
            for name in names if isinstance(names, list) else [names]:
                if not isinstance(name, str) or not name.strip() or not caption:
                    yield Skipped(f"{table.name} {instruments}", "train", f"no video: {name!r}")
                    continue
                places = tables.places(folders, (name, f"Y{name}"))
                yield Recording(name, "train", (caption,), places)


def _dicts(rows: Any, path: Path) -> list[dict[str, str]]:
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"id", "name"} <= set(row) for row in rows
    ):
        raise InputError(f'{path}: is no list of labels with "id" and "name"; {tables.HINT}')
    return rows


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
