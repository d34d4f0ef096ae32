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

    Args:
        prefix: of all names but those of inputs and outputs.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
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
        self._outputs.append(_value(name, shape, np.float32))
        return self.named(name, value)

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Store an array."""
        from onnx import numpy_helper

        name = f"{self._prefix}constant {len(self._constants)}"
        array = np.array(value, dtype, order="C")  # ONNX stores rows, whatever was transposed
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Apply an operator with one result."""
        from onnx import helper

        name = f"{self._prefix}{kind} {len(self._nodes)}"
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

    def axes(self, *axes: int) -> str:
        """Store numbers of axes."""
        return self.constant(axes, np.int64)

    def inside(self, x: str, axis: int, first: str, total: str) -> str:
        """Tell which frames of `x`, numbered from `first` on, are at least 0 and below `total`."""
        zero, count = self.integer(0), self.op("Squeeze", self.size(x, axis), self.axes(0))
        frame_T = self.op("Add", self.op("Range", zero, count, self.integer(1)), first)
        started_T = self.op("GreaterOrEqual", frame_T, zero)
        return self.op("And", started_T, self.op("Less", frame_T, total))

    def after_past(self, name: str, shape: Sequence[int | str], x: str) -> str:
        """Put the state `name` in front of the frames of `x`, axis 2; keep as many of the last."""
        both = self.op("Concat", self.input(name, shape), x, axis=2)
        self.output(NEXT + name, self.cut(both, 2, -int(shape[2]), None), shape)
        return both

    def insert(self, model: "onnx.ModelProto", result: str) -> str:
        """Insert a graph, which reads the values here that its inputs are named after.

        Its other inputs become inputs, its outputs but the `result` outputs. No two names may be
        equal otherwise.
        """
        known = {name for node in self._nodes for name in node.output}
        self._inputs += [x for x in model.graph.input if x.name not in known]
        self._outputs += [x for x in model.graph.output if x.name != result]
        self._nodes += model.graph.node
        self._constants += model.graph.initializer
        return result

    def named(self, name: str, value: str) -> str:
        """Give a value a name of its own."""
        from onnx import helper

        self._nodes.append(helper.make_node("Identity", [value], [name]))
        return name

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


def with_float16_weights(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Store kernels and matrices as float16, to which they are rounded; return the same model.

    They are cast to float32 once, when an engine loads the graph, and it computes in float32.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for array in model.graph.initializer:
        if array.data_type == TensorProto.FLOAT and sum(size > 1 for size in array.dims) > 1:
            name, stored = array.name, f"{array.name} float16"
            values = numpy_helper.to_array(array).astype(np.float16)
            array.CopyFrom(numpy_helper.from_array(values, stored))
            casts.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _value(name: str, shape: Sequence[int | str], dtype: Any) -> Any:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, list(shape))
