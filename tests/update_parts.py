"""Small networks, rows and models for tests of update rules of model-based algorithms, and small runs of them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from rllib_damo.core.rl_module import SACTorchRLModule
from rllib_damo.core.update import StepBatch
from rllib_damo.data.schema import Transitions
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.utils.batch import Batch

OBS, ACT, ROWS, NUM_REAL = 3, 2, 12, 5


def make_module(dtype: torch.dtype = torch.float64, obs_dim: int = OBS) -> Any:
    """SAC's networks, with target critics that differ from the critics."""
    torch.manual_seed(0)
    module = SACTorchRLModule(
        observation_space=gym.spaces.Box(-1, 1, (obs_dim,)),
        action_space=gym.spaces.Box(-1, 1, (ACT,)),
        inference_only=False,
        model_config={"hidden_dims": (16,), "twin_q": True, "critic_layer_norm": False, "initial_alpha": 0.3},
    ).to(dtype)
    with torch.no_grad():
        for p in module.target_critics.parameters():
            p += 0.1 * torch.randn(p.shape)
    return module


def make_rows(num: int = ROWS, seed: int = 1, dtype: torch.dtype = torch.float64, obs_dim: int = OBS) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    ends = (torch.arange(num) % 4 == 0).to(dtype)
    return Batch(normal(num, obs_dim), normal(num, ACT).tanh(), normal(num, obs_dim), normal(num), ends)


def make_batch(num_real: int = NUM_REAL, **columns: Tensor) -> StepBatch:
    return StepBatch({"update": make_rows()._replace(**columns)}, num_real)


def make_update(rule: type, config: Any, module: Any, lr: float = 0.0) -> Any:
    optimizers = {name: torch.optim.Adam(params, lr=lr) for name, params in module.trainable().items()}
    return rule(module, config, optimizers=optimizers, generator=noise())


def noise() -> torch.Generator:
    """The generator that an update of `make_update` starts with."""
    return torch.Generator().manual_seed(7)


def linear_dynamics(num: int, logvar: float, elites: tuple[int, ...] = (), seed: int = 3) -> DynamicsEnsemble:
    """Members whose mean is linear in [s; a], with one log variance for all they predict."""
    torch.manual_seed(seed)
    model = DynamicsEnsemble(OBS, ACT, hidden_dims=(), num_ensemble=num, num_elites=len(elites) or num).double()
    with torch.no_grad():
        model.weights[0].normal_()
        model.biases[0].normal_()
        model.min_logvar.fill_(logvar)
        model.max_logvar.fill_(logvar + 1e-9)
        model.weights[0][..., OBS + 1 :] = 0.0
        model.biases[0][..., OBS + 1 :] = logvar - 100
    if elites:
        model.elites.copy_(torch.tensor(elites))
    return model.requires_grad_(False)


class LinearCritics(nn.Module):
    """Q_i(s, a) = c_i · s + b · a + d_i; b is 0 unless given."""

    def __init__(
        self, coefficients: Tensor, constants: tuple[float, ...] = (0.0, 0.0), slopes: tuple[float, ...] = (0.0,) * ACT
    ):
        super().__init__()
        self.coefficients = coefficients
        self.constants, self.slopes = (torch.tensor(values, dtype=coefficients.dtype) for values in (constants, slopes))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self.coefficients @ obs.T + actions @ self.slopes + self.constants[:, None]


def small_run(config: Any, dataset: Transitions | str, cache_dir: str, **options: Any) -> Any:
    """A configuration whose iterations take a second."""
    return (
        config.environment("Pendulum-v1")
        .offline_data(input_=dataset)
        .training(
            hidden_dims=(32, 32), train_batch_size_per_learner=32, rollout_freq=15, rollout_batch_size=100,
            rollout_length=2, **options,
        )
        .dynamics(
            num_ensemble=3, num_elites=2, dynamics_hidden_dims=(32, 32), dynamics_weight_decay=(0.0, 0.0, 0.0),
            dynamics_max_epochs=1, holdout_size=100, dynamics_cache_dir=cache_dir,
        )
        .evaluation(evaluation_interval=None)
        .debugging(seed=3)
    )  # fmt: skip
