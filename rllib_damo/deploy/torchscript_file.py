"""The layers of a policy as a TorchScript module, which torch loads in Python and in C++."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_damo.deploy.layers import Layer


def _to_box(x: Tensor, low: Tensor, half_range: Tensor, box_low: Tensor, box_high: Tensor) -> Tensor:
    return (low + (x.clamp(-1, 1).to(low.dtype) + 1) * half_range).clamp(box_low, box_high)


_FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "standardize": lambda x, mean, std: (x - mean) / std,
    "linear": lambda x, weight, bias: x @ weight + bias,
    "layer_norm": lambda x, weight, bias, epsilon: F.layer_norm(x, weight.shape, weight, bias, float(epsilon)),
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "elu": F.elu,
    "to_box": _to_box,
}


class _Chain(nn.Module):
    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self._kinds = [kind for kind, _ in layers]
        for number, (_, arrays) in enumerate(layers):
            for name, array in arrays.items():
                self.register_buffer(f"layer{number}_{name}", torch.from_numpy(array.copy()))
        self._names = [[f"layer{number}_{name}" for name in arrays] for number, (_, arrays) in enumerate(layers)]

    def forward(self, observations: Tensor) -> Tensor:
        x = observations
        for kind, names in zip(self._kinds, self._names, strict=True):
            x = _FUNCTIONS[kind](x, *(getattr(self, name) for name in names))
        return x


def to_torchscript(layers: list[Layer], metadata: Mapping[str, Any]) -> bytes:
    """A module that takes observations (batch, obs) or (obs,) float32; its extra file "metadata.json" says of what."""
    example = torch.zeros(2, metadata["input"]["shape"][1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the constant epsilon is a constant
        traced = torch.jit.trace(_Chain(layers), example)
    file = io.BytesIO()
    torch.jit.save(traced, file, _extra_files={"metadata.json": json.dumps(metadata)})
    return file.getvalue()
