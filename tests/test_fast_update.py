"""`FastUpdate` takes the steps of `DAMOUpdate`: same gradients, parameters, targets, metrics and random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_damo import DAMOConfig
from rllib_damo.core.update import Metrics, StepBatch
from rllib_damo.damo.fast_update import FastUpdate, fastest_update, unsupported
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.damo.update import DAMOUpdate
from rllib_damo.nn import stacked_mlp as fast_mlp
from rllib_damo.nn.squashed_gaussian import LOG_STD_MAX, LOG_STD_MIN
from tests.damo_steps import ACT, FACTS, SEED, VARIANTS, convert, first_rows, make_batch, make_config, make_module

REFERENCE_ONLY: dict[str, dict[str, Any]] = {name: v for name, v in VARIANTS.items() if "target_networks" in v}
SUPPORTED: dict[str, dict[str, Any]] = {name: v for name, v in VARIANTS.items() if name not in REFERENCE_ONLY} | {
    "chi_squared without data alignment": {"f_divergence": "chi_squared", "data_alignment": False},
    "consistent without behavior alignment": {"behavior_alignment": False},
    "classifier noise": {"classifier_noise": 0.3},
    "clipped gradients": {"grad_clip": 1e-3, "bc_weight": 1.0},
    "bounded alpha": {"max_alpha": 0.31, "target_entropy": 100.0},
}
UpdateType = Callable[..., DAMOUpdate]


@pytest.fixture(params=["plain", "normalised", "normalised as on a GPU"])
def layer_norm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether critics are normalised, in both ways of the fast update."""
    monkeypatch.setattr(fast_mlp, "_has_fast_layer_norm", lambda device: "GPU" in request.param)
    return request.param != "plain"


def build(kind: UpdateType, config: DAMOConfig, lr: float, dtype: torch.dtype, **model_config: Any) -> DAMOUpdate:
    """An update of a fresh module with Adam; some of the actor's log standard deviations are clamped."""
    module = make_module(**model_config)
    with torch.no_grad():
        module.actor.net[-1].bias[ACT:] = torch.tensor([LOG_STD_MAX, LOG_STD_MIN]) + 0.02
    module = module.to(dtype)
    optimizers = {name: torch.optim.Adam(params, lr=lr, fused=True) for name, params in module.trainable().items()}
    update = kind(module, config, optimizers=optimizers, generator=torch.Generator().manual_seed(SEED))
    update.fit(FACTS)
    return update


def take(update: DAMOUpdate, batch: StepBatch) -> Metrics:
    """The first step, measured."""
    return update.step(batch, 0, measure=True)


def batches(num: int, dtype: torch.dtype) -> list[StepBatch]:
    return [convert(make_batch(seed), lambda t: t.to(dtype)) for seed in range(num)]


def gradients(module: DAMOTorchRLModule) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("twin_q", [True, False], ids=["twin", "single"])
@pytest.mark.parametrize("variant", SUPPORTED)
def test_one_step_equals_the_reference(variant: str, twin_q: bool, layer_norm: bool) -> None:
    """In float64, where only a mistake can make a difference."""
    config = make_config(**SUPPORTED[variant])
    results = []
    for kind in (DAMOUpdate, FastUpdate):
        update = build(kind, config, 0.01, torch.float64, twin_q=twin_q, critic_layer_norm=layer_norm)
        metrics = take(update, batches(1, torch.float64)[0])
        results.append((gradients(update.module), list(update.module.parameters()), metrics))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("kind", [DAMOUpdate, FastUpdate])
def test_an_anchor_that_decays_has_the_weight_of_its_step(kind: UpdateType) -> None:
    schedule = [[0, 2.0], [10, 2.0], [30, 0.0]]
    constant, decaying = (build(kind, make_config(bc_weight=weight), 0.01, torch.float64) for weight in (1.0, schedule))
    weights = []
    for step in (0, 5, 10, 15, 30, 99):
        weights.append(decaying.bc_weight(step))
        assert decaying.value_weight(step) == 1.0
    assert weights == [2.0, 2.0, 2.0, 1.5, 0.0, 0.0]
    (batch,) = batches(1, torch.float64)
    actual, expected = (update.step(batch, 20, measure=True) for update in (decaying, constant))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert all(map(torch.equal, decaying.module.parameters(), constant.module.parameters()))


def test_an_anchor_that_has_ended_leaves_the_value_terms_direction() -> None:
    """In the anchored unit, so that Adam's step goes on where the anchor ends."""
    free, ended = (
        build(FastUpdate, make_config(bc_weight=weight), 0.0, torch.float64) for weight in (0.0, [[0, 2.0], [10, 0.0]])
    )
    for update in (free, ended):
        update.step(batches(1, torch.float64)[0], 10, measure=True)
    for mine, other in zip(ended.module.actor.parameters(), free.module.actor.parameters(), strict=True):
        torch.testing.assert_close(mine.grad * ended.return_size, other.grad)


@pytest.mark.parametrize("variant", SUPPORTED)
def test_float32_steps_stay_with_the_reference(variant: str) -> None:
    config = make_config(**SUPPORTED[variant])
    reference, fast = (build(kind, config, 1e-3, torch.float32) for kind in (DAMOUpdate, FastUpdate))
    for i, batch in enumerate(batches(5, torch.float32)):
        expected, actual = take(reference, batch), take(fast, batch)
        torch.testing.assert_close(actual, expected, rtol=1e-5 if i == 0 else 1e-3, atol=1e-6, equal_nan=True)
    for a, b in zip(fast.module.parameters(), reference.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert torch.equal(reference.generator.get_state(), fast.generator.get_state())


@pytest.mark.parametrize("hidden_dims", [(16,), (16, 8, 12)])
def test_networks_of_other_depths(hidden_dims: tuple[int, ...], layer_norm: bool) -> None:
    reference, fast = (
        build(kind, make_config(), 0.01, torch.float64, hidden_dims=hidden_dims, critic_layer_norm=layer_norm)
        for kind in (DAMOUpdate, FastUpdate)
    )
    for batch in batches(3, torch.float64):
        torch.testing.assert_close(take(fast, batch), take(reference, batch), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        list(fast.module.parameters()), list(reference.module.parameters()), rtol=1e-6, atol=1e-9
    )


def test_groups_of_other_sizes() -> None:
    """Sizes that change from step to step, down to single rows."""
    reference, fast = (build(kind, make_config(), 0.01, torch.float64) for kind in (DAMOUpdate, FastUpdate))
    for batch, sizes in zip(batches(3, torch.float64), ((1, 5, 2), (12, 8, 12), (7, 1, 3)), strict=True):
        part = first_rows(batch, *sizes)
        torch.testing.assert_close(take(fast, part), take(reference, part), rtol=1e-7, atol=1e-9)


def test_a_step_is_the_same_without_metrics() -> None:
    measured, other = (build(FastUpdate, make_config(), 1e-2, torch.float32) for _ in range(2))
    for batch in batches(3, torch.float32):
        assert take(measured, batch)
        assert other.step(batch, 0, measure=False) == {}
    assert all(map(torch.equal, measured.module.parameters(), other.module.parameters()))


def test_gradients_pass_through_the_reducer() -> None:
    def halve(group: Sequence[Tensor]) -> None:
        torch._foreach_div_(list(group), 2)

    results = []
    for kind in (DAMOUpdate, FastUpdate):
        update = build(kind, make_config(), 0.01, torch.float64)
        update.reduce_gradients = halve
        for batch in batches(2, torch.float64):
            take(update, batch)
        results.append((gradients(update.module), list(update.module.parameters())))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-10)


def test_nothing_but_parameters_optimizers_and_generator_is_carried_from_step_to_step() -> None:
    """An update that takes over their states goes on bit for bit, whatever it did before."""
    stream = batches(6, torch.float32)
    whole, part, rest = (build(FastUpdate, make_config(), 1e-2, torch.float32) for _ in range(3))
    take(rest, stream[5])  # leaves something in the buffers
    for batch in stream[:3]:
        take(part, batch)
    rest.module.load_state_dict(part.module.state_dict())
    for name, optimizer in rest.optimizers.items():
        optimizer.load_state_dict(part.optimizers[name].state_dict())
    rest.generator.set_state(part.generator.get_state())
    expected = [take(whole, batch) for batch in stream]
    actual = [take(rest, batch) for batch in stream[3:]]
    torch.testing.assert_close(actual, expected[3:], rtol=0, atol=0)
    assert all(map(torch.equal, whole.module.parameters(), rest.module.parameters()))


def test_each_configuration_gets_an_update_that_can_take_it() -> None:
    assert type(build(fastest_update, make_config(), 0.0, torch.float32)) is FastUpdate
    for overrides in REFERENCE_ONLY.values():
        config = make_config(**overrides)
        assert type(build(fastest_update, config, 0.0, torch.float32)) is DAMOUpdate
    config = make_config(classifier_gradient_penalty=1.0, target_networks=False)
    names = ["target_networks=False", "classifier_gradient_penalty=1.0"]
    assert unsupported(make_module(), config) == names
    assert unsupported(make_module(classifier_spectral_norm=True), make_config()) == ["classifier_spectral_norm=True"]
    update = build(fastest_update, make_config(), 0.0, torch.float32, classifier_spectral_norm=True)
    assert type(update) is DAMOUpdate
    assert all(map(math.isfinite, take(update, batches(1, torch.float32)[0]).values()))


def test_bfloat16_is_refused_where_only_the_reference_serves() -> None:
    config = make_config(target_networks=False, precision="bf16")
    with pytest.raises(ValueError, match="precision='bf16' does not go with target_networks=False, classifier_spec"):
        build(fastest_update, config, 0.0, torch.float32, classifier_spectral_norm=True)


@pytest.mark.parametrize("variant", ["default", "inconsistent", "anchor", "chi_squared critic"])
@pytest.mark.parametrize("hidden_dims", [(64, 64), (32, 64, 32)], ids=str)
def test_bfloat16_gradients_are_near_float32s(variant: str, hidden_dims: tuple[int, ...], layer_norm: bool) -> None:
    """Within a twentieth of each gradient's norm, a quarter of the actor's (rows nearly cancel); values within 0.01.

    bfloat16 itself resolves no more than 2 at Q = 333 ± 1. Parameters, targets and Adam's state stay float32.
    """
    updates = []
    for precision in ("fp32", "bf16"):
        update = build(
            fastest_update, make_config(precision=precision, **SUPPORTED[variant]), 1e-3, torch.float32,
            hidden_dims=hidden_dims, critic_layer_norm=layer_norm,
        )  # fmt: skip
        with torch.no_grad():
            for critics in (update.module.critics, update.module.target_critics):
                critics.net.biases[-1].add_(333.0)
        updates.append(update)
    batch = convert(make_batch(num=256, num_starts=256), lambda t: t.float())  # of few rows, a ReLU that flips is much
    exact, rounded = (take(update, batch) for update in updates)
    for name in ("qf_mean", "qf_initial_mean", "td_error_abs", "modified_reward_mean", "classifier_loss"):
        assert rounded[name].item() == pytest.approx(exact[name].item(), abs=0.01), name
    for (name, a), b in zip(updates[0].module.named_parameters(), updates[1].module.parameters(), strict=True):
        assert a.dtype == b.dtype == torch.float32
        if a.grad is not None and b.grad is not None:
            assert b.grad.dtype == torch.float32
            assert (a.grad - b.grad).norm() <= (0.25 if name.startswith("actor") else 0.05) * a.grad.norm(), name
    states = [s for o in updates[1].optimizers.values() for p in o.state.values() for s in p.values()]
    assert {s.dtype for s in states} == {torch.float32}


def test_bfloat16_training_stays_with_float32() -> None:
    """The same 100 batches: losses that fall by the same amounts."""
    stream, results = batches(10, torch.float32) * 10, []
    for precision in ("fp32", "bf16"):
        update = build(fastest_update, make_config(precision=precision), 1e-3, torch.float32, hidden_dims=(32, 32))
        results.append([take(update, batch) for batch in stream])
    for name in ("qf_loss", "classifier_loss", "td_error_abs"):
        first, last, other = (
            sum(row[name].item() for row in rows) / 10 for rows in (results[0][:10], results[0][-10:], results[1][-10:])
        )
        assert last < first
        assert other == pytest.approx(last, abs=0.05 * (first - last)), name


def test_metrics_are_tensors_of_their_own() -> None:
    """The Learner keeps them past the next step."""
    update = build(FastUpdate, make_config(), 0.01, torch.float32)
    stream = batches(2, torch.float32)
    metrics = take(update, stream[0])
    kept = {name: value.clone() for name, value in metrics.items()}
    take(update, stream[1])
    torch.testing.assert_close(metrics, kept, rtol=0, atol=0)
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
