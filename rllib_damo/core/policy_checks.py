"""The policy that a run keeps: the newest one that did not play clearly worse in the model than the best there.

Without the real environment nobody sees that a policy of the last step falls where one of an earlier step did not. The
model often does, even where the critics have not learned of the fall yet.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rllib_damo.core.rl_module import OfflineTorchRLModule
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.episode_returns import episode_returns
from rllib_damo.dynamics.known_range import KnownRange
from rllib_damo.dynamics.termination import rule_of_model

#: Start states of a check; each elite of the model plays an episode from each.
NUM_STARTS = 100
#: A policy is worse if it returns less by more than so many standard errors. The newest one is kept otherwise: it has
#: learned for longer, and the model is better at falls than at the better of two good policies.
TOLERANCE = 2.0
_RESAMPLES = 200
#: By which share the range of the data may be left in a check, where ``rollout_margin`` says nothing.
MARGIN = 0.1
#: Longest episode of a check, in steps.
MAX_LENGTH = 1000


class Terms(NamedTuple):
    """What all checks have in common, so that policies differ in nothing else.

    Attributes:
        starts: ``(NUM_STARTS, obs)``.
        known: the range of the dataset; episodes that leave it count as bad.
        length: of the longest episode, in steps.
    """

    starts: Tensor
    known: KnownRange
    length: int


class PolicyChecks:
    """Plays a module's averaged policy in the model, and copies it into its ``kept_actor`` unless it falls short.

    A policy's lower return is the mean over start states by the elite that gives it least. All checks have the same
    noise, and the terms of the first one.

    Args:
        config: of a model-based algorithm: reads ``env``, ``env_config`` and ``termination_fn``.
        module: with a ``kept_actor``.
        device: of the module.

    Attributes:
        kept_return: the lower return of the kept policy; -inf before the first check.
        kept_step: the gradient step that it is of.
    """

    def __init__(self, config: Any, module: OfflineTorchRLModule, device: torch.device):
        self._config, self._module, self._device = config, module, device
        self._dynamics: tuple[str, DynamicsEnsemble] | None = None
        self._terms: Terms | None = None
        self._best: Tensor | None = None  # (E, NUM_STARTS) returns of the policy that is best in the model
        self.kept_return, self.kept_step = -math.inf, 0

    def check(self, path: str, starts: Tensor, known: KnownRange, longest: int, step: int) -> dict[str, float]:
        """Plays the averaged policy, and keeps it unless it `is_worse` than the best so far.

        Args:
            path: the model's file.
            starts: ``(N, obs)`` states that episodes of the dataset start in, of which some are drawn.
            known: the range of the dataset.
            longest: episode of the dataset, in steps.
            step: gradient steps so far.

        Returns:
            Metrics: ``return_mean`` over elites and starts, ``return_lower``, and ``kept_return`` and ``kept_step``.
        """
        if self._terms is None:
            self._terms = _terms(starts, known, longest)
        returns = self._play(self._module.averaged_actor, path, self._terms)
        lower = _lower(returns)
        if self._best is None or not is_worse(returns, self._best):
            self.kept_return, self.kept_step = lower, step
            self.keep()
        if self._best is None or lower > _lower(self._best):
            self._best = returns
        return {
            "return_mean": float(returns.mean()),
            "return_lower": lower,
            "kept_return": self.kept_return,
            "kept_step": float(self.kept_step),
        }

    def check_again(self, path: str, starts: Tensor, known: KnownRange, longest: int) -> None:
        """Plays the kept policy on new terms: the model or the data are others now. Arguments are `check`'s."""
        if self._terms is not None:
            self._terms = _terms(starts, known, longest)
            self._best = self._play(self._module.kept_actor, path, self._terms)
            self.kept_return = _lower(self._best)

    def _play(self, actor: Any, path: str, terms: Terms) -> Tensor:
        if self._dynamics is None or self._dynamics[0] != path:
            self._dynamics = path, DynamicsEnsemble.load(path, self._device)
        dynamics = self._dynamics[1]
        rule = rule_of_model(self._config, dynamics, self._module.action_space, self._device)
        noise = torch.Generator(self._device).manual_seed(1)
        policy = functools.partial(self._module.mean_actions, actor=actor)
        return episode_returns(policy, dynamics, rule, terms.starts, terms.length, noise, terms.known)

    def keep(self) -> None:
        """Keeps the policy as it is now."""
        self._module.keep_averaged_actor()

    def forget(self) -> None:
        """The next check keeps its policy, whatever was kept."""
        self._best, self.kept_return, self.kept_step, self._terms = None, -math.inf, 0, None

    def get_state(self) -> dict[str, Any]:
        """Numbers, returns and terms; the policy itself is in the module's state."""
        state: dict[str, Any] = {"kept_return": self.kept_return, "kept_step": self.kept_step, "terms": None}
        state["best_returns"] = None if self._best is None else self._best.cpu().numpy()
        if self._terms is not None:
            starts, known, length = self._terms
            arrays = [tensor.cpu().numpy() for tensor in (starts, known.low, known.high)]
            state["terms"] = *arrays, known.lowest_reward, known.highest_reward, length
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Sets what `get_state` returned."""
        self.forget()
        self.kept_return, self.kept_step = state["kept_return"], state["kept_step"]
        if state["terms"] is not None:
            *arrays, lowest, highest, length = state["terms"]
            starts, low, high = (torch.from_numpy(array.copy()).to(self._device) for array in arrays)
            self._terms = Terms(starts, KnownRange(low, high, lowest, highest), length)
            best = state.get("best_returns")
            if best is None:  # of an earlier version, whose kept policy was the best
                best = np.full((1, len(starts)), self.kept_return, np.float32)
            self._best = torch.from_numpy(best.copy()).to(self._device)


def _terms(starts: Tensor, known: KnownRange, longest: int) -> Terms:
    generator = torch.Generator(starts.device).manual_seed(0)
    picks = torch.randint(len(starts), (NUM_STARTS,), generator=generator, device=starts.device)
    return Terms(starts[picks], known, min(longest, MAX_LENGTH))


def is_worse(new: Tensor, best: Tensor) -> bool:
    """Whether a policy returns clearly less than another from the same starts, by the elite that gives either least.

    Args:
        new: ``(E, N)`` returns by each elite from each start.
        best: ``(E, N)`` of the other policy.
    """
    num, generator = new.shape[1], torch.Generator(new.device).manual_seed(0)
    picks = torch.randint(num, (_RESAMPLES, num), generator=generator, device=new.device)  # a bootstrap over starts
    gains = new[:, picks].mean(-1).amin(0) - best[:, picks].mean(-1).amin(0)
    return bool(gains.mean() < -TOLERANCE * gains.std())


def _lower(returns: Tensor) -> float:
    """The mean over start states by the elite that gives least, of ``(E, N)``."""
    return float(returns.mean(1).min())
