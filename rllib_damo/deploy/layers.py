"""A policy as a chain of layers in NumPy arrays: what all formats are written from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor, nn

from rllib_damo.deploy.numpy_policy import LAYERS
from rllib_damo.errors import CheckpointError
from rllib_damo.evaluation.policy import Policy
from rllib_damo.nn.standardize import Standardize
from rllib_damo.selection.clone import Clone
from rllib_damo.utils.spaces import action_bounds, check_spaces

_PROBES = 64
_SAME = 1e-4  # share of the actions' range; layers that are missing or wrong make far larger differences


class Layer(NamedTuple):
    """A step of the policy.

    Attributes:
        kind: a key of `numpy_policy.LAYERS`, which says what it computes.
        arrays: its arguments by name. Weights are ``(in, out)``.
    """

    kind: str
    arrays: dict[str, np.ndarray]


def _linear(module: Any) -> dict[str, np.ndarray]:
    bias = torch.zeros(module.out_features) if module.bias is None else module.bias
    return {"weight": _array(module.weight).T.copy(), "bias": _array(bias)}


def _layer_norm(module: Any) -> dict[str, np.ndarray]:
    weight = torch.ones(module.normalized_shape) if module.weight is None else module.weight
    bias = torch.zeros(module.normalized_shape) if module.bias is None else module.bias
    return {"weight": _array(weight), "bias": _array(bias), "epsilon": np.array(module.eps, np.float32)}


def _standardize(module: Any) -> dict[str, np.ndarray]:
    return {"mean": _array(module.mean), "std": _array(module.std)}


def _nothing(module: Any) -> dict[str, np.ndarray]:
    return {}


_KINDS: Mapping[type[nn.Module], tuple[str, Callable[[Any], dict[str, np.ndarray]]]] = {
    Standardize: ("standardize", _standardize),
    nn.Linear: ("linear", _linear),
    nn.LayerNorm: ("layer_norm", _layer_norm),
    nn.ReLU: ("relu", _nothing),
    nn.Tanh: ("tanh", _nothing),
    nn.Sigmoid: ("sigmoid", _nothing),
    nn.SiLU: ("silu", _nothing),
    nn.ELU: ("elu", _nothing),
}


def layers_of(policy: Policy) -> list[Layer]:
    """The layers from raw observations to actions in the environment's units.

    Found by following an observation through the module, and compared with the policy's own actions.

    Raises:
        UserError: spaces that are not one-dimensional Boxes.
        CheckpointError: the module computes something else than a chain of known layers.
    """
    check_spaces(policy.observation_space, policy.action_space)
    num_actions = policy.action_space.shape[0]
    modules, output = _follow(policy.module, policy.observation_space.shape[0])
    layers = [_layer(module) for module in modules]
    if not layers or layers[-1].kind != "linear":
        raise _unknown(policy, f"the last of its {len(layers)} known layers is not linear")
    # The last layer may give standard deviations, too, behind the means.
    layers[-1] = Layer("linear", {name: array[..., :num_actions] for name, array in layers[-1].arrays.items()})
    if Columns.ACTIONS in output:  # this package's modules squash the mean themselves
        layers.append(Layer("tanh", {}))
    layers.append(Layer("to_box", _box(policy.action_space)))
    _compare(policy, layers)
    return layers


def layers_of_clone(clone: Clone, space: gym.spaces.Box) -> list[Layer]:
    """The layers of a clone of the data's behaviour."""
    layers = [Layer("standardize", {"mean": _array(clone.mean), "std": _array(clone.std)})]
    for weight, bias in zip(clone.net.weights, clone.net.biases, strict=True):
        layers += [Layer("linear", {"weight": _array(weight)[0], "bias": _array(bias)[0, 0]}), Layer("relu", {})]
    return [*layers[:-1], Layer("tanh", {}), Layer("to_box", _box(space))]


def apply(layers: list[Layer], observations: np.ndarray) -> np.ndarray:
    """What the layers make of raw observations (B, obs): actions (B, act)."""
    x = np.asarray(observations, np.float32)
    for kind, arrays in layers:
        x = LAYERS[kind](x, **arrays)
    return x


def _follow(module: Any, width: int) -> tuple[list[nn.Module], dict[str, Tensor]]:
    """The modules that an observation passes through one after the other, and the module's output."""
    calls: list[tuple[nn.Module, Any, Any]] = []
    leaves = [part for part in module.modules() if isinstance(part, tuple(_KINDS)) or not list(part.children())]
    hooks = [
        leaf.register_forward_hook(lambda leaf, inputs, result: calls.append((leaf, inputs, result))) for leaf in leaves
    ]
    obs = torch.zeros(2, width, device=next(module.parameters()).device)
    try:
        output = module.forward_inference({Columns.OBS: obs})
    finally:
        for hook in hooks:
            hook.remove()
    chain, x = [], obs
    for leaf, inputs, result in calls:
        if len(inputs) == 1 and inputs[0] is x and result is not x:
            chain.append(leaf)
            x = result
    return chain, output


def _layer(module: nn.Module) -> Layer:
    if type(module) not in _KINDS or (isinstance(module, nn.ELU) and module.alpha != 1):
        known = ", ".join(kind.__name__ for kind in _KINDS)
        raise CheckpointError(f"a policy with a layer {module} cannot be exported; known are {known}.")
    kind, arrays_of = _KINDS[type(module)]
    return Layer(kind, arrays_of(module))


def _box(space: gym.spaces.Box) -> dict[str, np.ndarray]:
    low, high = (bound.astype(space.dtype) for bound in action_bounds(space))
    half = ((high - low) * 0.5).astype(space.dtype)
    return {"low": low, "half_range": half, "box_low": space.low, "box_high": space.high}


def _compare(policy: Policy, layers: list[Layer]) -> None:
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(_PROBES, *policy.observation_space.shape)).astype(np.float32)
    if layers[0].kind == "standardize":
        obs = obs * layers[0].arrays["std"] + layers[0].arrays["mean"]
    difference = np.abs(apply(layers, obs) - policy(obs)) / (policy.action_space.high - policy.action_space.low)
    if not difference.max() <= _SAME:
        raise _unknown(policy, f"its layers in a row give actions {difference.max():.1%} of the range away")


def _unknown(policy: Policy, why: str) -> CheckpointError:
    return CheckpointError(
        f"the policy of {type(policy.module).__name__} is no plain network, so it cannot be exported: {why}. "
        "Use load_policy where the package is installed."
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float32)
