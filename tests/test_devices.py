"""What a GPU asks of a gradient step: it mixes no devices and never makes the CPU wait for a value.

Tensors of PyTorch's "meta" device have no data. Like a GPU's, they don't go together with the CPU's; and whoever wants
to see a value of theirs, which on a GPU would wait for all work before it, gets an error.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rllib_damo import BehaviorCloningConfig, TD3BCConfig
from rllib_damo.baselines.bc import BCTorchRLModule, BehaviorCloningUpdate
from rllib_damo.baselines.td3bc import TD3BCUpdate
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.rl_module import OfflineTorchRLModule, SACTorchRLModule
from rllib_damo.core.sac import SACUpdate
from rllib_damo.core.td3 import TD3TorchRLModule
from rllib_damo.core.update import Metrics, StepBatch, Update
from rllib_damo.damo.fast_update import FastUpdate
from rllib_damo.damo.update import DAMOUpdate
from rllib_damo.nn.flat_parameters import flatten
from tests import baseline_steps, damo_steps
from tests.damo_steps import VARIANTS, make_config
from tests.test_fast_update import SUPPORTED


def take_steps(
    rule: Callable[..., Update], module: OfflineTorchRLModule, batch: StepBatch, config: OfflineConfig
) -> Metrics:
    """Three steps on the meta device, the first one without metrics; returns those of the last."""
    module = module.float().to("meta")
    optimizers = {
        name: torch.optim.SGD([flatten(params)], lr=0.1, foreach=True) for name, params in module.trainable().items()
    }
    update = rule(module, config, optimizers=optimizers, generator=None)
    batch = damo_steps.convert(batch, lambda tensor: tensor.float().to("meta"))
    for step in range(3):
        metrics = update.step(batch, step, measure=step > 0)
    return metrics


def stays(metrics: Metrics) -> bool:
    """Whether there are metrics, all on the device."""
    return bool(metrics) and all(value.device.type == "meta" for value in metrics.values())


@pytest.mark.parametrize("variant", SUPPORTED)
def test_a_fast_step_stays_on_its_device(variant: str) -> None:
    config = make_config(**SUPPORTED[variant])
    assert stays(take_steps(FastUpdate, damo_steps.make_module(), damo_steps.make_batch(), config))


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fast_networks_stay_on_their_device(precision: str, layer_norm: bool) -> None:
    module = damo_steps.make_module(critic_layer_norm=layer_norm)
    config = make_config(bc_weight=1.0, precision=precision)
    assert stays(take_steps(FastUpdate, module, damo_steps.make_batch(), config))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_readable_step_stays_on_its_device(variant: str) -> None:
    config = make_config(**VARIANTS[variant])
    assert stays(take_steps(DAMOUpdate, damo_steps.make_module(), damo_steps.make_batch(), config))


@pytest.mark.parametrize(
    ("rule", "module_class", "config"),
    [
        (BehaviorCloningUpdate, BCTorchRLModule, BehaviorCloningConfig()),
        (TD3BCUpdate, TD3TorchRLModule, TD3BCConfig()),
        (SACUpdate, SACTorchRLModule, make_config()),
    ],
)
def test_a_baselines_step_stays_on_its_device(
    rule: Callable[..., Update], module_class: type[OfflineTorchRLModule], config: OfflineConfig
) -> None:
    module = baseline_steps.make_module(module_class)
    assert stays(take_steps(rule, module, baseline_steps.make_batch(), config))


def test_the_meta_device_finds_what_a_gpu_would_not_like() -> None:
    class Waits(DAMOUpdate):
        def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
            float(batch["update"].rewards.mean())
            return super().step(batch, step, measure)

    class Mixes(DAMOUpdate):
        def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
            return {name: value + torch.zeros(1) for name, value in super().step(batch, step, measure).items()}

    for rule in (Waits, Mixes):
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            take_steps(rule, damo_steps.make_module(), damo_steps.make_batch(), make_config())
