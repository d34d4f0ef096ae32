"""ONNX files: numpy, soundfile and onnxruntime make of them the numbers of the separator."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from separator_examples import TINY, shy_variables, unit_rows

from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.separation.export import export_onnx, main
from audiosep_jax.separation.separator import Separator

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx_separate.py"
ALONE = """
import runpy, sys
for name in ("audiosep_jax", "jax", "onnx", "scipy"):
    sys.modules[name] = None  # importing it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# A window that is no multiple of the hop, a time pool that is not a power of two, and a gate.
MODEL = dataclasses.replace(
    TINY,
    window_samples=32,
    hop_samples=5,
    condition_features=512,
    time_pools=(3, 1),
    activity="gate",
)


@pytest.fixture(scope="module")
def separator():
    return Separator(MODEL, shy_variables(MODEL), TextConfig(), None, 7)


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 0.2


def snr_db(actual, expected):
    assert actual.shape == expected.shape
    error = np.mean((actual.astype(np.float64) - expected) ** 2)
    return 10 * math.log10(np.mean(expected.astype(np.float64) ** 2) / max(error, 1e-30))


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(path, mixture_BS, condition_BE):
    inputs = {"mixture": mixture_BS, "condition": condition_BE}
    return session(path).run(["estimate"], inputs)[0]


def separate(separator, mixture_BS, condition_BE):
    rate_hz = separator.model.sample_rate_hz
    return np.concatenate(
        [
            separator.separate_conditions(mixture_S, rate_hz, condition_E[None])
            for mixture_S, condition_E in zip(mixture_BS, condition_BE, strict=True)
        ]
    )


def test_one_file_for_every_length_and_batch(tmp_path, separator):
    import onnx

    path = export_onnx(separator, tmp_path / "any.onnx")
    onnx.checker.check_model(path, full_check=True)
    for batch, num_samples in ((1, 1), (2, 2), (1, 16), (3, 1000)):
        mixture_BS, condition_BE = noise(batch, num_samples), unit_rows(1, batch, 512)
        expected_BS = separate(separator, mixture_BS, condition_BE)
        assert snr_db(run(path, mixture_BS, condition_BE), expected_BS) > 105
    assert not run(path, np.zeros((1, 100), np.float32), unit_rows(1, 1, 512)).any()


def test_the_activity_is_an_output_of_a_network_that_tells_it(tmp_path, separator):
    path, mixture_BS = export_onnx(separator, tmp_path / "any.onnx"), noise(1, 1000)
    condition_BE = unit_rows(1, 1, 512)
    inputs = {"mixture": mixture_BS, "condition": condition_BE}
    (actual_BT,) = session(path).run(["activity"], inputs)
    stream = separator.stream(separator.model.sample_rate_hz, condition_BE, live=False)
    stream.feed(mixture_BS)
    stream.finish()
    assert np.ptp(stream.activity_NT) > 0.01
    np.testing.assert_allclose(actual_BT, stream.activity_NT, rtol=0, atol=1e-5)


def test_float16_weights_take_half_and_are_computed_with_in_float32(tmp_path, separator):
    import onnx

    paths = [export_onnx(separator, tmp_path / x, dtype=x) for x in ("float32", "float16")]
    mixture_BS, condition_BE = noise(1, 1000), unit_rows(1, 1, 512)
    full_BS, half_BS = (run(path, mixture_BS, condition_BE) for path in paths)
    assert 55 < snr_db(half_BS, full_BS) < 90
    kernels = [
        [x for x in onnx.load(path).graph.initializer if len(x.dims) > 1 and x.dims[0] == 512]
        for path in paths
    ]
    assert {x.data_type for x in kernels[0]} == {onnx.TensorProto.FLOAT}
    assert {x.data_type for x in kernels[1]} == {onnx.TensorProto.FLOAT16}
    assert paths[1].stat().st_size < 0.7 * paths[0].stat().st_size


@pytest.mark.parametrize("options", [[], ["--stream"]])
def test_the_example_needs_nothing_else(tmp_path, separator, options, capsys):
    separator.save_pretrained(tmp_path / "weights")
    path, mixture_BS = tmp_path / "tiny.onnx", noise(2, 777)
    sentences = ["--text", "rain", "--text", "a dog"]
    assert main([str(path), "--checkpoint", str(tmp_path / "weights"), *sentences, *options]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    soundfile.write(tmp_path / "in.wav", mixture_BS.T, 800, subtype="FLOAT")
    command = [sys.executable, "-c", ALONE, EXAMPLE, path, "in.wav", "a dog", "out.wav"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    actual_SC, rate_hz = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert rate_hz == 800
    assert snr_db(actual_SC.T, separator.separate(mixture_BS, 800, "a dog")) > 105


def test_options_of_the_other_format(tmp_path, capsys):
    for name, option in (
        ("a.onnx", ["--platforms", "cpu"]),
        ("a.onnx", ["--tile_seconds", "1"]),
        ("a.jax", ["--stream"]),
        ("a.jax", ["--dtype", "float16"]),
    ):
        assert main([str(tmp_path / name), *option]) == 2
        assert f"error: {option[0]}: is no option of --format " in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
