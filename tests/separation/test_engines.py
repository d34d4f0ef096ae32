"""Engines: OpenVINO gives JAX's numbers in every way of separating, and is never a condition."""

import dataclasses
import gc
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from separator_examples import TINY, tiny_variables, unit_rows

from audiosep_jax import model as model_package
from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.errors import InputError
from audiosep_jax.files import CACHE_VARIABLE
from audiosep_jax.model import Kind
from audiosep_jax.model.resunet import ResUNet, ResUNetConfig
from audiosep_jax.separation import engines
from audiosep_jax.separation.separator import Separator

RATE_HZ = TINY.sample_rate_hz


@pytest.fixture(scope="module")
def separators(tmp_path_factory):
    """The same weights with JAX and with OpenVINO."""
    text = TextConfig(encoder="hashed")
    jax_separator = Separator(TINY, tiny_variables(), text, None, 0, engine="jax")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield jax_separator, dataclasses.replace(jax_separator, engine="openvino")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def snr_db(actual, expected):
    assert actual.shape == expected.shape
    error = np.mean((actual.astype(np.float64) - expected) ** 2)
    return 10 * math.log10(np.mean(expected.astype(np.float64) ** 2) / max(error, 1e-30))


@pytest.mark.parametrize("stereo", ["mid", "channels"])
@pytest.mark.parametrize("num_samples", [1, 999, 4001])
def test_arrays_of_any_length_with_several_queries(separators, num_samples, stereo):
    audio_CS, condition_NE = noise(2, num_samples), unit_rows(1, 3)
    expected, actual = (
        separator.separate_conditions(audio_CS, RATE_HZ, condition_NE, stereo=stereo)
        for separator in separators
    )
    assert snr_db(actual, expected) > 110
    assert snr_db(actual[0], expected[1]) < 60


def test_streams_in_tiles_at_another_rate(separators):
    audio_CS, condition_NE = noise(2, 7013), unit_rows(2, 2)
    results = []
    for separator in separators:
        stream = separator.stream(1100, condition_NE, 2, tile_seconds=0.2)
        parts = [stream.feed(block) for block in np.split(audio_CS, [7, 3000, 3001], axis=1)]
        results.append(np.concatenate([*parts, stream.finish()], axis=-1))
    assert snr_db(results[1], results[0]) > 110


def test_files_in_tiles(separators, tmp_path):
    audio_files.write(tmp_path / "in.wav", 0.1 * noise(2, 9001), RATE_HZ)
    found = []
    for name, separator in zip(("jax.wav", "openvino.wav"), separators, strict=True):
        path, condition_NE = tmp_path / name, unit_rows(3, 1)
        separator.separate_file(
            tmp_path / "in.wav", [path], condition_NE, tile_seconds=0.5, subtype="FLOAT"
        )
        found.append(audio_files.read(path)[0])
    assert snr_db(found[1], found[0]) > 110


def test_a_network_with_a_graph_that_cannot_stream(monkeypatch):
    """It runs in overlapping tiles with a cross-fade, as in JAX."""

    class Whole(ResUNet):
        delay_frames = None

    write_graph = model_package.NETWORKS["resunet"].write_graph
    monkeypatch.setitem(model_package.NETWORKS, "resunet", Kind(ResUNetConfig, Whole, write_graph))
    config = dataclasses.replace(TINY, hop_samples=10)  # programs are cached by their config
    separator = Separator(config, tiny_variables(), TextConfig(encoder="hashed"), None, 0)
    both = [dataclasses.replace(separator, engine=name) for name in ("jax", "openvino")]
    audio_CS, condition_NE = noise(1, 3001), unit_rows(4, 1)
    for seconds in (0.4, 10):
        expected, actual = (
            np.concatenate([stream.feed(audio_CS), stream.finish()], axis=-1)
            for stream in (
                x.stream(RATE_HZ, condition_NE, tile_seconds=seconds, live=False) for x in both
            )
        )
        assert snr_db(actual, expected) > 110


def test_compiled_graphs_come_from_the_cache(separators, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    audio_S, condition_NE = noise(500), unit_rows(5, 1)
    first = dataclasses.replace(separators[1])
    expected_NS = first.separate_conditions(audio_S, RATE_HZ, condition_NE)
    (stored,) = tmp_path.glob("openvino/*.blob")

    def no_graph(*_, **__):
        raise AssertionError("the graph was written again")

    kind = model_package.NETWORKS["resunet"]
    monkeypatch.setitem(model_package.NETWORKS, "resunet", kind._replace(write_graph=no_graph))
    second = dataclasses.replace(first)
    actual_NS = second.separate_conditions(audio_S, RATE_HZ, condition_NE)
    np.testing.assert_array_equal(actual_NS, expected_NS)
    monkeypatch.undo()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    stored.write_bytes(b"damaged")
    third = dataclasses.replace(first)
    actual_NS = third.separate_conditions(audio_S, RATE_HZ, condition_NE)
    np.testing.assert_array_equal(actual_NS, expected_NS)


def test_the_cache_keeps_what_was_used_last(separators, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(engines, "MAX_CACHE_BYTES", 0)
    for factor in (1, 2):
        separator = dataclasses.replace(separators[1], text_fingerprint=str(factor))
        separator.separate_conditions(noise(500), RATE_HZ, unit_rows(5, 1))
    assert len(list(tmp_path.glob("openvino/*.blob"))) == 1


def test_a_cache_that_cannot_be_written_is_no_obstacle(separators, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    separator = dataclasses.replace(separators[1])
    assert separator.separate_conditions(noise(500), RATE_HZ, unit_rows(5, 1)).any()


# ---------------------------------------------------------------------- which engine


@pytest.fixture
def weights(separators, tmp_path):
    separators[0].save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


def fails(call, words):
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_auto_takes_openvino_where_it_can_run(weights, monkeypatch):
    assert Separator.load(weights).engine == "openvino"
    assert Separator.load(weights, engine="jax").engine == "jax"
    kind = model_package.NETWORKS["resunet"]
    monkeypatch.setitem(model_package.NETWORKS, "resunet", kind._replace(write_graph=None))
    assert Separator.load(weights).engine == "jax"
    fails(lambda: Separator.load(weights, engine="openvino"), "the network resunet has none")
    fails(lambda: Separator.load(weights, engine="torch"), "engine='torch' must be")


def test_precision(weights, monkeypatch):
    class Core:
        def get_property(self, device, name):
            return ["FP32", "INT8"]

    trained_in_bfloat16 = Separator.load(weights, precision="float32")
    assert trained_in_bfloat16.model.dtype == "float32"
    fails(
        lambda: Separator.load(weights, engine="jax", precision="bfloat16"),
        "bfloat16 on a CPU needs the engine openvino",
    )
    monkeypatch.setattr(engines, "openvino_core", Core)
    fails(lambda: Separator.load(weights, precision="bfloat16"), "no bfloat16 arithmetic")


def test_float32_is_float32_and_bfloat16_is_near(separators):
    core = engines.openvino_core()
    audio_S, condition_NE = noise(2000), unit_rows(6, 1)
    expected_NS = separators[0].separate_conditions(audio_S, RATE_HZ, condition_NE)
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        model = dataclasses.replace(TINY, dtype="bfloat16")
        rounded = dataclasses.replace(separators[1], model=model)
        actual_NS = rounded.separate_conditions(audio_S, RATE_HZ, condition_NE)
        assert 30 < snr_db(actual_NS, expected_NS) < 90


# The search for packages in a process in which some are missing.
WITHOUT = """
import importlib.util, sys
missing, found = set(sys.argv[1].split(",")), importlib.util.find_spec
class Finder:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Finder())
importlib.util.find_spec = lambda name, *x: None if name in missing else found(name, *x)
"""
SEPARATE = """
import numpy as np
from audiosep_jax import Separator
from audiosep_jax.errors import InputError
separator = Separator.load(sys.argv[2])
estimate_S = separator.separate_conditions(np.ones(999, np.float32), 800, np.eye(1, 6))[0]
assert np.isfinite(estimate_S).all() and estimate_S.any()
print(separator.engine, "openvino_telemetry" in sys.modules)
try:
    print(Separator.load(sys.argv[2], engine="openvino").engine)
except InputError as error:
    print(error)
"""


def run(missing, weights):
    command = [sys.executable, "-c", WITHOUT + SEPARATE, missing, str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_works_as_before_without_openvino(weights):
    lines = run("openvino,onnx", weights)
    assert lines[0] == "jax False"
    assert lines[1] == ("the engine openvino is not installed: pip install 'audiosep-jax[cpu]'")


def test_openvino_reports_nothing(weights):
    """Its telemetry is not even imported."""
    assert run("none", weights) == ["openvino False", "openvino"]


def test_signals_are_safe_when_separators_are_gone(separators):
    """Signal handlers run on a stack that OpenVINO allocates."""
    for number in (0, 1, 0):
        again = [dataclasses.replace(separators[1], step=i) for i in range(2)]
        for separator in again:
            separator.separate_conditions(noise(500), RATE_HZ, unit_rows(number, 1))
        del again[0], separator, again
        gc.collect()
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received
