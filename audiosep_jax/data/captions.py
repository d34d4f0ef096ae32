"""Captions of all clips of a data set, in arrays that worker processes share.

A million clips take a few bytes each here; as tuples of strings they would take several hundred
megabytes in every process.
"""

import array
import collections
import copy
import itertools
import os
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from audiosep_jax.data.mixing import caption_key
from audiosep_jax.errors import InputError

_FILES = "/proc/self/fd"  # through which a file without a name can be opened
_writing = threading.Lock()
_NO_CLASS = -1  # key of the class of a clip without one
_FILE_BYTES = 1 << 16  # arrays of fewer bytes are pickled by value


class SharedArray(np.ndarray):
    """One-dimensional array whose pickle names a file, which other processes map into memory.

    The file has no directory entry on Linux, so a killed process leaves nothing behind. It exists
    as long as the array that was pickled.
    """

    _file: Any = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.nbytes < _FILE_BYTES:
            return np.asarray(self).__reduce_ex__(protocol)
        with _writing:  # Grain pickles for each worker in a thread
            if self._file is None:
                self._file = _written(self)
        has_name = isinstance(self._file.name, str)
        path = self._file.name if has_name else f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        return _mapped, (path, self.dtype, self.shape)


def shared(values: Any, dtype: Any = None) -> np.ndarray:
    """`values` as a `SharedArray`."""
    return np.asarray(values, dtype).view(SharedArray)


def _written(values: np.ndarray) -> Any:
    kind = tempfile.TemporaryFile if os.path.isdir(_FILES) else tempfile.NamedTemporaryFile
    file: Any = kind()
    try:
        file.write(np.asarray(values).data)
        file.flush()
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: {values.nbytes >> 20} MB for the worker processes cannot be "
            f"written ({error.strerror}); TMPDIR names another folder"
        ) from error
    return file


def _mapped(path: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype, "r", shape=shape))


class Strings:
    """Immutable list of strings in one block of UTF-8."""

    def __init__(self, strings: Iterable[str]) -> None:
        text, ends = bytearray(), array.array("q", [0])
        for string in strings:
            # File names may hold bytes that are not UTF-8, which Python maps to lone surrogates.
            text += string.encode("utf-8", "surrogatepass")
            ends.append(len(text))
        self._text, self._ends = shared(text, np.uint8), shared(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        begin, end = self._ends[index : index + 2].tolist()
        return str(self._text.data[begin:end], "utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        text, ends = self._text.data, self._ends.tolist()
        for begin, end in itertools.pairwise(ends):
            yield str(text[begin:end], "utf-8", "surrogatepass")


# Captions of a clip, or a list of the captions of each sound of a recording of several.
CaptionList = Sequence[str] | Sequence[Sequence[str]]


class Captions:
    """Captions of each of N clips.

    Each distinct caption is stored once, in `texts`, and has a number. Two captions have the same
    key, a number too, if they differ in case and spaces only. The class of a clip has a key, too,
    but is no caption: it is never a query.

    Args:
        lists: captions of each clip; at least one for each. Strings are captions of the whole clip.
            For a recording of several sounds each item is the list of the captions of one sound.
        classes: class of each clip, or an empty string; empty if no clip has one. It is read after
            the lists.
    """

    def __init__(self, lists: Iterable[CaptionList], classes: Sequence[str] = ()) -> None:
        numbers = collections.defaultdict[str, int](itertools.count().__next__)
        flat, sounds, ends = array.array("i"), array.array("H"), array.array("q", [0])
        for captions in lists:
            for sound, item in enumerate(captions):
                for caption in (item,) if isinstance(item, str) else item:
                    flat.append(numbers[caption])
                    sounds.append(0 if isinstance(item, str) else sound)
            ends.append(len(flat))
        arrays = np.frombuffer(flat, np.int32), np.frombuffer(ends, np.int64)
        self._fill(numbers, *arrays, classes or itertools.repeat("", len(ends) - 1))
        self._sounds = shared(np.frombuffer(sounds, np.uint16))

    @classmethod
    def joined(cls, parts: Sequence["Captions"]) -> "Captions":
        """Captions of the clips of several data sets, one set after another."""
        numbers: dict[str, int] = {}
        flat, counts = [], []
        for part in parts:
            own = [numbers.setdefault(text, len(numbers)) for text in part.texts]
            flat.append(np.array(own, np.int32)[part._flat])
            counts.append(np.diff(part._ends))
        whole = cls.__new__(cls)
        ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        classes = itertools.chain.from_iterable(part.classes() for part in parts)
        whole._fill(numbers, np.concatenate(flat), ends, classes)
        whole._sounds = shared(np.concatenate([part._sounds for part in parts]))
        return whole

    def _fill(
        self, texts: Collection[str], flat: np.ndarray, ends: np.ndarray, classes: Iterable[str]
    ) -> None:
        keys: dict[str, int] = {}
        key_of_text = [keys.setdefault(caption_key(text), len(keys)) for text in texts]
        names = map(caption_key, classes)
        key_of_clip = [keys.setdefault(name, len(keys)) if name else _NO_CLASS for name in names]
        self.texts = Strings(texts)
        self._flat, self._ends = shared(flat, np.int32), shared(ends, np.int64)
        self._keys, self._class_keys = shared(key_of_text, np.int32), shared(key_of_clip, np.int32)
        self._key_names = Strings(keys)
        self._alike: dict[int, set[int]] = {}  # keys in a group with a key

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> tuple[str, ...]:
        return tuple(self.texts[number] for number in self.numbers(index))

    def numbers(self, index: int) -> list[int]:
        """Numbers of the clip's captions, for `texts`."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        begin, end = self._ends[index : index + 2].tolist()
        numbers: list[int] = self._flat[begin:end].tolist()
        return numbers

    def sounds(self, index: int) -> list[list[int]]:
        """Numbers of the captions of each sound of the clip; of one sound, unless it has lists."""
        begin, end = self._ends[index : index + 2].tolist()
        numbers = collections.defaultdict[int, list[int]](list)
        sounds = self._sounds[begin:end].tolist()
        for sound, number in zip(sounds, self.numbers(index), strict=True):
            numbers[sound].append(number)
        return list(numbers.values())

    def most_sounds(self) -> tuple[int, int]:
        """(index of a clip with the most sounds, their number)."""
        if not len(self):
            return 0, 0
        place = int(self._sounds.argmax())
        index = int(np.searchsorted(self._ends, place, "right")) - 1
        return index, int(self._sounds[place]) + 1

    def all_numbers(self) -> Iterator[list[int]]:
        """Yield `numbers` of each clip, ten times faster than one by one."""
        flat = self._flat.tolist()
        for begin, end in itertools.pairwise(self._ends.tolist()):
            yield flat[begin:end]

    def repeated(self, counts: Sequence[int]) -> "Captions":
        """Captions with each clip `counts` times instead of once."""
        lists = zip(self.all_numbers(), counts, strict=True)
        numbers = [own for own, count in lists for _ in range(count)]
        repeated = copy.copy(self)
        repeated._flat = shared(list(itertools.chain.from_iterable(numbers)), np.int32)
        repeated._ends = shared([0, *itertools.accumulate(map(len, numbers))], np.int64)
        spans = zip(itertools.pairwise(self._ends.tolist()), counts, strict=True)
        sounds = [self._sounds[begin:end] for (begin, end), count in spans for _ in range(count)]
        repeated._sounds = shared(np.concatenate(sounds))
        repeated._class_keys = shared(np.repeat(self._class_keys, counts), np.int32)
        return repeated

    def grouped(self, groups: Iterable[Iterable[str]]) -> "Captions":
        """Captions where those, and classes, that are in one group exclude each other.

        `unknown` tells names that no clip has, which change nothing.
        """
        key_of = {name: key for key, name in enumerate(self._key_names)}
        grouped = copy.copy(self)
        grouped._alike = {}
        for group in groups:
            members = {key_of[name] for name in map(caption_key, group) if name in key_of}
            for key in members:
                grouped._alike[key] = grouped._alike.get(key, set()) | members
        return grouped

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are no caption and no class of any clip."""
        known = set(self._key_names)
        return [name for name in names if caption_key(name) not in known]

    def classes(self) -> Iterator[str]:
        """Yield the class of each clip, in lower case, or an empty string."""
        names = [*self._key_names, ""]  # the last is that of _NO_CLASS
        return (names[key] for key in self._class_keys.tolist())

    def keys(self, index: int) -> frozenset[int]:
        """Keys of the clip's captions and of its class."""
        keys = [int(self._keys[number]) for number in self.numbers(index)]
        own = int(self._class_keys[index])
        return frozenset(keys if own == _NO_CLASS else [*keys, own])

    def excluded(self, index: int) -> frozenset[int]:
        """Keys that no clip may have that is mixed with this one: its own and those like them."""
        keys = self.keys(index)
        return keys.union(*(self._alike.get(key, ()) for key in keys)) if self._alike else keys

    def name_of_keys(self, keys: Collection[int]) -> str:
        """Captions and classes that have these keys, for messages."""
        return ", ".join(sorted(self._key_names[key] for key in keys))

    def without(self, keys: Collection[int]) -> np.ndarray:
        """Indices of the clips that have none of the keys, ascending."""
        found = np.isin(self._class_keys, list(keys))
        found[self._owners()[np.isin(self._keys[self._flat], list(keys))]] = True
        return np.flatnonzero(~found)

    def lonely(self) -> int | None:
        """First clip that excludes every clip, so that none can be mixed with it."""
        keys, class_keys = self._keys[self._flat], self._class_keys
        # No clip excludes more clips than its keys occur in all, which rules out most of them.
        counts = np.bincount(np.concatenate([keys, class_keys]) + 1)
        counts[[key + 1 for key in self._alike]] = len(self)
        counts[_NO_CLASS + 1] = 0
        met = np.add.reduceat(counts[keys + 1], self._ends[:-1]) + counts[class_keys + 1]
        seen: set[frozenset[int]] = set()
        for index in np.flatnonzero(met >= len(self)).tolist():
            own = self.excluded(index)
            if own not in seen and not len(self.without(own)):
                return int(index)
            seen.add(own)
        return None

    def _owners(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), np.diff(self._ends))
