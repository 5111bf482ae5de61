"""Limits at which states were clipped: found in the data, kept in files, and never left by predictions."""

import copy
import math

import numpy as np
import pytest
import torch

from rllib_damo.dynamics import DynamicsEnsemble, never_terminates
from rllib_damo.dynamics.episode_returns import episode_returns
from rllib_damo.dynamics.known_range import KnownRange
from rllib_damo.dynamics.rollout import rollout
from rllib_damo.dynamics.training import DynamicsTrainer
from rllib_damo.utils.limits import MIN_ROWS, clipping_limits

INF = math.inf


def states(num: int = 1000) -> torch.Tensor:
    """Columns: clipped at 1 alone, at -1 and 1, not at all, a clock, a flag, and a goal."""
    x = torch.randn(num, 6, generator=torch.Generator().manual_seed(0))
    x[:, 0].clamp_(max=1)
    x[:, 1].clamp_(-1, 1)
    x[:, 3] = torch.arange(num) % 50
    x[:, 4] = (x[:, 4] > 0).float()
    x[:, 5] = 3
    return x


def limits(next_obs: torch.Tensor) -> tuple[list[float], list[float]]:
    """Of a walk that goes through these states, at one goal."""
    obs = next_obs.roll(1, 0)
    obs[:, 5] = next_obs[:, 5]
    low, high = clipping_limits(next_obs, obs)
    return low.tolist(), high.tolist()


def test_limits_are_where_many_rows_lie_and_few_beside() -> None:
    low, high = limits(states())
    assert low == [-INF, -1, -INF, -INF, -INF, -INF]
    assert high == [1, 1, INF, INF, INF, INF]


def test_a_state_beyond_is_seen_on_either_side_of_a_transition() -> None:
    x = states()
    x[3] = 9.0
    assert limits(x)[1] == [INF] * 6
    x = states()
    before = x.clone()
    before[3] = 9.0
    assert clipping_limits(x, before)[1].tolist() == [INF] * 6


def test_too_few_rows_are_no_limit() -> None:
    few = torch.linspace(0, 1, 100)[:, None].clone()
    few[: MIN_ROWS - 2] = 1  # and the last one
    assert clipping_limits(few, few.roll(1, 0))[1].item() == INF
    few[MIN_ROWS - 2] = 1
    assert clipping_limits(few, few.roll(1, 0))[1].item() == 1


def clipped_walk(num: int, seed: int) -> dict[str, np.ndarray]:
    """A velocity that follows the action and is clipped at ±1."""
    rng = np.random.default_rng(seed)
    obs = rng.uniform(-1.6, 1.6, (num, 1)).clip(-1, 1).astype(np.float32)
    actions = rng.uniform(-1, 1, (num, 1)).astype(np.float32)
    return {
        "observations": obs, "unit_actions": actions, "next_observations": (obs + 0.5 * actions).clip(-1, 1),
        "rewards": actions[:, 0], "terminations": np.zeros(num, bool),
    }  # fmt: skip


@pytest.fixture(scope="module")
def model() -> DynamicsEnsemble:
    ensemble = DynamicsEnsemble(1, 1, hidden_dims=(16, 16), num_ensemble=3, num_elites=2)
    trainer = DynamicsTrainer(
        ensemble, **clipped_walk(2000, 0), lr=3e-3, weight_decay=[0, 0, 0], max_epochs=20, seed=0
    )  # fmt: skip
    while not trainer.done:
        trainer.train_epoch()
    return trainer.finish().requires_grad_(False)


def upwards(obs: torch.Tensor, _: torch.Generator | None = None) -> torch.Tensor:
    return torch.ones_like(obs)


def test_predictions_keep_to_the_limits(model: DynamicsEnsemble) -> None:
    assert (model.obs_low.item(), model.obs_high.item()) == (-1, 1)
    rows = rollout(upwards, model, never_terminates, torch.zeros(100, 1), 20, torch.Generator().manual_seed(0))
    assert rows["next_obs"].max() == 1
    assert (rows["next_obs"] == 1).float().mean() > 0.3
    # a range that is left without the limits
    known = KnownRange(torch.tensor([-1.0]), torch.tensor([1.0]), -100.0, 2.0)

    def returns(of: DynamicsEnsemble) -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        return episode_returns(upwards, of, never_terminates, torch.zeros(10, 1), 20, noise, known)

    assert returns(model).min() > 0
    without = DynamicsEnsemble(**model.hparams)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("obs_")})
    assert (without.obs_low.item(), without.obs_high.item()) == (-INF, INF)
    assert returns(without).max() < 0


def test_limits_are_in_the_file_and_in_the_elites_copy(model: DynamicsEnsemble, tmp_path) -> None:
    loaded = DynamicsEnsemble.load(model.save(tmp_path / "model.pt"))
    for one in (loaded, model.elites_only()):
        assert (one.obs_low.item(), one.obs_high.item()) == (-1, 1)


def trainer(model: DynamicsEnsemble, data: dict[str, np.ndarray]) -> DynamicsTrainer:
    return DynamicsTrainer(model, **data, lr=1e-3, weight_decay=[0, 0, 0], max_epochs=1, seed=0, fit_statistics=False)


@pytest.mark.parametrize(("highest", "expected"), [(1.5, INF), (0.9, 1.0)])
def test_training_on_further_data_keeps_limits_that_no_state_contradicts(
    model: DynamicsEnsemble, highest: float, expected: float
) -> None:
    data = clipped_walk(2000, 1)
    for name in ("observations", "next_observations"):
        data[name] = data[name].clip(-1, 0.5)
    data["observations"] = data["observations"] * 0.99  # their own limits are of what they lead to
    data["next_observations"][0] = highest
    other = copy.deepcopy(model)
    trainer(other, data)
    assert (other.obs_low.item(), other.obs_high.item()) == (-1, expected)


def test_a_training_of_an_earlier_version_goes_on_within_limits(model: DynamicsEnsemble) -> None:
    one = trainer(copy.deepcopy(model), clipped_walk(2000, 0))
    state = one.state_dict()
    state["ensemble"] = {k: v for k, v in state["ensemble"].items() if not k.startswith("obs_")}
    other = copy.deepcopy(model)
    trainer(other, clipped_walk(2000, 0)).load_state_dict(state)
    assert (other.obs_low.item(), other.obs_high.item()) == (-1, 1)
