"""What a GPU asks of a gradient step: it mixes no devices and never makes the CPU wait for a value.

Tensors of PyTorch's "meta" device have no data. Like a GPU's, they don't go together with the CPU's; and whoever wants
to see a value of theirs, which on a GPU would wait for all work before it, gets an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rllib_damo.baselines.updates import BehaviorCloningUpdate, SACUpdate, TD3BCUpdate
from torch import Tensor

from rllib_damo.baselines.bc import BCTorchRLModule
from rllib_damo.baselines.mopo import MOPOTorchRLModule
from rllib_damo.baselines.td3bc import TD3BCTorchRLModule
from rllib_damo.damo.fast_update import FastUpdate
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.damo.update import DAMOUpdate, StepBatch, Update
from rllib_damo.nn.flat_parameters import flatten
from tests import test_baselines, test_fast_update, test_update
from tests.test_update import DEFAULTS, VARIANTS


def take_steps(rule: Callable[..., Update], module: DAMOTorchRLModule, batch: StepBatch, **parts: Any) -> Tensor:
    """Three steps on the meta device, the first one without metrics; returns those of the last."""
    module = module.float().to("meta")
    optimizers = {
        name: torch.optim.SGD([flatten(params)], lr=0.1, foreach=True) for name, params in module.trainable().items()
    }
    update = rule(module, optimizers=optimizers, generator=None, **parts)
    batch = test_update.convert(batch, lambda tensor: tensor.float().to("meta"))
    for update.num_steps in range(3):
        update.measures = update.num_steps > 0
        metrics = update.step(batch)
    return metrics


@pytest.mark.parametrize("variant", test_fast_update.SUPPORTED)
def test_a_fast_step_stays_on_its_device(variant: str) -> None:
    options = dataclasses.replace(DEFAULTS, **test_fast_update.SUPPORTED[variant])
    metrics = take_steps(FastUpdate, test_update.make_module(), test_update.make_batch(), options=options)
    assert metrics.device.type == "meta"


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fast_networks_stay_on_their_device(precision: str, layer_norm: bool) -> None:
    options = dataclasses.replace(DEFAULTS, bc_weight=1.0)
    module = test_update.make_module(critic_layer_norm=layer_norm)
    metrics = take_steps(FastUpdate, module, test_update.make_batch(), options=options, precision=precision)
    assert metrics.device.type == "meta"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_readable_step_stays_on_its_device(variant: str) -> None:
    options = dataclasses.replace(DEFAULTS, **VARIANTS[variant])
    metrics = take_steps(DAMOUpdate, test_update.make_module(), test_update.make_batch(), options=options)
    assert metrics.device.type == "meta"


@pytest.mark.parametrize(
    ("rule", "module_class", "parts"),
    [
        (BehaviorCloningUpdate, BCTorchRLModule, {}),
        (TD3BCUpdate, TD3BCTorchRLModule, {"options": test_baselines.TD3BC}),
        (SACUpdate, MOPOTorchRLModule, {"options": test_baselines.SAC}),
    ],
)
def test_a_baselines_step_stays_on_its_device(
    rule: Callable[..., Update], module_class: type[DAMOTorchRLModule], parts: dict[str, Any]
) -> None:
    metrics = take_steps(rule, test_baselines.make_module(module_class), test_baselines.make_batch(), **parts)
    assert metrics.device.type == "meta"


def test_the_meta_device_finds_what_a_gpu_would_not_like() -> None:
    class Waits(DAMOUpdate):
        def step(self, batch: StepBatch) -> Tensor:
            return super().step(batch) * float(batch.update.rewards.mean())

    class Mixes(DAMOUpdate):
        def step(self, batch: StepBatch) -> Tensor:
            return super().step(batch) + torch.zeros(1)

    for rule in (Waits, Mixes):
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            take_steps(rule, test_update.make_module(), test_update.make_batch(), options=DEFAULTS)
