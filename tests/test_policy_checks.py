"""Episodes in the model by each elite alone, and the policy that a run keeps by them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from rllib_damo import DAMOConfig
from rllib_damo.core.policy_checks import NUM_STARTS, PolicyChecks, is_worse
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.dynamics import never_terminates
from rllib_damo.dynamics.episode_returns import episode_returns
from rllib_damo.dynamics.known_range import KnownRange

from .test_rollouts import ACT, OBS, counting_model, ends_at_three


def still(obs: Tensor) -> Tensor:
    return obs.new_zeros(len(obs), ACT)


WIDE = KnownRange(torch.full((OBS,), -99.0), torch.full((OBS,), 99.0), -1.0, 3.0)


def test_a_terminal_state_outside_the_range_is_the_rules_and_not_the_ranges() -> None:
    known = WIDE._replace(high=torch.tensor([2.9, 99.0, 99.0]))
    torch.testing.assert_close(returns(torch.zeros(1, OBS), 10, ends_at_three, known=known).flatten()[1:], THREE_STEPS)


THREE_STEPS = torch.tensor([6.0, 9.0])


def returns(
    starts: Tensor, length: int, rule: Any = never_terminates, model: Any = None, known: KnownRange = WIDE
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return episode_returns(still, model or counting_model(), rule, starts, length, generator, known)


def test_each_elite_plays_whole_episodes_from_each_start() -> None:
    found = returns(torch.zeros(4, OBS), 10)
    expected = torch.tensor([[0.0], [20.0], [30.0]])  # the third elite's 4 is beyond the data's 3
    torch.testing.assert_close(found, expected.expand(3, 4))


def test_an_episode_ends_where_the_rule_says_and_its_last_reward_counts() -> None:
    starts = torch.zeros(2, OBS)
    starts[1, 0] = 1.0
    found = returns(starts, 10, ends_at_three)  # after three steps, and after two
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [6.0, 4.0], [9.0, 6.0]]))


def test_what_leaves_the_range_of_the_data_has_the_lowest_reward_from_there() -> None:
    known = WIDE._replace(high=torch.tensor([3.5, 99.0, 99.0]))
    found = returns(torch.zeros(1, OBS), 10, known=known)  # three steps, and -1 for each of seven
    torch.testing.assert_close(found.flatten(), torch.tensor([-7.0, 6.0 - 7, 9.0 - 7]))
    model = counting_model()
    with torch.no_grad():
        model.biases[-1][2, 0, 1] = float("inf")  # the second elite's next states
    torch.testing.assert_close(returns(torch.zeros(1, OBS), 3, model=model).flatten(), torch.tensor([0.0, -3.0, 9.0]))


class Judged:
    """`PolicyChecks` of a module whose first bias says what the elites will give."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = DAMOConfig().environment("Pendulum-v1").training(policy_check_freq=5, hidden_dims=(4,))
        env = gym.make("Pendulum-v1")
        self.module = DAMOTorchRLModule(
            observation_space=env.observation_space,
            action_space=gym.spaces.Box(-1, 1, (1,)),
            model_config=config.model_config,
        )
        self.checks = PolicyChecks(config, self.module, torch.device("cpu"))
        self.elites: list[float] = []
        place = "rllib_damo.core.policy_checks"
        monkeypatch.setattr(f"{place}.DynamicsEnsemble", SimpleNamespace(load=lambda path, device: path))
        monkeypatch.setattr(f"{place}.rule_of_model", lambda *args: never_terminates)
        monkeypatch.setattr(f"{place}.episode_returns", self.play)

    def play(self, policy: Any, dynamics: Any, rule: Any, starts: Tensor, length: int, *others: Any) -> Tensor:
        assert starts.shape == (NUM_STARTS, 3)
        self.length = length
        return torch.tensor(self.elites)[:, None].expand(-1, NUM_STARTS)

    def check(self, number: float, elites: list[float], step: int = 0, longest: int = 200) -> dict[str, float]:
        for parameter in self.module.averaged_actor.parameters():
            parameter.data.fill_(number)
        self.elites = elites
        return self.checks.check("model.pt", torch.zeros(7, 3), WIDE, longest, step)

    def kept(self) -> set[float]:
        return {float(value) for p in self.module.kept_actor.parameters() for value in p.flatten()}


def test_the_policy_that_the_worst_elite_gives_most_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged(monkeypatch)
    found = judged.check(1.0, [10.0, 20.0], step=5)
    assert found == {"return_mean": 15, "return_lower": 10, "kept_return": 10, "kept_step": 5}
    found = judged.check(2.0, [9.0, 100.0], step=10)
    assert (found["return_lower"], found["kept_return"], found["kept_step"], judged.kept()) == (9, 10, 5, {1.0})
    judged.check(3.0, [10.0, 11.0], step=15)  # as good, and newer
    assert judged.kept() == {3.0}
    judged.checks.forget()
    judged.check(4.0, [-5.0, 0.0], step=20)
    assert judged.kept() == {4.0}


@pytest.mark.parametrize("gap", [0.5, 5.0])
def test_a_newer_policy_is_kept_unless_it_is_clearly_worse_than_the_best(gap: float) -> None:
    """Two standard errors of the difference from the same starts: 2 * 1 / sqrt(NUM_STARTS) * 10 here."""
    checks_of = torch.Generator().manual_seed(0)
    best = 100 + 50 * torch.randn(3, NUM_STARTS, generator=checks_of)
    noise = 10 * torch.randn(NUM_STARTS, generator=checks_of)
    new = best + noise - noise.mean() - gap
    assert is_worse(new, best) == (gap > 2)
    assert not is_worse(best, new)
    unpaired = new[:, torch.randperm(NUM_STARTS, generator=checks_of)]  # the starts' own spread hides the gap
    assert not is_worse(unpaired, best)


def test_policies_that_decline_by_little_each_time_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is as good as the one before it, but the best is what they are compared with."""
    judged = Judged(monkeypatch)
    spread = 10 * torch.randn(NUM_STARTS, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("rllib_damo.core.policy_checks.episode_returns", lambda *a: judged.returns)
    kept = []
    for i in range(6):
        judged.returns = (100 - i + spread.roll(i))[None]
        kept.append(judged.check(float(i), [], step=i)["kept_step"])
    assert kept[1] == 1
    assert kept[-1] < 5
    other = PolicyChecks(DAMOConfig(), judged.module, torch.device("cpu"))
    other.set_state(judged.checks.get_state())
    other.check("model.pt", torch.zeros(7, 3), WIDE, 200, 7)
    assert other.kept_step == kept[-1]


def test_all_checks_have_the_terms_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged(monkeypatch)
    judged.elites, seen = [0.0], []
    play = judged.play
    monkeypatch.setattr("rllib_damo.core.policy_checks.episode_returns", lambda *a: (seen.append(a), play(*a))[1])

    def given(window: float) -> tuple[str, Tensor, KnownRange, int]:
        return "model.pt", torch.full((7, 3), window), WIDE._replace(highest_reward=window), int(100 * window)

    for window in (1.0, 2.0):
        judged.checks.check(*given(window), 0)
    other = PolicyChecks(DAMOConfig(), judged.module, torch.device("cpu"))
    other.set_state(judged.checks.get_state())
    other.check(*given(3.0), 0)
    assert [(float(a[3].mean()), a[4], a[6].highest_reward) for a in seen] == [(1, 100, 1)] * 3
    other.check_again(*given(4.0))
    assert (float(seen[-1][3].mean()), seen[-1][4], seen[-1][6].highest_reward) == (4, 400, 4)


def test_the_kept_policy_is_judged_anew_by_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged(monkeypatch)
    judged.check(1.0, [10.0], step=5)
    judged.check(2.0, [3.0], step=10)
    judged.elites = [-7.0, 4.0]
    judged.checks.check_again("refitted.pt", torch.zeros(7, 3), WIDE, 200)
    assert (judged.checks.kept_return, judged.checks.kept_step, judged.kept()) == (-7, 5, {1.0})
    judged.check(3.0, [-6.0], step=15)
    assert judged.kept() == {3.0}


def test_the_policy_played_is_the_kept_one(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged(monkeypatch)
    obs = torch.randn(5, 3)
    judged.check(0.1, [1.0])
    before = judged.module.mean_actions(obs)
    judged.check(0.9, [0.0])
    torch.testing.assert_close(judged.module.mean_actions(obs), before)
    judged.check(0.9, [2.0])
    assert not torch.allclose(judged.module.mean_actions(obs), before)


def test_checks_play_no_longer_than_the_data_nor_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged(monkeypatch)
    judged.check(1.0, [0.0], longest=200)
    assert judged.length == 200
    judged.checks.forget()
    judged.check(1.0, [0.0], longest=1_000_000)
    assert judged.length == 1000


def test_checks_may_begin_and_end_at_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = Judged(monkeypatch).module
    plain = DAMOTorchRLModule(
        observation_space=checked.observation_space,
        action_space=checked.action_space,
        model_config={**checked.model_config, "policy_check_freq": 0},
    )
    obs = torch.randn(5, 3)
    checked.set_state(plain.get_state())
    torch.testing.assert_close(checked.mean_actions(obs), plain.mean_actions(obs))
    with torch.no_grad():
        checked.averaged_actor.net[0].weight.add_(1.0)
    assert not torch.equal(checked.mean_actions(obs), checked.averaged_actor(obs)[0].tanh())
    plain.set_state(checked.get_state())
    torch.testing.assert_close(plain.mean_actions(obs), checked.averaged_actor(obs)[0].tanh())
