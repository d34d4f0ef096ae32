"""Recordings of any length, separated in tiles of frames.

A network that can stream (`Network.delay_frames`) carries its own past from tile to tile, and the
result equals one pass over the whole recording. Any other network runs on overlapping tiles: it
sees the last quarter of the tile before once more, and there the two estimates are cross-faded.
That is not equal to one pass, since the network sees no further than its tile.

Both ways delay the result by a fixed number of frames. The mixture's spectrum waits for the mask
that long, and the inverse STFT keeps the frames that overlap the next tile's samples.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.model import SIZING_FRAMES, make_network, shapes
from audiosep_jax.model.audiosep import activity_of, apply_mask, magnitude
from audiosep_jax.model.network import Engine, ModelConfig, Span
from audiosep_jax.model.stft import num_frames, padded_istft, padded_stft

UNKNOWN_FRAMES = 1 << 30  # total of a recording whose end has not come yet
OVERLAP = 0.25  # of a tile, for networks that cannot stream
TOP_BINS_SHARE = 0.125  # of the bins, whose gain is used for everything above the Nyquist frequency
# Copies of the largest activation that are in memory at once, as measured with ResUNet30.
LIVE_ACTIVATIONS = 3.3

State = dict[str, Any]


# ---------------------------------------------------------------------- delay, memory


def can_stream(config: ModelConfig) -> bool:
    """Return True if the network carries its own past, so that tiles equal one pass."""
    return make_network(config).delay_frames is not None


def delay_frames(config: ModelConfig, tile_frames: int) -> int:
    """Frames by which estimates lag behind their input."""
    delay = make_network(config).delay_frames
    return _up_to_grid(OVERLAP * tile_frames, config.time_stride) if delay is None else delay


def tail_frames(config: ModelConfig) -> int:
    """Frames of the past that the inverse STFT adds to the next hop."""
    return -(-config.window_samples // config.hop_samples) - 1


def latency_samples(config: ModelConfig, tile_frames: int) -> int:
    """Most samples that have to be fed before the estimate of the first of them is ready."""
    frames = delay_frames(config, tile_frames) + tile_frames - 1
    return frames * config.hop_samples + config.window_samples + 1


def tile_bytes(config: ModelConfig, tile_frames: int, *, whole: bool = False) -> int:
    """Estimate the memory of a tile of one mixture and query, without the weights.

    Args:
        whole: the tile is a whole recording, for which nothing is carried.
    """
    found = shapes(config)
    activation = max(map(_nbytes, jax.tree.leaves(found["intermediates"]))) / SIZING_FRAMES
    carried = sum(map(_nbytes, jax.tree.leaves(found.get("stream", {}))))
    delay = 0 if whole else delay_frames(config, tile_frames)
    seen = tile_frames if can_stream(config) else tile_frames + delay
    network = int(LIVE_ACTIVATIONS * activation * seen) + 8 * 4 * seen * config.num_bins
    if whole:
        return network
    return network + 2 * carried + 8 * delay * config.num_bins


def _nbytes(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _up_to_grid(frames: float, grid: int) -> int:
    return math.ceil(frames / grid) * grid


def bucket(config: ModelConfig, frames: int) -> int:
    """Round up to one of few numbers of frames, at most a quarter more: each is compiled once.

    A network that cannot stream cannot ignore the padding, either: the number stays as it is.
    """
    if not can_stream(config):
        return frames
    strides = -(-frames // config.time_stride)
    unit = 1 << max(0, strides.bit_length() - 3)
    return _up_to_grid(strides, unit) * config.time_stride


# ---------------------------------------------------------------------- one tile


def initial_state(
    config: ModelConfig,
    queries: int,
    channels: int,
    masks: int,
    tile_frames: int,
    engine: Engine | None = None,
) -> State:
    """Make the state that is carried between tiles, as it is at the start of a recording.

    Args:
        channels: of the mixture.
        masks: 1 for one that all channels share, or `channels`.
        engine: as in `separate_tile`.
    """
    delay, bins, rows = delay_frames(config, tile_frames), config.num_bins, queries * masks
    state: State = {
        "spectrum": jnp.zeros((channels, delay, bins), jnp.complex64),
        "tail": jnp.zeros((queries, channels, tail_frames(config), bins), jnp.complex64),
    }
    if can_stream(config):
        state["network"] = jax.tree.map(
            lambda leaf: jnp.zeros((rows, *leaf.shape[1:]), leaf.dtype),
            engine.state_shapes if engine else shapes(config).get("stream", {}),
        )
        return state
    return state | {"faded": jnp.zeros((queries, channels, delay, bins), jnp.complex64)}


@functools.partial(jax.jit, static_argnames=("config", "num"))
def spectrum_of(config: ModelConfig, padded_CS: jax.Array, num: int) -> jax.Array:
    """Spectrum `(C, num, F)` of samples that include their half windows, or zeros at the end."""
    return padded_stft(padded_CS, num, config.window_samples, config.hop_samples)


def separate_tile(
    config: ModelConfig,
    masks: int,
    variables: Any,
    state: State,
    spectrum_CTF: jax.Array,
    condition_NE: jax.Array | np.ndarray,
    span: Span,
    engine: Engine | None = None,
) -> tuple[jax.Array, jax.Array, State]:
    """Estimates of the next tile of frames.

    Args:
        masks: 1 for one that all channels share, made from their mean, or one for each channel.
        state: that of the tile before, at first `initial_state`; empty if the tile is the whole
            recording.
        span: of the tile; its total is `UNKNOWN_FRAMES` until the end of the recording is known.
        engine: runs the network, if it is not JAX, on its own copy of the variables.

    Returns:
        `(N, C, S)` with their half windows, of the frames from `span.first - delay_frames` on (with
        an empty state: from 0 on); about these frames `(N, 2 * masks, T)` the masks' gains in the
        topmost bins, then the probabilities that the target sounds (1 if the network has none);
        and the next state.
    """
    if engine is None:
        return _tile_in_jax(config, masks, variables, state, spectrum_CTF, condition_NE, span)
    rest = {name: value for name, value in state.items() if name != "network"}
    mag_BTF, condition_BE = _network_inputs(masks, rest, spectrum_CTF, condition_NE)
    mask_BTFC, carried = _by_engine(config, engine, state, mag_BTF, condition_BE, span)
    audio_NCS, about_NKT, state_out = _estimates(config, masks, rest, spectrum_CTF, mask_BTFC, span)
    return audio_NCS, about_NKT, state_out | carried


@functools.partial(jax.jit, static_argnames=("config", "masks"), donate_argnames="state")
def _tile_in_jax(
    config: ModelConfig,
    masks: int,
    variables: Any,
    state: State,
    spectrum_CTF: jax.Array,
    condition_NE: jax.Array,
    span: Span,
) -> tuple[jax.Array, jax.Array, State]:
    """`separate_tile` as one program."""
    rest = {name: value for name, value in state.items() if name != "network"}
    mag_BTF, condition_BE = _network_inputs(masks, rest, spectrum_CTF, condition_NE)
    options: dict[str, Any] = {"span": span} if can_stream(config) else {}
    if "network" in state:
        variables = {**variables, "stream": state["network"]}
        options["mutable"] = ["stream"]
    result: Any = make_network(config).apply(
        variables, mag_BTF, condition_BE, train=False, **options
    )
    carried = State()
    if "network" in state:
        result, updated = result
        carried["network"] = updated.get("stream", {})
    audio_NCS, about_NKT, state_out = _estimates(config, masks, rest, spectrum_CTF, result, span)
    return audio_NCS, about_NKT, state_out | carried


def _by_engine(
    config: ModelConfig,
    engine: Engine,
    state: State,
    mag_BTF: jax.Array,
    condition_BE: jax.Array,
    span: Span,
) -> tuple[np.ndarray, State]:
    """Mask, and the next state of the network."""
    if "network" in state:
        mask_BTFC, carried = engine.tile(mag_BTF, condition_BE, span, state["network"])
        return mask_BTFC, {"network": carried}
    frames = mag_BTF.shape[1]
    # A network that can stream gets a whole recording here, whose end is padded.
    count = int(span.total) if can_stream(config) else frames
    mask_BTFC = engine.whole(np.asarray(mag_BTF)[:, :count], condition_BE)
    missing = frames - mask_BTFC.shape[1]
    return np.pad(mask_BTFC, ((0, 0), (0, missing), (0, 0), (0, 0))), State()


@functools.partial(jax.jit, static_argnames="masks")
def _network_inputs(
    masks: int, state: State, spectrum_CTF: jax.Array, condition_NE: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Magnitudes `(B, T, F)` and conditions `(B, E)` of all queries and masks."""
    if "faded" in state:  # a network that carries no past receives the overlap once more
        spectrum_CTF = jnp.concatenate([state["spectrum"], spectrum_CTF], axis=1)
    mag_MTF = magnitude(spectrum_CTF.mean(0, keepdims=True) if masks == 1 else spectrum_CTF)
    return jnp.tile(mag_MTF, (len(condition_NE), 1, 1)), jnp.repeat(condition_NE, masks, axis=0)


@functools.partial(jax.jit, static_argnames=("config", "masks"), donate_argnames="state")
def _estimates(
    config: ModelConfig,
    masks: int,
    state: State,
    spectrum_CTF: jax.Array,
    mask_BTFC: jax.Array,
    span: Span,
) -> tuple[jax.Array, jax.Array, State]:
    """Results of `separate_tile` from the masks, without the network's own state."""
    channels, frames, _ = spectrum_CTF.shape
    state_out, first, tail = State(), span.first, 0
    past_CTF = state["spectrum"] if state else spectrum_CTF[:, :0]
    both_CTF = jnp.concatenate([past_CTF, spectrum_CTF], axis=1)
    mask_NMTFC = mask_BTFC.reshape(-1, masks, *mask_BTFC.shape[1:])
    queries = len(mask_NMTFC)
    gated = config.activity == "gate"
    masked_NCTF = apply_mask(both_CTF[:, : mask_NMTFC.shape[2]], mask_NMTFC, gated=gated)
    if "faded" in state:
        masked_NCTF, state_out["faded"] = _cross_faded(masked_NCTF, state["faded"])
    gain_NMT = _top_gain(both_CTF[:, :frames], masked_NCTF, masks)
    activity_NMT = jnp.ones_like(gain_NMT)
    if config.activity != "none":
        activity_NMT = jax.nn.sigmoid(activity_of(mask_NMTFC)[..., :frames])
    about_NKT = jnp.concatenate([gain_NMT, activity_NMT], axis=1)
    if state:
        state_out["spectrum"] = both_CTF[:, frames:]
        first, tail = first - past_CTF.shape[1], state["tail"].shape[2]
        masked_NCTF = jnp.concatenate([state["tail"], masked_NCTF], axis=2)
        state_out["tail"] = masked_NCTF[:, :, frames:]
    inside_T = Span(first - tail, span.total).inside(frames + tail)
    masked_BTF = masked_NCTF.reshape(queries * channels, *masked_NCTF.shape[2:])
    # Frames outside the recording may hold NaN: zero them, so that it cannot spread.
    masked_BTF = jnp.where(inside_T[:, None], masked_BTF, 0)
    hop = config.hop_samples
    audio_BS = padded_istft(masked_BTF, inside_T, config.window_samples, hop)
    if state:
        audio_BS = audio_BS[:, tail * hop : (tail + frames) * hop]
    return audio_BS.reshape(queries, channels, -1), about_NKT, state_out


def _cross_faded(tile_NCTF: jax.Array, faded_NCTF: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Add the faded end of the tile before; return what is final, and the end of this one, faded.

    A tile's window rises over the overlap with the tile before, and falls over that with the next.
    """
    overlap = faded_NCTF.shape[2]
    window_T = np.ones(tile_NCTF.shape[2], np.float32)
    window_T[:overlap] = (np.arange(overlap) + 0.5) / max(overlap, 1)
    window_T[len(window_T) - overlap :] = window_T[:overlap][::-1]
    sums_T = window_T[:overlap] + window_T[len(window_T) - overlap :]
    assert np.allclose(sums_T, 1), "the windows of overlapping tiles must add up to one"
    weighted_NCTF = tile_NCTF * window_T[:, None]
    start_NCTF = weighted_NCTF[:, :, :overlap] + faded_NCTF
    frames = len(window_T) - overlap
    final_NCTF = jnp.concatenate([start_NCTF, weighted_NCTF[:, :, overlap:frames]], axis=2)
    return final_NCTF, weighted_NCTF[:, :, frames:]


def _top_gain(spectrum_CTF: jax.Array, masked_NCTF: jax.Array, masks: int) -> jax.Array:
    """Ratio of amplitudes `(N, masks, T)` of estimate and mixture in the topmost bins."""
    top = max(1, round(TOP_BINS_SHARE * spectrum_CTF.shape[-1]))
    power_CT = (jnp.abs(spectrum_CTF[..., -1 - top : -1]) ** 2).sum(-1)
    masked_NCT = (jnp.abs(masked_NCTF[..., -1 - top : -1]) ** 2).sum(-1)
    if masks == 1:
        power_CT, masked_NCT = power_CT.sum(0, keepdims=True), masked_NCT.sum(1, keepdims=True)
    return jnp.sqrt(masked_NCT / jnp.maximum(power_CT, 1e-20))


def one_pass(
    config: ModelConfig,
    variables: Any,
    padded_S: jax.Array,
    condition_E: jax.Array,
    total: Any,
    engine: Engine | None = None,
) -> jax.Array:
    """Estimate of one mixture, both with their half windows; frames behind `total` are ignored."""
    frames = (len(padded_S) - config.window_samples) // config.hop_samples + 1
    spectrum_CTF = spectrum_of(config, padded_S[None], frames)
    condition_NE, span = condition_E[None], Span(0, total)
    return separate_tile(config, 1, variables, {}, spectrum_CTF, condition_NE, span, engine)[0][
        0, 0
    ]


# ---------------------------------------------------------------------- a stream of samples


class TileStream:
    """Separates a mixture that comes in blocks of any size, at the model's sample rate.

    Args:
        masks: as in `separate_tile`.
        tile_frames: frames that are computed at once, a multiple of `config.time_stride`.
        whole_frames: a recording of at most so many frames is separated in one pass at its end.
        group: queries that are computed at once.
        engine: as in `separate_tile`.
    """

    def __init__(
        self,
        config: ModelConfig,
        variables: Any,
        condition_NE: np.ndarray,
        *,
        channels: int,
        masks: int,
        tile_frames: int,
        whole_frames: int,
        group: int,
        engine: Engine | None = None,
    ) -> None:
        self._config, self._variables, self._masks = config, variables, masks
        self._engine = engine
        self._channels, self._tile, self._whole = channels, tile_frames, whole_frames
        self._conditions = [
            condition_NE[start : start + group] for start in range(0, len(condition_NE), group)
        ]
        self._states: list[State] = []
        self._half, self._padded = config.window_samples // 2, False
        self._held_CS = np.zeros((channels, 0), np.float32)  # from frame self._first on
        self._first = self._num_samples = 0
        self._delay = delay_frames(config, tile_frames)

    def feed(self, audio_CS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take samples; return those of the estimates, and frames, as `separate_tile` does."""
        self._num_samples += audio_CS.shape[1]
        self._held_CS = np.concatenate([self._held_CS, audio_CS], axis=1)
        if not self._padded and self._num_samples > self._half:
            self._pad(self._half, 0)
        ready = [self._nothing()]
        if self._states or self._held_CS.shape[1] > self._samples(self._whole):
            # Wait for one sample more, so that enough are left for the reflection at the end.
            while self._padded and self._held_CS.shape[1] > self._samples(self._tile):
                ready.append(self._next_tile(UNKNOWN_FRAMES))
        return _joined(ready)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rest of both."""
        if self._num_samples == 0:
            return self._nothing()
        self._pad(0 if self._padded else self._half, self._half)
        total = num_frames(self._num_samples, self._config.hop_samples)
        if not self._states and total <= self._whole:
            return self._in_one_pass(total)
        ready = [self._nothing()]
        end = self._half + self._num_samples
        while (self._first - self._delay) * self._config.hop_samples < end:
            ready.append(self._next_tile(total))
        return _joined(ready)

    def _pad(self, before: int, behind: int) -> None:
        """Reflect the recording at its ends, as `stft` does."""
        self._padded = True
        self._held_CS = np.pad(self._held_CS, ((0, 0), (before, behind)), mode="reflect")

    def _in_one_pass(self, total: int) -> tuple[np.ndarray, np.ndarray]:
        self._states = [{} for _ in self._conditions]
        audio_NCS, about_NKT = self._run(bucket(self._config, total), total)
        return audio_NCS[..., self._half :][..., : self._num_samples], about_NKT[..., :total]

    def _next_tile(self, total: int) -> tuple[np.ndarray, np.ndarray]:
        hop = self._config.hop_samples
        if not self._states:
            sizes = self._channels, self._masks, self._tile, self._engine
            self._states = [initial_state(self._config, len(x), *sizes) for x in self._conditions]
        audio_NCS, about_NKT = self._run(self._tile, total)
        frame = self._first - self._delay
        start, frames = frame * hop - self._half, slice(max(0, -frame), max(0, total - frame))
        end = self._num_samples - start if total < UNKNOWN_FRAMES else None
        self._first += self._tile
        self._held_CS = self._held_CS[:, self._tile * hop :]
        return audio_NCS[..., max(0, -start) : end], about_NKT[..., frames]

    def _run(self, frames: int, total: int) -> tuple[np.ndarray, np.ndarray]:
        """Separate the next `frames` frames, one group of queries after the other."""
        samples = self._samples(frames)
        missing = max(0, samples - self._held_CS.shape[1])
        padded_CS = np.pad(self._held_CS[:, :samples], ((0, 0), (0, missing)))
        spectrum_CTF = spectrum_of(self._config, padded_CS, frames)
        span, results = Span(np.int32(self._first), np.int32(total)), []
        for i, condition_NE in enumerate(self._conditions):
            audio_NCS, about_NKT, self._states[i] = separate_tile(
                self._config,
                self._masks,
                self._variables,
                self._states[i],
                spectrum_CTF,
                condition_NE,
                span,
                self._engine,
            )
            # Waits for the group: memory is budgeted for one at a time.
            results.append((np.asarray(audio_NCS), np.asarray(about_NKT)))
        audio, about = zip(*results, strict=True)
        return np.concatenate(audio), np.concatenate(about)

    def _samples(self, frames: int) -> int:
        return (frames - 1) * self._config.hop_samples + self._config.window_samples

    def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
        queries = sum(len(condition_NE) for condition_NE in self._conditions)
        audio_NCS = np.zeros((queries, self._channels, 0), np.float32)
        return audio_NCS, np.zeros((queries, 2 * self._masks, 0), np.float32)


def _joined(ready: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    audio, about = zip(*ready, strict=True)
    return np.concatenate(audio, axis=-1), np.concatenate(about, axis=-1)
