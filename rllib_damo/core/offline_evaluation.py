"""The policy's value while it is trained, without a simulator: fitted Q evaluation in RLlib's offline evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import EVALUATION_RESULTS

from rllib_damo.core.evaluated_algorithm import EvaluatedAlgorithm
from rllib_damo.data.offline_data import needs_whole
from rllib_damo.errors import UserError
from rllib_damo.nn.standardize import input_scales
from rllib_damo.selection import rule
from rllib_damo.selection.clone import Policy, clone, default_steps, in_chunks
from rllib_damo.selection.critic import NetworkCritic
from rllib_damo.selection.fitting import TAU
from rllib_damo.selection.fqe import FQE, Bounds, default_gamma, episode_weights
from rllib_damo.selection.rows import Rows

if TYPE_CHECKING:
    from rllib_damo.data.schema import Transitions

OFFLINE_RESULTS = "offline_eval_runners"
VALUE_WATCH = "value_watch"
_HEADS, _STEPS, _LR = 2, 2_000, 3e-4


class ValueWatch:
    """Fitted Q evaluation of one policy that changes, and of a clone of the data beside it.

    Its networks go on from one measurement to the next, so the value lags a policy that moves: it shows runaways, and
    `rllib_damo.selection.select` compares policies.

    Args:
        transitions: the training part of the data.
        action_space: of the environment.
        gamma: the training's discount; the watch's may be longer (`selection.fqe.default_gamma`).
        seed: of clone and networks.
    """

    def __init__(self, transitions: Transitions, action_space: Any, gamma: float, seed: int):
        rows = self._rows = Rows.of(transitions, action_space)
        self.gamma = default_gamma(int((rows.stops - rows.starts).max()), gamma)
        (self._clone,) = clone(rows, [torch.arange(len(rows))], steps=default_steps(len(rows)), seed=seed)
        signals = rows.rewards[:, None]
        bounds = Bounds.of(rows, signals, self.gamma)
        critic = NetworkCritic(
            2, _HEADS, input_scales(rows.obs), rows.actions.shape[1], bounds.center, bounds.scale, _LR, seed
        )
        next_actions, start_actions = (
            self._clone(part)[None].repeat(2, 1, 1) for part in (rows.next_obs, rows.obs[rows.starts])
        )
        weights = episode_weights(_HEADS, rows.num_episodes, seed)
        self._fqe = FQE(
            rows,
            next_actions,
            start_actions,
            critic,
            gamma=self.gamma,
            signals=signals,
            bounds=bounds,
            weights=weights,
            seed=seed,
        )

    def measure(self, policy: Policy) -> dict[str, float]:
        """Trains on with the policy as it is now.

        Returns:
            ``fqe_value`` (discounted, without a time limit), ``fqe_against_clone``, and ``implausible``: 1 where the
            value is above what the data make credible, or has diverged.
        """
        start, rows = time.perf_counter(), self._rows
        self._fqe.replace(0, *(in_chunks(policy, part) for part in (rows.next_obs, rows.obs[rows.starts])))
        self._fqe.train(_STEPS, lambda step: TAU)
        values = self._fqe.values()[..., 0].numpy()
        ends = rows.next_obs[rows.stops - 1]
        tails = self._fqe.critic.values(ends, self._clone(ends)[None].repeat(2, 1, 1))[1, :, :, 0].mean(0)
        unknown = np.full(2, np.nan)
        evidence = rule.Evidence(
            fqe=values, model=None, clone=1, reference=1,
            returns=rows.discounted_returns(self.gamma, tails).numpy(), diverged=self._fqe.diverged.numpy(),
            moved=np.zeros(2), off_data=unknown, off_states=unknown, stopped=unknown, own_minus_judge=unknown,
        )  # fmt: skip
        value, own_clone = values.mean(-1).tolist()
        return {
            "fqe_value": value,
            "fqe_against_clone": value - own_clone,
            "implausible": float(bool(rule.vetoes(evidence)[0])),
            "seconds": time.perf_counter() - start,
        }

    def get_state(self) -> dict[str, Any]:
        """What a later measurement goes on from, as NumPy arrays and numbers."""
        return self._fqe.state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._fqe.set_state(dict(state))


class WatchedAlgorithm(EvaluatedAlgorithm):
    """Fills RLlib's place of offline evaluations, ``evaluation/offline_eval_runners``, by a `ValueWatch`.

    RLlib's own runners read another dataset class, and need a loss that the package's learners do not have.
    """

    _watch: ValueWatch | None = None
    _watch_state: Mapping[str, Any] | None = None

    @override(Algorithm)
    def setup(self, config: AlgorithmConfig) -> None:
        """As RLlib's.

        Raises:
            UserError: the dataset is larger than `max_dataset_rows`, and the value is fitted to the whole.
        """
        super().setup(config)
        interval, rows = self.config.offline_evaluation_interval, self.config.max_dataset_rows
        if interval and self.offline_data.is_capped:
            option = f"offline_evaluation_interval={interval}"
            raise UserError(needs_whole(option, rows, "set offline_evaluation_interval=None"))

    @classmethod
    @override(Algorithm)
    def _should_create_offline_evaluation_runners(cls, eval_config: AlgorithmConfig) -> bool:
        return False

    @override(Algorithm)
    def _run_one_offline_evaluation(self) -> dict[str, Any]:
        """Nothing before the first gradient step: the policy is still the initial one."""
        if not self._num_gradient_steps:
            return {EVALUATION_RESULTS: {}}
        if self._watch is None:
            config = self.config
            self._watch = ValueWatch(self.offline_data.transitions, config.action_space, config.gamma, config.seed or 0)
            self.offline_data.release()
            if self._watch_state is not None:
                self._watch.set_state(self._watch_state)
        return {EVALUATION_RESULTS: {OFFLINE_RESULTS: self._watch.measure(self._mean_actions)}}

    @torch.no_grad()
    def _mean_actions(self, obs: torch.Tensor) -> torch.Tensor:
        module: Any = self.get_module()
        device = next(module.parameters()).device
        return module.mean_actions(obs.to(device)).clamp(-1, 1).cpu()

    def _get_watch_state(self) -> Mapping[str, Any] | None:
        return self._watch_state if self._watch is None else self._watch.get_state()

    def _set_watch_state(self, state: Mapping[str, Any] | None) -> None:
        self._watch, self._watch_state = None, state
