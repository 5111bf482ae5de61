"""Known termination rules against the real environments; the learned one on a known boundary."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_damo.core.dataset_checks import check_enough_rows, try_rule
from rllib_damo.data.schema import Transitions
from rllib_damo.dynamics import LearnedTermination, never_terminates, resolve_termination
from rllib_damo.dynamics.termination_head import TerminationTrainer
from rllib_damo.errors import DataError
from rllib_damo.tasks import TERMINATION_RULES
from tests.data_helpers import make_transitions

#: Environment id, constructor arguments, and how far to push the state so that both outcomes occur.
CASES = [
    ("Hopper", {}, 0.3),
    ("Hopper", {"exclude_current_positions_from_observation": False}, 0.3),
    ("Hopper", {"healthy_z_range": (0.9, 1.3), "healthy_angle_range": (-0.5, 0.5)}, 0.3),
    ("Hopper", {"healthy_state_range": (-1.5, 2.0)}, 0.3),
    ("Hopper", {"terminate_when_unhealthy": False}, 0.5),
    ("Walker2d", {}, 0.7),
    ("Walker2d", {"exclude_current_positions_from_observation": False}, 0.7),
    ("Walker2d", {"healthy_z_range": (1.0, 1.5), "healthy_angle_range": (-0.2, 0.2)}, 0.3),
    ("Walker2d", {"terminate_when_unhealthy": False}, 0.7),
    ("Ant", {}, 0.5),
    ("Ant", {"exclude_current_positions_from_observation": False}, 0.5),
    ("Ant", {"healthy_z_range": (0.6, 0.8)}, 0.1),
    ("Ant", {"terminate_when_unhealthy": False}, 0.5),
    ("Humanoid", {}, 0.4),
    ("Humanoid", {"exclude_current_positions_from_observation": False}, 0.4),
    ("Humanoid", {"healthy_z_range": (1.3, 1.5)}, 0.2),
    ("InvertedPendulum", {}, 0.3),
    ("InvertedDoublePendulum", {}, 0.6),
    ("HalfCheetah", {}, 1.0),
    ("HalfCheetah", {"exclude_current_positions_from_observation": False}, 1.0),
    ("Swimmer", {}, 1.0),
    ("Reacher", {}, 0.5),
    ("Pusher", {}, 0.5),
    ("HumanoidStandup", {}, 0.5),
]
NEVER = {"HalfCheetah", "Swimmer", "Reacher", "Pusher", "HumanoidStandup"}


def real_transitions(env_id: str, options: dict, spread: float, num: int = 150) -> tuple[np.ndarray, ...]:
    """Single steps of the real environment from states around its initial one, far enough to fall."""
    env = gym.make(env_id, **options)
    base, rng = env.unwrapped, np.random.default_rng(0)
    env.action_space.seed(0)
    columns: tuple[list, ...] = ([], [], [], [])
    obs, _ = env.reset(seed=0)
    start = base.init_qpos.copy(), base.init_qvel.copy()
    for _ in range(num):
        env.reset()
        scale = rng.uniform(0, spread)
        base.set_state(
            start[0] + scale * rng.normal(size=base.model.nq), start[1] + 3 * scale * rng.normal(size=base.model.nv)
        )
        obs, action = base._get_obs(), env.action_space.sample()
        next_obs, _, terminated, _, _ = env.step(action)
        for column, value in zip(columns, (obs, action, next_obs, terminated), strict=True):
            column.append(value)
    env.close()
    return tuple(np.asarray(column) for column in columns)


@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize(("name", "options", "spread"), CASES)
def test_known_rule_agrees_with_the_environment(name, version, options, spread):
    env_id = f"{name}-{version}"
    try:
        obs, actions, next_obs, expected = real_transitions(env_id, options, spread)
    except (ImportError, gym.error.Error) as error:
        pytest.skip(f"{env_id} cannot be made with the installed MuJoCo: {error}")
    rule = resolve_termination(env_id, None, options)
    got = rule(*(torch.as_tensor(x, dtype=torch.float32) for x in (obs, actions, next_obs))).numpy()
    if name == "InvertedDoublePendulum":  # its tip is read a fraction of a time step earlier
        sin1, sin2, cos1, cos2 = next_obs[:, 1:5].T
        clear = np.abs(0.6 * (cos1 + cos1 * cos2 - sin1 * sin2) - 1) > 2e-3
        got, expected = got[clear], expected[clear]
    assert (got == expected).all()
    if name not in NEVER and options.get("terminate_when_unhealthy", True):
        assert 0.05 < expected.mean() < 0.95  # both outcomes are covered
    else:
        assert not expected.any()


def test_mountain_car_and_pendulum():
    env, rng = gym.make("MountainCarContinuous-v0", goal_velocity=0.01), np.random.default_rng(0)
    rule = resolve_termination("MountainCarContinuous-v0", None, {"goal_velocity": 0.01})
    flags = []
    for _ in range(300):
        env.reset(seed=0)
        env.unwrapped.state = np.array([rng.uniform(0.4, 0.5), rng.uniform(-0.02, 0.05)], np.float32)
        next_obs, _, terminated, _, _ = env.step(rng.uniform(-1, 1, size=1))
        flags.append(terminated)
        assert rule(None, None, torch.from_numpy(next_obs)[None]).item() == terminated
    assert 0 < sum(flags) < 300
    assert resolve_termination("Pendulum-v1") is never_terminates


def test_non_finite_predictions_end_ant_and_pendulum():
    for env_id, width in (("Ant-v5", 105), ("InvertedPendulum-v5", 4)):
        next_obs = torch.zeros(2, width)
        next_obs[:, 0] = 0.5
        next_obs[1, -1] = torch.nan
        assert resolve_termination(env_id)(next_obs, None, next_obs).tolist() == [False, True]


def test_ids_are_exact_and_the_user_comes_first():
    assert resolve_termination("MyHopper-v5") is None
    assert resolve_termination("Hopper") is None
    assert resolve_termination(None) is None
    assert resolve_termination(object) is None
    assert resolve_termination("Hopper-v5", never_terminates, {"xml_file": "mine.xml"}) is never_terminates
    assert set(TERMINATION_RULES) <= set(gym.registry)


def test_an_own_environment_of_a_known_name_is_not_mistaken_for_it():
    from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

    register_env("Walker2d-v4", lambda config: None)
    try:
        assert resolve_termination("Walker2d-v4") is None
    finally:
        _global_registry.unregister(ENV_CREATOR, "Walker2d-v4")
    assert resolve_termination("Walker2d-v4") is not None


@pytest.mark.parametrize(
    ("env_id", "termination_fn", "options", "match"),
    [
        ("Hopper-v5", None, {"xml_file": "mine.xml"}, "xml_file.*termination_fn"),
        ("Ant-v5", None, {"healthy_angle_range": (-1, 1)}, "'healthy_angle_range', which Ant-v5 does not take"),
        ("Hopper-v5", None, {"healthy_z_range": 0.7}, r"healthy_z_range.*pair \(low, high\)"),
    ],
)
def test_what_cannot_be_followed_is_refused(env_id, termination_fn, options, match):
    with pytest.raises(ValueError, match=match):
        resolve_termination(env_id, termination_fn, options)


def fallen(obs: torch.Tensor, actions: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    return next_obs[:, 0] > 10


def falling(num_episodes: int, has_successors: bool = True) -> Transitions:
    """Episodes of five steps, every other one of which ends at a first coordinate above 10."""
    data = make_transitions([5] * num_episodes)
    data.next_observations[data.terminations, 0] += 20
    if not has_successors:
        data.next_observations[data.terminations] = data.observations[data.terminations]
    return data


def tried(rule, data: Transitions) -> list[str]:
    return try_rule(rule, data, torch.device("cpu"))


@pytest.mark.parametrize("convert", [torch.as_tensor, np.asarray, torch.Tensor.tolist])
def test_a_rule_that_fits_the_data_is_taken(convert):
    assert tried(lambda *row: convert(fallen(*row)), falling(200)) == []


def test_a_rule_at_odds_with_the_data_is_told():
    (goes_on,) = tried(never_terminates, falling(200))
    assert goes_on.startswith(
        "of 100 transitions terminal in the dataset, the termination rule goes on after 100, first r"
    )
    (ends,) = tried(lambda *row: ~fallen(*row), falling(200, has_successors=False))
    assert ends.startswith(
        "of 256 transitions not terminal in the dataset, the termination rule ends at 256, first row "
    )
    assert len(tried(lambda *row: ~fallen(*row), falling(200))) == 2


def test_terminals_without_successors_say_nothing_against_a_rule():
    assert tried(never_terminates, falling(200, has_successors=False)) == []


def ambiguous(obs, actions, next_obs):
    return True if next_obs[:, 0] > 10 else False  # noqa: SIM210


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda *row: fallen(*row)[:, None], r"termination_fn must return one flag a row.*\(256, 1\)"),
        (lambda *row: fallen(*row).float(), r"termination_fn must return a bool tensor.*float32"),
        (lambda *row: None, "termination_fn must return a bool tensor.*NoneType"),
        (lambda *row: True, r"termination_fn must return one flag a row.*shape \(\)"),
        (lambda *row: fallen(*row).squeeze(), r"one flag a row, shape \(1,\), but returned shape \(\)"),  # of one row
        (lambda obs, *rest: obs[:, 7] > 0, "`termination_fn` failed on .* of made .*IndexError"),
        (ambiguous, r"`termination_fn` failed on .*next_obs \(256, 3\), and return bool \(256,\)"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_told_at_once(rule, message):
    with pytest.raises(ValueError, match=message):
        tried(rule, falling(1000))


def test_too_few_rows_are_told_with_the_dataset():
    check_enough_rows(falling(2))
    with pytest.raises(DataError, match=r"made: .* 9 of 10 have them.*input_="):
        check_enough_rows(falling(2, has_successors=False))


def transitions(num: int, noise: float) -> tuple[torch.Tensor, ...]:
    """Terminal with probability sigmoid((x' - 1.5) / noise), x' standard normal: about 7 % of the rows."""
    generator = torch.Generator().manual_seed(0)
    obs, actions, next_obs = (torch.randn(num, k, generator=generator) for k in (2, 1, 2))
    odds = torch.sigmoid((next_obs[:, 0] - 1.5) / noise)
    return obs, actions, next_obs, torch.rand(num, generator=generator) < odds


def train_head(data: tuple[torch.Tensor, ...], num_steps: int = 800) -> LearnedTermination:
    torch.manual_seed(0)
    head = LearnedTermination(2, 1, hidden_dim=32)
    trainer = TerminationTrainer(head, *data, generator=torch.Generator().manual_seed(0), num_steps=num_steps)
    trainer.train(10)
    trainer.finish()
    return head


def test_learned_rule_finds_the_boundary():
    data = transitions(20_000, noise=0.01)
    head = train_head(data)
    with torch.no_grad():
        wrong = (head.terminated(*data[:3]) != data[3]).float().mean()
    assert wrong < 0.01


def test_learned_probabilities_are_calibrated():
    obs, actions, next_obs, terminated = transitions(30_000, noise=0.5)
    head = train_head((obs, actions, next_obs, terminated))
    with torch.no_grad():
        probability = torch.sigmoid(head(obs, actions, next_obs))
    assert float(probability.mean()) == pytest.approx(float(terminated.float().mean()), rel=0.15)
    for low, high in ((0.05, 0.3), (0.3, 0.7), (0.7, 1.0)):
        part = (probability >= low) & (probability < high)
        assert float(probability[part].mean()) == pytest.approx(float(terminated[part].float().mean()), abs=0.08)


def test_without_terminals_it_never_terminates():
    obs, actions, next_obs, _ = transitions(500, noise=1.0)
    head = train_head((obs, actions, next_obs, torch.zeros(500, dtype=torch.bool)))
    assert not head.terminated(obs, actions, 100 * next_obs).any()


def test_unknown_successors_do_not_give_terminals_away():
    obs, actions, next_obs, _ = transitions(5000, noise=1.0)
    terminated = obs[:, 0] > 1.5
    next_obs[terminated] = obs[terminated]  # what a reader does when the source has no successor
    head = train_head((obs, actions, next_obs, terminated))
    with torch.no_grad():
        assert torch.equal(head(obs, actions, next_obs), head(obs, actions, next_obs + 5))
        wrong = (head.terminated(obs, actions, next_obs) != terminated).float().mean()
    assert wrong < 0.01


def test_a_few_unknown_successors_do_not_blind_it_to_the_others():
    """A boundary that only the successor tells."""
    obs, actions, next_obs, _ = transitions(5000, noise=1.0)
    terminated = next_obs[:, 0] > 1.5
    unknown = terminated.nonzero()[:20, 0]
    seen = next_obs.clone()
    seen[unknown] = obs[unknown]
    head = train_head((obs, actions, seen, terminated))
    with torch.no_grad():
        assert (head.terminated(obs, actions, next_obs) != terminated).float().mean() < 0.02
