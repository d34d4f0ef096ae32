"""Several data sets as one, each with its share of the stream."""

import bisect
import hashlib
import itertools
import json
from collections.abc import Sequence

import numpy as np

from audiosep_jax.data.sources import Source, source_fingerprint
from audiosep_jax.errors import InputError

_SHARE_STEPS = 100  # parts of the smallest share; Grain keeps no more


class WeightedSources:
    """The clips of all sources, one source after another, numbered through.

    Targets and interferers come from each in proportion to its weight, whatever its size. Weights
    of () stand for the numbers of clips: every clip is then heard equally often.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] = ()) -> None:
        if not sources or any(not len(source) for source in sources):
            raise InputError("a data set of the mixture has no clips")
        self.sources = tuple(sources)
        self.sample_rate_hz = sources[0].sample_rate_hz
        lengths = [len(source) for source in sources]
        if len(self.sources) != len(weights or lengths):
            raise InputError(f"{len(weights)} weights for {len(sources)} data sets")
        self.weights = tuple(float(weight) for weight in weights or lengths)
        self.starts = (0, *itertools.accumulate(lengths))
        self._edges = np.cumsum(self.weights) / sum(self.weights)

    @property
    def proportions(self) -> tuple[int, ...]:
        """The weights as whole numbers."""
        return tuple(round(w / min(self.weights) * _SHARE_STEPS) for w in self.weights)

    @property
    def fingerprint(self) -> str:
        """Hash of the sources' own."""
        parts = json.dumps([source_fingerprint(source) for source in self.sources])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def draw(self, rng: np.random.Generator) -> int:
        """A random clip: a source by weight, any clip of it."""
        which = min(int(np.searchsorted(self._edges, rng.random(), "right")), len(self.sources) - 1)
        return self.starts[which] + int(rng.integers(len(self.sources[which])))

    def __len__(self) -> int:
        return self.starts[-1]

    def captions(self, index: int) -> tuple[str, ...]:
        """All sentences that describe the clip."""
        source, place = self._place(index)
        return source.captions(place)

    def name(self, index: int) -> str:
        """What the clip's own source calls it."""
        source, place = self._place(index)
        return source.name(place)

    def load(self, index: int) -> np.ndarray:
        """audio_S float32; AudioError if unusable."""
        source, place = self._place(index)
        return source.load(place)

    def _place(self, index: int) -> tuple[Source, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        which = bisect.bisect_right(self.starts, index) - 1
        return self.sources[which], index - self.starts[which]
