"""ONNX graphs of networks, which engines other than JAX run.

A network's graph computes what `Network.__call__` does in evaluation, in float32, for any B and T:

    magnitude (B, T, F), condition (B, E) -> mask (B, T, F, C)

The graph of a stream takes a tile, whose T is a multiple of `config.time_stride`. It has the inputs
`first` and `total` of `Span` as well, int64 `(1,)`, and an input for every array that the network
carries from tile to tile, zero at first. The output for the next tile has the same name behind
`NEXT`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

OPSET = 18
IR_VERSION = 9  # of the first releases with this opset
NEXT = "next "  # in front of the name of a state, for its value after the tile

# onnx is imported where it is used, since only the extra `cpu` installs it.


class Graph:
    """An ONNX graph while it is written: every method returns the name of a value.

    Arrays have their channels in front of frames and bins, `BCTF`, as ONNX convolutions need it.
    """

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, shape: Sequence[int | str], dtype: Any = np.float32) -> str:
        """Declare an input; a string in the shape names a size that a call decides on."""
        self._inputs.append(_value(name, shape, dtype))
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str]) -> str:
        """Make a value an output, under a name of its own."""
        from onnx import helper

        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(_value(name, shape, np.float32))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Store an array."""
        from onnx import numpy_helper

        name = f"constant {len(self._constants)}"
        array = np.array(value, dtype, order="C")  # ONNX stores rows, whatever was transposed
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Apply an operator with one result."""
        from onnx import helper

        name = f"{kind} {len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def cut(self, x: str, axis: int, start: Any, end: Any) -> str:
        """Keep `start` to `end` of an axis, integers that may count from the end, or values."""
        places = [self._index(start), self._index(np.iinfo(np.int64).max if end is None else end)]
        return self.op("Slice", x, *places, self.constant([axis], np.int64))

    def size(self, x: str, axis: int) -> str:
        """Size of an axis, as an array of one integer."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def integer(self, value: int) -> str:
        """Store a scalar integer."""
        return self.constant(value, np.int64)

    def _index(self, value: Any) -> str:
        return value if isinstance(value, str) else self.constant([value], np.int64)

    def model(self, name: str) -> "onnx.ModelProto":
        """Return the finished graph."""
        from onnx import helper

        parts = self._nodes, name, self._inputs, self._outputs, self._constants
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(
            helper.make_graph(*parts), opset_imports=[opset], ir_version=IR_VERSION
        )


def _value(name: str, shape: Sequence[int | str], dtype: Any) -> Any:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, list(shape))
