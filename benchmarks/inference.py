"""The separator's GFLOP/s beside a matmul's, and the time of each of its parts.

    python benchmarks/inference.py --seconds 5 10 --repeats 7
    python benchmarks/inference.py --recordings 5 60 600 --queries 1 4 --checkpoint runs/esc50

Times ResUNet30 with random weights, waveform to waveform, in turns with large matmuls, so that a
busy machine slows both. Then times every part by itself. The target on two CPU cores is 0.65 of the
matmul's GFLOP/s.

With --recordings it times `Separator` instead, with several queries for stereo recordings at
44.1 kHz, which are resampled to the model's rate and back. --checkpoint names other weights.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from networks import block_modules, random_separator
from roofline import block_shapes, network_flop

from audiosep_jax.model import make_model
from audiosep_jax.model.audiosep import NUM_MASK_CHANNELS, apply_mask, magnitude
from audiosep_jax.model.layers import BatchNorm
from audiosep_jax.model.resunet import FiLM, ResUNetConfig
from audiosep_jax.model.stft import istft, num_frames, stft
from audiosep_jax.separation.separator import Separator

MATMUL_SIZES = (1024, 2048, 4096)
TARGET = 0.65
Part = tuple[Callable[..., Any], tuple[Any, ...]]  # a jitted function and its arguments


# ---------------------------------------------------------------------- what is timed


def whole_call(config: ResUNetConfig, variables: Any, num_samples: int) -> Part:
    """Make the network's call for one clip, from mixture to estimate."""
    audio_BS = jnp.asarray(_noise(1, num_samples))
    condition_BE = jnp.asarray(_noise(1, config.condition_features))
    apply = jax.jit(functools.partial(make_model(config).apply, train=False))
    return apply, (variables, audio_BS, condition_BE)


def parts(config: ResUNetConfig, variables: Any, num_samples: int) -> dict[str, Part]:
    """Make a call for every part of the network, on arrays of the shapes that it has there."""
    window, hop = config.window_samples, config.hop_samples
    frames = num_frames(num_samples, hop)
    spectrum_BTF = jnp.asarray(_noise(1, frames, window // 2 + 1), jnp.complex64)
    audio_BS, mask_BTFC = _noise(1, num_samples), _noise(*spectrum_BTF.shape, NUM_MASK_CHANNELS)
    forward = jax.jit(lambda x: stft(x, window, hop))
    back = jax.jit(lambda x: istft(x, num_samples, window, hop))
    mask = jax.jit(lambda x, y: (magnitude(x), apply_mask(x, y)))
    film, film_arguments = _film(config, variables)
    return {
        "stft": (forward, (jnp.asarray(audio_BS),)),
        "film": (film, film_arguments),
        "pre_conv": _pre_conv(config, variables, frames),
        **_blocks(config, variables, num_samples, film(*film_arguments)),
        "after_conv": _after_conv(config, variables, num_samples),
        "magnitude, mask": (mask, (spectrum_BTF, jnp.asarray(mask_BTFC))),
        "istft": (back, (spectrum_BTF,)),
    }


def matmul(size: int, dtype: str) -> Part:
    """Make the product of two square matrices, of 2 size^3 operations."""
    a, b = (jnp.asarray(_noise(size, size), dtype) for _ in range(2))
    return jax.jit(jnp.matmul), (a, b)


def _film(config: ResUNetConfig, variables: Any) -> Part:
    apply = jax.jit(FiLM(config).apply)
    params = {"params": variables["params"]["film"]}
    return apply, (params, jnp.asarray(_noise(1, config.condition_features)))


def _pre_conv(config: ResUNetConfig, variables: Any, frames: int) -> Part:
    """Make the call that normalises and pads the magnitudes and makes the first channels."""
    norm = BatchNorm()

    def pre_conv(bn0: Any, conv: Any, mag_BTF: jax.Array) -> jax.Array:
        x_BTF: Any = norm.apply(bn0, mag_BTF, train=False)
        x_BTF = jnp.pad(x_BTF, ((0, 0), (0, -frames % config.time_stride), (0, 0)))
        x_BTFC = x_BTF[:, :, :-1, None].astype(config.dtype)
        return x_BTFC * conv["kernel"][0, 0, 0].astype(config.dtype) + conv["bias"].astype(
            config.dtype
        )

    conv = variables["params"]["base"]["pre_conv"]
    mag_BTF = jnp.asarray(_noise(1, frames, config.num_bins))
    return jax.jit(pre_conv), (_of(variables, "bn0"), conv, mag_BTF)


def _after_conv(config: ResUNetConfig, variables: Any, num_samples: int) -> Part:
    *_, (_, frames, bins) = block_shapes(config, num_samples)

    def after_conv(conv: Any, x_BTFC: jax.Array) -> jax.Array:
        return x_BTFC @ conv["kernel"][0, 0].astype(config.dtype) + conv["bias"]

    x_BTFC = jnp.asarray(_noise(1, frames, bins, config.encoder_channels[0]), config.dtype)
    return jax.jit(after_conv), (variables["params"]["base"]["after_conv"], x_BTFC)


def _blocks(
    config: ResUNetConfig, variables: Any, num_samples: int, shifts: Any
) -> dict[str, Part]:
    found: dict[str, Part] = {}
    for name, module, inputs in block_modules(config, 1, num_samples):
        own = {shift: x for shift, x in shifts.items() if shift.startswith(f"{name}->")}
        apply = jax.jit(functools.partial(module.apply, train=False))
        found[name] = (apply, (_of(variables, name), *inputs, own))
    return found


def _of(variables: Any, name: str) -> dict[str, Any]:
    """Select the variables of one module of the network."""
    return {kind: tree["base"][name] for kind, tree in variables.items()}


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


# ---------------------------------------------------------------------- timing and report


def times_in_turns(work: dict[str, Part], repeats: int) -> dict[str, list[float]]:
    """Time each call `repeats` times, in turns, after a first call that compiles."""
    for function, arguments in work.values():
        jax.block_until_ready(function(*arguments))
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, (function, arguments) in work.items():
            started = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            seconds[name].append(time.perf_counter() - started)
    return seconds


def report_rates(config: ResUNetConfig, variables: Any, seconds: list[float], repeats: int) -> None:
    """Print GFLOP/s of the whole call and of the matmuls, best and median, and their ratio."""
    work = {f"matmul n={size}": matmul(size, config.dtype) for size in MATMUL_SIZES}
    gflop = {f"matmul n={size}": 2 * size**3 / 1e9 for size in MATMUL_SIZES}
    for duration in seconds:
        num_samples = round(duration * config.sample_rate_hz)
        work[f"{duration:g} s clip"] = whole_call(config, variables, num_samples)
        gflop[f"{duration:g} s clip"] = sum(network_flop(config, num_samples).values()) / 1e9
    measured = times_in_turns(work, repeats)
    rates = {name: [gflop[name] / s for s in row] for name, row in measured.items()}
    for name, row in rates.items():
        told = f"best {max(row):7.1f}  median {statistics.median(row):7.1f} GFLOP/s"
        print(f"{name:<16} {gflop[name]:7.1f} GFLOP  {told}")
    largest = rates[f"matmul n={MATMUL_SIZES[-1]}"]
    fastest = max(max(rates[f"matmul n={size}"]) for size in MATMUL_SIZES)
    for duration in seconds:
        row = rates[f"{duration:g} s clip"]
        print(
            f"{duration:g} s clip / matmul n={MATMUL_SIZES[-1]}: "
            f"best {max(row) / max(largest):.2f}, "
            f"median {statistics.median(a / b for a, b in zip(row, largest, strict=True)):.2f}; "
            f"best / fastest matmul of any size {max(row) / fastest:.2f} (target {TARGET})"
        )


def report_parts(config: ResUNetConfig, variables: Any, duration: float, repeats: int) -> None:
    """Print time and GFLOP/s of each part, and their sum beside the time of the whole call."""
    num_samples = round(duration * config.sample_rate_hz)
    flop = network_flop(config, num_samples)
    whole = whole_call(config, variables, num_samples)
    named = parts(config, variables, num_samples)
    measured = times_in_turns({"whole call": whole, **named}, repeats)
    medians = {name: statistics.median(row) for name, row in measured.items()}
    total = sum(medians[name] for name in named)
    print(f"\n{duration:g} s clip, each part by itself, medians:")
    for name in named:
        rate = f"{flop[name] / 1e9 / medians[name]:7.1f} GFLOP/s" if name in flop else ""
        print(f"{name:<16} {medians[name] * 1e3:8.1f} ms {medians[name] / total:6.1%}  {rate}")
    whole_ms = medians["whole call"] * 1e3
    print(f"{'sum of parts':<16} {total * 1e3:8.1f} ms; the whole call takes {whole_ms:.1f} ms")


def report_recordings(separator: Separator, lengths: list[float], queries: list[int]) -> None:
    """Print seconds of audio a second, for each length and number of queries."""
    features, rng = separator.model.condition_features, np.random.default_rng(0)
    for seconds in lengths:
        audio_CS = 0.1 * rng.standard_normal((2, round(44100 * seconds)), np.float32)
        taken = []
        for count in queries:
            condition_NE = rng.standard_normal((count, features), np.float32) / features**0.5
            ask = functools.partial(
                separator.separate_conditions, audio_CS, 44100, condition_NE, stereo="mid"
            )
            if seconds < 30:
                ask()  # compiles; in a longer one that is a small part
            started = time.perf_counter()
            ask()
            taken.append(time.perf_counter() - started)
            rate = f"{seconds / taken[-1]:7.2f} s of audio a second"
            times = f"{taken[-1] / taken[0]:.2f} times the first"
            print(f"{seconds:g} s, {count} queries: {rate}, {times}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 10.0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--recordings", type=float, nargs="+", metavar="SECONDS")
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--checkpoint")
    arguments = parser.parse_args()
    config = ResUNetConfig(dtype=arguments.dtype)
    if arguments.recordings:
        given = arguments.checkpoint
        separator = Separator.from_pretrained(given) if given else random_separator(config)
        report_recordings(separator, arguments.recordings, arguments.queries)
        return
    variables = random_separator(config).variables
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {arguments.dtype}")
    report_rates(config, variables, arguments.seconds, arguments.repeats)
    for duration in arguments.seconds:
        report_parts(config, variables, duration, arguments.repeats)


if __name__ == "__main__":
    main()
