"""Plays a policy that `rllib-damo export CHECKPOINT policy.npz` wrote. It needs NumPy alone.

    policy = NumpyPolicy("policy.npz")
    action = policy(observation)

This file is also in the .npz itself, under the name "loader".
"""

import json
from collections.abc import Callable

import numpy as np

LAYERS: dict[str, Callable[..., np.ndarray]] = {
    "standardize": lambda x, mean, std: (x - mean) / std,
    "linear": lambda x, weight, bias: x @ weight + bias,
    "layer_norm": lambda x, weight, bias, epsilon: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * weight + bias
    ),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 0.5 + 0.5 * np.tanh(0.5 * x),
    "silu": lambda x: x * (0.5 + 0.5 * np.tanh(0.5 * x)),
    "elu": lambda x: np.maximum(x, 0) + np.expm1(np.minimum(x, 0)),
    # from [-1, 1] to the environment's units; rounding may leave the bounds, so they are applied again
    "to_box": lambda x, low, half_range, box_low, box_high: np.clip(
        low + (np.clip(x, -1, 1).astype(low.dtype) + 1) * half_range, box_low, box_high
    ),
}


class NumpyPolicy:
    """Raw observations, one (obs,) or a batch (B, obs), to actions in the environment's units: (act,) or (B, act).

    `metadata` says which environment, spaces and dataset the policy is of.
    """

    def __init__(self, path: str) -> None:
        with np.load(path) as file:
            self.metadata = json.loads(str(file["metadata"]))
            self.layers = []
            for number, kind in enumerate(file["layers"]):
                prefix = f"layer{number}."
                arrays = {name[len(prefix) :]: file[name] for name in file.files if name.startswith(prefix)}
                self.layers.append((LAYERS[str(kind)], arrays))

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        x = np.asarray(observations, np.float32)
        for layer, arrays in self.layers:
            x = layer(x, **arrays)
        return x
