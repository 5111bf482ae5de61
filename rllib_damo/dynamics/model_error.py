"""How far a model's predictions are from real episodes after h steps, and whether the model says so itself.

From the states of real episodes the model follows the logged actions as rollouts do, several times: the mean of these
draws is the prediction, and their standard deviation what the model expects its error to be.
"""

from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.utils.spaces import to_unit

#: The h that are measured, as far as episodes are that long.
LENGTHS = (1, 2, 5, 10, 20)
_MAX_TRACKS, _MIN_TRACKS = 200, 20
_DRAWS = 10


class Tracks(NamedTuple):
    """Parts of S real episodes, of H steps each."""

    states: Tensor  # (S, H + 1, obs)
    actions: Tensor  # (S, H, act), unit actions

    @classmethod
    def of(cls, obs: np.ndarray, actions: np.ndarray, bounds: np.ndarray, action_space: gym.Space) -> Tracks | None:
        """Draws parts of the episodes, always the same; None where too few states have one that follows.

        Args:
            obs: ``(N, obs)``.
            actions: ``(N, act)``, in the environment's units.
            bounds: first and one-past-last row of each episode, ``(E, 2)``.
            action_space: the environment's.
        """
        rows_left = np.repeat(bounds[:, 1], bounds[:, 1] - bounds[:, 0]) - np.arange(bounds[-1, 1])  # with the own row
        for length in reversed(LENGTHS):
            inner = np.flatnonzero(rows_left > length)
            if len(inner) >= _MIN_TRACKS:
                starts = np.random.default_rng(0).choice(inner, min(len(inner), _MAX_TRACKS), replace=False)
                rows = starts[:, None] + np.arange(length + 1)
                return cls(torch.from_numpy(obs[rows]), torch.from_numpy(to_unit(actions[rows[:, :-1]], action_space)))
        return None


@torch.inference_mode()
def model_error(model: DynamicsEnsemble, tracks: Tracks) -> dict[str, dict[str, float]]:
    """Error and calibration after h steps, over the columns of the state that vary in the data.

    The random numbers are its own. Tracks with a prediction that is not finite are left out.

    Args:
        model: on the CPU.
        tracks: parts of real episodes.

    Returns:
        For each h ("1", "2", ...): ``error``, the median over tracks of the root mean square over columns of
        (predicted - real), in standard deviations of the columns in the data; ``predicted_std``, the same of what the
        model expects; ``within_1_std`` and ``within_2_std``, the share of errors that are smaller than once and twice
        the expected one: 0.68 and 0.95 where errors are normal and the model is right.
    """
    columns = model.target_std[:-1] > 0
    scale = model.input_std[: model.obs_dim]
    num, step, generator = len(tracks.states), model.sampler(), torch.Generator().manual_seed(0)
    obs, found = tracks.states[:, 0].repeat(_DRAWS, 1), {}
    for h in range(1, tracks.actions.shape[1] + 1 if columns.any() else 1):
        obs, _ = step(obs, tracks.actions[:, h - 1].repeat(_DRAWS, 1), generator)
        if h not in LENGTHS:
            continue
        draws = ((obs.view(_DRAWS, num, -1) - tracks.states[:, h]) / scale)[..., columns]
        draws = draws[:, draws.isfinite().all(0).all(-1)]
        if not draws.shape[1]:
            break
        error = draws.mean(0).abs()
        expected = draws.std(0) * (1 + 1 / _DRAWS) ** 0.5  # the mean of the draws has an error of its own
        found[str(h)] = {
            "error": _typical(error),
            "predicted_std": _typical(expected),
            "within_1_std": float((error <= expected).double().mean()),
            "within_2_std": float((error <= 2 * expected).double().mean()),
        }
    return found


def _typical(sizes: Tensor) -> float:
    """Median over tracks of the root mean square over columns."""
    return float(sizes.square().mean(-1).sqrt().median())
