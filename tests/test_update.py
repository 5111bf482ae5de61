"""``DAMOUpdate.step``: who receives which gradient, and that its fused path equals the equations written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from rllib_damo import DAMOConfig
from rllib_damo.core.update import DatasetFacts, Metrics, StepBatch
from rllib_damo.damo import losses as damo_losses
from rllib_damo.damo.divergences import DIVERGENCES
from rllib_damo.damo.fast_update import FastUpdate
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.damo.update import DAMOUpdate
from rllib_damo.utils.batch import Batch
from tests.damo_steps import (
    ACT,
    FACTS,
    OBS,
    ROWS,
    SEED,
    STARTS,
    VARIANTS,
    convert,
    first_rows,
    make_batch,
    make_config,
    make_module,
)

NETWORKS = ("actor", "critic", "classifier", "alpha")
CLASSIFIER_METRICS = {"classifier_loss", "classifier_accuracy", "logit_offline_mean", "logit_synthetic_mean"}


def make_update(module: DAMOTorchRLModule, config: DAMOConfig, lr: float = 0.0, **lrs: float) -> DAMOUpdate:
    """SGD of rate ``lr``, or ``lrs[name]`` for a network; 0 leaves the parameters, with gradients in ``.grad``."""
    params = {
        "actor": list(module.actor.parameters()),
        "critic": list(module.critics.parameters()),
        "classifier": list(module.classifier.parameters()),
        "alpha": [module.log_alpha],
    }
    optimizers = {name: torch.optim.SGD(params[name], lr=lrs.get(name, lr)) for name in NETWORKS}
    update = DAMOUpdate(module, config, optimizers=optimizers, generator=torch.Generator().manual_seed(SEED))
    update.fit(FACTS)
    return update


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters()]  # type: ignore[misc]


def snapshot(module: DAMOTorchRLModule) -> dict[str, list[Tensor]]:
    parts = {
        "actor": list(module.actor.parameters()),
        "critic": list(module.critics.parameters()),
        "target": list(module.target_critics.parameters()),
        "classifier": list(module.classifier.parameters()),
        "alpha": [module.log_alpha],
    }
    return {name: [p.detach().clone() for p in params] for name, params in parts.items()}


def changed(before: dict[str, list[Tensor]], module: DAMOTorchRLModule) -> set[str]:
    after = snapshot(module)
    return {
        name for name in before if any(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))
    }


def step(config: DAMOConfig, twin_q: bool = True) -> tuple[DAMOTorchRLModule, Metrics]:
    """A module whose parameters hold the gradients of one step but have not moved, and the step's metrics."""
    module = make_module(twin_q)
    return module, take(make_update(module, config), make_batch())


def take(update: DAMOUpdate, batch: StepBatch) -> Metrics:
    """The first step, measured."""
    return update.step(batch, 0, measure=True)


# -- the same step, written out from docs/damo.md without any of the package's loss functions -----------------------


def f_star(name: str, y: Tensor) -> Tensor:
    return y**2 / 2 if name == "half_squared" else (1 + y / 2).clamp(min=0) ** 2 - 1


def f_star_prime(name: str, y: Tensor) -> Tensor:
    return y if name == "half_squared" else (1 + y / 2).clamp(min=0)


def plain_gradients(
    o: DAMOConfig, twin_q: bool = True, weight_gradient: bool = False, stop_target: bool = False
) -> dict[str, Sequence[Tensor]]:
    """Gradients of one step by plain autograd, an evaluation for each term of docs/damo.md's steps 4, 5 and 9-12.

    Args:
        o: the config.
        twin_q: two critics.
        weight_gradient: (wrongly) let the actor's gradient pass through the density ratio.
        stop_target: (wrongly, for the full gradient) none through Q(s',a').
    """
    m, batch = make_module(twin_q), make_batch()
    u, s0 = batch["update"], batch["initial"].obs
    alpha = m.log_alpha.detach().exp()
    inconsistent = o.policy_improvement == "inconsistent"
    states = (u.next_obs, s0, u.obs) if inconsistent else (u.next_obs, s0)  # the order of the noise's rows
    noise = torch.randn(sum(map(len, states)), ACT, generator=torch.Generator().manual_seed(SEED))
    a_next, log_prob_next = m.actor.sample(u.next_obs, noise[:ROWS])
    a_initial, _ = m.actor.sample(s0, noise[ROWS : ROWS + STARTS])

    # 4: -E_off[log h] - E_syn[log(1-h)] (as a mean over the two), labels smoothed
    def log_h(rows: Batch) -> tuple[Tensor, Tensor]:
        logit = m.classifier(m.classifier.inputs(rows.obs, rows.actions, rows.next_obs))
        return nn.functional.logsigmoid(logit), nn.functional.logsigmoid(-logit)

    e = o.label_smoothing
    (off_1, off_0), (syn_1, syn_0) = log_h(batch["classifier_offline"]), log_h(batch["classifier_synthetic"])
    classifier_loss = -((1 - e) * off_1 + e * off_0).mean() / 2 - (e * syn_1 + (1 - e) * syn_0).mean() / 2
    # 5: r̃ = r + η logit
    logit = (log_h(u)[0] - log_h(u)[1]).clamp(-o.max_logit, o.max_logit).detach()
    logit = logit if o.logit_bonus else logit.clamp(max=0)
    r = u.rewards + o.eta * logit if o.data_alignment else u.rewards

    # 9: the critics
    q, q_initial = m.critics(u.obs, u.actions), m.critics(s0, a_initial.detach())
    if o.target_networks:
        next_q = m.target_critics(u.next_obs, a_next.detach()).min(0).values.detach()
    else:
        next_q = m.critics(u.next_obs, a_next.detach())
        next_q = next_q.detach() if stop_target else next_q
    # 13: a terminal state's value; f'(1) is where f*' is 1
    slope = 1.0 if o.f_divergence == "half_squared" and o.behavior_alignment and not o.target_networks else 0.0
    terminal_value = -o.eta * slope / (1 - o.gamma)
    if o.data_alignment:
        terminal_value = terminal_value + o.eta * 1e-3 * logit.mean() / (1 - o.gamma)  # the first of a thousand steps
    ends = o.gamma * u.terminated * terminal_value if o.terminal_alignment else 0.0
    target = r + ends + o.gamma * (1 - u.terminated) * (next_q - alpha * log_prob_next.detach())
    y = (target - q) / o.eta
    critic_loss = torch.zeros((), dtype=torch.float64)
    for c in range(len(q)):
        if not o.behavior_alignment:
            critic_loss = critic_loss + 0.5 * (o.eta * y[c]).square().mean()
        else:
            critic_loss = critic_loss + o.eta * (1 - o.gamma) * q_initial[c].mean()
            critic_loss = critic_loss + o.eta**2 * f_star(o.f_divergence, y[c]).mean()

    # 10: the actor, which at step 0 may still be warming up
    value = 0.0 if o.bc_weight > 0 and o.actor_warmup_steps > 0 else 1.0
    if inconsistent:
        a_now, log_prob_now = m.actor.sample(u.obs, noise[ROWS + STARTS :])
        actor_loss = (alpha * log_prob_now - value * m.critics(u.obs, a_now).min(0).values).mean()
    else:
        if weight_gradient:
            soft = m.target_critics(u.next_obs, a_next).min(0).values - alpha * log_prob_next
            x = r + ends + o.gamma * (1 - u.terminated) * soft - q.min(0).values.detach()
        else:
            x = ((target if target.ndim == 1 else target.min(0).values) - q.min(0).values).detach()
        w = f_star_prime(o.actor_f_divergence, x / o.actor_eta).clamp(0, o.max_actor_weight)
        soft_value = value * m.critics(u.next_obs, a_next).min(0).values - alpha * log_prob_next
        actor_loss = -(1 - o.gamma) * value * m.critics(s0, a_initial).min(0).values.mean()
        actor_loss = actor_loss - (w * o.gamma * (1 - u.terminated) * soft_value).mean()
    if o.bc_weight > 0:
        anchor = (a_initial - batch["initial"].actions).square().mean()
        actor_loss = actor_loss * (1 - o.gamma) / (FACTS.reward_size + o.eta) + o.bc_weight * anchor

    # 11: the entropy coefficient
    alpha_loss = -m.log_alpha.exp() * (log_prob_next.detach() + o.target_entropy).mean()
    losses = {"actor": actor_loss, "critic": critic_loss, "classifier": classifier_loss, "alpha": alpha_loss}
    networks = {"actor": m.actor, "critic": m.critics, "classifier": m.classifier}
    params = {name: list(network.parameters()) for name, network in networks.items()} | {"alpha": [m.log_alpha]}
    return {name: torch.autograd.grad(losses[name], params[name], retain_graph=True) for name in NETWORKS}


def assert_equal(actual: Sequence[Tensor], expected: Sequence[Tensor], atol: float = 1e-12) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-9)


def differ(actual: Sequence[Tensor], other: Sequence[Tensor], by: float = 1e-6) -> bool:
    return any((a - b).abs().max() > by for a, b in zip(actual, other, strict=True))


@pytest.mark.parametrize("twin_q", [True, False], ids=["twin", "single"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_step_equals_plain_autograd(variant: str, twin_q: bool) -> None:
    config = make_config(**VARIANTS[variant])
    module, metrics = step(config, twin_q)
    expected = plain_gradients(config, twin_q)
    assert_equal(gradients(module.critics), expected["critic"])
    assert_equal(gradients(module.actor), expected["actor"])
    assert_equal([module.log_alpha.grad], expected["alpha"])  # type: ignore[list-item]
    if config.data_alignment:
        assert_equal(gradients(module.classifier), expected["classifier"])
    else:
        assert gradients(module.classifier) == [None] * len(list(module.classifier.parameters()))
    assert all(p.grad is None for p in module.target_critics.parameters())
    assert all(map(math.isfinite, metrics.values()))
    assert metrics.keys() & CLASSIFIER_METRICS == (CLASSIFIER_METRICS if config.data_alignment else set())


def test_variants_differ() -> None:
    """The comparison above sees each option: no two variants have the same gradients everywhere."""
    results = {}
    for variant, overrides in VARIANTS.items():
        g = plain_gradients(make_config(**overrides))
        results[variant] = [*g["critic"], *g["actor"], *g["classifier"]]
    names = list(results)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert differ(results[a], results[b]), f"{a} = {b}"


def test_float32_step_is_within_1e_6_of_plain_autograd() -> None:
    module = make_module().float()
    batch = convert(make_batch(), Tensor.float)
    take(make_update(module, make_config()), batch)
    expected = plain_gradients(make_config())
    for network, name in ((module.actor, "actor"), (module.critics, "critic"), (module.classifier, "classifier")):
        for a, b in zip(gradients(network), expected[name], strict=True):
            torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-4)


def test_the_mean_logit_is_that_of_the_update_rows() -> None:
    """It goes into checkpoints, and values terminal states where there is a classifier."""
    config, rows = make_config(terminal_alignment=True, eta=2.0), make_batch()["update"]
    update = make_update(make_module(), config)
    logits = torch.arange(float(ROWS), dtype=torch.float64)
    for _ in range(5000):
        rewards = update.modified_rewards(rows.rewards, logits)
    torch.testing.assert_close(rewards, rows.rewards + 2 * logits)
    expected = logits.mean() * (1 - 0.999**5000)
    torch.testing.assert_close(update.mean_logit, expected)
    other = make_update(make_module(), config)
    other.set_state(update.get_state())
    ends = 0.9 * 2 * expected / (1 - 0.9) * rows.terminated
    torch.testing.assert_close(other.target_rewards(rewards, rows), rewards + ends)
    without = make_update(make_module(), make_config(terminal_alignment=True, data_alignment=False))
    without.set_state(update.get_state())  # of a run with a classifier
    assert torch.equal(without.target_rewards(rewards, rows), rewards)
    other.set_state({})  # a checkpoint of an earlier version
    assert other.mean_logit == 0


@pytest.mark.parametrize("name", ["half_squared", "power"])
def test_with_target_networks_a_repeated_state_is_worth_its_classifiers_part_alone(name: str) -> None:
    """docs/damo.md 13, by DAMO's own critic loss. No state of an episode's start, it has no residual there."""
    eta, gamma, logit = 3.0, 0.9, torch.tensor(-0.7, dtype=torch.float64)
    q = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimizer, initial = torch.optim.SGD([q], 0.05), torch.zeros(1, 1, dtype=torch.float64)
    for _ in range(20_000):
        target = eta * logit + gamma * q.detach()[0]
        loss = damo_losses.critic_loss(q, target, initial, eta, gamma, DIVERGENCES[name](1.5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(q[0, 0], damo_losses.terminal_value(logit, eta, gamma, None), rtol=1e-3, atol=1e-3)


# -- routing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_each_loss_moves_its_own_network_alone(network: str, variant: str) -> None:
    """With only one optimiser switched on, nothing else moves (τ = 0 holds the targets)."""
    config = make_config(tau=0.0, **VARIANTS[variant])
    module = make_module()
    before = snapshot(module)
    take(make_update(module, config, **{network: 0.1}), make_batch())
    expected = set() if network == "classifier" and not config.data_alignment else {network}
    assert changed(before, module) == expected


def test_every_parameter_of_the_trained_networks_has_a_gradient() -> None:
    module, _ = step(make_config())
    for part in (module.actor, module.critics, module.classifier):
        assert all(g is not None and g.abs().sum() > 0 for g in gradients(part))


def test_targets_follow_by_the_moving_average_alone() -> None:
    module, config = make_module(), make_config(tau=0.25)
    before = snapshot(module)
    take(make_update(module, config, lr=0.1), make_batch())
    after = snapshot(module)
    assert changed(before, module) == {"actor", "critic", "target", "classifier", "alpha"}
    for old, critic, new in zip(before["target"], after["critic"], after["target"], strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * critic, atol=1e-12, rtol=0)
    assert not any(p.requires_grad for p in module.target_critics.parameters())


def test_no_gradient_through_the_density_ratio() -> None:
    module, _ = step(make_config())
    assert_equal(gradients(module.actor), plain_gradients(make_config())["actor"])
    assert differ(gradients(module.actor), plain_gradients(make_config(), weight_gradient=True)["actor"])


@pytest.mark.parametrize("divergence", ["half_squared", "chi_squared"])
def test_full_gradient_flows_through_the_next_value(divergence: str) -> None:
    config = make_config(target_networks=False, f_divergence=divergence)
    module, _ = step(config)
    assert_equal(gradients(module.critics), plain_gradients(config)["critic"])
    assert differ(gradients(module.critics), plain_gradients(config, stop_target=True)["critic"])


def test_full_gradient_does_not_read_the_target_networks() -> None:
    config = make_config(target_networks=False)
    results = []
    for scale in (1.0, 100.0):
        module = make_module()
        with torch.no_grad():
            for p in module.target_critics.parameters():
                p *= scale
        take(make_update(module, config), make_batch())
        results.append([*gradients(module.critics), *gradients(module.actor)])
    assert_equal(*results, atol=0)


def test_terminal_next_states_reach_no_gradient() -> None:
    """With every row terminal, s' matters to no loss but the classifier's and the entropy coefficient's."""
    results = []
    for shift in (0.0, 5.0):
        module, batch = make_module(), make_batch()
        update = batch["update"]._replace(
            terminated=torch.ones(ROWS, dtype=torch.float64), next_obs=batch["update"].next_obs + shift
        )
        batch["update"] = update
        take(make_update(module, make_config(data_alignment=False)), batch)
        results.append([*gradients(module.critics), *gradients(module.actor)])
    assert_equal(*results)


def test_classifier_learns_from_its_own_rows_alone() -> None:
    """Neither the update rows nor the coefficients of the other losses reach it."""
    expected = plain_gradients(make_config())["classifier"]
    batch, other = make_batch(), make_batch(seed=99)
    batch.update({name: other[name] for name in ("update", "initial")})
    module = make_module()
    config = make_config(eta=50.0, gamma=0.1, bc_weight=3.0)
    take(make_update(module, config), batch)
    assert_equal(gradients(module.classifier), expected)


def test_modified_reward_is_of_the_classifier_before_its_step() -> None:
    module, batch = make_module(), make_batch()
    before = copy.deepcopy(module.classifier)
    rewards, metrics = make_update(module, make_config(), classifier=0.5).classifier_step(batch)
    rows = batch["update"]
    logits = before(before.inputs(rows.obs, rows.actions, rows.next_obs))
    torch.testing.assert_close(rewards, rows.rewards + make_config().eta * logits)
    assert not rewards.requires_grad
    offline, synthetic = (
        before(before.inputs(part.obs, part.actions, part.next_obs))
        for part in (batch["classifier_offline"], batch["classifier_synthetic"])
    )
    accuracy = ((offline > 0).double().mean() + (synthetic < 0).double().mean()) / 2
    expected = {
        "classifier_accuracy": accuracy, "logit_offline_mean": offline.mean(), "logit_synthetic_mean": synthetic.mean(),
    }  # fmt: skip
    torch.testing.assert_close({name: metrics[name] for name in expected}, expected, check_dtype=False)


@pytest.mark.parametrize("kind", [DAMOUpdate, FastUpdate])
def test_a_successor_that_is_not_known_has_the_plain_reward(kind: type[DAMOUpdate]) -> None:
    """A terminal whose observation is repeated; a row that goes on in the same place has its own logit."""
    batch = make_batch()
    for row in (0, 1):
        batch["update"].next_obs[row] = batch["update"].obs[row]
    assert batch["update"].terminated[:2].tolist() == [1, 0]
    module = make_module()
    optimizers = {name: torch.optim.SGD(params, lr=0.0) for name, params in module.trainable().items()}
    update = kind(module, make_config(), optimizers=optimizers, generator=torch.Generator())
    rewards, _ = update.classifier_step(batch)
    assert (rewards == batch["update"].rewards).nonzero().flatten().tolist() == [0]
    update.fit(DatasetFacts(knows_terminals=False))  # nor do the model's terminals have anything to be compared with
    rewards, _ = update.classifier_step(batch)
    assert torch.equal(rewards == batch["update"].rewards, batch["update"].terminated == 1)


@pytest.mark.parametrize(("option", "value"), [("classifier_noise", 0.5), ("classifier_gradient_penalty", 10.0)])
def test_classifier_regularisers_change_its_gradient_but_not_the_rewards(option: str, value: float) -> None:
    results = []
    for overrides in ({}, {option: value}):
        module = make_module().float()
        batch = convert(make_batch(), Tensor.float)
        with torch.no_grad():  # steep enough for the penalty to act
            for p in module.classifier.parameters():
                p *= 3
        rewards, _ = make_update(module, make_config(**overrides)).classifier_step(batch)
        results.append((gradients(module.classifier), rewards))
    (plain, rewards), (regularised, same_rewards) = results
    assert differ(plain, regularised)
    torch.testing.assert_close(rewards, same_rewards)


def test_the_classifiers_inputs_are_scaled_by_known_successors_alone() -> None:
    rows = make_batch()["update"]
    rows.next_obs[::4] = rows.obs[::4]  # all terminals
    module = make_module()
    module.fit_standardizers(rows)
    known = rows.terminated == 0
    changes = (rows.next_obs - rows.obs)[known]
    standardize = module.classifier.standardize
    torch.testing.assert_close(standardize.mean[-OBS:], changes.mean(0))
    torch.testing.assert_close(standardize.std[-OBS:], changes.std(0))
    torch.testing.assert_close(module.actor.standardize.mean, rows.obs.mean(0))


@pytest.mark.parametrize("part", ["classifier", "critics", "averaged_actor"])
def test_a_state_of_other_networks_is_refused(part: str) -> None:
    """RLlib would leave what the state lacks as it is."""
    state = {name: value.numpy() for name, value in make_module().state_dict().items()}
    make_module(initial_alpha=0.5).set_state(state)
    names = [name for name in state if name.startswith(part)]
    for lacks in (names[-1:], names):
        less = {name: value for name, value in state.items() if name not in lacks}
        with pytest.raises(RuntimeError, match=f"hidden_dims.*classifier_spectral_norm.*{lacks[-1]}"):
            make_module().set_state(less)


def test_a_state_of_the_policy_alone_is_taken() -> None:
    given, module = make_module(), make_module()
    state = {name: value.numpy() + 1 for name, value in given.state_dict().items() if "actor" in name}
    module.set_state(state)
    for name, value in state.items():
        torch.testing.assert_close(module.state_dict()[name], torch.from_numpy(value))


def test_anchor_pulls_the_actor_to_the_datasets_actions() -> None:
    """The BC term reads the dataset rows' own states and actions; the critics do not see it."""
    config = make_config(bc_weight=1e6)
    module, batch = make_module(), make_batch()
    noise = torch.zeros(STARTS, ACT, dtype=torch.float64)

    def distance() -> float:
        actions, _ = module.actor.sample(batch["initial"].obs, noise)
        return (actions - batch["initial"].actions).square().mean().item()

    update = make_update(module, config, actor=2e-8)
    distances = [distance()]
    for _ in range(60):
        take(update, batch)
        distances.append(distance())
    assert distances[-1] < 0.8 * distances[0]
    assert_equal(gradients(step(config)[0].critics), gradients(step(make_config())[0].critics), atol=0)


def test_alpha_is_bounded() -> None:
    config = make_config(max_alpha=0.5, target_entropy=100.0)  # an entropy that cannot be reached
    module = make_module()
    update = make_update(module, config, alpha=1.0)
    for _ in range(5):
        take(update, make_batch())
    assert module.log_alpha.exp().item() == pytest.approx(0.5)
    config = make_config(target_entropy=-100.0)
    module = make_module()
    take(make_update(module, config, alpha=0.1), make_batch())
    assert module.log_alpha.exp().item() < 0.3


def test_gradients_are_clipped_by_network() -> None:
    module, _ = step(make_config(grad_clip=1e-3))
    expected = plain_gradients(make_config())
    for network, name in ((module.actor, "actor"), (module.critics, "critic"), (module.classifier, "classifier")):
        norm = torch.cat([g.flatten() for g in expected[name]]).norm()
        assert norm > 1e-3
        assert_equal(gradients(network), [g * 1e-3 / (norm + 1e-6) for g in expected[name]], atol=1e-9)


def test_gradients_pass_through_the_reducer() -> None:
    module = make_module()
    update = make_update(module, make_config())
    sizes = []

    def halve(group: Sequence[Tensor]) -> None:
        sizes.append(len(group))
        torch._foreach_div_(list(group), 2)

    update.reduce_gradients = halve
    take(update, make_batch())
    expected = plain_gradients(make_config())
    assert_equal(gradients(module.actor), [g / 2 for g in expected["actor"]])
    assert sorted(sizes) == sorted(len(expected[name]) for name in NETWORKS)


def test_metrics() -> None:
    module, batch = make_module(), make_batch()
    q = module.critics(batch["update"].obs, batch["update"].actions)
    values = take(make_update(module, make_config()), batch)
    assert all(value.shape == () and not value.requires_grad for value in values.values())
    assert values["alpha_value"].item() == pytest.approx(0.3)
    assert values["qf_mean"].item() == pytest.approx(q.mean().item())
    assert values["bc_loss"] == 0
    assert 0 <= values["density_ratio_mean"] <= make_config().max_actor_weight
    assert 0 <= values["classifier_accuracy"] <= 1


def test_steps_are_reproducible_from_the_generator() -> None:
    results = []
    for _ in range(2):
        module = make_module()
        update = make_update(module, make_config(), lr=0.05)
        for _ in range(3):
            take(update, make_batch())
        results.append([p for group in snapshot(module).values() for p in group])
    assert_equal(*results, atol=0)


@pytest.mark.parametrize("option", ["critic_layer_norm", "classifier_spectral_norm"])
def test_steps_with_other_networks(option: str) -> None:
    module = make_module(**{option: True}).float()
    config = make_config(classifier_gradient_penalty=1.0, classifier_noise=0.1)
    update = make_update(module, config, lr=0.01)
    for _ in range(3):
        metrics = take(update, convert(make_batch(), Tensor.float))
        assert all(map(math.isfinite, metrics.values()))
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_single_row_and_groups_of_other_sizes() -> None:
    one = first_rows(make_batch(), update=1, initial=5, classifier=2)
    metrics = take(make_update(make_module(), make_config(), lr=0.01), one)
    assert all(map(math.isfinite, metrics.values()))
