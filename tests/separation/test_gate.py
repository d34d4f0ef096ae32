"""Presence, spans and the gate of networks that tell when the target sounds."""

import dataclasses

import numpy as np
import pytest
from separator_examples import TINY, shy_variables, unit_rows

from audiosep_jax.audio import files as audio_files
from audiosep_jax.encoders.encoder import TextConfig
from audiosep_jax.model import make_model
from audiosep_jax.model.audiosep import activity_of
from audiosep_jax.separation.separator import Separator

REPORT = dataclasses.replace(TINY, activity="report")
GATE = dataclasses.replace(TINY, activity="gate")
VARIABLES = shy_variables(GATE, scale=300, bias=1.0)
RATE_HZ, HOP = TINY.sample_rate_hz, TINY.hop_samples


def separator(model):
    return Separator(model, VARIABLES, TextConfig(encoder="hashed"), None, 0)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Two seconds of noise, of which one is loud."""
    audio_S = np.random.default_rng(0).standard_normal(2 * RATE_HZ).astype(np.float32)
    audio_S *= np.repeat([0.02, 0.2], RATE_HZ).astype(np.float32)
    path = tmp_path_factory.mktemp("gate") / "in.wav"
    audio_files.write(path, audio_S[None], RATE_HZ)
    return path


def one_pass(model, path, condition_NE):
    """Estimates `(N, S)` and probabilities `(N, T)`."""
    mixture_NS = np.repeat(audio_files.read(path)[0], len(condition_NE), axis=0)
    options = {"train": False, "mutable": ["intermediates"]}
    estimate_NS, sown = make_model(model).apply(VARIABLES, mixture_NS, condition_NE, **options)
    logit_NT = activity_of(sown["intermediates"]["mask"][0])
    return np.asarray(estimate_NS), 1 / (1 + np.exp(-np.asarray(logit_NT, np.float64)))


@pytest.mark.parametrize("model", [REPORT, GATE])
def test_presence_weighs_the_share_with_the_probabilities(recording, tmp_path, model):
    condition_NE = unit_rows(1, 2)
    estimate_NS, probability_NT = one_pass(model, recording, condition_NE)
    told = separator(model).separate_file(
        recording, [tmp_path / "a.wav", tmp_path / "b.wav"], condition_NE, tile_seconds=0.3
    )
    hop = RATE_HZ // 10
    energy_NT = (estimate_NS.reshape(2, -1, hop) ** 2).sum(-1)
    middle_T = (np.arange(20) * hop + hop // 2) // HOP
    mixture_T = (audio_files.read(recording)[0].reshape(-1, hop) ** 2).sum(-1)
    sure_NT = 1 - (1 - probability_NT[:, middle_T]) ** 0.125
    level_NT = np.sqrt(sure_NT * np.minimum(energy_NT / mixture_T, 1))
    weight_NT = energy_NT * level_NT**2
    expected_N = (weight_NT * level_NT).sum(1) / np.maximum(weight_NT.sum(1), 1e-30)
    np.testing.assert_allclose(told.presence_N, expected_N, rtol=0.01, atol=1e-6)
    assert told.presence_N[0] < 0.01 < told.presence_N[1]
    assert told.spans[0] == []


def test_the_stream_gives_the_probabilities_frame_by_frame(recording):
    audio_CS, condition_NE = audio_files.read(recording)[0], unit_rows(1, 2)
    _, expected_NT = one_pass(GATE, recording, condition_NE)
    stream = separator(GATE).stream(RATE_HZ, condition_NE, tile_seconds=0.3)
    parts = []
    for block_CS in np.array_split(audio_CS, 7, axis=1):
        stream.feed(block_CS)
        parts.append(stream.activity_NT)
    stream.finish()
    actual_NT = np.concatenate([*parts, stream.activity_NT], axis=1)
    np.testing.assert_allclose(actual_NT, expected_NT, atol=1e-4)


def test_the_residual_holds_what_the_gate_takes(recording, tmp_path):
    condition_NE = unit_rows(1, 1)
    found = {}
    for model in (REPORT, GATE):
        paths = [tmp_path / f"{model.activity}.wav", tmp_path / f"{model.activity} rest.wav"]
        how = {"residual": paths[1], "subtype": "FLOAT"}
        separator(model).separate_file(recording, paths[:1], condition_NE, **how)
        found[model.activity] = [audio_files.read(path)[0] for path in paths]
    mixture_CS = audio_files.read(recording)[0]
    for estimate_CS, rest_CS in found.values():
        np.testing.assert_allclose(estimate_CS + rest_CS, mixture_CS, rtol=0, atol=1e-8)
    (open_CS, _), (gated_CS, _) = found["report"], found["gate"]
    estimate_NS, _ = one_pass(GATE, recording, condition_NE)
    np.testing.assert_allclose(gated_CS, estimate_NS, atol=1e-5)
    assert (gated_CS**2).sum() < 0.8 * (open_CS**2).sum()


def test_the_gate_is_stored_with_the_weights_and_can_be_left_out(tmp_path):
    separator(GATE).save_pretrained(tmp_path)
    assert Separator.load(tmp_path, engine="jax").model == GATE
    again = Separator.load(tmp_path, engine="jax", gate=False)
    assert again.model == REPORT
    head = again.variables["params"]["base"]["activity"]["logit"]["kernel"]
    expected = VARIABLES["params"]["base"]["activity"]["logit"]["kernel"]
    np.testing.assert_array_equal(head, expected)
