"""The baselines: update rules against their papers, MOPO's penalties on a hand-made ensemble, errors of the configs."""

from __future__ import annotations

import copy
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from rllib_damo.baselines.config import BaselineConfig
from rllib_damo.baselines.updates import BehaviorCloningUpdate, SACOptions, SACUpdate, TD3BCOptions, TD3BCUpdate
from torch import Tensor

from rllib_damo.baselines import BehaviorCloningConfig, MOPOConfig, TD3BCConfig
from rllib_damo.baselines.bc import BCTorchRLModule, BehaviorCloningTorchLearner
from rllib_damo.baselines.mopo import MOPOTorchLearner, MOPOTorchRLModule
from rllib_damo.baselines.td3bc import TD3BCTorchLearner, TD3BCTorchRLModule
from rllib_damo.baselines.uncertainty import UNCERTAINTIES, PenalizedDynamics
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.damo.update import StepBatch
from rllib_damo.dynamics import DynamicsEnsemble, never_terminates
from rllib_damo.dynamics.rollout import rollout
from rllib_damo.utils.batch import Batch

OBS, ACT, ROWS, SEED = 3, 2, 12, 7
TD3BC = TD3BCOptions(gamma=0.9, tau=0.1, bc_alpha=2.5, policy_noise=0.2, noise_clip=0.5, policy_delay=2)
SAC = SACOptions(gamma=0.9, tau=0.1, target_entropy=-2.0, max_alpha=math.inf)


def make_module(module_class: type[DAMOTorchRLModule]) -> Any:
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
    return StepBatch(update=rows, initial=rows, offline=rows, synthetic=rows)


def make_update(rule: type, module: DAMOTorchRLModule, lr: float = 0.0, **options: Any) -> Any:
    optimizers = {name: torch.optim.SGD(params, lr=lr) for name, params in module.trainable().items()}
    return rule(module, optimizers=optimizers, generator=torch.Generator().manual_seed(SEED), **options)


def noise() -> torch.Generator:
    """The generator that the update starts with."""
    return torch.Generator().manual_seed(SEED)


def assert_gradients(params: Any, loss: Tensor) -> None:
    params = list(params)
    expected = torch.autograd.grad(loss, params, retain_graph=True)
    for param, gradient in zip(params, expected, strict=True):
        torch.testing.assert_close(param.grad, gradient)


def moved(before: DAMOTorchRLModule, after: DAMOTorchRLModule) -> set[str]:
    old = dict(before.named_parameters())
    return {name.split(".")[0] for name, value in after.named_parameters() if not torch.equal(old[name], value)}


# -- behaviour cloning -----------------------------------------------------------------------------------------------


def test_bc_minimises_the_mean_squared_error_of_tanh_mean() -> None:
    module, rows = make_module(BCTorchRLModule), make_batch().update
    metrics = make_update(BehaviorCloningUpdate, module).step(make_batch())
    expected = (torch.tanh(module.actor(rows.obs)[0]) - rows.actions).pow(2).sum() / (ROWS * ACT)
    assert_gradients(module.actor.parameters(), expected)
    assert metrics.tolist() == pytest.approx([expected.item()])
    assert len(metrics) == len(BehaviorCloningTorchLearner.metric_names)


def test_bc_converges_to_the_behaviour() -> None:
    module = make_module(BCTorchRLModule)
    update = make_update(BehaviorCloningUpdate, module, lr=0.5)
    losses = [float(update.step(make_batch())) for _ in range(300)]
    assert losses[-1] < 0.3 * losses[0]


# -- TD3+BC ----------------------------------------------------------------------------------------------------------


def td3bc_critic_loss(module: Any, rows: Batch, noise_clip: float = TD3BC.noise_clip) -> Tensor:
    drawn = torch.randn(ROWS, ACT, generator=noise()).double()
    actions = torch.tanh(module.target_actor(rows.next_obs)[0])
    actions = torch.maximum(torch.minimum(actions + (0.2 * drawn).clip(-noise_clip, noise_clip),
                                          torch.ones(())), -torch.ones(()))  # fmt: skip
    first, second = module.target_critics(rows.next_obs, actions)
    target = rows.rewards + 0.9 * (1 - rows.terminated) * torch.minimum(first, second)
    q1, q2 = module.critics(rows.obs, rows.actions)
    return ((q1 - target.detach()) ** 2).mean() + ((q2 - target.detach()) ** 2).mean()


def test_td3bc_gradients_are_the_papers() -> None:
    module, batch = make_module(TD3BCTorchRLModule), make_batch()
    rows = batch.update
    update = make_update(TD3BCUpdate, module, options=TD3BC)
    first = dict(zip(TD3BCTorchLearner.metric_names, update.step(batch).tolist(), strict=True))
    critic_loss = td3bc_critic_loss(module, rows)
    assert_gradients(module.critics.parameters(), critic_loss)
    assert first["qf_loss"] == pytest.approx(critic_loss.item())
    assert all(p.grad is None for p in module.actor.parameters())  # the actor is delayed

    update.num_steps = 1
    second = dict(zip(TD3BCTorchLearner.metric_names, update.step(batch).tolist(), strict=True))
    actions = torch.tanh(module.actor(rows.obs)[0])
    q = module.critics(rows.obs, actions)[0]
    scale = 2.5 / q.abs().mean().item()
    actor_loss = -(scale * q - (actions - rows.actions).pow(2).mean(-1)).mean()
    assert_gradients(module.actor.parameters(), actor_loss)
    assert second["policy_loss"] == pytest.approx(actor_loss.item())
    assert second["value_scale"] == pytest.approx(scale)
    assert second["bc_loss"] == pytest.approx((actions - rows.actions).pow(2).mean().item())


def test_td3bc_clips_the_targets_noise() -> None:
    module, batch = make_module(TD3BCTorchRLModule), make_batch()
    options = TD3BCOptions(gamma=0.9, tau=0.1, bc_alpha=2.5, policy_noise=0.2, noise_clip=0.1, policy_delay=2)
    make_update(TD3BCUpdate, module, options=options).step(batch)
    assert_gradients(module.critics.parameters(), td3bc_critic_loss(module, batch.update, noise_clip=0.1))


def test_td3bc_moves_actor_and_targets_every_second_step() -> None:
    module, batch = make_module(TD3BCTorchRLModule), make_batch()
    update = make_update(TD3BCUpdate, module, lr=0.01, options=TD3BC)
    before = copy.deepcopy(module)
    update.step(batch)
    assert moved(before, module) == {"critics"}
    halfway = copy.deepcopy(module)
    update.num_steps = 1
    update.step(batch)
    assert moved(halfway, module) == {"critics", "actor", "target_actor", "target_critics"}
    for name, follows in (("target_actor", "actor"), ("target_critics", "critics")):
        for old, new, leader in zip(
            *(list(getattr(m, n).parameters()) for m, n in ((before, name), (module, name), (module, follows))),
            strict=True,
        ):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * leader)


def test_td3bc_without_the_value_term_clones() -> None:
    module, batch = make_module(TD3BCTorchRLModule), make_batch()
    options = TD3BCOptions(gamma=0.9, tau=0.1, bc_alpha=0.0, policy_noise=0.2, noise_clip=0.5, policy_delay=1)
    make_update(TD3BCUpdate, module, options=options).step(batch)
    twin = make_module(BCTorchRLModule)
    twin.actor.load_state_dict(module.actor.state_dict())
    make_update(BehaviorCloningUpdate, twin).step(batch)
    for p, q in zip(module.actor.parameters(), twin.actor.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_deterministic_modules_act_alike_with_and_without_exploration() -> None:
    module = make_module(TD3BCTorchRLModule).float()
    obs = {"obs": torch.randn(4, OBS)}
    actions = module.forward_inference(obs)["actions"]
    torch.testing.assert_close(actions, torch.tanh(module.actor(obs["obs"])[0]))
    torch.testing.assert_close(module.forward_exploration(obs)["actions"], actions)


# -- MOPO ------------------------------------------------------------------------------------------------------------


def test_sac_gradients_are_the_papers() -> None:
    module, batch = make_module(MOPOTorchRLModule), make_batch()
    rows, generator, targets = batch.update, noise(), copy.deepcopy(module.target_critics)
    values = make_update(SACUpdate, module, options=SAC).step(batch)
    metrics = dict(zip(MOPOTorchLearner.metric_names, values.tolist(), strict=True))

    def draw(obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = module.actor(obs)
        normal = torch.distributions.Normal(mean, log_std.exp())
        u = mean + log_std.exp() * torch.randn(ROWS, ACT, generator=generator)
        return torch.tanh(u), (normal.log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)).sum(-1)

    next_actions, next_log_prob = draw(rows.next_obs)
    actions, log_prob = draw(rows.obs)
    soft = targets(rows.next_obs, next_actions).amin(0) - 0.3 * next_log_prob
    target = (rows.rewards + 0.9 * (1 - rows.terminated) * soft).detach()
    q = module.critics(rows.obs, rows.actions)
    critic_loss = sum(0.5 * (row - target).pow(2).mean() for row in q)
    actor_loss = (0.3 * log_prob - module.critics(rows.obs, actions).amin(0)).mean()
    assert_gradients(module.critics.parameters(), critic_loss)
    assert_gradients(module.actor.parameters(), actor_loss)
    alpha_loss = (-module.log_alpha.exp() * (log_prob.detach() - 2.0)).mean()
    assert_gradients([module.log_alpha], alpha_loss)
    expected = (actor_loss, critic_loss, alpha_loss, q.mean(), -log_prob.mean())
    names = ("policy_loss", "qf_loss", "alpha_loss", "qf_mean", "entropy")
    for name, value in zip(names, expected, strict=True):
        assert metrics[name] == pytest.approx(value.item())


def test_sac_moves_everything_and_bounds_alpha() -> None:
    module = make_module(MOPOTorchRLModule)
    before = copy.deepcopy(module)
    options = SACOptions(gamma=0.9, tau=0.1, target_entropy=100.0, max_alpha=0.35)  # an entropy out of reach
    update = make_update(SACUpdate, module, lr=0.1, options=options)
    for _ in range(3):
        update.step(make_batch())
    assert moved(before, module) == {"actor", "critics", "target_critics", "log_alpha"}
    assert module.log_alpha.exp().item() == pytest.approx(0.35)


def hand_made_ensemble() -> DynamicsEnsemble:
    """Two states; three members whose mean changes are (0,0), (3,0), (0,3), with std 1, 2, 1/2 everywhere."""
    model = DynamicsEnsemble(2, 1, hidden_dims=(4,), num_ensemble=3, num_elites=1)
    with torch.no_grad():
        for weight in model.weights:
            weight.zero_()
        model.min_logvar.fill_(-50.0)
        model.max_logvar.fill_(50.0)
        model.biases[-1][1, 0, 0] = 3.0
        model.biases[-1][2, 0, 1] = 3.0
        for member, std in enumerate((1.0, 2.0, 0.5)):
            model.biases[-1][member, 0, 3:] = 2 * math.log(std)
        model.target_std.copy_(torch.tensor([1.0, 2.0, 1.0]))  # the second state is measured in half units
    return model


# in the data's units the means are (0,0), (3,0), (0,6), their mean is (1,2); σ₂ = (2,4,2) is the largest
@pytest.mark.parametrize(
    ("uncertainty", "expected"),
    [
        ("aleatoric", math.sqrt(4 + 16 + 4)),
        ("pairwise-diff", math.hypot(1, 4)),
        ("ensemble-std", math.sqrt((2 + 8) / 2)),  # variances (1+4+1)/3 and (4+4+16)/3
    ],
)
def test_penalties_of_a_hand_made_ensemble(uncertainty: str, expected: float) -> None:
    ensemble, obs, actions = hand_made_ensemble(), torch.randn(5, 2), torch.zeros(5, 1)
    mean, logvar = ensemble(obs, actions)
    doubt = UNCERTAINTIES[uncertainty](mean, (logvar / 2).exp())
    np.testing.assert_allclose(doubt.detach(), np.full(5, expected), rtol=1e-5)

    plain = ensemble.sampler()(obs, actions, noise())
    penalized = PenalizedDynamics(ensemble, uncertainty, 0.5)
    next_obs, rewards = penalized.sampler()(obs, actions, noise())
    torch.testing.assert_close(next_obs, plain[0])
    torch.testing.assert_close(rewards, plain[1] - 0.5 * expected)
    assert penalized.uncertainty_mean() == pytest.approx(expected, rel=1e-5)


def test_rollouts_carry_the_penalty() -> None:
    starts, ensemble = torch.randn(6, 2), hand_made_ensemble()

    def roll(model: Any) -> dict[str, Tensor]:
        return rollout(lambda obs, _: torch.zeros(len(obs), 1), model, never_terminates, starts, 3, noise())

    plain, penalized = roll(ensemble), roll(PenalizedDynamics(ensemble, "pairwise-diff", 2.0))
    torch.testing.assert_close(penalized["rewards"], plain["rewards"] - 2 * math.hypot(1, 4))
    torch.testing.assert_close(penalized["next_obs"], plain["next_obs"])


# -- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "options", "parts"),
    [
        (TD3BCConfig(), {"eta": 0.5}, ("TD3BC does not read `eta`", "0.5")),
        (TD3BCConfig(), {"real_ratio": 0.5}, ("does not read `real_ratio`",)),
        (TD3BCConfig(), {"bc_alpha": -1.0}, ("`bc_alpha`", ">= 0", "-1.0")),
        (TD3BCConfig(), {"noise_clip": math.inf}, ("`noise_clip`", "finite")),
        (TD3BCConfig(), {"policy_delay": 0}, ("`policy_delay`", "whole number", "0")),
        (BehaviorCloningConfig(), {"critic_lr": 1.0}, ("BehaviorCloning does not read `critic_lr`",)),
        (BehaviorCloningConfig(), {"actor_lr": 0.0}, ("`actor_lr`", "> 0")),
        (MOPOConfig(), {"label_smoothing": 0.2}, ("MOPO does not read `label_smoothing`",)),
        (MOPOConfig(), {"uncertainty": "pairwise"}, ("`uncertainty`", "pairwise-diff", "'pairwise'")),
        (MOPOConfig(), {"penalty_coef": "1"}, ("`penalty_coef`", "number")),
    ],
)
def test_errors_name_option_and_value(config: BaselineConfig, options: dict[str, Any], parts: tuple[str, ...]) -> None:
    config = config.environment("Pendulum-v1").offline_data(input_="pendulum-mixed").training(**options)
    with pytest.raises(ValueError, match="`") as info:
        config.validate()
    assert all(part in str(info.value) for part in parts), info.value


def test_without_a_model_there_is_nothing_to_set_about_it() -> None:
    config = TD3BCConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed")
    with pytest.raises(ValueError, match="does not read `dynamics_lr`"):
        config.copy().dynamics(dynamics_lr=0.1).validate()
    with pytest.raises(ValueError, match="rolls out in no model"):
        config.copy().env_runners(num_env_runners=1).validate()


@pytest.mark.parametrize("config_class", [TD3BCConfig, BehaviorCloningConfig, MOPOConfig])
def test_defaults_are_valid(config_class: type[BaselineConfig]) -> None:
    config_class().environment("Pendulum-v1").offline_data(input_="pendulum-mixed").validate()


@pytest.mark.parametrize("config_class", [TD3BCConfig, MOPOConfig])
def test_defaults_are_the_papers_and_not_damos(config_class: type[BaselineConfig]) -> None:
    config = config_class()
    shared = {"tau": 0.005, "gamma": 0.99, "critic_lr": 3e-4, "train_batch_size_per_learner": 256, "data_fraction": 1.0}
    own = {
        TD3BCConfig: {"actor_lr": 3e-4, "bc_alpha": 2.5, "policy_noise": 0.2, "noise_clip": 0.5, "policy_delay": 2},
        MOPOConfig: {"actor_lr": 1e-4, "alpha_lr": 1e-4, "initial_alpha": 1.0, "real_ratio": 0.05},
    }
    expected = shared | own[config_class]
    assert {name: getattr(config, name) for name in expected} == expected
