"""An RLlib EnvRunner that holds the policy: all that an algorithm needs which samples nothing while it trains."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.framework import get_device
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO
from ray.rllib.utils.typing import StateDict

from rllib_damo.utils.ray_internals import subcomponents, wants_component


class PolicyRunner(EnvRunner, Checkpointable):
    """Holds the policy's RLModule, where RLlib expects it. A subclass samples.

    Args:
        config: reads ``num_env_runners``, ``num_gpus_per_env_runner``, ``num_learners``, ``num_gpus_per_learner`` and
            the module's spec.
        kwargs: RLlib's ``worker_index``, ``num_workers``, ``spaces``, ...
    """

    @override(EnvRunner)
    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self.worker_index: int = kwargs.get("worker_index") or 0
        self.spaces = kwargs.get("spaces") or {}
        self._device = torch.device(get_device(self.config, self._num_gpus()))
        self._weights_seq_no = 0
        self.module: Any = None
        self.make_module()

    def _num_gpus(self) -> float:
        cfg = self.config
        if cfg.num_env_runners > 0 and self.worker_index == 0:  # it rolls out nothing
            return 0
        return max(cfg.num_gpus_per_env_runner, self._shares_learners_gpu())

    def _shares_learners_gpu(self) -> bool:
        """Whether runner and learner are both in the algorithm's process, and on a GPU there."""
        cfg = self.config
        return cfg.num_env_runners == cfg.num_learners == 0 and cfg.num_gpus_per_learner > 0

    @override(EnvRunner)
    def make_module(self) -> None:
        """Builds the policy's RLModule from the config, on this runner's device."""
        spec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module = spec.build()
        self.module.to(self._device)

    @override(EnvRunner)
    def sample(self, **kwargs: Any) -> list[Any]:
        raise NotImplementedError(f"{type(self).__name__} holds the policy alone: there is nothing to sample from.")

    def _set_weights(self, weights: Any) -> None:
        if isinstance(weights, ray.ObjectRef):  # within the state that RLlib sends
            weights = ray.get(weights)
        self.module.set_state(weights.get(DEFAULT_MODULE_ID, weights))

    @override(EnvRunner)
    def assert_healthy(self) -> None:
        assert self.module is not None, "The runner has no RLModule."

    @override(EnvRunner)
    def get_metrics(self) -> dict[str, Any]:
        return self.metrics.reduce()

    @override(EnvRunner)
    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        spaces = self.config.observation_space, self.config.action_space
        if None in spaces and self.spaces:
            return self.spaces
        return {INPUT_ENV_SPACES: spaces, INPUT_ENV_SINGLE_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    @override(Checkpointable)
    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> StateDict:
        state: StateDict = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime}
        if wants_component(self, COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state(
                components=subcomponents(self, COMPONENT_RL_MODULE, components),
                not_components=subcomponents(self, COMPONENT_RL_MODULE, not_components),
                **kwargs,
            )
            state[WEIGHTS_SEQ_NO] = self._weights_seq_no
        return state

    @override(Checkpointable)
    def set_state(self, state: StateDict) -> None:
        """Takes over all that ``state`` holds; weights too when they are older than the present ones."""
        if COMPONENT_RL_MODULE in state:
            self._set_weights(state[COMPONENT_RL_MODULE])
            self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, 0)
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[NUM_ENV_STEPS_SAMPLED_LIFETIME]

    @override(Checkpointable)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (), {"config": self.config, "worker_index": self.worker_index}

    @override(Checkpointable)
    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        return [(COMPONENT_RL_MODULE, self.module)]
