"""Steps in the real environment while an algorithm trains: who takes them, and where their rows are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from rllib_damo.data.schema import Transitions, concatenate
from rllib_damo.errors import UserError
from rllib_damo.utils import ray_internals
from rllib_damo.utils.seeds import fresh_seed
from rllib_damo.utils.spaces import from_unit


class OnlineSampler:
    """RLlib's env runner in this process, with the policy's exploring actions.

    Noise follows from (seed, steps taken before), and so do the seeds of the environment's first reset.

    Args:
        config: reads ``env``, ``env_config``, ``num_envs_per_env_runner``, ``online_noise``, ``seed``, the spaces, the
            callbacks and the module's spec.

    Raises:
        UserError: the environment cannot be made, or is not the one that the config's spaces are of.
    """

    def __init__(self, config: AlgorithmConfig):
        self._seed = config.seed if config.seed is not None else fresh_seed()
        self._action_space = config.action_space
        own = config.copy(copy_frozen=False)
        own.env_runner_cls, own.num_env_runners, own.num_gpus_per_env_runner = SingleAgentEnvRunner, 0, 0
        own.explore = own.normalize_actions = True
        asked = f"online_steps_per_iteration={config.online_steps_per_iteration} takes steps in env={config.env!r}"
        try:
            self._runner = SingleAgentEnvRunner(config=own)
        except Exception as error:  # of the user's environment, any
            raise UserError(
                f"{asked}, which cannot be made ({type(error).__name__}: {error}). Set another one in .environment(), "
                "or online_steps_per_iteration=0."
            ) from error
        env: Any = self._runner.env
        for name in ("observation_space", "action_space"):
            found, wanted = getattr(env, f"single_{name}"), getattr(config, name)
            is_same = found.shape == wanted.shape
            if name == "action_space":  # the networks' actions are in units of its bounds
                is_same = is_same and np.array_equal(found.low, wanted.low) and np.array_equal(found.high, wanted.high)
            if not is_same:
                self.close()
                raise UserError(f"{asked}, whose {name} {found} is not the configuration's {wanted}: name another one.")
        self._module: Any = self._runner.module
        noise = config.online_noise
        self._module.exploration_noise = self._module.online_noise if noise is None else noise
        self.reset()

    def reset(self) -> None:
        """The next steps begin a new episode, with the seeds of a new sampler."""
        self._has_started = False

    def sample(self, num: int, weights: Mapping[str, Any], taken: int) -> Transitions:
        """Takes steps from where the last ones ended.

        Args:
            num: how many; with several copies of the environment, up to a step more for each.
            weights: the policy's state.
            taken: how many steps were taken before, in all.

        Raises:
            UserError: the environment gave values that are not finite.
        """
        self._module.set_state(weights)
        if not self._has_started:
            ray_internals.set_env_seed(self._runner, self._seed_at(taken))
            ray_internals.require_reset(self._runner)
            self._has_started = True
        with _own_noise(self._seed_at(taken) + 1):
            episodes = self._runner.sample(num_timesteps=num, explore=True)
        parts = [_rows(episode, self._action_space) for episode in episodes if len(episode)]
        new = concatenate(parts, "online")
        for name, array in new.arrays().items():
            if not np.isfinite(array).all():
                raise UserError(f"The environment {self._runner.config.env!r} gave {name} that are not finite.")
        return new

    def _seed_at(self, taken: int) -> int:
        return int(np.random.SeedSequence((self._seed, taken, 1)).generate_state(1)[0] >> 1)

    def metrics(self) -> dict[str, Any]:
        """RLlib's, of the steps since the last call: returns and lengths of episodes, numbers of steps."""
        return self._runner.get_metrics()

    def close(self) -> None:
        self._runner.stop()


@contextlib.contextmanager
def _own_noise(seed: int) -> Iterator[None]:
    """Torch's global generator with this seed; afterwards it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _rows(episode: Any, action_space: Any) -> Transitions:
    """An episode, or a part of one. Its end is a truncation, unless the environment terminated there."""
    obs, num = np.asarray(episode.get_observations(), np.float32), len(episode)
    terminations, truncations = np.zeros(num, bool), np.zeros(num, bool)
    terminations[-1], truncations[-1] = episode.is_terminated, not episode.is_terminated
    return Transitions(
        observations=obs[:-1],
        actions=from_unit(np.asarray(episode.get_actions(), np.float32), action_space),
        rewards=np.asarray(episode.get_rewards(), np.float32),
        next_observations=obs[1:],
        terminations=terminations,
        truncations=truncations,
        name="online",
    )


class OnlineBuffer:
    """The newest ``capacity`` rows of the real environment, oldest first.

    Learners keep copies in rings, which are filled from slot 0 on.

    Attributes:
        total: rows that were ever added, by the runs before, too.
    """

    def __init__(self, capacity: int):
        self.capacity, self.total = capacity, 0
        self._position = 0  # in the rings, of the next row
        self._rows: Transitions | None = None

    def __len__(self) -> int:
        return 0 if self._rows is None else len(self._rows)

    @property
    def rows(self) -> Transitions:
        """Oldest first; there must be some."""
        assert self._rows is not None, "there are no online rows yet"
        return self._rows

    def add(self, new: Transitions) -> None:
        joined: Sequence[Transitions] = [new] if self._rows is None else [self._rows, new]
        rows = concatenate(joined, "online")
        self._rows = rows.slice(max(0, len(rows) - self.capacity), len(rows))
        self.total += len(new)
        self._position = (self._position + len(new)) % self.capacity

    def slots(self, newest: int) -> np.ndarray:
        """Where the newest rows lie in the learners' rings, ``(newest,)``, oldest first."""
        return np.arange(self._position - newest, self._position) % self.capacity

    def get_state(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "position": self._position,
            "rows": None if self._rows is None else self._rows.arrays(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes the newest rows of a buffer, which may have had another capacity."""
        self._rows, self._position = None, 0
        if state["rows"] is not None:
            self.add(Transitions(**state["rows"], name="online"))
            if len(state["rows"]["rewards"]) == self.capacity:  # full rings, which go on where they were
                self._position = state["position"]
        self.total = state["total"]
