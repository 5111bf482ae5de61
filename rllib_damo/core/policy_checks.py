"""The policy that a run keeps: of all that played whole episodes in the model, the one that returned most there.

Without the real environment nobody sees that a policy of the last step falls where one of an earlier step did not. The
model often does, even where the critics have not learned of the fall yet.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rllib_damo.core.rl_module import OfflineTorchRLModule
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.episode_returns import episode_returns
from rllib_damo.dynamics.known_range import KnownRange
from rllib_damo.dynamics.termination import rule_of_model

#: Start states of a check; each elite of the model plays an episode from each.
NUM_STARTS = 20
#: By which share the range of the data may be left in a check, where ``rollout_margin`` says nothing.
MARGIN = 0.1
#: Longest episode of a check, in steps.
MAX_LENGTH = 1000


class PolicyChecks:
    """Plays a module's averaged policy in the model, and copies the best one into its ``kept_actor``.

    A policy's lower return is the mean over start states by the elite that gives it least. All checks have the same
    start states and the same noise, so that policies differ in nothing else.

    Args:
        config: of a model-based algorithm: reads ``env``, ``env_config`` and ``termination_fn``.
        module: with a ``kept_actor``.
        device: of the module.

    Attributes:
        kept_return: the lower return of the kept policy; -inf before the first check.
        kept_step: the gradient step that it is of.
    """

    kept_return, kept_step = -math.inf, 0

    def __init__(self, config: Any, module: OfflineTorchRLModule, device: torch.device):
        self._config, self._module, self._device = config, module, device
        self._dynamics: tuple[str, DynamicsEnsemble] | None = None
        self._starts: Tensor | None = None  # those of the first check

    def check(self, path: str, starts: Tensor, known: KnownRange, longest: int, step: int) -> dict[str, float]:
        """Plays the averaged policy, and keeps it if no other has returned more.

        Args:
            path: the model's file.
            starts: ``(N, obs)`` states that episodes of the dataset start in. Some are drawn at the first check, and
                serve all later ones.
            known: the range of the dataset; episodes that leave it count as bad.
            longest: episode of the dataset, in steps.
            step: gradient steps so far.

        Returns:
            Metrics: ``return_mean`` over elites and starts, ``return_lower``, and ``kept_return`` and ``kept_step``.
        """
        if self._dynamics is None or self._dynamics[0] != path:
            self._dynamics = path, DynamicsEnsemble.load(path, self._device)
        dynamics, generator = self._dynamics[1], torch.Generator(self._device).manual_seed(0)
        if self._starts is None:
            picks = torch.randint(len(starts), (NUM_STARTS,), generator=generator, device=self._device)
            self._starts = starts[picks]
        module = self._module
        returns = episode_returns(
            lambda obs: module.averaged_actor(obs)[0].tanh(),
            dynamics,
            rule_of_model(self._config, dynamics, module.action_space, self._device),
            self._starts,
            min(longest, MAX_LENGTH),
            generator.manual_seed(1),
            known,
        )
        lower = float(returns.mean(1).min())
        if lower >= self.kept_return:
            self.kept_return, self.kept_step = lower, step
            self.keep()
        return {
            "return_mean": float(returns.mean()),
            "return_lower": lower,
            "kept_return": self.kept_return,
            "kept_step": float(self.kept_step),
        }

    def keep(self) -> None:
        """Keeps the policy as it is now."""
        self._module.keep_averaged_actor()

    def forget(self) -> None:
        """The next check keeps its policy, whatever was kept: the model or the data are others now."""
        self.kept_return, self.kept_step = -math.inf, 0
        self._dynamics = self._starts = None

    def get_state(self) -> dict[str, Any]:
        """The kept return, its step and the start states; the policy itself is in the module's state."""
        starts = None if self._starts is None else self._starts.cpu().numpy()
        return {"kept_return": self.kept_return, "kept_step": self.kept_step, "starts": starts}

    def set_state(self, state: dict[str, Any]) -> None:
        """Sets what `get_state` returned."""
        self.kept_return, self.kept_step, starts = state["kept_return"], state["kept_step"], state["starts"]
        self._starts = None if starts is None else torch.from_numpy(starts.copy()).to(self._device)
