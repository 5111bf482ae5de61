"""Learned termination, for environments without a known rule."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_damo.nn.adam import FusedAdam, load_optimizer_state, optimizer_state
from rllib_damo.nn.standardize import input_scales
from rllib_damo.utils.batch import unknown_successors


class LearnedTermination(nn.Module):
    """A classifier of (s, a, s') that returns the log odds of the transition being terminal.

    Until it is trained, and after training on data without terminals, it never terminates.

    Args:
        obs_dim: width of an observation.
        act_dim: width of an action.
        hidden_dim: width of the two hidden layers.
    """

    mean: Tensor
    std: Tensor
    mask: Tensor
    offset: Tensor

    def __init__(self, obs_dim: int, act_dim: int, hidden_dim: int = 128):
        super().__init__()
        width = 2 * obs_dim + act_dim
        self.net = nn.Sequential(
            nn.Linear(width, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, 1),
        )
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("mask", torch.ones(width))  # 0 where the data does not know a terminal's successor
        self.register_buffer("offset", torch.tensor(-math.inf))

    def features(self, obs: Tensor, unit_actions: Tensor, next_obs: Tensor) -> Tensor:
        """Standardised inputs ``(B, 2 obs_dim + act_dim)``."""
        x = torch.cat((obs, unit_actions, next_obs), dim=-1)
        return (x - self.mean) / self.std * self.mask

    def forward(self, obs: Tensor, unit_actions: Tensor, next_obs: Tensor) -> Tensor:
        """Log odds ``(B,)``, calibrated to the share of terminals in the data. Actions are unit actions."""
        return self.net(self.features(obs, unit_actions, next_obs)).squeeze(-1) + self.offset

    def terminated(self, obs: Tensor, unit_actions: Tensor, next_obs: Tensor) -> Tensor:
        """Whether a terminal is the likelier outcome: ``(B,)`` bool. Actions are unit actions."""
        return self(obs, unit_actions, next_obs) > 0


class TerminationTrainer:
    """Trains the head on batches that are half terminals, and takes that re-weighting out of its log odds again.

    With balanced batches the network learns the log likelihood ratio; adding the data's prior log odds
    log(terminals / others) makes the probabilities calibrated (prior correction).

    Terminals whose successor the source did not record are left out; where they are most of the terminals, the head
    does without successors instead.

    Args:
        head: trained in place.
        obs: ``(N, obs)``.
        unit_actions: ``(N, act)``.
        next_obs: ``(N, obs)``.
        terminations: ``(N,)`` bool.
        generator: the CPU's, wherever the data is.
        num_steps: gradient steps in all.
        batch_size: rows a step.
    """

    def __init__(
        self,
        head: LearnedTermination,
        obs: Tensor,
        unit_actions: Tensor,
        next_obs: Tensor,
        terminations: Tensor,
        *,
        generator: torch.Generator,
        num_steps: int = 3000,
        batch_size: int = 256,
    ):
        self.head, self._generator, self._batch_size = head, generator, batch_size
        self._data = (obs, unit_actions, next_obs)
        self._terminals, self._others = (mask.nonzero().squeeze(-1) for mask in (terminations, ~terminations))
        num_terminals = len(self._terminals)
        is_known = ~unknown_successors(obs, next_obs, terminations)[self._terminals]
        uses_successors = bool(is_known.sum() * 2 >= num_terminals)
        if uses_successors:
            self._terminals = self._terminals[is_known]
        one_sided = not len(self._terminals) or not len(self._others)
        self._steps_left = 0 if one_sided else num_steps
        self._optimizer = FusedAdam(head.parameters(), lr=1e-3)
        with torch.no_grad():
            columns = slice(obs.shape[1], obs.shape[1] + unit_actions.shape[1])
            mean, std = input_scales(torch.cat(self._data, dim=-1), columns)
            head.mean.copy_(mean)
            head.std.copy_(std)
            head.mask[-obs.shape[1] :] = float(uses_successors)
            ratio = num_terminals / len(self._others) if len(self._others) else math.inf
            head.offset.fill_(math.log(ratio) if ratio > 0 else -math.inf)

    def train(self, num_steps: int) -> float:
        """Takes at most ``num_steps`` of the steps that are left; returns their mean loss (0 if there were none)."""
        steps = min(num_steps, self._steps_left)
        total = torch.zeros((), device=self._data[0].device)
        for _ in range(steps):
            half = self._batch_size // 2
            rows = torch.cat([self._draw(self._terminals, half), self._draw(self._others, half)])
            obs, actions, next_obs = (column[rows] for column in self._data)
            logits = self.head.net(self.head.features(obs, actions, next_obs)).squeeze(-1)
            labels = torch.zeros_like(logits)
            labels[:half] = 1.0
            loss = F.binary_cross_entropy_with_logits(logits, labels)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            total += loss.detach()
        self._steps_left -= steps
        return float(total) / max(1, steps)

    def finish(self) -> None:
        """Takes the steps that are left."""
        self.train(self._steps_left)

    def state_dict(self) -> dict[str, Any]:
        """All that changes while training, but for the head's own weights."""
        return {"steps_left": self._steps_left, "optimizer": optimizer_state(self._optimizer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`; the head's weights come with the ensemble's."""
        self._steps_left = int(state["steps_left"])
        load_optimizer_state(self._optimizer, state["optimizer"])

    def _draw(self, rows: Tensor, num: int) -> Tensor:
        return rows[torch.randint(len(rows), (num,), generator=self._generator).to(rows.device)]
