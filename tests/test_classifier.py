"""The classifier learns a known log density ratio, and its labels' smoothing bounds its logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rllib_damo.core.update import StepBatch
from rllib_damo.damo import losses
from rllib_damo.damo.networks import Classifier
from rllib_damo.utils.batch import Batch
from tests.damo_steps import make_config, make_module
from tests.test_update import make_update

SHIFT, SCALE = torch.tensor([0.8, -0.5]), torch.tensor([1.0, 1.3])
ROWS, STEPS = 512, 600


def draw(num: int, offline: bool, generator: torch.Generator) -> Batch:
    """Transitions of two worlds that differ in s' - s: N(0, 1) offline, N(SHIFT, SCALE²) synthetic."""
    obs, delta = torch.randn(2, num, 2, generator=generator)
    if not offline:
        delta = SHIFT + SCALE * delta
    actions = torch.rand(num, 1, generator=generator) * 2 - 1
    return Batch(obs, actions, obs + delta, torch.zeros(num), torch.zeros(num))


def log_ratio(batch: Batch) -> Tensor:
    """log p_offline/p_synthetic."""
    delta = batch.next_obs - batch.obs
    z = (delta - SHIFT) / SCALE
    return (0.5 * z.square() + SCALE.log() - 0.5 * delta.square()).sum(-1)


def logits(classifier: Classifier, batch: Batch) -> Tensor:
    with torch.no_grad():
        return classifier(classifier.inputs(batch.obs, batch.actions, batch.next_obs))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_recovers_the_log_density_ratio_of_two_gaussians(smoothing: float) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    classifier = Classifier(2, 1, (32, 32))
    both = [draw(20_000, offline, generator) for offline in (True, False)]
    classifier.standardize.fit(torch.cat([torch.cat((b.obs, b.actions, b.next_obs - b.obs), -1) for b in both[:1]]))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        offline, synthetic = (
            classifier(classifier.inputs(b.obs, b.actions, b.next_obs))
            for b in (draw(ROWS, True, generator), draw(ROWS, False, generator))
        )
        optimizer.zero_grad()
        losses.classifier_loss(offline, synthetic, smoothing).backward()
        optimizer.step()
        schedule.step()

    test = Batch(*(torch.cat(columns) for columns in zip(*both, strict=True)))
    ratio, learned = log_ratio(test), logits(classifier, test)
    if smoothing > 0:
        p, q = ratio.sigmoid(), (-ratio).sigmoid()
        ratio = (((1 - smoothing) * p + smoothing * q) / (smoothing * p + (1 - smoothing) * q)).log()
        assert ratio.abs().max() < math.log((1 - smoothing) / smoothing)
    delta = test.next_obs - test.obs
    near = ((delta.abs() < 2).all(-1)) & ((((delta - SHIFT) / SCALE).abs() < 2).all(-1))  # within 2 σ of both worlds
    assert near.float().mean() > 0.6
    if smoothing > 0:  # the bound is the optimum's: where there is hardly any data, the network extrapolates beyond it
        assert learned[near].abs().max() < 1.1 * math.log((1 - smoothing) / smoothing)
    error = (learned - ratio)[near].abs()
    assert error.mean() < 0.1
    assert error.square().mean().sqrt() < 0.15


def test_damo_update_trains_it_and_smoothing_bounds_its_logits() -> None:
    """Two worlds that do not overlap: without smoothing the logits grow, with it they stay within log((1-ε)/ε)."""
    generator = torch.Generator().manual_seed(0)
    largest = {}
    for smoothing in (0.0, 0.1):
        module = make_module().float()
        config = make_config(label_smoothing=smoothing, max_logit=100.0)
        update = make_update(module, config)
        update.optimizers["classifier"] = torch.optim.Adam(module.classifier.parameters(), lr=3e-3)  # type: ignore[index]
        for _ in range(250):
            obs = torch.randn(128, 3, generator=generator)
            actions = torch.zeros(128, 2)
            near, far = (
                Batch(obs, actions, obs + 0.1 * torch.randn(128, 3, generator=generator) + d, *torch.zeros(2, 128))
                for d in (0.0, 4.0)
            )
            batch = StepBatch({"update": far, "classifier_offline": near, "classifier_synthetic": far})
            rewards, metrics = update.classifier_step(batch)
        assert metrics["classifier_accuracy"] == 1
        largest[smoothing] = (-rewards / config.eta).max().item()
    assert largest[0.1] < 1.1 * math.log(9)
    assert largest[0.0] > 2 * math.log(9)
