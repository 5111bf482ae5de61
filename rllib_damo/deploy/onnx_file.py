"""The layers of a policy as an ONNX model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from rllib_damo.deploy.layers import Layer
from rllib_damo.errors import UsageError

OPSET = 17  # the first with LayerNormalization
_IR_VERSION = 8  # of the ONNX releases with this opset; older runtimes refuse newer ones
_OPERATORS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "elu": "Elu"}


def to_onnx(layers: list[Layer], metadata: Mapping[str, Any]) -> bytes:
    """A model with the input "observations" (batch, obs) float32, and the output "actions" (batch, act).

    The metadata are JSON in its `metadata_props`, under the key "rllib_damo".

    Raises:
        UsageError: the package onnx is not installed.
    """
    onnx = _import_onnx()
    graph = _Graph(onnx)
    for layer in layers:
        graph.add(layer)
    graph.nodes[-1].output[0] = "actions"
    make = onnx.helper
    ends = [
        make.make_tensor_value_info(
            metadata[end]["name"],
            make.np_dtype_to_tensor_dtype(np.dtype(metadata[end]["dtype"])),
            metadata[end]["shape"],
        )
        for end in ("input", "output")
    ]
    model = make.make_model(
        make.make_graph(graph.nodes, "policy", ends[:1], ends[1:], graph.constants),
        opset_imports=[make.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="rllib_damo",
        producer_version=metadata["versions"]["rllib_damo"],
    )
    make.set_model_props(model, {"rllib_damo": json.dumps(metadata)})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _import_onnx() -> ModuleType:
    try:
        import onnx
    except ImportError as error:
        raise UsageError(
            f"the format onnx needs the package onnx ({error}): pip install onnx, or in a checkout "
            "pip install -e '.[onnx]'; or write .npz."
        ) from error
    return onnx


class _Graph:
    """A chain of ONNX nodes: each takes what the one before gives, and constants."""

    def __init__(self, onnx: ModuleType) -> None:
        self._onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._value = "observations"

    def add(self, layer: Layer) -> None:
        """Adds a layer of the policy."""
        kind, arrays = layer
        if kind == "standardize":
            self._node("Sub", arrays["mean"])
            self._node("Div", arrays["std"])
        elif kind == "linear":
            self._node("Gemm", arrays["weight"], arrays["bias"])
        elif kind == "layer_norm":
            self._node(
                "LayerNormalization", arrays["weight"], arrays["bias"], axis=-1, epsilon=float(arrays["epsilon"])
            )
        elif kind == "silu":
            x = self._value
            self._node("Sigmoid")
            self._node("Mul", x)
        elif kind == "to_box":
            low = arrays["low"]
            self._node("Clip", np.array(-1, np.float32), np.array(1, np.float32))
            self._node("Cast", to=self._onnx.helper.np_dtype_to_tensor_dtype(low.dtype))
            self._node("Add", np.array(1, low.dtype))
            self._node("Mul", arrays["half_range"])
            self._node("Add", low)
            self._node("Max", arrays["box_low"])
            self._node("Min", arrays["box_high"])
        else:
            self._node(_OPERATORS[kind])

    def _node(self, operator: str, *others: np.ndarray | str, **attributes: Any) -> None:
        names = [other if isinstance(other, str) else self._constant(other) for other in others]
        output = f"x{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(operator, [self._value, *names], [output], **attributes))
        self._value = output

    def _constant(self, array: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name
