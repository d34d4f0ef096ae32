"""AudioSep's state dict: names and layouts both ways, sizes, buffers, and what is refused."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from golden_towers import recipe_state
from separator_examples import (
    TINY,
    published_listing,
    published_variables,
    tiny_variables,
)

from audiosep_jax.errors import InputError
from audiosep_jax.model import variable_shapes
from audiosep_jax.model.resunet import ResUNetConfig
from audiosep_jax.weights.names import (
    COUNTER,
    PREFIX,
    export_separator,
    float32_state_dict,
    full_state_dict,
    import_separator,
    learnt_state_dict,
    model_config,
    num_steps,
    stft_buffers,
    stored_variables,
)


def tiny_state(prefix=""):
    return {prefix + name: tensor for name, tensor in export_separator(tiny_variables())}


def tree_bytes(variables):
    return {name: tensor.tobytes() for name, tensor in export_separator(variables)}


def test_export_returns_the_published_file():
    wanted = {k: s for k, s in published_listing().items() if not k.endswith(COUNTER)}
    exported = {PREFIX + name: tensor for name, tensor in export_separator(published_variables())}
    assert {name: tensor.shape for name, tensor in exported.items()} == wanted
    for name, tensor in recipe_state(wanted).items():
        np.testing.assert_array_equal(exported[name], tensor, err_msg=name)


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_round_trip_is_exact(prefix):
    back = import_separator(tiny_state(prefix), variable_shapes(TINY))
    assert tree_bytes(back) == tree_bytes(tiny_variables())


def test_layouts():
    # One element of each kind of kernel, at an index that differs on every axis.
    state, variables = tiny_state(), tiny_variables()
    base, film = variables["params"]["base"], variables["params"]["film"]
    conv = base["encoder_block2"]["conv_block1"]["conv1"]["kernel"]  # 3 to 4 channels
    weight = state["base.encoder_block2.conv_block1.conv1.weight"]
    assert weight.shape == (4, 3, 3, 3)
    assert conv[0, 2, 1, 3] == weight[3, 1, 0, 2]
    upsample = base["decoder_block1"]["conv1"]["kernel"]  # 4 to 4 channels, stride 1 by 4
    assert upsample[0, 2, 1, 3] == state["base.decoder_block1.conv1.weight"][1, 3, 0, 2]
    linear = film["encoder_block1->conv_block1->beta2"]["kernel"]  # 6 to 3
    assert linear[5, 2] == state["film.encoder_block1->conv_block1->beta2.weight"][2, 5]


def test_buffers_and_counters_are_passed_over():
    state = tiny_state(PREFIX)
    state |= {
        "ss_model.base.stft.conv_real.weight": np.zeros((17, 1, 32)),
        "ss_model.base.istft.ola_window": np.zeros(32),
        "ss_model.base.bn0.num_batches_tracked": np.zeros((), np.int64),
    }
    assert tree_bytes(import_separator(state, variable_shapes(TINY))) == tree_bytes(
        tiny_variables()
    )


def test_missing_tensor_is_named():
    state = tiny_state(PREFIX)
    del state["ss_model.base.bn0.running_var"]
    with pytest.raises(InputError, match=r"^the state dict has no base\.bn0\.running_var$"):
        import_separator(state, variable_shapes(TINY))


def test_extra_tensor_is_named():
    state = tiny_state() | {"base.encoder_block3.conv_block1.bn1.weight": np.zeros(4)}
    with pytest.raises(InputError, match=r"base\.encoder_block3\.conv_block1\.bn1\.weight"):
        import_separator(state, variable_shapes(TINY))


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("base.bn0.weight", (16,), "(17,)"),
        ("base.pre_conv.weight", (2, 1, 1), "(2, 1, 1, 1)"),
        ("base.encoder_block2.conv_block1.conv1.weight", (3, 4, 3, 3), "(4, 3, 3, 3)"),
        ("base.decoder_block2.conv1.weight", (3, 4, 2, 2), "(4, 3, 2, 2)"),
        ("film.encoder_block1->conv_block1->beta2.weight", (6, 3), "(3, 6)"),
    ],
)
def test_wrong_shape_is_named_in_the_published_layout(name, shape, wanted):
    state = tiny_state() | {name: np.zeros(shape, np.float32)}
    with pytest.raises(InputError) as error:
        import_separator(state, variable_shapes(TINY))
    assert str(error.value) == f"{name} has shape {shape}, the model needs {wanted}"


def shapes_only(shapes):
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def learnt_state(**changes):
    return learnt_state_dict(tiny_variables(), 7) | changes


def test_sizes_of_the_published_model():
    assert model_config(shapes_only(published_listing())) == ResUNetConfig()


def test_sizes_of_the_16_khz_variant():
    shapes = {n: (513,) if ".bn0." in n else s for n, s in published_listing().items()}
    wanted = ResUNetConfig(sample_rate_hz=16000, window_samples=1024, hop_samples=160)
    assert model_config(shapes_only(shapes)) == wanted


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_sizes_of_any_model_whose_rate_is_given(prefix):
    state = {name.replace(PREFIX, prefix): tensor for name, tensor in learnt_state().items()}
    assert model_config(state, 800, 8) == TINY
    with pytest.raises(InputError, match=r"window of 32 samples.*audiosep convert"):
        model_config(state)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("base.bn0.weight", None, "no base.bn0.weight: not a checkpoint of AudioSep"),
        ("base.bn0.weight", (17, 1), "base.bn0.weight has shape"),
        ("base.bn0.weight", (1 << 20,), "window of 2097150 samples"),
        ("base.pre_conv.weight", None, "no base.pre_conv.weight"),
        ("base.decoder_block2.conv1.weight", (3, 4), "decoder_block2.conv1.weight has shape"),
        ("base.decoder_block2.conv1.weight", (3, 4, 0, 2), "equal to 1"),
        ("base.encoder_block7.x", (1,), "no base.decoder_block3.conv1.weight"),
    ],
)
def test_sizes_that_cannot_be(name, shape, words):
    state = learnt_state()
    state.pop(PREFIX + name, None)
    if shape is not None:
        state[PREFIX + name] = np.broadcast_to(np.float32(0), shape)
    with pytest.raises(InputError, match=words):
        model_config(state, 800, 8)


@pytest.mark.parametrize("window", [16, 64, 2048])
def test_buffers_are_torchlibrosas(window):
    buffers = stft_buffers(window)
    n = np.arange(window)
    hann_S = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
    # As documented there: powers of the n-th root of unity.
    rows = n[:: max(1, window // 16)]
    dft_FS = np.power(np.exp(-2j * np.pi / window), np.outer(rows, n)) * hann_S
    idft_FS = np.power(np.exp(2j * np.pi / window), np.outer(rows, n)) / window * hann_S
    half = rows <= window // 2
    for part, pick in (("real", np.real), ("imag", np.imag)):
        stft_FS = buffers[f"base.stft.conv_{part}.weight"]
        istft_SF = buffers[f"base.istft.conv_{part}.weight"]
        assert (stft_FS.shape, istft_SF.shape) == (
            (window // 2 + 1, 1, window),
            (window, window, 1),
        )
        np.testing.assert_allclose(stft_FS[rows[half], 0], pick(dft_FS)[half], rtol=0, atol=6e-8)
        np.testing.assert_allclose(
            istft_SF[:, rows, 0], pick(idft_FS).T, rtol=0, atol=6e-8 / window * 2
        )
    np.testing.assert_array_equal(buffers["base.istft.ola_window"], (hann_S**2).astype("f4"))
    assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in buffers.values())


def test_buffers_transform_there_and_back():
    """The original's use of them: a product, and a product of the mirrored spectrum."""
    frame_S = np.random.default_rng(0).standard_normal(64)
    hann_S = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    b = stft_buffers(64)
    real_F = b["base.stft.conv_real.weight"][:, 0] @ frame_S
    imag_F = b["base.stft.conv_imag.weight"][:, 0] @ frame_S
    np.testing.assert_allclose(real_F + 1j * imag_F, np.fft.rfft(frame_S * hann_S), atol=1e-5)
    whole_real = np.concatenate([real_F, real_F[1:-1][::-1]])
    whole_imag = np.concatenate([imag_F, -imag_F[1:-1][::-1]])
    back_S = b["base.istft.conv_real.weight"][..., 0] @ whole_real
    back_S -= b["base.istft.conv_imag.weight"][..., 0] @ whole_imag
    np.testing.assert_allclose(back_S, frame_S * hann_S**2, atol=1e-6)


def test_full_is_learnt_and_buffers():
    full = full_state_dict(tiny_variables(), TINY, 5)
    learnt = learnt_state_dict(tiny_variables(), 5)
    assert full.keys() - learnt.keys() == {PREFIX + name for name in stft_buffers(32)}
    assert all(full[name].tobytes() == tensor.tobytes() for name, tensor in learnt.items())


def test_the_activity_is_stored_but_not_in_files_for_the_original_code():
    model = dataclasses.replace(TINY, activity="report")
    state, plain = (
        learnt_state_dict(tiny_variables(model), 5),
        learnt_state_dict(tiny_variables(), 5),
    )
    names = ("base.activity.hidden", "base.activity.logit", "film.activity")
    head = {f"{PREFIX}{name}.{leaf}" for name in names for leaf in ("weight", "bias")}
    assert state.keys() - plain.keys() == head
    assert full_state_dict(tiny_variables(model), model, 5).keys() - plain.keys() == {
        PREFIX + name for name in stft_buffers(32)
    }
    restored = stored_variables(model, state)
    jax.tree.map(np.testing.assert_array_equal, restored, tiny_variables(model))


def test_slots_are_stored_but_not_in_files_for_the_original_code():
    model = dataclasses.replace(TINY, slots=2)
    state = learnt_state_dict(tiny_variables(model), 5)
    assert state.keys() - learnt_state_dict(tiny_variables(), 5).keys() == {f"{PREFIX}slots"}
    assert f"{PREFIX}slots" not in full_state_dict(tiny_variables(model), model, 5)
    restored = stored_variables(model, state)
    jax.tree.map(np.testing.assert_array_equal, restored, tiny_variables(model))


def test_batches_are_counted_where_there_are_any():
    state = learnt_state()
    counters = {n: int(x) for n, x in state.items() if n.endswith("num_batches_tracked")}
    unused = {n for n, count in counters.items() if count == 0}
    assert unused == {f"{PREFIX}base.decoder_block{i}.bn2.num_batches_tracked" for i in (1, 2)}
    assert set(counters.values()) == {0, 7}
    assert num_steps(state) == 7


@pytest.mark.parametrize(
    ("counter", "steps"),
    [
        (np.int64(4_000_000), 4_000_000),
        (np.int64([3]), 3),
        (np.int64(-3), 0),
        (np.int64(1 << 60), 99_999_999),
        (np.float32(5), 0),
        (np.int64([1, 2]), 0),
    ],
)
def test_steps_of_any_counter(counter, steps):
    assert num_steps({"base.bn0.num_batches_tracked": counter}) == steps


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_precisions_become_float32(dtype):
    tensor = recipe_state({"base.x": (5, 4)})["base.x"].astype(dtype)
    (got,) = float32_state_dict({"base.x": tensor}).values()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.astype(dtype), tensor)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (np.zeros(3, np.int32), "base.x is of type int32"),
        (np.array([1, np.nan], np.float32), "base.x contains NaN"),
        (np.array([1, np.inf], np.float16), "base.x contains NaN or infinity"),
        (np.array([1e300]), "base.x contains NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_is_no_weight(tensor, words):
    with pytest.raises(InputError, match=words):
        float32_state_dict({"base.x": tensor})
