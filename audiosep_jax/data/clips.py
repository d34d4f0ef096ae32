"""Lists of audio files with captions: manifests, ESC-50, folders of classes or of speakers."""

import dataclasses
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from audiosep_jax import files
from audiosep_jax.audio.files import RECORDING_SUFFIXES
from audiosep_jax.data.captions import CaptionList, Captions, Strings
from audiosep_jax.encoders.encoder import file_caption
from audiosep_jax.errors import InputError

_MANIFEST = '{"data": [{"wav": ..., "caption": ...}, ...]}'
NUM_ENROLMENTS = 8  # recordings that a target is asked for by


@dataclasses.dataclass(frozen=True)
class Clip:
    """One audio file and the sentences that describe it."""

    path: Path
    captions: tuple[str, ...]


class Clips:
    """Compact list of audio files, each with all of its captions.

    Args:
        captions_of: captions by the path of the file.
        left_out: paths found beside the files that are no recordings.
        class_of: class by path, for files that have one.
    """

    def __init__(
        self,
        captions_of: Mapping[str, CaptionList],
        left_out: Iterable[str] = (),
        class_of: Mapping[str, str] | None = None,
    ) -> None:
        self.paths = Strings(captions_of)
        classes = [class_of.get(path, "") for path in captions_of] if class_of else ()
        self.captions = Captions(captions_of.values(), classes)
        self.left_out = tuple(left_out)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Clip:
        return Clip(Path(self.paths[index]), self.captions[index])

    def __iter__(self) -> Iterator[Clip]:
        return (self[index] for index in range(len(self)))


def manifest_clips(path: str | os.PathLike[str]) -> Clips:
    """Clips of AudioSep's `{"data": [{"wav": ..., "caption": ...}]}`.

    Paths are relative to the manifest; a caption may be a list of captions. A file that several
    rows name, as where there is a row for each caption, is one clip with all captions. A row may
    have a `"class"`. The row of a recording of several sounds may have `"sources"` in place of its
    caption: a list with the caption, or the list of captions, of each sound. `"image"` names
    pictures or films of what sounds, one or a list; they are queries beside captions, or alone.

    Raises:
        InputError: the file is no manifest, or the row that is named cannot be used.
    """
    texts: dict[str, str] = {}  # equal captions as one object

    def compact(row: dict[str, Any]) -> Any:
        """Row without its dict, which takes three times the memory."""
        wav, caption = row.get("wav"), row.get("caption")
        plain = row.keys().isdisjoint(("class", "image", "sources"))
        if isinstance(wav, str) and isinstance(caption, str) and plain:
            return wav, texts.setdefault(caption, caption)
        return row

    content = files.read_json(path, compact)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        holds = f"fields {', '.join(content)[:80]}" if isinstance(content, dict) else "no fields"
        raise InputError(f"{path}: has {holds}, but no list 'data'; it must be {_MANIFEST}")
    if not content["data"]:
        raise InputError(f'{path}: the list "data" of the manifest is empty; fill in {_MANIFEST}')
    folder = str(Path(path).parent)
    prefix = "" if folder == "." else folder.rstrip("/") + "/"
    captions_of: dict[str, tuple[Any, ...]] = {}
    class_of: dict[str, str] = {}
    for number, row in enumerate(content["data"]):
        wav, captions = row if isinstance(row, tuple) else _fields(row, path, number)
        captions = (captions,) if isinstance(captions, str) else tuple(captions)
        if not wav.strip() or not all(_is_filled(item) for item in captions):
            empty = "caption" if wav.strip() else '"wav"'
            raise InputError(f"{path}: row {number + 1} (data[{number}]) has an empty {empty}")
        path_of_clip = _joined(prefix, wav)
        if isinstance(row, dict):
            captions += _pictures(row, prefix, f"{path}: row {number + 1} (data[{number}])")
        if isinstance(row, dict) and row.get("class"):
            class_of[path_of_clip] = row["class"]
        known = captions_of.setdefault(path_of_clip, captions)
        if known is not captions:
            captions_of[path_of_clip] = tuple(dict.fromkeys(known + captions))
    return Clips(captions_of, class_of=class_of)


def _is_filled(captions: str | tuple[str, ...]) -> bool:
    texts = (captions,) if isinstance(captions, str) else captions
    return bool(texts) and all(map(str.strip, texts))


def _fields(row: Any, path: object, number: int) -> tuple[str, Sequence[Any]]:
    """(path, captions) of a row of a manifest that is not a plain pair of strings.

    The captions of several sounds are a tuple for each sound.
    """
    where = f"{path}: row {number + 1} (data[{number}])"
    if not isinstance(row, dict):
        raise InputError(f'{where} is {_shown(row)}, not {{"wav": ..., "caption": ...}}')
    key = "sources" if "sources" in row else "caption"
    alone = row.get("image") and "caption" not in row
    for name in ("wav",) if alone else ("wav", key):
        if row.get(name) in (None, []):
            raise InputError(f'{where} has no "{name}"; its fields are {", ".join(row)}')
    wav, captions = row["wav"], [] if alone else _listed(row[key])
    if not isinstance(wav, str):
        raise InputError(f'{where}: "wav" is {_shown(wav)}, not the path of a file')
    if key == "sources":
        captions = [tuple(item) if isinstance(item, list) else (item,) for item in captions]
    for caption in itertools.chain(*captions) if key == "sources" else captions:
        if not isinstance(caption, str):
            raise InputError(f"{where}: its caption is {_shown(caption)}, not text; quote it")
    if not isinstance(row.get("class") or "", str):
        raise InputError(f'{where}: "class" is {_shown(row["class"])}, not the name of a class')
    return wav, captions


def _pictures(row: dict[str, Any], prefix: str, where: str) -> tuple[str, ...]:
    """Captions that name the pictures of a row of a manifest."""
    if "image" in row and "sources" in row:
        raise InputError(f'{where} has "image" and "sources"; a picture is a query of one sound')
    captions = []
    for image in _listed(row.get("image") or []):
        if not isinstance(image, str) or not image.strip():
            raise InputError(f'{where}: "image" is {_shown(image)}, not the path of a picture')
        try:
            captions.append(file_caption("image", _joined(prefix, image)))
        except OSError as error:
            raise InputError(f"{where}: image {error.filename}: {error.strerror}") from error
    return tuple(captions)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]


def _joined(prefix: str, wav: str) -> str:
    """Path of a file relative to a folder, in the form that pathlib gives it.

    A row costs a microsecond less than with pathlib, which would add up over millions of them.
    """
    wav = os.path.expanduser(wav) if wav.startswith("~") else wav
    name = wav if wav.startswith("/") else prefix + wav
    if "\\" in wav and not os.path.exists(name):  # written on Windows
        name = name.replace("\\", "/")
    if "//" in name or "/./" in name or name.startswith("./") or name.endswith(("/", "/.")):
        return str(Path(name))
    return name


def esc50_clips(root: str | os.PathLike[str], folds: Iterable[int]) -> Clips:
    """Clips of the given folds of a folder laid out as ESC-50; captions are the categories."""
    root, folds = Path(root), sorted(set(folds))
    table, audio = root / "meta" / "esc50.csv", root / "audio"
    if not audio.is_dir():
        raise InputError(f"{audio}: no such folder, so {root} is not laid out as ESC-50")
    captions_of = {}
    for line, row in files.read_csv(table, ("filename", "fold", "category")):
        for column in ("filename", "fold", "category"):
            if not row[column]:
                raise InputError(f"{table}: line {line} has no {column!r}")
        if not row["fold"].isdecimal():
            raise InputError(f"{table}: line {line} has fold {row['fold']!r}, not a number")
        if int(row["fold"]) in folds:
            captions_of[str(audio / row["filename"])] = (_folder_caption(row["category"]),)
    if not captions_of:
        raise InputError(f"{table}: no clip in folds {', '.join(map(str, folds))}")
    return Clips(captions_of)


def class_folder_clips(root: str | os.PathLike[str]) -> Clips:
    """Clips below `root/<class name>/`, at any depth; captions are the names of the classes.

    Files are taken for recordings by their suffix. `left_out` of the result names all other files,
    files that are in no class folder, and linked folders, which are not followed; it leaves out
    hidden files.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    entries = sorted(path for path in root.iterdir() if path.name[0] != ".")
    captions_of: dict[str, tuple[str, ...]] = {}
    left_out = [str(path) for path in entries if not path.is_dir()]
    for folder in filter(Path.is_dir, entries):
        caption = _folder_caption(folder.name)
        for path in _files_below(folder):
            linked = os.path.islink(path) and os.path.isdir(path)
            if linked or not path.lower().endswith(RECORDING_SUFFIXES):
                left_out.append(path)
            elif not caption:
                raise InputError(f"{folder}: the folder's name gives no caption")
            else:
                captions_of[path] = (caption,)
    if not captions_of:
        found = f", only {left_out[0]}" if left_out else ""
        raise InputError(f"{root}: holds no folder with recordings{found}")
    return Clips(captions_of, left_out)


def speaker_clips(root: str | os.PathLike[str]) -> Clips:
    """Clips below `root/<speaker>/`, at any depth; captions are other recordings of the speaker.

    Those are the `NUM_ENROLMENTS` files that follow the clip's own in a random order of the
    speaker's files, which depends on their names alone. The class of a clip is its speaker.

    Raises:
        InputError: a speaker has one file only, or there is none.
    """
    folders = class_folder_clips(root)
    files_of: dict[str, list[str]] = {}
    for path in folders.paths:
        files_of.setdefault(Path(path).relative_to(root).parts[0], []).append(path)
    captions_of, class_of = {}, {}
    for speaker, paths in files_of.items():
        if len(paths) < 2:
            raise InputError(f"{paths[0]}: is the only file of its speaker; two are needed")
        ring = sorted(paths, key=lambda path: zlib.crc32(os.fsencode(os.path.relpath(path, root))))
        count = min(NUM_ENROLMENTS, len(ring) - 1)
        captions = [file_caption("voice", path) for path in [*ring, *ring[:count]]]
        for place, path in enumerate(ring, start=1):
            captions_of[path] = tuple(captions[place : place + count])
            class_of[path] = speaker
    return Clips(captions_of, folders.left_out, class_of)


def _files_below(folder: Path) -> list[str]:
    """Files below a folder and linked folders in it, sorted; not those that are hidden."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        found += [os.path.join(parent, name) for name in [*names, *linked] if name[0] != "."]
    return sorted(found)


def _folder_caption(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split())
