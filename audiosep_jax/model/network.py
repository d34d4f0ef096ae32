"""The interface between a network and everything that runs it."""

from typing import Annotated, Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from audiosep_jax.errors import InputError
from audiosep_jax.settings import section

# What is done with the probabilities that a network has for the target's activity: nothing, as it
# has none; they are reported; or estimates fade to silence with them, too (not in training).
Activity = Literal["none", "report", "gate"]
Size = Annotated[int, Field(ge=1, le=2**20)]


@section
class ModelConfig:
    """Settings that every network has; a network derives its own section from them.

    A derived class gives `network` a default, its name in `NETWORKS`. `dtype` is the type of the
    network's activations; parameters, statistics, masks and spectra keep their own.
    """

    network: str
    sample_rate_hz: Size = 32000
    window_samples: Annotated[int, Field(ge=2, le=2**20, multiple_of=2)] = 2048
    hop_samples: Size = 320
    condition_features: Size = 512
    # Number of learnt conditions, for sounds that no query describes. With `loss.assign=any` the
    # loss compares 2^slots assignments.
    slots: Annotated[int, Field(ge=0, le=8)] = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.hop_samples > self.window_samples // 2:
            raise InputError(
                f"hop_samples={self.hop_samples} must be at most half of "
                f"window_samples={self.window_samples}"
            )

    @property
    def num_bins(self) -> int:
        """Bins of the STFT."""
        return self.window_samples // 2 + 1

    @property
    def activity(self) -> Activity:
        """Use of the target's activity; "none" unless the network's section has such a field."""
        return "none"

    @property
    def time_stride(self) -> int:
        """Tiles are cut at multiples of this many frames."""
        return 1


class Span(NamedTuple):
    """Position of an input in its recording: index of its first frame, and frames of the whole.

    Both may be traced integers. Frames before 0 and from `total` on are not part of the recording.
    """

    first: Any
    total: Any

    def inside(self, count: int) -> jax.Array:
        """Mark those of the `count` frames from `first` on that belong to the recording."""
        frame_T = self.first + jnp.arange(count)
        return (frame_T >= 0) & (frame_T < self.total)


def after_past(module: nn.Module, name: str, num_kept: int, x_BT: jax.Array) -> jax.Array:
    """Put the frames that are kept of the past in front of `(B, T, ...)`; keep the last frames.

    They are kept in the module's variable `name` of the collection "stream".
    """
    if num_kept == 0:
        return x_BT
    batch, frames, *shape = x_BT.shape
    past = module.variable("stream", name, jnp.zeros, (batch, num_kept, *shape), x_BT.dtype)
    both_BT = jnp.concatenate([past.value, x_BT], axis=1)
    past.value = both_BT[:, frames:]
    return both_BT


class Network(nn.Module):
    """Base class of networks that turn a magnitude spectrogram and a condition into a mask.

    Attributes:
        config: the network's section of the experiment.
        mask_channels: channels of the result, which `audiosep.apply_mask` interprets.
        axis_name: mapped axis over which training computes batch statistics, if any.
    """

    config: ModelConfig
    mask_channels: int
    axis_name: str | None = None

    @property
    def delay_frames(self) -> int | None:
        """Frames by which the mask of a stream lags behind its input; None: cannot stream.

        A network that cannot stream is run on overlapping tiles and never receives a `span`.
        """
        return None

    def __call__(
        self,
        mag_BTF: jax.Array,
        condition_BE: jax.Array,
        *,
        train: bool,
        span: Span | None = None,
    ) -> jax.Array:
        """Compute mask channels `(B, T, F, mask_channels)`.

        A network whose `config.activity` is not "none" returns a mask of `audiosep.with_activity`.

        With a `span`, T is a multiple of `config.time_stride`, frames outside of the recording may
        hold anything, and the mask inside must not depend on them. If, in addition, the collection
        "stream" is mutable, the input continues that of the call before: the network keeps there
        what it needs of the past, and its result is that of `delay_frames` frames earlier.
        """
        raise NotImplementedError


class Engine(Protocol):
    """Runs the evaluation of one network, with its variables, in place of JAX."""

    @property
    def state_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Arrays that `tile` carries for one row; they are zero at the start of a recording."""
        ...

    def whole(self, mag_BTF: Any, condition_BE: Any) -> np.ndarray:
        """Compute mask channels as `Network.__call__` without a span does."""
        ...

    def tile(
        self, mag_BTF: Any, condition_BE: Any, span: Span, state: Any
    ) -> tuple[np.ndarray, Any]:
        """Compute mask channels as `Network.__call__` in a stream does, and the next state."""
        ...
