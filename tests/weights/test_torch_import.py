"""Published names and layouts: there and back, and what is said of a wrong file."""

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
from audiosep_jax.weights.names import COUNTER, PREFIX, export_separator, import_separator


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


def test_tensor_under_two_names_is_refused():
    name = "base.bn0.weight"
    state = tiny_state() | {PREFIX + name: np.zeros_like(tiny_state()[name])}
    with pytest.raises(InputError, match=r"base\.bn0\.weight.*twice"):
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
