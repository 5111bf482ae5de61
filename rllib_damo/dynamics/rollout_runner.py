"""RLlib's EnvRunner over the learned model: rollouts of the current policy, handed over as Arrow tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import StateDict
from torch import Tensor

from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.known_range import KnownRange
from rllib_damo.dynamics.rollout import Model, rollout
from rllib_damo.dynamics.termination import TerminationFn, rule_of_model
from rllib_damo.utils.arrow import to_arrow
from rllib_damo.utils.batch import as_constant
from rllib_damo.utils.policy_runner import PolicyRunner
from rllib_damo.utils.seeds import fresh_seed
from rllib_damo.utils.spaces import check_spaces


class ModelRolloutEnvRunner(PolicyRunner):
    """RLlib's EnvRunner with the learned model in the place of the environment.

    It can be made before the dynamics are trained: `sample` takes the model's file and the states to branch from, so
    that a runner that was restarted needs nothing else.

    Random numbers derive from (seed, worker index, iteration), nothing else: the same three give the same rollouts.

    A subclass may override `model` (what answers a step, and its rewards), `terminated` (which rows end), `actions`
    (who acts) and `_log` (metrics). In each step of a round they are called on the same rows in this order: `actions`,
    the model's sampler, `terminated`.

    Args:
        config: of a model-based algorithm. It reads ``rollout_batch_size``, ``rollout_length``, ``online_ratio``,
            ``dynamics_path``, ``termination_fn``, ``env``, ``env_config``, ``seed``, ``num_env_runners``,
            ``num_gpus_per_env_runner``, ``num_learners``, ``num_gpus_per_learner`` and the module's spec.
        kwargs: RLlib's ``worker_index``, ``num_workers``, ``spaces``, ...
    """

    @override(PolicyRunner)
    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self._base_seed = self.config.seed if self.config.seed is not None else fresh_seed()
        self._generator = torch.Generator(self._device)
        self._iteration = 0
        self._starts: Tensor | None = None
        self._start_rows: Tensor | None = None
        self._starts_source: tuple[Any, Any] = None, None
        self._dynamics: DynamicsEnsemble | None = None
        self._dynamics_path: str | None = None
        self._termination_fn: TerminationFn | None = None
        self._known_range: KnownRange | None = None

    # -- what to roll out --------------------------------------------------------------------------------------------

    def set_dynamics(self, dynamics: str | Path | DynamicsEnsemble) -> None:
        """Takes the model, given itself or as a file; a file that is loaded already is not read again.

        Raises:
            FileNotFoundError, ValueError: no such file or a wrong one; a model without a learned termination head for
                an environment that needs one; a model of other widths than the environment's.
        """
        if not isinstance(dynamics, DynamicsEnsemble):
            if str(dynamics) == self._dynamics_path:
                return
            self._dynamics_path = None
            loaded, name = DynamicsEnsemble.load(dynamics, self._device), str(dynamics)
        else:
            loaded, name = dynamics.to(self._device), None
        obs_space, act_space = self.get_spaces()[DEFAULT_MODULE_ID]
        check_spaces(obs_space, act_space)
        found, wanted = (loaded.obs_dim, loaded.act_dim), (obs_space.shape[0], act_space.shape[0])
        if found != wanted:
            raise ValueError(
                f"The dynamics {name or 'given'} are for {found[0]} observations and {found[1]} actions, but the "
                f"environment has {wanted[0]} and {wanted[1]}: train them on this environment's data."
            )
        self._termination_fn = rule_of_model(self.config, loaded, act_space, self._device)
        self._dynamics, self._dynamics_path = loaded.requires_grad_(False), name

    def _set_dynamics_state(self, state: Mapping[str, Any]) -> None:
        assert self._dynamics is not None
        try:
            self._dynamics.load_state_dict({name: as_constant(value) for name, value in state.items()})
        except RuntimeError as error:
            self._dynamics = self._dynamics_path = None  # some of its weights may have been replaced
            raise ValueError(
                "dynamics_state must be the state_dict() of a DynamicsEnsemble of the sizes of the one that is rolled "
                f"out: {' '.join(str(error).split())}"
            ) from error

    def set_start_states(self, states: np.ndarray | Tensor, rows: np.ndarray | Tensor | None = None) -> None:
        """The states ``(N, obs)`` to branch from.

        Args:
            states: in this process they are not copied.
            rows: indices of those that are meant, where not all are.

        Raises:
            ValueError: not a matrix of this environment's observations, or an empty one.
        """
        known, known_rows = self._starts_source
        if self._starts is not None and states is known and rows is known_rows:
            return
        width = self.get_spaces()[DEFAULT_MODULE_ID][0].shape[0]
        if getattr(states, "ndim", None) != 2 or states.shape[1] != width or not len(states):
            raise ValueError(
                f"Start states must be a matrix (N, {width}) of observations with N >= 1, but found "
                f"{type(states).__name__} of shape {getattr(states, 'shape', None)}."
            )
        self._starts = as_constant(states).to(self._device, torch.float32)
        self._start_rows = None if rows is None else as_constant(rows).to(self._device)
        self._starts_source = states, rows

    # -- sampling ----------------------------------------------------------------------------------------------------

    @override(PolicyRunner)
    def sample(
        self,
        *,
        weights: Any = None,
        iteration: int | None = None,
        dynamics_path: str | Path | None = None,
        start_states: Any = None,
        start_rows: Any = None,
        dynamics_state: Mapping[str, Any] | None = None,
        known_range: KnownRange | None = None,
        online_states: Any = None,
        **kwargs: Any,
    ) -> list[Any]:
        """One round of rollouts from this runner's share of ``rollout_batch_size`` start states.

        What is not given, ``online_states`` apart, stays as it was in the round before; `get_metrics` has the round's
        metrics.

        Args:
            weights: the policy's state, by module or of the module itself.
            iteration: fixes the random numbers, with seed and worker index; default: a count of the rounds.
            dynamics_path: the model's file, see `set_dynamics`; at first, that of the config.
            start_states: ``(N, obs)``, see `set_start_states`.
            start_rows: indices of those rows of ``start_states`` that are meant; None: all.
            dynamics_state: a `DynamicsEnsemble`'s ``state_dict()`` in the place of the file's, for this and later
                rounds, until another file is named. For algorithms that train the model on.
            known_range: where rollouts end, see `rollout`. None: as in the round before, and at first nowhere.
            online_states: ``(M, obs)``, from which a share of ``online_ratio`` of this round's rollouts start in place
                of ``start_states``; None: no rollout.
            kwargs: RLlib's; without effect.

        Returns:
            One Arrow table of `rollout`'s columns; where runner and learner share a GPU, the dict of tensors on it.

        Raises:
            RuntimeError: there are no dynamics or no start states.
            ValueError: dynamics, start states or a termination function of another shape than this environment's.
        """
        if dynamics_path is None and self._dynamics is None:
            dynamics_path = self.config.dynamics_path
        if dynamics_path is not None:
            self.set_dynamics(dynamics_path)
        if start_states is not None or start_rows is not None:
            self.set_start_states(start_states, start_rows)
        if self._dynamics is None:
            raise RuntimeError("The runner has no dynamics yet: give sample(dynamics_path=...), or set dynamics_path.")
        if self._starts is None:
            raise RuntimeError("The runner has no start states yet: give sample(start_states=array).")
        if dynamics_state is not None:
            self._set_dynamics_state(dynamics_state)
        if weights is not None:
            self._set_weights(weights)
        if iteration is not None:
            self._iteration = iteration
        if known_range is not None:
            self._known_range = known_range.to(self._device)
        self._seed_generator()
        batch = rollout(
            self.actions,
            self.model(self._dynamics),
            self.terminated,
            self._draw_starts(online_states),
            self.config.rollout_length,
            self._generator,
            self._known_range,
            self.config.gamma,
        )
        self._iteration += 1
        self._log(batch)
        return [batch if self._shares_learners_gpu() else to_arrow(batch)]

    def _draw_starts(self, online: Any) -> Tensor:
        """``(share, obs)`` start states, drawn with replacement."""
        assert self._starts is not None
        num = len(self._starts if self._start_rows is None else self._start_rows)
        picks = torch.randint(num, (self._share(),), generator=self._generator, device=self._device)
        starts = self._starts[picks if self._start_rows is None else self._start_rows[picks]]
        if online is None:
            return starts
        online = as_constant(online).to(self._device, torch.float32)
        picks = torch.randint(len(online), picks.shape, generator=self._generator, device=self._device)
        chance = torch.rand(picks.shape, generator=self._generator, device=self._device)
        return torch.where((chance < self.config.online_ratio)[:, None], online[picks], starts)

    # -- hooks -------------------------------------------------------------------------------------------------------

    def model(self, dynamics: DynamicsEnsemble) -> Model:
        """What a round is rolled out in; called once a round. Default: the dynamics themselves.

        A subclass returns an object around them that changes rewards or next states, or measures uncertainty.
        """
        return dynamics

    def actions(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Unit actions ``(B, act)`` for ``obs (B, obs)``. Default: drawn from the policy.

        A subclass may act otherwise (a planner, a behavior policy, noise); ``generator`` is its source of randomness.
        """
        return self.module.sample_actions(obs, generator)[0]

    def terminated(self, obs: Tensor, unit_actions: Tensor, next_obs: Tensor) -> Tensor:
        """Which rows end with this transition, ``(B,)`` bool. Default: the environment's rule, given or learned.

        A subclass may end further rows, such as those of which the model is uncertain: ``super().terminated(...) | u``.
        """
        assert self._termination_fn is not None
        return self._termination_fn(obs, unit_actions, next_obs)

    def _log(self, batch: Mapping[str, Tensor]) -> None:
        """Logs a round's metrics under ``rollout``, given `rollout`'s tensors. A subclass adds its own."""
        num = len(batch["rewards"])
        self.num_env_steps_sampled_lifetime += num
        self.metrics.log_value(("rollout", "num_transitions"), num, reduce="sum")
        if num:
            self.metrics.log_value(("rollout", "reward_mean"), float(batch["rewards"].mean()), window=1)
            terminated = float(batch["terminated"].float().mean())
            self.metrics.log_value(("rollout", "terminated_frac"), terminated, window=1)

    # -- parts of a round --------------------------------------------------------------------------------------------

    def _share(self) -> int:
        """The runner's part of ``rollout_batch_size``; the parts of all runners add up to it."""
        total, runners = self.config.rollout_batch_size, max(1, self.config.num_env_runners)
        return total // runners + (max(1, self.worker_index) <= total % runners)

    def _seed_generator(self) -> None:
        sequence = np.random.SeedSequence((self._base_seed, self.worker_index, self._iteration))
        self._generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    # -- checkpoints -------------------------------------------------------------------------------------------------

    @override(PolicyRunner)
    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> StateDict:
        state = super().get_state(components, not_components=not_components, **kwargs)
        return state | {"rollout": {"seed": self._base_seed, "iteration": self._iteration}}

    @override(PolicyRunner)
    def set_state(self, state: StateDict) -> None:
        super().set_state(state)
        if "rollout" in state:
            self._base_seed, self._iteration = state["rollout"]["seed"], state["rollout"]["iteration"]
