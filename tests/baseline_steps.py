"""Small modules, batches and updates for the tests of the baselines' gradient steps."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.rl_module import OfflineTorchRLModule
from rllib_damo.core.update import Metrics, StepBatch, Update
from rllib_damo.utils.batch import Batch

OBS, ACT, ROWS, SEED = 3, 2, 12, 7


def make_module(module_class: type[OfflineTorchRLModule]) -> Any:
    torch.manual_seed(0)
    module = module_class(
        observation_space=gym.spaces.Box(-1, 1, (OBS,)),
        action_space=gym.spaces.Box(-1, 1, (ACT,)),
        inference_only=False,
        model_config={"hidden_dims": (16,), "twin_q": True, "critic_layer_norm": False, "initial_alpha": 0.3},
    ).double()
    with torch.no_grad():  # targets that differ, or nothing would tell them from what they follow
        for name in ("target_critics", "target_actor"):
            for p in getattr(module, name).parameters() if hasattr(module, name) else ():
                p += 0.1 * torch.randn(p.shape)
    return module


def make_batch() -> StepBatch:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows = Batch(normal(ROWS, OBS), normal(ROWS, ACT).tanh(), normal(ROWS, OBS), normal(ROWS),
                 (torch.arange(ROWS) % 4 == 0).double())  # fmt: skip
    return StepBatch({"update": rows})


def make_update(rule: type[Update], module: OfflineTorchRLModule, config: OfflineConfig, lr: float = 0.0) -> Any:
    optimizers = {name: torch.optim.SGD(params, lr=lr) for name, params in module.trainable().items()}
    return rule(module, config, optimizers=optimizers, generator=torch.Generator().manual_seed(SEED))


def take(update: Update, batch: StepBatch, step: int = 0) -> Metrics:
    """A step, measured."""
    return update.step(batch, step, measure=True)


def noise() -> torch.Generator:
    """The generator that the update starts with."""
    return torch.Generator().manual_seed(SEED)


def assert_gradients(params: Any, loss: Tensor) -> None:
    params = list(params)
    expected = torch.autograd.grad(loss, params, retain_graph=True)
    for param, gradient in zip(params, expected, strict=True):
        torch.testing.assert_close(param.grad, gradient)


def moved(before: OfflineTorchRLModule, after: OfflineTorchRLModule) -> set[str]:
    old = dict(before.named_parameters())
    return {name.split(".")[0] for name, value in after.named_parameters() if not torch.equal(old[name], value)}
