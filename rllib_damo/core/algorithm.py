"""DAMO as an RLlib Algorithm: first the dynamics model, then rollouts, gradient steps and weights in turn."""

from __future__ import annotations

import copy
import logging
from operator import methodcaller
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
    NUM_EPISODES_LIFETIME,
    TIMERS,
)
from ray.rllib.utils.typing import StateDict

from rllib_damo.core.config import DAMOConfig
from rllib_damo.core.dataset_checks import examine
from rllib_damo.data.schema import Transitions
from rllib_damo.dynamics.rollout_rounds import RolloutRounds
from rllib_damo.dynamics.trained_model import DynamicsComponent
from rllib_damo.utils.batch import Batch, Layout
from rllib_damo.utils.spaces import to_unit

logger = logging.getLogger(__name__)

COMPONENT_DYNAMICS = "dynamics"
NUM_GRADIENT_STEPS = "num_gradient_steps_lifetime"
PENDING_ROUND = "pending_round"
DATA_WINDOW = "data_window"
FINGERPRINT = "dataset_fingerprint"
OTHER_BUFFERS = "other_model_buffers"
PHASE = "phase"


class DAMO(Algorithm):
    """Dual Alignment Maximin Optimization for offline model-based RL (arXiv 2502.00850).

    An iteration is either an epoch of the dynamics model (``phase`` "dynamics", until it is trained or found in the
    cache), or one round of rollouts and ``rollout_freq`` gradient steps (``phase`` "policy").
    """

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> DAMOConfig:
        return DAMOConfig()

    def __repr__(self) -> str:
        # RLlib's fails where `setup` did, and Ray then ends the process and reports that in place of the error.
        return super().__repr__() if self.config is not None else type(self).__name__

    @override(Algorithm)
    def setup(self, config: AlgorithmConfig) -> None:
        # A line for each round of rollouts that passes through Ray Data would bury everything else.
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        super().setup(config)
        self._num_gradient_steps = 0
        self._is_module_current = False  # whether what `get_module` gave is still the policy
        self._rounds = RolloutRounds(self.config, self.env_runner, self.env_runner_group)
        transitions = self.offline_data.transitions
        for caution in examine(self.config, transitions, self.offline_data.is_capped, self._rollout_device()):
            logger.warning(f"{transitions.name}: {caution}.")
        columns = self._set_dataset(transitions, fit=True)
        self._dataset = transitions.name, transitions.fingerprint()
        self.dynamics: DynamicsComponent | None = None
        if self.config.uses_model:
            self.dynamics = DynamicsComponent(self.config, columns, *self._dataset)
        del transitions
        self.offline_data.release()

    def _rollout_device(self) -> torch.device | None:
        """Where runners roll out, as seen from here; None: on a GPU, and there is none here."""
        if self.config.uses_model and self.config.num_env_runners == 0:
            return self.env_runner._device
        if not self.config.num_gpus_per_env_runner:
            return torch.device("cpu")
        return torch.device("cuda") if torch.cuda.is_available() else None

    def _set_dataset(self, transitions: Transitions, fit: bool) -> Batch:
        """Hands the dataset to the learners, and its states to the rollout runners.

        Returns:
            The columns, as views of the learners' rows where these live in this machine's memory.
        """
        unit_actions = to_unit(transitions.actions, self.config.action_space)
        layout = Layout(transitions.observations.shape[1], unit_actions.shape[1])
        rows = layout.pack(
            transitions.observations, unit_actions, transitions.next_observations, transitions.rewards,
            transitions.terminations,
        )  # fmt: skip
        starts = transitions.episode_bounds()[:, 0]
        used = transitions.best_rows(self.config.data_fraction)
        is_used = np.isin(starts, used)
        self._dataset_metrics = {
            "episode_return_mean": float(transitions.episode_returns()[is_used].mean()),
            "discounted_return_mean": float(transitions.episode_returns(self.config.gamma)[is_used].mean()),
        }
        if self.learner_group.is_remote:
            shared = ray.put(rows)
            rows = ray.get(shared)  # the same memory
            self._foreach_learner("set_dataset", shared, ray.put(starts), ray.put(used), fit)
        else:
            self._foreach_learner("set_dataset", rows, starts, used, fit)
        columns = layout.unpack(rows)
        # Kept here, and not only by the runners, since a runner that died comes back without them.
        selected = used if len(used) < len(rows) else None
        if self.config.num_env_runners > 0:
            self._branching = {"start_states": ray.put(columns.obs if selected is None else columns.obs[selected])}
        else:
            self._branching = {"start_states": columns.obs, "start_rows": selected}
        return columns

    @override(Algorithm)
    def training_step(self) -> None:
        if self.dynamics is not None and not self.dynamics.ready:
            self.metrics.log_value(PHASE, "dynamics", reduce="item")
            for key, value in self.dynamics.train_epoch().items():
                self.metrics.log_value(("dynamics", key), value, window=1)
        else:
            self.metrics.log_value(PHASE, "policy", reduce="item")
            self._train_policy()
        self.metrics.log_value(NUM_GRADIENT_STEPS, self._num_gradient_steps, reduce="max", window=1)

    def _train_policy(self) -> None:
        """A round of rollouts, and ``rollout_freq`` gradient steps."""
        window = self.offline_data.refresh()  # of a dataset larger than `max_dataset_rows`
        if window is not None:
            self._set_dataset(window, fit=False)
        for key, value in self._dataset_metrics.items():
            self.metrics.log_value(("dataset", key), value, window=1)

        if self.dynamics is not None:
            with self.metrics.log_time((TIMERS, "rollouts")):
                parts = self._roll_out()
            if not parts and not self._num_gradient_steps:
                return
            if parts:
                with self.metrics.log_time((TIMERS, "model_buffer")):
                    self._fill_model_buffers(parts)
        with self.metrics.log_time((TIMERS, "learner_update")):
            timesteps = {NUM_GRADIENT_STEPS: self._num_gradient_steps}
            results = self._foreach_learner("update_many", self.config.rollout_freq, timesteps)
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self._num_gradient_steps += self.config.rollout_freq
        self._is_module_current = False

    def _roll_out(self) -> list[Any]:
        """A round of rollouts for this iteration: Arrow tables, or tensors on the GPU that runner and learner share.

        It is rolled out now, under the current policy; with ``overlap_rollouts`` it was asked for an iteration ago,
        and the next one is asked for.
        """
        if not self._rounds.pending:
            self._request_round(self._policy_weights(), self._num_gradient_steps)
        parts, metrics = self._rounds.collect()
        if self.config.overlap_rollouts and (parts or self._num_gradient_steps):
            self._request_round(self._policy_weights(), self._num_gradient_steps + self.config.rollout_freq)
        self.metrics.aggregate(metrics, key=ENV_RUNNER_RESULTS)
        return parts

    def _policy_weights(self) -> dict[str, Any]:
        """A copy: what a learner in this process hands out is its own memory, which the gradient steps change."""
        component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        state = self.learner_group.get_state(component, inference_only=True)
        return copy.deepcopy(state[COMPONENT_LEARNER][COMPONENT_RL_MODULE])

    def _request_round(self, weights: dict[str, Any], iteration: int) -> None:
        assert self.dynamics is not None  # what has no model asks for no rollouts
        self._rounds.request(weights, iteration, dynamics_path=str(self.dynamics.file()), **self._branching)

    def _fill_model_buffers(self, parts: list[Any]) -> None:
        """Adds a round to the learners' model buffers, tables as Ray Datasets; several learners get an equal part each.

        ``from_blocks`` and not ``from_arrow_refs``: the latter starts a task to look at each table, which never gets a
        CPU where learners and runners hold them all.
        """
        if not isinstance(parts[0], pa.Table):  # on the GPU already
            self.learner_group._learner.add_tensors(parts[0])
            return
        round_ = pa.concat_tables(parts)
        if not self.learner_group.is_remote:
            self.learner_group._learner.add_rollouts(ray.data.from_blocks([round_]))
            return
        workers = self.learner_group._workers
        size = len(round_) // len(workers)
        parts = [ray.data.from_blocks([round_.slice(i * size, size)]) for i in range(len(workers))]
        ray.get([worker.add_rollouts.remote(part) for worker, part in zip(workers, parts, strict=True)])

    def _foreach_learner(self, method: str, *args: Any) -> list[Any]:
        """Calls a method of every learner; errors of remote ones are raised here."""
        results = list(self.learner_group.foreach_learner(methodcaller(method, *args)))
        for result in results:
            if not result.ok:
                raise result.get()
        return [result.get() for result in results]

    def _other_learners(self) -> list[Any]:
        """The actors of all learners but the first."""
        return list(self.learner_group._workers[1:]) if self.learner_group.is_remote else []

    @override(Algorithm)
    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> RLModule | None:
        """The policy as it is now, to act with. (RLlib's is that of the last round of rollouts here, if any.)"""
        module = super().get_module(module_id)
        if self.env_runner is not None and module is not None and not self._is_module_current:
            module.set_state(self._policy_weights()[module_id])
            self._is_module_current = True
        return module

    @override(Algorithm)
    def _run_one_evaluation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """No evaluation while the dynamics model is being trained: the policy is still the initial one.

        Where no episode ended (all evaluation runners died, say), RLlib gives the last evaluation's numbers again.
        """
        if not self._num_gradient_steps:
            return {}
        before = self._num_evaluation_episodes()
        results = super()._run_one_evaluation(*args, **kwargs)
        if self._num_evaluation_episodes() == before and self.config.custom_evaluation_function is None:
            results[EVALUATION_RESULTS].pop(ENV_RUNNER_RESULTS, None)
        return results

    def _num_evaluation_episodes(self) -> float:
        return self.metrics.peek((EVALUATION_RESULTS, ENV_RUNNER_RESULTS, NUM_EPISODES_LIFETIME), default=0)

    @override(Algorithm)
    def cleanup(self) -> None:
        super().cleanup()
        self.offline_data.close()
        if self.dynamics is not None:
            self.dynamics.close()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    @override(Algorithm)
    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> StateDict:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COMPONENT_DYNAMICS, components, not_components):
            state[COMPONENT_DYNAMICS] = self.dynamics.get_state() if self.dynamics is not None else None
            state[FINGERPRINT] = self._dataset[1]
            state[NUM_GRADIENT_STEPS] = self._num_gradient_steps
            state[PENDING_ROUND] = self._rounds.pending
            state[DATA_WINDOW] = self.offline_data.window
            # Of several learners RLlib keeps the first one's state, and the model buffer is divided among them.
            state[OTHER_BUFFERS] = ray.get([worker.get_model_buffer.remote() for worker in self._other_learners()])
        return state

    @override(Algorithm)
    def set_state(self, state: StateDict) -> None:
        # It stood in the dynamics' state first, and so only where there is a model.
        saved = state.get(FINGERPRINT) or (state.get(COMPONENT_DYNAMICS) or {}).get("fingerprint")
        name, fingerprint = self._dataset
        if saved not in (None, fingerprint):
            raise ValueError(
                f"The checkpoint was trained on other data than {name} (fingerprints {saved[:12]} and "
                f"{fingerprint[:12]}): give it the dataset it was trained on."
            )
        super().set_state(state)
        self._is_module_current = False
        if COMPONENT_DYNAMICS in state:
            if self.dynamics is not None:
                self.dynamics.set_state(state[COMPONENT_DYNAMICS])
            self._num_gradient_steps = state[NUM_GRADIENT_STEPS]
            window = state.get(DATA_WINDOW, 1)
            if self.offline_data.is_capped and window != self.offline_data.window:
                self._set_dataset(self.offline_data.skip_to(window), fit=False)
            buffers = zip(self._other_learners(), state.get(OTHER_BUFFERS, []), strict=False)
            ray.get([worker.set_model_buffer.remote(buffer) for worker, buffer in buffers])
            self._rounds.discard()  # not of the restored run
            if state.get(PENDING_ROUND):  # the same request has the same answer
                self._request_round(**state[PENDING_ROUND])

    @override(Algorithm)
    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Restores all components; the evaluation runners take the weights even if these are older than theirs."""
        super().restore_from_path(path, *args, **kwargs)
        if self.eval_env_runner_group is not None:
            self.eval_env_runner_group.foreach_env_runner(_forget_weights_seq_no)
            self.eval_env_runner_group.sync_weights(
                from_worker_or_learner_group=self.learner_group, inference_only=True
            )


def _forget_weights_seq_no(runner: Any) -> None:
    runner._weights_seq_no = 0
