"""The networks of DAMO: squashed-Gaussian actor, stacked critics, transition classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
#: Precision -> dtype of the products between hidden layers; None: the parameters' own.
PRODUCT_DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


#: Of unit actions, as inputs: a policy tries out more than data shows in which an action hardly moves.
ACTION_STD_MIN = 0.1


def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each column of ``x (N, dim)``, ``(dim,)`` each; a column that varies no more than float32 rounds has std 0."""
    std, mean = torch.std_mean(x, dim=0)
    largest = torch.linalg.vector_norm(x, math.inf, dim=0)  # without a copy of x
    return mean, torch.where(std > 1e-6 * largest, std, 0.0)


def input_scales(x: Tensor, actions: slice = slice(0)) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of inputs ``(N, dim)``, 1 for those that are constant.

    Args:
        x: the inputs.
        actions: the columns of unit actions, whose standard deviation is ``ACTION_STD_MIN`` at least.
    """
    mean, std = mean_and_std(x)
    std = torch.where(std > 0, std, 1.0)
    std[actions].clamp_(min=ACTION_STD_MIN)
    return mean, std


class Standardize(nn.Module):
    """(x - mean) / std with statistics that are set once from the dataset; the identity until then."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, x: Tensor, actions: slice = slice(0)) -> None:
        """Takes the `input_scales` of the rows of ``x (N, dim)``."""
        mean, std = input_scales(x, actions)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class StackedMLP(nn.Module):
    """C networks of one shape, evaluated together: ``(B, in)`` → ``(C, B, out)``, one batched matmul a layer.

    Args:
        num: C.
        dims: widths from the input to the output.
        layer_norm: normalise each hidden layer before its ReLU.
    """

    def __init__(self, num: int, dims: Sequence[int], layer_norm: bool = False):
        super().__init__()
        self.layer_norm = layer_norm
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in zip(dims[:-1], dims[1:], strict=True):
            bound = 1 / math.sqrt(fan_in)  # as in torch.nn.Linear
            self.weights.append(nn.Parameter(torch.empty(num, fan_in, fan_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(num, 1, fan_out).uniform_(-bound, bound)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(self.weights[0].shape[0], *x.shape)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < last:
                if self.layer_norm:
                    x = F.layer_norm(x, x.shape[-1:])
                x = F.relu(x)
        return x


def mlp(dims: Sequence[int], spectral_norm: bool = False) -> nn.Sequential:
    """A ReLU network with the given widths."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        linear: nn.Module = nn.Linear(fan_in, fan_out)
        layers.append(nn.utils.parametrizations.spectral_norm(linear) if spectral_norm else linear)
        if i < len(dims) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Actor(nn.Module):
    """A tanh-squashed diagonal Gaussian over unit actions."""

    def __init__(self, obs_dim: int, act_dim: int, hidden_dims: Sequence[int]):
        super().__init__()
        self.standardize = Standardize(obs_dim)
        self.net = mlp((obs_dim, *hidden_dims, 2 * act_dim))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before squashing, ``(B, act_dim)`` each."""
        mean, log_std = self.net(self.standardize(obs)).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Re-parameterised unit actions ``(B, act_dim)`` and their log density ``(B,)``.

        Args:
            obs: ``(B, obs_dim)`` raw observations.
            noise: ``(B, act_dim)`` standard normal.
        """
        mean, log_std = self(obs)
        u = mean + log_std.exp() * noise
        # log N(u) - log|d tanh(u)/du|, the latter as 2(log 2 - u - softplus(-2u)), which does not underflow
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_prob = log_prob - 2 * (math.log(2) - u - F.softplus(-2 * u))
        return u.tanh(), log_prob.sum(-1)


class Critics(nn.Module):
    """C action-value functions: ``(B, obs)``, ``(B, act)`` → ``(C, B)``."""

    def __init__(self, obs_dim: int, act_dim: int, hidden_dims: Sequence[int], num: int = 2, layer_norm: bool = False):
        super().__init__()
        self.standardize = Standardize(obs_dim)
        self.net = StackedMLP(num, (obs_dim + act_dim, *hidden_dims, 1), layer_norm)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self.net(torch.cat((self.standardize(obs), actions), dim=-1)).squeeze(-1)


class Classifier(nn.Module):
    """logit h(s,a,s'): how much likelier a transition is offline than synthetic.

    Its inputs are (s, a, s' - s), each column standardised by the dataset's statistics: s' is nearly s, and only the
    difference shows what the dynamics did.
    """

    def __init__(self, obs_dim: int, act_dim: int, hidden_dims: Sequence[int], spectral_norm: bool = False):
        super().__init__()
        self.standardize = Standardize(2 * obs_dim + act_dim)
        self.net = mlp((2 * obs_dim + act_dim, *hidden_dims, 1), spectral_norm)

    def inputs(self, obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        return self.standardize(torch.cat((obs, actions, next_obs - obs), dim=-1))

    def forward(self, inputs: Tensor) -> Tensor:
        """``(B, 2 obs_dim + act_dim)`` from ``inputs`` → logits ``(B,)``."""
        return self.net(inputs).squeeze(-1)
