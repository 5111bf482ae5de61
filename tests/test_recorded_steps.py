"""Recorded steps are the steps: by `record_on_cpu` in the place of CUDA graphs, and by these where there is a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rllib_damo.core.cuda_graph import WARMUP_STEPS, RecordedSteps
from rllib_damo.core.update import DatasetFacts, Metrics, StepBatch
from rllib_damo.damo.fast_update import FastUpdate
from rllib_damo.damo.update import DAMOUpdate
from rllib_damo.nn.adam import FusedAdam
from rllib_damo.nn.flat_parameters import flatten
from tests.damo_steps import SEED, convert, make_batch, make_config, make_module
from tests.recording import record_on_cpu
from tests.test_fast_update import SUPPORTED

MARK_GPU = (
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)  # fmt: skip
ON_BOTH = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=MARK_GPU)])


def make_update(device: str, layer_norm: bool = True, **options: Any) -> FastUpdate:
    """As the Learner makes it."""
    module = make_module(critic_layer_norm=layer_norm).float().to(device)
    optimizers = {name: FusedAdam([flatten(params)], lr=0.01) for name, params in module.trainable().items()}
    generator = torch.Generator(device).manual_seed(SEED)
    return FastUpdate(module, make_config(**options), optimizers=optimizers, generator=generator)


def recorded(update: FastUpdate) -> RecordedSteps:
    if update.module.log_alpha.is_cuda:
        return RecordedSteps(update)
    return RecordedSteps(update, record_on_cpu)


def fill(batch: StepBatch, seed: int) -> None:
    """Puts other rows where a batch lies."""
    for group, rows in make_batch(seed).items():
        for column, values in zip(batch[group], rows, strict=True):
            column.copy_(values)


def take(
    update: FastUpdate,
    step: Callable[[StepBatch, int, bool], Metrics],
    num: int,
    before: Callable[[FastUpdate, int], None] = lambda update, i: None,
) -> list[Metrics]:
    """The metrics of ``num`` steps, every other one measured."""
    batch = convert(make_batch(), lambda t: t.float().to(update.module.log_alpha.device))
    results = []
    for i in range(num):
        fill(batch, i)
        before(update, i)
        results.append({name: value.clone() for name, value in step(batch, i, i % 2 == 0).items()})
    return results


def assert_same(one: FastUpdate, other: FastUpdate, metrics: tuple[list[Metrics], list[Metrics]]) -> None:
    """Bit for bit on the CPU; a GPU may choose other kernels for a graph."""
    tolerance = 1e-4 if one.module.log_alpha.is_cuda else 0.0
    assert_close = functools.partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert_close(metrics[1], metrics[0])
    assert_close(dict(other.module.state_dict()), dict(one.module.state_dict()))
    for name, optimizer in one.optimizers.items():
        assert_close(other.optimizers[name].state_dict(), optimizer.state_dict())
    assert torch.equal(one.generator.get_state(), other.generator.get_state())


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("variant", SUPPORTED)
def test_recorded_steps_are_the_steps(variant: str, layer_norm: bool) -> None:
    """Metrics, networks, optimisers and random numbers."""
    plain, other = (make_update("cpu", layer_norm=layer_norm, **SUPPORTED[variant]) for _ in range(2))
    steps = recorded(other)
    assert_same(plain, other, (take(plain, plain.step, 9), take(other, steps.step, 9)))
    assert steps.num_recorded == 2  # with metrics and without


@ON_BOTH
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_precisions_are_recorded(precision: str, device: str) -> None:
    plain, other = (make_update(device, precision=precision) for _ in range(2))
    assert_same(plain, other, (take(plain, plain.step, 9), take(other, recorded(other).step, 9)))


@ON_BOTH
def test_what_python_changes_is_recorded_anew(device: str) -> None:
    """The end of the actor's warm-up, a learning rate, the values' unit; and the generator may be seeded between."""

    def change(update: FastUpdate, i: int) -> None:
        if i == 9:
            update.optimizers["critic"].param_groups[0]["lr"] = 0.003
        if i == 13:
            update.fit(DatasetFacts(reward_size=5.0))
        if i == 17:
            update.generator.manual_seed(1)

    plain, other = (make_update(device, bc_weight=1.0, actor_warmup_steps=5) for _ in range(2))
    steps = recorded(other)
    assert_same(plain, other, (take(plain, plain.step, 20, change), take(other, steps.step, 20, change)))
    assert steps.num_recorded == 8


def test_steps_are_run_from_recordings() -> None:
    update = make_update("cpu")
    calls = []
    step = update.step
    update.step = lambda *args: calls.append(0) or step(*args)  # type: ignore[method-assign, func-returns-value]
    results = take(update, recorded(update).step, 20)
    assert len(calls) == 2 * (WARMUP_STEPS + 1)  # with metrics and without
    assert [len(metrics) > 0 for metrics in results] == [True, False] * 10


def test_the_recorder_for_the_cpu_finds_what_a_graph_would_not_see() -> None:
    """A step that reads a tensor made outside of it, or a Python number that changes."""

    class Counts(FastUpdate):
        def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
            return {name: value + step for name, value in super().step(batch, step, measure).items()}

    plain, other = make_update("cpu"), make_update("cpu")
    plain.__class__ = other.__class__ = Counts
    expected, actual = take(plain, plain.step, 9), take(other, recorded(other).step, 9)
    assert torch.equal(expected[2]["qf_loss"], actual[2]["qf_loss"])
    assert not torch.equal(expected[8]["qf_loss"], actual[8]["qf_loss"])

    other = make_update("cpu")
    steps = recorded(other)
    fresh = lambda batch, *args: steps.step(convert(batch, torch.clone), *args)  # noqa: E731
    plain = make_update("cpu")
    expected, actual = take(plain, plain.step, 9), take(other, fresh, 9)
    assert not torch.equal(expected[8]["qf_loss"], actual[8]["qf_loss"])


def test_a_rule_that_cannot_be_recorded_says_so() -> None:
    update = make_update("cpu")
    plain = DAMOUpdate(update.module, update.config, optimizers=update.optimizers, generator=update.generator)
    with pytest.raises(NotImplementedError, match=r"DAMOUpdate can't be recorded: set cuda_graphs=False"):
        take(plain, RecordedSteps(plain, record_on_cpu).step, WARMUP_STEPS + 1)  # type: ignore[arg-type]
