"""RAMBO: the model's adversarial gradient, cloning, what moves and what does not; small runs with their restore."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from rllib_damo import RAMBOConfig
from rllib_damo.baselines.rambo import Imagined, RAMBOUpdate
from rllib_damo.core.update import RowGroup
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.nn.adam import FusedAdam
from rllib_damo.nn.gaussian_mlp import Gradients, reference_loss
from rllib_damo.tasks import TerminationFn, never_terminates
from rllib_damo.utils.batch import Batch
from tests.small_runs import module_state, train_policy
from tests.update_parts import (
    ACT,
    OBS,
    LinearCritics,
    linear_dynamics,
    make_batch,
    make_module,
    make_rows,
    make_update,
    small_run,
)

E, B, DECAY = 4, 6, (1e-3, 2e-3)


def ensemble(constant: int | None = None) -> DynamicsEnsemble:
    """Four members with their own statistics, of which three are elites."""
    torch.manual_seed(5)
    model = DynamicsEnsemble(OBS, ACT, hidden_dims=(8,), num_ensemble=E, num_elites=3).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape)
        model.input_mean.copy_(torch.tensor([0.3, -0.2, 1.0, 0.1, -0.1]))
        model.input_std.copy_(torch.tensor([2.0, 0.5, 1.5, 0.6, 0.8]))
        model.target_std.copy_(torch.tensor([0.5, 2.0, 1.0, 3.0]))
        model.target_mean.copy_(torch.tensor([0.1, 0.0, -0.2, 1.0]))
        model.elites.copy_(torch.tensor([0, 1, 3]))
        if constant is not None:
            model.target_std[constant] = 0.0
    return model


def rambo(
    dynamics: DynamicsEnsemble | None = None, critics: Any = None, lr: float = 0.0, decays: bool = True, **options: Any
) -> RAMBOUpdate:
    dynamics = ensemble() if dynamics is None else dynamics
    rule = options.pop("termination_fn", never_terminates)
    options = {"gamma": 0.9, "adversarial_weight": 0.7, "train_batch_size_per_learner": B} | options
    decay = DECAY[: len(dynamics.weights)] if decays else (0.0,) * len(dynamics.weights)
    config = RAMBOConfig().training(**options).dynamics(termination_fn=rule, dynamics_weight_decay=decay)
    update = make_update(RAMBOUpdate, config, make_module(dynamics.input_mean.dtype, dynamics.obs_dim), lr)
    if critics is not None:
        update.module.critics = critics
    update.set_dynamics(dynamics)
    return update


def parameters(model: DynamicsEnsemble) -> list[Tensor]:
    return [*model.weights, *model.biases, model.max_logvar, model.min_logvar]


def objective(model: DynamicsEnsemble, rows: Batch, imagined: Imagined, weight: float, coef: float = 0.01) -> Tensor:
    """What the model minimises, by its definition: λ mean_b[A log (1/E) Σ_j N_j] + the trainer's loss."""
    x, y = standardized(model, rows)
    _, likelihood = reference_loss(parameters(model), x.view(E, B, -1), y.view(E, B, -1), coef)
    mean, logvar = model(*in_data_units(model, imagined))
    drawn, varies = drawn_by(model, imagined), model.target_std > 0
    normal = torch.distributions.Normal(mean[..., varies], (0.5 * logvar[..., varies]).exp())
    log_prob = normal.log_prob(drawn[:, varies]).sum(-1)[model.elites]
    mixture = log_prob.logsumexp(0) - math.log(len(model.elites))
    return weight * (imagined.advantages * mixture).mean() + likelihood


def standardized(model: DynamicsEnsemble, rows: Batch) -> tuple[Tensor, Tensor]:
    x = (torch.cat((rows.obs, rows.actions), -1) - model.input_mean) / model.input_std
    y = torch.cat((rows.next_obs - rows.obs, rows.rewards[:, None]), -1) - model.target_mean
    return x, y / torch.where(model.target_std > 0, model.target_std, 1.0)


def data(num: int = E * B, seed: int = 2) -> Batch:
    return make_rows(num, seed)


def drawn_by(model: DynamicsEnsemble, imagined: Imagined) -> Tensor:
    """What was drawn of [s' - s, r], in the data's units."""
    return imagined.targets * model.target_std + model.target_mean


def constant_model(means: Tensor, logvar: float, dtype: torch.dtype = torch.float64) -> DynamicsEnsemble:
    """Members with ``means (E, D)`` and one log variance, whatever the input; all are elites."""
    num, width = means.shape
    model = DynamicsEnsemble(width - 1, ACT, hidden_dims=(1,), num_ensemble=num, num_elites=num).to(dtype)
    with torch.no_grad():
        for weight in model.weights:
            weight.zero_()  # and so is its gradient
        model.biases[-1].copy_(torch.cat((means, torch.full_like(means, logvar - 100)), -1)[:, None])
        model.min_logvar.fill_(logvar)
        model.max_logvar.fill_(logvar)
    return model


# -- the model's gradient --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [None, 1])
def test_the_models_gradient_is_that_of_its_objective(constant: int | None) -> None:
    update = rambo(ensemble(constant))
    model, imagined = update._dynamics, update.imagine(make_rows(B).obs)
    expected_model = copy.deepcopy(model).requires_grad_(True)
    expected = torch.autograd.grad(objective(expected_model, data(), imagined, 0.7), parameters(expected_model))
    update.model_step(data(), imagined)
    for param, gradient in zip(parameters(model), expected, strict=True):
        torch.testing.assert_close(param.grad, gradient, rtol=1e-9, atol=1e-12)


def test_the_models_gradient_is_the_slope_of_its_objective() -> None:
    update = rambo()
    model, imagined, before = update._dynamics, update.imagine(make_rows(B).obs), copy.deepcopy(update._dynamics)
    update.model_step(data(), imagined)
    for index, place in ((0, (0, 1, 2)), (1, (3, 4, 5)), (3, (2, 0, 1)), (4, (1, 0, 2)), (5, (0, 0, 0))):
        values = []
        for step in (1e-6, -1e-6):
            moved = copy.deepcopy(before).requires_grad_(False)
            parameters(moved)[index][place] += step
            values.append(objective(moved, data(), imagined, 0.7))
        slope = float(values[0] - values[1]) / 2e-6
        assert float(parameters(model)[index].grad[place]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_each_elite_has_its_responsibilitys_share_and_other_members_none() -> None:
    update = rambo(adversarial_weight=1.0)
    model, imagined = update._dynamics, update.imagine(make_rows(B).obs)
    mean, logvar = model(*in_data_units(model, imagined))
    drawn = drawn_by(model, imagined)
    density = torch.distributions.Normal(mean, (0.5 * logvar).exp()).log_prob(drawn).sum(-1).exp()
    density[2] = 0
    rho = density / density.sum(0)
    torch.testing.assert_close(imagined.responsibilities, rho)
    # The output biases' gradient is the sum over rows of A ρ_j (y - μ_j) / σ_j² / B, in standardised units
    gradients = []
    for weight in (1.0, 0.0):
        other = rambo(copy.deepcopy(ensemble()), adversarial_weight=weight)
        other.model_step(data(), imagined)
        gradients.append(other._dynamics.biases[-1].grad[:, 0, : OBS + 1])
    pull = imagined.advantages * rho / B
    slope = (pull.unsqueeze(-1) * (drawn - mean) / logvar.exp() * model.target_std).sum(1)
    torch.testing.assert_close(gradients[0] - gradients[1], slope)
    assert not (gradients[0] - gradients[1])[2].any()


def test_imagined_states_are_within_the_limits_and_their_targets_as_drawn() -> None:
    dynamics = ensemble()
    free = rambo(copy.deepcopy(dynamics)).imagine(make_rows(B).obs)
    dynamics.obs_low[:], dynamics.obs_high[:] = -0.2, 0.3
    found = rambo(dynamics).imagine(make_rows(B).obs)
    torch.testing.assert_close(found.next_obs, free.next_obs.clamp(-0.2, 0.3), rtol=1e-6, atol=1e-9)
    assert torch.equal(found.targets, free.targets)
    assert not torch.equal(found.values, free.values)


def in_data_units(model: DynamicsEnsemble, imagined: Imagined) -> tuple[Tensor, Tensor]:
    inputs = imagined.inputs * model.input_std + model.input_mean
    return inputs[:, :OBS], inputs[:, OBS:]


def test_without_adversary_a_step_is_the_trainers() -> None:
    update = rambo(adversarial_weight=0.0)
    model, trained = update._dynamics, copy.deepcopy(update._dynamics)
    params = parameters(trained)
    decays = [*DECAY, 0.0, 0.0, 0.0, 0.0]
    optimizer = FusedAdam(
        [{"params": [p], "weight_decay": decay} for p, decay in zip(params, decays, strict=True)], 3e-4
    )
    gradients = Gradients(params, 0.01)
    for seed in (1, 2, 3):
        x, y = standardized(trained, data(seed=seed))
        gradients.compute(x.view(E, B, -1), y.view(E, B, -1))
        optimizer.step()
        update.model_step(data(seed=seed), update.imagine(make_rows(B).obs))
    for ours, theirs in zip(parameters(model), params, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_adversarys_share_does_not_grow_with_the_batch() -> None:
    imagined = rambo().imagine(make_rows(B).obs)
    twice = Imagined(*(torch.cat((part, part), 1 if name == "responsibilities" else 0)
                       for name, part in imagined._asdict().items()))  # fmt: skip
    rows = [part.view(E, B, *part.shape[1:]) for part in data()]
    doubled = Batch(*(torch.cat((part, part), 1).flatten(0, 1) for part in rows))
    once, again = rambo(), rambo()
    once.model_step(data(), imagined)
    again.model_step(doubled, twice)
    for a, b in zip(parameters(once._dynamics), parameters(again._dynamics), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("logvar", [-14.0, 14.0], ids=["e^133", "e^-133"])
def test_densities_that_float32_cannot_hold_leave_responsibilities_exact(logvar: float) -> None:
    """Of 18 dimensions and a reward; and of a member 100 standard deviations from the others."""
    sigma, obs_dim = math.exp(logvar / 2), 18
    means = torch.tensor([0.0, 0.2, 100.0])[:, None].expand(3, obs_dim + 1) * sigma
    dynamics = constant_model(means, logvar, torch.float32)
    update = rambo(dynamics, train_batch_size_per_learner=64)
    imagined = update.imagine(make_rows(64, 1, torch.float32, obs_dim).obs)
    log_density = torch.distributions.Normal(means[:, None].double(), sigma).log_prob(imagined.targets).sum(-1)
    assert set(log_density.amax(0).float().exp().tolist()) == {math.inf if logvar < 0 else 0.0}
    torch.testing.assert_close(imagined.responsibilities.double(), log_density.softmax(0), rtol=1e-3, atol=1e-6)
    assert update.model_step(make_rows(3 * 64, 2, torch.float32, obs_dim), imagined).isfinite()
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in parameters(dynamics))


def test_learners_apply_what_the_reducer_makes_of_the_models_gradient() -> None:
    """Adam's first step is odd in the gradient, without decay: the negative gradient takes it the other way."""
    alone, together, seen = rambo(decays=False), rambo(decays=False), []
    before, imagined = copy.deepcopy(parameters(alone._dynamics)), alone.imagine(make_rows(B).obs)

    def negate(gradients: Any) -> None:
        seen.append([gradient.clone() for gradient in gradients])
        torch._foreach_neg_(list(gradients))

    together.reduce_gradients = negate
    for update in (alone, together):
        update.model_step(data(), imagined)
    (gradients,) = seen
    for start, mine, other, gradient in zip(
        before, parameters(alone._dynamics), parameters(together._dynamics), gradients, strict=True
    ):
        torch.testing.assert_close(gradient, mine.grad.view(-1))
        torch.testing.assert_close(other - start, start - mine)
        assert not torch.equal(mine, start)


# -- rollouts --------------------------------------------------------------------------------------------------------


def test_each_row_is_drawn_by_an_elite_of_its_own() -> None:
    model = linear_dynamics(E, -20.0, elites=(0, 1, 3))
    obs, sigma = make_rows(600).obs, math.exp(-10)
    imagined = rambo(model).imagine(obs)
    errors = imagined.targets - model(*in_data_units(model, imagined))[0]
    nearest, member = errors.norm(dim=-1).min(0)  # so narrow that what was drawn tells by whom
    assert nearest.max() < 10 * sigma
    counts = member.bincount(minlength=E).tolist()
    assert counts[2] == 0
    assert min(counts[0], counts[1], counts[3]) > 150
    z = errors[member, torch.arange(600)] / sigma
    assert z.mean(0).tolist() == pytest.approx([0] * (OBS + 1), abs=0.2)
    assert z.std(0).tolist() == pytest.approx([1] * (OBS + 1), rel=0.15)


@pytest.mark.parametrize(
    "rule", [never_terminates, lambda obs, actions, next_obs: next_obs[:, 0] > 0], ids=["never", "ends"]
)
def test_rollouts_go_on_from_where_the_step_before_ended(rule: TerminationFn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an episode ends, too."""
    update = rambo(adversarial_steps=5, rollout_length=2, termination_fn=rule)
    groups, drawn, starts, found, learned, losses = [], [], [], [], [], []
    imagine, model_step = update.imagine, update.model_step

    def draw(group: RowGroup) -> Batch:
        groups.append(group)
        drawn.append(make_rows(group.num_real, seed=len(drawn)))
        return drawn[-1]

    def record_imagined(obs: Tensor) -> Imagined:
        starts.append(obs)
        found.append(imagine(obs))
        return found[-1]

    def record_step(rows: Batch, imagined: Imagined) -> Tensor:
        learned.append((rows, imagined))
        losses.append(model_step(rows, imagined))
        return losses[-1]

    monkeypatch.setattr(update, "imagine", record_imagined)
    monkeypatch.setattr(update, "model_step", record_step)
    metrics = update.after_iteration(draw)
    first, known = RowGroup(B), RowGroup(E * B, of="known")  # rows of its own for each member
    assert groups == [first, known, known, first, known, known, first, known]
    for obs, expected in zip(
        starts, (drawn[0].obs, found[0].next_obs, drawn[3].obs, found[2].next_obs, drawn[6].obs), strict=True
    ):
        assert torch.equal(obs, expected)
    for step in (found[0], found[2]):
        ended = rule(*in_data_units(update._dynamics, step), step.next_obs)
        assert ended.unique().tolist() == ([False] if rule is never_terminates else [False, True])
    for (rows, imagined), place, step in zip(learned, (1, 2, 4, 5, 7), found, strict=True):
        assert rows is drawn[place]
        assert imagined is step
    for obs, step in zip(starts, found, strict=True):
        torch.testing.assert_close(step.next_obs, obs + drawn_by(update._dynamics, step)[:, :-1])
    assert float(metrics["model_loss"]) == pytest.approx(np.mean([float(loss) for loss in losses]))
    assert float(metrics["model_value_mean"]) == pytest.approx(np.mean([float(s.values.mean()) for s in found]))


# -- advantages ------------------------------------------------------------------------------------------------------


def test_advantages_are_standardised_and_of_the_policys_mode() -> None:
    update = rambo()
    obs, m = make_rows(B).obs, update.module
    found = update.imagine(obs)
    _, actions = in_data_units(update._dynamics, found)
    rewards = drawn_by(update._dynamics, found)[:, -1]
    values = rewards + 0.9 * m.critics(found.next_obs, m.actor(found.next_obs)[0].tanh()).min(0).values
    torch.testing.assert_close(found.values, values.detach())
    advantages = (values - m.critics(obs, actions).min(0).values).detach().numpy()
    expected = (advantages - advantages.mean()) / advantages.std(ddof=1)
    np.testing.assert_allclose(found.advantages, expected, rtol=1e-4)


def test_terminal_transitions_by_the_rule_have_no_value_after_them() -> None:
    """The rule reads the data's units, which those of the model's inputs are not."""
    seen = []

    def rule(obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        seen.append((obs, actions, next_obs))
        return next_obs[:, 0] > 0.5

    update, obs = rambo(termination_fn=rule), make_rows(50).obs
    found, m = update.imagine(obs), update.module
    ((given, actions, next_obs),) = seen
    torch.testing.assert_close((given, actions), in_data_units(update._dynamics, found))
    torch.testing.assert_close((given, next_obs), (obs, found.next_obs))
    ends = found.next_obs[:, 0] > 0.5
    assert 5 < ends.sum() < 45
    next_q = m.critics(found.next_obs, m.actor(found.next_obs)[0].tanh()).min(0).values.detach()
    expected = drawn_by(update._dynamics, found)[:, -1] + 0.9 * next_q.masked_fill(ends, 0.0)
    torch.testing.assert_close(found.values, expected)


def test_equal_advantages_make_no_gradient_and_no_nan() -> None:
    update = rambo(ensemble(constant=OBS), critics=LinearCritics(torch.zeros(2, OBS, dtype=torch.float64)))
    imagined = update.imagine(make_rows(B).obs)
    assert not imagined.advantages.any()
    update.model_step(data(), imagined)
    plain = rambo(ensemble(constant=OBS), adversarial_weight=0.0)
    plain.model_step(data(), imagined)
    for a, b in zip(parameters(update._dynamics), parameters(plain._dynamics), strict=True):
        torch.testing.assert_close(a, b)


# -- what moves ------------------------------------------------------------------------------------------------------


def draw_from(rows: Batch, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def draw(group: RowGroup) -> Batch:
        picks = torch.randint(len(rows.obs), (group.num_real + group.num_model,), generator=generator)
        return Batch(*(column[picks] for column in rows))

    return draw


def test_adversarial_steps_move_the_model_alone() -> None:
    update = rambo(adversarial_steps=3, rollout_length=2)
    before, model = copy.deepcopy(update.module.state_dict()), copy.deepcopy(update._dynamics.state_dict())
    metrics = update.after_iteration(draw_from(data()))
    assert set(metrics) == {"model_loss", "model_value_mean"}
    assert all(p.grad is None for p in update.module.parameters())
    for name, value in update.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    moved = {name for name, value in update._dynamics.state_dict().items() if not torch.equal(value, model[name])}
    assert {name.split(".")[0] for name in moved} == {"weights", "biases", "max_logvar", "min_logvar"}


def test_a_gradient_step_of_the_policy_leaves_the_model() -> None:
    update = rambo(lr=1e-2)
    model = copy.deepcopy(update._dynamics.state_dict())
    update.step(make_batch(), 0, True)
    for name, value in update._dynamics.state_dict().items():
        assert torch.equal(value, model[name]), name


def test_the_adversary_lowers_the_value_that_the_model_promises() -> None:
    """Values rise with the first coordinate; the data's change of it is 0 in the mean, with a spread of 1."""
    torch.manual_seed(0)
    obs = torch.randn(600, OBS, dtype=torch.float64)
    actions = torch.rand(600, ACT, dtype=torch.float64) * 2 - 1
    rows = Batch(obs, actions, obs + torch.randn_like(obs), torch.zeros(600).double(), torch.zeros(600).double())
    critics = LinearCritics(torch.tensor([[1.0, 0.0, 0.0]] * 2, dtype=torch.float64))

    def promised(weight: float) -> list[float]:
        """The mean change of the first coordinate, before and after."""
        torch.manual_seed(1)
        dynamics = DynamicsEnsemble(OBS, ACT, hidden_dims=(8,), num_ensemble=3, num_elites=3).double()
        update = rambo(
            dynamics, critics=critics, adversarial_weight=weight, adversarial_steps=150, rollout_length=2,
            train_batch_size_per_learner=64, adversary_lr=1e-2,
        )  # fmt: skip
        changes = [dynamics(obs, actions)[0][..., 0].mean()]
        update.after_iteration(draw_from(rows))
        return [*map(float, changes), float(dynamics(obs, actions)[0][..., 0].mean())]

    start, hostile = promised(2.0)
    assert hostile < start - 0.3
    assert promised(1e-9)[1] == pytest.approx(start, abs=0.1)


class SideCritics(torch.nn.Module):
    """Q(s, a) is 1 where the first coordinate is above 0, else 0."""

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return (obs[:, 0] > 0).to(obs.dtype).expand(2, -1)


def two_sided(num: int, **options: Any) -> tuple[RAMBOUpdate, Batch]:
    """From 0, the elites' means of the first coordinate are 0.8 and -0.3, with a spread of 1; no rewards."""
    means = torch.tensor([[0.8, 0.0, 0.0, 0.0], [-0.3, 0.0, 0.0, 0.0]], dtype=torch.float64)
    model = constant_model(means, 0.0)
    model.target_std[-1] = 0.0
    update = rambo(model, critics=SideCritics(), decays=False, train_batch_size_per_learner=num, **options)
    rows = Batch(*(torch.zeros_like(column) for column in make_rows(2 * num)))
    return update, rows


def means_and_worst(model: DynamicsEnsemble) -> tuple[Tensor, float]:
    """The means of the first coordinate, and the probability that it is not above 0."""
    means = model.biases[-1][:, 0, 0].detach().clone()
    return means, float(torch.special.ndtr(-means).mean())


def test_the_models_gradient_is_that_of_the_expected_value() -> None:
    """λ E[A log p] has the gradient of λ E[V] / std[V]; here V is γ times the probability of the good side."""
    gradients = []
    for weight in (1.0, 0.0):
        update, rows = two_sided(20_000, adversarial_weight=weight)
        means, worst = means_and_worst(update._dynamics)
        update.model_step(rows, update.imagine(rows.obs[:20_000]))
        gradients.append(update._dynamics.biases[-1].grad[:, 0, : OBS + 1].clone())
    slope = torch.distributions.Normal(0.0, 1.0).log_prob(means).exp() / 2 / math.sqrt(worst * (1 - worst))
    expected = torch.cat((slope[:, None], torch.zeros(2, OBS)), 1)
    torch.testing.assert_close(gradients[0] - gradients[1], expected, rtol=0, atol=0.03)


def test_each_adversarial_step_makes_the_worse_successor_likelier() -> None:
    update, rows = two_sided(1000, adversarial_weight=20.0, adversarial_steps=1, adversary_lr=0.02)
    worst = []
    for _ in range(20):
        worst.append(means_and_worst(update._dynamics)[1])
        update.after_iteration(lambda group: Batch(*(column[: group.num_real] for column in rows)))
    assert np.diff(worst).min() > 0
    assert worst[-1] > worst[0] + 0.1


def test_with_hardly_any_weight_successors_are_as_frequent_as_in_the_data() -> None:
    """70 % of these are on the good side; the model starts elsewhere."""
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    changes = noise + torch.special.ndtri(torch.tensor(0.7, dtype=torch.float64))
    frequency = float((changes > 0).double().mean())

    def learned(weight: float) -> float:
        """The probability of the good side in the model."""
        update, rows = two_sided(500, adversarial_weight=weight, adversarial_steps=200, adversary_lr=0.02)
        assert means_and_worst(update._dynamics)[1] > 0.4
        rows.next_obs[:, 0] = changes
        update.after_iteration(lambda group: Batch(*(column[: group.num_real] for column in rows)))
        return 1 - means_and_worst(update._dynamics)[1]

    assert frequency == pytest.approx(0.7, abs=0.02)
    assert learned(1e-6) == pytest.approx(frequency, abs=0.02)
    assert learned(2.0) < 0.5


def test_no_weight_takes_no_adversarial_steps() -> None:
    update = rambo(adversarial_weight=0.0)
    model = copy.deepcopy(update._dynamics.state_dict())
    assert update.after_iteration(draw_from(data())) == {}
    assert update.dynamics_state() is None
    for name, value in update._dynamics.state_dict().items():
        assert torch.equal(value, model[name]), name


# -- cloning ---------------------------------------------------------------------------------------------------------


def test_cloning_finds_the_likeliest_policy() -> None:
    torch.manual_seed(0)
    obs = torch.zeros(4000, OBS, dtype=torch.float64)
    u = torch.tensor([0.5, -1.0]) + torch.tensor([0.3, 0.6]) * torch.randn(4000, ACT, dtype=torch.float64)
    rows = make_rows(4000)._replace(obs=obs, actions=u.tanh())
    update = rambo(cloning_steps=400, cloning_lr=3e-2, train_batch_size_per_learner=512)
    log_alpha, critics = update.module.log_alpha.clone(), copy.deepcopy(update.module.critics.state_dict())
    metrics = update.pretrain(draw_from(rows))
    mean, log_std = update.module.actor(obs[:1])
    assert mean[0].tolist() == pytest.approx([0.5, -1.0], abs=0.05)
    assert log_std.exp()[0].tolist() == pytest.approx([0.3, 0.6], rel=0.1)
    normal = torch.distributions.Normal(torch.tensor([0.5, -1.0]), torch.tensor([0.3, 0.6]))
    likeliest = -(normal.log_prob(u) - (1 - u.tanh() ** 2).log()).sum(-1).mean()
    assert float(metrics["cloning_loss"]) == pytest.approx(float(likeliest), abs=0.05)
    assert torch.equal(update.module.log_alpha, log_alpha)
    assert all(torch.equal(value, critics[name]) for name, value in update.module.critics.state_dict().items())


def test_cloning_takes_actions_on_the_bounds() -> None:
    rows = make_rows()
    loss = rambo().cloning_loss(rows._replace(actions=rows.actions.sign()))
    assert loss.isfinite()
    assert rambo(cloning_steps=0).pretrain(draw_from(rows)) == {}


# -- restore ---------------------------------------------------------------------------------------------------------


def test_model_and_optimiser_continue_bit_for_bit() -> None:
    first = rambo(adversarial_steps=3)
    first.after_iteration(draw_from(data()))
    state, handed_out = copy.deepcopy(first.get_state()), first.dynamics_state()
    first.generator.manual_seed(9)
    first.after_iteration(draw_from(data(), seed=1))
    assert not torch.equal(handed_out["weights.0"], first._dynamics.weights[0])  # a copy
    second = rambo(adversarial_steps=3)
    second.set_state(state)
    second.generator.manual_seed(9)
    second.after_iteration(draw_from(data(), seed=1))
    for name, value in first._dynamics.state_dict().items():
        assert torch.equal(second._dynamics.state_dict()[name], value), name


def model_state(algo: Any) -> dict[str, Any]:
    return {f"model.{name}": value.numpy() for name, value in algo._dynamics_state().items()}


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("overlap", [False, True])
def test_trains_and_continues_exactly_from_a_checkpoint(
    dataset: str, cache_dir: str, tmp_path: Any, overlap: bool
) -> None:
    options = {"cloning_steps": 5, "adversarial_steps": 7, "adversarial_weight": 0.1, "overlap_rollouts": overlap}
    config = small_run(RAMBOConfig(), dataset, cache_dir, **options)
    algo = config.env_runners(num_env_runners=int(overlap)).build_algo()
    first = train_policy(algo, 2)["learners"][DEFAULT_MODULE_ID]
    file = Path(algo.dynamics.file())
    content = file.read_bytes()
    assert math.isfinite(first["model_value_mean"])
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    train_policy(algo, 2)
    uninterrupted = module_state(algo) | model_state(algo)
    if not overlap:
        rolled_out = algo.env_runner._dynamics.state_dict()
        saved = DynamicsEnsemble.load(file).state_dict()
        assert not torch.equal(rolled_out["weights.0"], saved["weights.0"])
        algo.restore_from_path(path)
        train_policy(algo, 2)
        assert_equal(module_state(algo) | model_state(algo), uninterrupted)
    algo.stop()
    restored = algo.from_checkpoint(path)
    train_policy(restored, 2)
    assert_equal(module_state(restored) | model_state(restored), uninterrupted)
    restored.stop()
    assert file.read_bytes() == content  # the cached model is other runs', too


@pytest.mark.usefixtures("ray_cluster")
def test_clones_once_before_the_first_rollouts(dataset: str, cache_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, pretrain = [], RAMBOUpdate.pretrain
    monkeypatch.setattr(RAMBOUpdate, "pretrain", lambda *args: calls.append(1) or pretrain(*args))
    algo = small_run(RAMBOConfig(), dataset, cache_dir, cloning_steps=20, cloning_lr=1e-2).build_algo()
    at_first = module_state(algo)["actor.net.0.weight"].copy()
    result = train_policy(algo, 1)["learners"][DEFAULT_MODULE_ID]
    assert "cloning_loss" in result
    rolled_out = algo.env_runner.module.actor.net[0].weight.detach().numpy()
    assert np.abs(rolled_out - at_first).max() > 0.03  # 15 gradient steps of the actor's rate move it by 0.0015
    train_policy(algo, 1)
    assert len(calls) == 1
    algo.stop()


def test_names_what_is_wrong_with_options(tmp_path: Any) -> None:
    def config() -> RAMBOConfig:
        return small_run(RAMBOConfig(), "pendulum-mixed", str(tmp_path))

    config().validate()
    for options, message in (
        ({"adversarial_weight": -1.0}, "`adversarial_weight` must be a finite number >= 0; found -1.0"),
        ({"adversarial_steps": 0}, "`adversarial_steps` must be a whole number >= 1; found 0"),
        ({"adversary_lr": 0.0}, "`adversary_lr` must be a finite number > 0; found 0.0"),
        ({"cloning_steps": -1}, "`cloning_steps` must be a whole number >= 0; found -1"),
        ({"cloning_lr": None}, "`cloning_lr` must be a finite number > 0; found None"),
    ):
        with pytest.raises(ValueError, match=message):
            config().training(**options).validate()
