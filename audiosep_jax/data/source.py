"""The interface of a data set, and the keys of the batches that are made of it.

    mixture    (B, S) float32   input of the network
    target     (B, S) float32   the clip in it that the caption describes
    condition  (B, E) float32   embedding of the caption, L2-normalised
    bad_clips  (B, M) int32     indices of clips skipped while making that row, padded with -1

With `mixing.num_queries` above 1, `condition` is (B, K, E): a caption for each sound of each clip.
Then there is also

    member     (B, K) float32   1: for a sound of the target, -1: of the rest, 0: unused

For evaluation there are also lists of N strings: `caption`, and `source_id` (the target's name).
"""

import functools
import hashlib
import json
from collections.abc import Iterable
from os.path import basename

import numpy as np

from audiosep_jax.data.captions import Captions, shared
from audiosep_jax.data.mixing import Audio
from audiosep_jax.encoders.encoder import query_of


class Source:
    """Base class of data sets: a list of mono clips with captions.

    A source is picklable, and several threads may call it.

    Attributes:
        sample_rate_hz: rate of the clips.
        left_out: paths that were found beside the clips and are no recordings.
    """

    sample_rate_hz: int
    left_out: tuple[str, ...] = ()

    @functools.cached_property
    def captions(self) -> Captions:
        """The sentences that describe each clip, at least one for each."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.captions)

    def name(self, index: int) -> str:
        """Name of the clip in messages: its path or id."""
        raise NotImplementedError

    def load(self, index: int) -> Audio:
        """The clip at `sample_rate_hz`; AudioError if unusable, also where it is sliced."""
        raise NotImplementedError

    @functools.cached_property
    def recordings(self) -> np.ndarray:
        """Index of each recording's first clip, and `len(self)`.

        A recording is one file. A source offers it as one clip, or as several if it is stored in
        pieces.
        """
        return shared(np.arange(len(self) + 1))

    @property
    def num_recordings(self) -> int:
        """Number of recordings that the clips belong to."""
        return len(self.recordings) - 1

    @property
    def fingerprint(self) -> str:
        """Hash of the clips' file names, captions and classes, in order, wherever the files are."""
        encode = json.encoder.encode_basestring_ascii  # json.dumps would take most of the time
        queries = map(query_of, self.captions.texts)
        texts = [encode(x if kind == "text" else basename(x)) for kind, x in queries]
        digest = hashlib.sha256()
        numbers_and_class = self.captions.all_numbers(), self.captions.classes()
        several = self.captions.most_sounds()[1] > 1
        rows = zip(self.names(), *numbers_and_class, strict=True)
        for index, (name, numbers, own_class) in enumerate(rows):
            cells = [encode(basename(name)), *(texts[number] for number in numbers)]
            cells += [encode(own_class)] if own_class else []
            cells += map(str, self.captions.sounds(index)) if several else []
            digest.update(f"[{', '.join(cells)}]\n".encode())
        return digest.hexdigest()[:16]

    def names(self) -> Iterable[str]:
        """Names of all clips, in order."""
        return map(self.name, range(len(self)))
