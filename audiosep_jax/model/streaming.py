"""The separator on a recording that comes in tiles; equal to one pass over the whole of it.

Every block of the network is local in time: a frame of its result depends on two frames either side
(two 3x3 convolutions). So every block keeps the last few frames of what came in, its own halo, in
front of the next tile, and gives its result as much later. Nothing is computed twice, where a halo
of the whole network's receptive field in front of and behind every tile would cost 640 frames a
tile for ResUNet30. The skip connections wait for the deeper levels. How long is derived from the
network's table, on the grids of its pooling: `stages`.

At the recording's own ends the convolutions see the zeros that they would pad with there, in every
layer; a tile's frames before the start or behind the end are held at zero for that.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.model.audiosep import NUM_MASK_CHANNELS, apply_mask, magnitude
from audiosep_jax.model.resunet import (
    BatchNorm,
    Block,
    DecoderBlock,
    EncoderBlock,
    FiLM,
    Pointwise,
    block_table,
)
from audiosep_jax.model.stft import num_frames, padded_istft, padded_stft

BLOCK_HALO = 2  # frames either side that the two 3x3 convolutions of a block look at
UNKNOWN_FRAMES = 1 << 30  # of a recording whose end has not come yet
TOP_BINS_SHARE = 0.125  # of the network's bins, whose gain stands for what lies above them

State = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A block in a stream; counted in its own frames, of `stride` STFT frames each.

    Its input comes `delay` frames late. It sees `before` frames of the past and then the tile; of
    the result, the tile's worth from `before - lag` on is right; `behind` frames of nothing make
    the last window of its pooling whole. A decoder's are those after upsampling, and `skip` is how
    many frames of its skip connection are kept.
    """

    block: Block
    stride: int
    bins: int
    delay: int = 0
    before: int = 0
    lag: int = 0
    behind: int = 0
    skip: int = 0


def stages(config: Any) -> tuple[list[Stage], int]:
    """The table's rows as a stream, and by how many STFT frames the mask comes late."""
    rows: list[Stage] = []
    skip_delays: list[int] = []
    stride, bins, delay = 1, config.window_samples // 2, 0
    for block in block_table(config):
        pool, bin_pool = block.stride
        if block.kind == "decoder":
            stride, bins, delay = stride // pool, bins * bin_pool, delay * pool
            before = _up_to_grid(2 * BLOCK_HALO, pool)
            skip = before + delay - skip_delays.pop()
            rows.append(Stage(block, stride, bins, delay, before, BLOCK_HALO, skip=skip))
            delay += BLOCK_HALO
            continue
        # Pooling sees whole windows: what is kept and what is given start on its grid.
        lag = _up_to_grid(delay + BLOCK_HALO, pool) - delay
        before = _up_to_grid(delay + lag + BLOCK_HALO, pool) - delay
        rows.append(Stage(block, stride, bins, delay, before, lag, -before % pool))
        delay += lag
        if block.kind == "encoder":
            skip_delays.append(delay)
            stride, bins, delay = stride * pool, bins // bin_pool, delay // pool
    return rows, delay


def tail_frames(config: Any) -> int:
    """Frames of the past that the inverse STFT adds to the next hop."""
    return -(-config.window_samples // config.hop_samples) - 1


def latency_samples(config: Any, tile_frames: int) -> int:
    """The most samples that come in before the estimate of the first of them goes out."""
    _, delay = stages(config)
    return (delay + tile_frames - 1) * config.hop_samples + config.window_samples


def tile_bytes(config: Any, tile_frames: int, *, whole: bool = False) -> int:
    """About what a tile of one mixture and query needs beside the weights, a `whole` one alone."""
    rows, delay = stages(config)
    size = 2 if config.dtype == "bfloat16" else 4
    # Measured: 3.1 times the widest decoder's input and skip connection, side by side.
    widest = max(row.bins * 2 * row.block.out_channels / row.stride for row in rows)
    spectrum = 8 * 4 * tile_frames * config.num_bins
    network = int(3.3 * widest * size * tile_frames) + spectrum
    if whole:
        return network
    carried = sum(math.prod(shape) for shape in _block_shapes(config, 1).values()) * size
    return network + 2 * carried + 8 * delay * config.num_bins


def initial_state(config: Any, queries: int, channels: int, masks: int) -> State:
    """What is carried between tiles, at the start of a recording.

    Args:
        channels: of the mixture.
        masks: 1 for one that all channels share, or `channels`.
    """
    _, delay = stages(config)
    shapes = _block_shapes(config, queries * masks)
    state = {name: jnp.zeros(shape, config.dtype) for name, shape in shapes.items()}
    tail = (queries, channels, tail_frames(config), config.num_bins)
    state["spectrum"] = jnp.zeros((channels, delay, config.num_bins), jnp.complex64)
    return {**state, "tail": jnp.zeros(tail, jnp.complex64)}


def _block_shapes(config: Any, batch: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for row in stages(config)[0]:
        block, (pool, bin_pool) = row.block, row.block.stride
        if block.kind == "decoder":
            low = (batch, row.before // pool, row.bins // bin_pool, block.in_channels)
            shapes[block.name] = low
            shapes[f"{block.name} skip"] = (batch, row.skip, row.bins, block.out_channels)
        else:
            shapes[block.name] = (batch, row.before, row.bins, block.in_channels)
    return shapes


@functools.partial(jax.jit, static_argnames=("config", "num"))
def spectrum_of(config: Any, padded_CS: jax.Array, num: int) -> jax.Array:
    """`(C, num, F)` of samples that have their half windows; zeros behind where they are fewer."""
    return padded_stft(padded_CS, num, config.window_samples, config.hop_samples)


@functools.partial(jax.jit, static_argnames=("config", "masks"), donate_argnames="state")
def separate_tile(
    config: Any,
    masks: int,
    variables: Any,
    state: State,
    spectrum_CTF: jax.Array,
    condition_NE: jax.Array,
    first: jax.Array,
    total: jax.Array,
) -> tuple[jax.Array, jax.Array, State]:
    """Estimates of the next tile of frames.

    Args:
        masks: 1 for one that all channels share, made from their mean, or one a channel.
        state: `initial_state` at first; an empty one says that this tile is all there is.
        first: the tile's first frame.
        total: frames of the recording; those behind are nothing. `UNKNOWN_FRAMES` until known.

    Returns:
        `(N, C, S)` with their half windows, of the frames from `first` - delay on (of an empty
        state: from 0 on); the mask's gain `(N, masks, T)` in the topmost bins in these frames; and
        the next state.
    """
    queries, (channels, frames, _) = len(condition_NE), spectrum_CTF.shape
    heard_MTF = spectrum_CTF.mean(0, keepdims=True) if masks == 1 else spectrum_CTF
    mask_BTFC, state_out = _masks(config, variables, state, heard_MTF, condition_NE, first, total)
    mask_NMTFC = mask_BTFC.reshape(queries, masks, *mask_BTFC.shape[1:])
    if state:
        both_CTF = jnp.concatenate([state["spectrum"], spectrum_CTF], axis=1)
        spectrum_CTF, state_out["spectrum"] = both_CTF[:, :frames], both_CTF[:, frames:]
        first = first - state["spectrum"].shape[1]
    masked_NCTF = apply_mask(spectrum_CTF, mask_NMTFC)
    gain_NMT = _top_gain(spectrum_CTF, masked_NCTF, masks)
    tail = 0
    if state:
        masked_NCTF = jnp.concatenate([state["tail"], masked_NCTF], axis=2)
        tail = state["tail"].shape[2]
        state_out["tail"] = masked_NCTF[:, :, frames:]
    inside_T = _inside(first - tail, frames + tail, total)
    masked_BTF = masked_NCTF.reshape(queries * channels, *masked_NCTF.shape[2:])
    # What is not there may be anything, but not a number that spreads.
    masked_BTF = jnp.where(inside_T[:, None], masked_BTF, 0)
    hop = config.hop_samples
    audio_BS = padded_istft(masked_BTF, inside_T, config.window_samples, hop)
    if state:
        audio_BS = audio_BS[:, tail * hop : (tail + frames) * hop]
    return audio_BS.reshape(queries, channels, -1), gain_NMT, state_out


def _top_gain(spectrum_CTF: jax.Array, masked_NCTF: jax.Array, masks: int) -> jax.Array:
    """Ratio of amplitudes `(N, masks, T)` of estimate and mixture in the topmost bins."""
    top = max(1, round(TOP_BINS_SHARE * spectrum_CTF.shape[-1]))
    power_CT = (jnp.abs(spectrum_CTF[..., -1 - top : -1]) ** 2).sum(-1)
    masked_NCT = (jnp.abs(masked_NCTF[..., -1 - top : -1]) ** 2).sum(-1)
    if masks == 1:
        power_CT, masked_NCT = power_CT.sum(0, keepdims=True), masked_NCT.sum(1, keepdims=True)
    return jnp.sqrt(masked_NCT / jnp.maximum(power_CT, 1e-20))


def _masks(
    config: Any,
    variables: Any,
    state: State,
    heard_MTF: jax.Array,
    condition_NE: jax.Array,
    first: jax.Array,
    total: jax.Array,
) -> tuple[jax.Array, State]:
    """The network `(N * M, T, F, 3)`, late by the delay of `stages`, and what it carries on."""
    queries, masks, frames = len(condition_NE), *heard_MTF.shape[:2]
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else None
    x_BTF = BatchNorm().apply(_of(variables, "bn0"), magnitude(heard_MTF), train=False)
    x_BTF = jnp.where(_inside(first, frames, total)[:, None], x_BTF, 0)  # type: ignore[arg-type]
    pre_conv = Pointwise(config.stem_channels, dtype)
    x_BTFC: Any = pre_conv.apply(_of(variables, "pre_conv"), x_BTF[:, :, :-1, None])
    x_BTFC = jnp.tile(x_BTFC, (queries, 1, 1, 1))
    film = FiLM(config)
    condition_BE = jnp.repeat(condition_NE, masks, axis=0)
    shifts: Any = film.apply({"params": variables["params"]["film"]}, condition_BE)
    rows, _ = stages(config)
    if not state:
        rows = [Stage(row.block, row.stride, row.bins) for row in rows]
    padded = -(-total // config.time_stride) * config.time_stride
    state_out: State = {}
    skips: list[jax.Array] = []
    for row in rows:
        start, count = first // row.stride - row.delay - row.before, frames // row.stride
        frames_seen = row.before + count + row.behind
        inside_T = _inside(start, frames_seen, padded // row.stride)
        options = {"shifts": shifts, "train": False, "inside_T": inside_T}
        run = _decoder if row.block.kind == "decoder" else _encoder
        x_BTFC = run(row, variables, dtype, state, state_out, x_BTFC, skips, options)
    after_conv = Pointwise(NUM_MASK_CHANNELS, dtype, heard_MTF.real.dtype)
    mask_BTFC: Any = after_conv.apply(_of(variables, "after_conv"), x_BTFC)
    return jnp.pad(mask_BTFC, ((0, 0), (0, 0), (0, 1), (0, 0))), state_out


def _encoder(
    row: Stage,
    variables: Any,
    dtype: Any,
    state: State,
    state_out: State,
    x_BTFC: jax.Array,
    skips: list[jax.Array],
    options: dict[str, Any],
) -> jax.Array:
    name, pool, count = row.block.name, row.block.stride[0], x_BTFC.shape[1]
    x_BTFC = _after_the_past(state, state_out, name, x_BTFC)
    x_BTFC = jnp.pad(x_BTFC, ((0, 0), (0, row.behind), (0, 0), (0, 0)))
    block: Any = EncoderBlock(row.block, dtype, None)
    pooled, skip = block.apply(_of(variables, name), x_BTFC, **options)
    start = row.before - row.lag
    if row.block.kind == "encoder":
        skips.append(skip[:, start : start + count])
    return pooled[:, start // pool : (start + count) // pool]


def _decoder(
    row: Stage,
    variables: Any,
    dtype: Any,
    state: State,
    state_out: State,
    x_BTFC: jax.Array,
    skips: list[jax.Array],
    options: dict[str, Any],
) -> jax.Array:
    name, count = row.block.name, x_BTFC.shape[1] * row.block.stride[0]
    x_BTFC = _after_the_past(state, state_out, name, x_BTFC)
    skip_BTFC = _after_the_past(state, state_out, f"{name} skip", skips.pop())
    block: Any = DecoderBlock(row.block, dtype, None)
    skip_BTFC = skip_BTFC[:, : row.before + count]
    y_BTFC = block.apply(_of(variables, name), x_BTFC, skip_BTFC, **options)
    start = row.before - row.lag
    return y_BTFC[:, start : start + count]


def _after_the_past(state: State, state_out: State, name: str, x_BTFC: jax.Array) -> jax.Array:
    """The tile behind the frames that are kept of the past; keeps as many of its own."""
    if not state:
        return x_BTFC
    past_BTFC = state[name]
    both_BTFC = jnp.concatenate([past_BTFC, x_BTFC.astype(past_BTFC.dtype)], axis=1)
    state_out[name] = both_BTFC[:, x_BTFC.shape[1] :]
    return both_BTFC


def _inside(first: Any, count: int, total: Any) -> jax.Array:
    """Which of `count` frames from `first` on are the recording's."""
    frame_T = first + jnp.arange(count)
    return (frame_T >= 0) & (frame_T < total)


def _of(variables: Any, name: str) -> dict[str, Any]:
    """The variables of one module of the network."""
    return {kind: tree["base"][name] for kind, tree in variables.items() if name in tree["base"]}


def _up_to_grid(frames: int, grid: int) -> int:
    return -(-frames // grid) * grid


def bucket(config: Any, frames: int) -> int:
    """A number of frames, at most a quarter more, such that there are few: one compilation each."""
    strides = -(-frames // config.time_stride)
    unit = 1 << max(0, strides.bit_length() - 3)
    return _up_to_grid(strides, unit) * config.time_stride


class CentredPadding:
    """The mirror image of half a window at either end of a stream, as `stft` puts it there."""

    def __init__(self, num_channels: int, half: int) -> None:
        self._half = half
        self._started = False
        self._held_CS = np.zeros((num_channels, 0), np.float32)

    def feed(self, audio_CS: np.ndarray) -> np.ndarray:
        """The samples, as soon as their image in front is known."""
        if self._started:
            together_CS = np.concatenate([self._held_CS, audio_CS], axis=1)
            self._held_CS = together_CS[:, -self._half - 1 :].copy()
            return audio_CS
        self._held_CS = np.concatenate([self._held_CS, audio_CS], axis=1)
        if self._held_CS.shape[1] <= self._half:
            return audio_CS[:, :0]
        self._started = True
        padded_CS = np.pad(self._held_CS, ((0, 0), (self._half, 0)), mode="reflect")
        self._held_CS = self._held_CS[:, -self._half - 1 :].copy()
        return padded_CS

    def finish(self) -> np.ndarray:
        """The image behind the end; all of what is shorter than half a window."""
        half = self._half
        if not self._started:
            return np.pad(self._held_CS, ((0, 0), (half, half)), mode="reflect")
        return np.pad(self._held_CS, ((0, 0), (0, half)), mode="reflect")[:, half + 1 :]


class TileStream:
    """Estimates of a mixture that comes in blocks, both at the model's rate.

    Args:
        masks: as in `separate_tile`.
        whole_frames: a recording of at most as many is separated in one pass at its end.
        group: queries that are computed at once.
    """

    def __init__(
        self,
        config: Any,
        variables: Any,
        condition_NE: np.ndarray,
        *,
        channels: int,
        masks: int,
        tile_frames: int,
        whole_frames: int,
        group: int,
    ) -> None:
        self._config, self._variables, self._masks = config, variables, masks
        self._channels, self._tile, self._whole = channels, tile_frames, whole_frames
        self._conditions = [
            condition_NE[start : start + group] for start in range(0, len(condition_NE), group)
        ]
        self._states: list[State] = []
        self._padding = CentredPadding(channels, config.window_samples // 2)
        self._held_CS = np.zeros((channels, 0), np.float32)  # from frame self._first on
        self._first = self._num_samples = 0
        self._delay = stages(config)[1]

    def feed(self, audio_CS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(estimate_NCS, gain_NMT) that are ready: the next samples, and the next frames."""
        self._num_samples += audio_CS.shape[1]
        self._hold(self._padding.feed(audio_CS))
        if not self._states and self._held_CS.shape[1] <= self._samples(self._whole):
            return self._nothing()
        ready = [self._nothing()]
        while self._held_CS.shape[1] >= self._samples(self._tile):
            ready.append(self._next_tile(UNKNOWN_FRAMES))
        return _joined(ready)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The rest."""
        if self._num_samples == 0:
            return self._nothing()
        self._hold(self._padding.finish())
        total = num_frames(self._num_samples, self._config.hop_samples)
        if not self._states and total <= self._whole:
            return self._in_one_pass(total)
        end = self._config.window_samples // 2 + self._num_samples
        ready = [self._nothing()]
        while (self._first - self._delay) * self._config.hop_samples < end:
            ready.append(self._next_tile(total))
        return _joined(ready)

    def _in_one_pass(self, total: int) -> tuple[np.ndarray, np.ndarray]:
        half = self._config.window_samples // 2
        results = self._run([{} for _ in self._conditions], bucket(self._config, total), total)
        audio_NCS = np.concatenate([audio for audio, _, _ in results])
        gain_NMT = np.concatenate([gain for _, gain, _ in results])
        return audio_NCS[..., half : half + self._num_samples], gain_NMT[..., :total]

    def _next_tile(self, total: int) -> tuple[np.ndarray, np.ndarray]:
        hop, half = self._config.hop_samples, self._config.window_samples // 2
        if not self._states:
            self._states = [
                initial_state(self._config, len(condition_NE), self._channels, self._masks)
                for condition_NE in self._conditions
            ]
        results = self._run(self._states, self._tile, total)
        self._states = [state for _, _, state in results]
        audio_NCS = np.concatenate([audio for audio, _, _ in results])
        gain_NMT = np.concatenate([gain for _, gain, _ in results])
        frame = self._first - self._delay
        start, frames = frame * hop - half, slice(max(0, -frame), max(0, total - frame))
        end = self._num_samples - start if total < UNKNOWN_FRAMES else None
        self._first += self._tile
        self._held_CS = self._held_CS[:, self._tile * hop :]
        return audio_NCS[..., max(0, -start) : end], gain_NMT[..., frames]

    def _run(
        self, states: list[State], frames: int, total: int
    ) -> list[tuple[np.ndarray, np.ndarray, State]]:
        samples = self._samples(frames)
        padded_CS = self._held_CS[:, :samples]
        missing = samples - padded_CS.shape[1]
        if missing:
            padded_CS = np.pad(padded_CS, ((0, 0), (0, missing)))
        spectrum_CTF = spectrum_of(self._config, padded_CS, frames)
        results = []
        for state, condition_NE in zip(states, self._conditions, strict=True):
            audio_NCS, gain_NMT, state = separate_tile(
                self._config,
                self._masks,
                self._variables,
                state,
                spectrum_CTF,
                condition_NE,
                np.int32(self._first),
                np.int32(total),
            )
            results.append((np.asarray(audio_NCS), np.asarray(gain_NMT), state))
        return results

    def _samples(self, frames: int) -> int:
        return (frames - 1) * self._config.hop_samples + self._config.window_samples

    def _hold(self, padded_CS: np.ndarray) -> None:
        self._held_CS = np.concatenate([self._held_CS, padded_CS], axis=1)

    def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
        queries = sum(len(condition_NE) for condition_NE in self._conditions)
        audio_NCS = np.zeros((queries, self._channels, 0), np.float32)
        return audio_NCS, np.zeros((queries, self._masks, 0), np.float32)


def _joined(ready: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    audio, gain = zip(*ready, strict=True)
    return np.concatenate(audio, axis=-1), np.concatenate(gain, axis=-1)
