"""From the folder of a data set as it is downloaded to recordings with captions.

Each function takes the folder and gives, in the order of the annotations, recordings and what it
had to leave out of them. It reads annotations only: whether a file is there and whole is looked at
when it is decoded. docs/data.md says where the parts of each folder come from.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from audiosep_jax.data import sources
from audiosep_jax.data.synthetic import SyntheticSource
from audiosep_jax.errors import InputError
from audiosep_jax.preparing import tables
from audiosep_jax.preparing.recordings import Recording, Skipped, expected
from audiosep_jax.preparing.youtube_sets import Items, audiocaps, audioset, music, vggsound

ESC50_FOLDS = (1, 2, 3, 4, 5)
FSD50K_SECONDS = 30.0
CLOTHO_RATE_HZ = 44100
SPEECH = "a person speaking"
NOISY_SPEECH = "a person speaking in noise"


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


# ------------------------------------------------------------------------- captioned Freesound


def clotho(root: Path) -> Items:
    """Clotho v2: folders and five captions a file for development, validation, evaluation."""
    columns = ("file_name", *(f"caption_{number}" for number in range(1, 6)))
    for name, split in (("development", "train"), ("validation", "valid"), ("evaluation", "test")):
        table = root / f"clotho_captions_{name}.csv"
        seconds = _clotho_seconds(root / f"clotho_metadata_{name}.csv")
        folders = tables.existing([root / name, root / f"clotho_audio_{name}" / name], root / name)
        for line, row in tables.rows(table, columns):
            file = row["file_name"].strip()
            sentences = (" ".join(row[column].split()) for column in columns[1:])
            captions = tuple(dict.fromkeys(filter(None, sentences)))
            if not file or not captions:
                yield Skipped(f"{table.name} line {line}", split, "no file or no caption")
                continue
            yield Recording(
                file, split, captions, tables.places(folders, (file,)), seconds.get(file)
            )


def _clotho_seconds(table: Path) -> dict[str, tuple[float, float]]:
    """Of each file, by where it was cut out of a sound of Freesound; not all rows tell it."""
    found: dict[str, tuple[float, float]] = {}
    if not table.is_file():
        return found
    for _, row in tables.rows(table, ("file_name", "start_end_samples"), encoding="latin-1"):
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
    parts = {part: root / "json_files" / part / file for part, file in files.items()}
    if not any(table.is_file() for table in parts.values()):
        raise InputError(f"{root / 'json_files'}: has no part of WavCaps; {tables.HINT}")
    barred = _wavcaps_barred(root / "json_files" / "blacklist")
    for part, table in parts.items():
        if not table.is_file():
            continue
        content = tables.read_json(table)
        folders = tables.existing(
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
        name,
        "train",
        (caption,),
        tables.places(folders, (file,)),
        expected(float(seconds or 0)) if known else None,
    )


def _wavcaps_barred(folder: Path) -> set[str]:
    """Clips of the test sets of AudioCaps and Clotho, and of UrbanSound8K, ESC-50, VGGSound."""
    barred: set[str] = set()
    for name in ("blacklist_exclude_test_ac.json", "blacklist_exclude_ub8k_esc50_vggsound.json"):
        if (folder / name).is_file():
            for part, files in tables.read_json(folder / name).items():
                barred.update(f"{part}/{str(file).removesuffix('.wav')}" for file in files)
    return barred


def fsd50k(root: Path) -> Items:
    """FSD50K: development audio as train and valid, evaluation audio as test."""
    truth = root / "FSD50K.ground_truth"
    known = {row[1] for _, row in tables.lines(truth / "vocabulary.csv") if len(row) == 3}
    for name in ("dev", "eval"):
        table = truth / f"{name}.csv"
        folder = root / f"FSD50K.{name}_audio"
        columns = ("fname", "labels", "split") if name == "dev" else ("fname", "labels")
        for line, row in tables.rows(table, columns):
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
                places = tables.places([folder], (f"{file}.wav",))
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
        raise InputError(
            f"{root}: has no clean_trainset_28spk_wav or clean_testset_wav; {tables.HINT}"
        )


def _transcript(path: Path) -> tuple[str, ...]:
    try:
        words = " ".join(path.read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return ()
    return (f"a person says: {words}",) if words else ()


def _text(path: Path) -> str:
    """The path with slashes; a name that is no UTF-8 is shown with question marks."""
    return path.as_posix().encode(errors="replace").decode()
