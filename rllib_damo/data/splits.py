"""Episodes that are kept out of training. Their content chooses them, so neither order nor files matter."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError

#: Below this number of episodes a share is rounded to an exact number of them.
_EXACT_BELOW = 200
_FEWEST_HELD_OUT, _FEWEST_TRAINING = 2, 5


@dataclass(frozen=True)
class Split:
    """A dataset in two parts, by whole episodes.

    Attributes:
        training: what is learned from.
        holdout: what no part of training sees.
        record: the split in plain values: ``holdout_episodes`` and ``holdout_seed`` as given, ``episodes`` and ``rows``
            that are held out, and the fingerprints of both parts.
    """

    training: Transitions
    holdout: Transitions
    record: dict[str, Any]


def split_episodes(transitions: Transitions, holdout_episodes: float, seed: int = 0) -> Split:
    """Holds out whole episodes, chosen by a hash of their content: copies of an episode are in the same part.

    Args:
        transitions: the whole dataset.
        holdout_episodes: a share in (0, 1), or a number of episodes.
        seed: another one chooses other episodes.

    Raises:
        DataError: fewer than 2 episodes would be held out, or fewer than 5 remain.
    """
    bounds = transitions.episode_bounds()
    hashes = episode_hashes(transitions, seed)
    if holdout_episodes < 1 and len(hashes) >= _EXACT_BELOW:
        held_out = hashes < holdout_episodes
    else:
        count = round(holdout_episodes * len(hashes)) if holdout_episodes < 1 else int(holdout_episodes)
        count = min(max(count, _FEWEST_HELD_OUT), len(hashes))
        held_out = hashes <= np.sort(hashes)[count - 1]
    number, rest = int(held_out.sum()), int((~held_out).sum())
    if number < _FEWEST_HELD_OUT or rest < _FEWEST_TRAINING:
        raise DataError(
            f"{transitions.name}: holdout_episodes={holdout_episodes!r} holds out {number} of {len(hashes)} episodes "
            f"and leaves {rest}; at least {_FEWEST_HELD_OUT} must be held out and {_FEWEST_TRAINING} remain. Set "
            "another share or number in .offline_data(holdout_episodes=...), or 0 for none."
        )
    rows = np.repeat(held_out, bounds[:, 1] - bounds[:, 0])
    training, holdout = (transitions.rows(np.flatnonzero(mask)) for mask in (~rows, rows))
    record = {
        "holdout_episodes": holdout_episodes if holdout_episodes < 1 else int(holdout_episodes),
        "holdout_seed": int(seed),
        "episodes": number,
        "rows": len(holdout),
        "train_fingerprint": training.fingerprint(),
        "holdout_fingerprint": holdout.fingerprint(),
    }
    return Split(training, holdout, record)


def episode_hashes(transitions: Transitions, seed: int = 0) -> np.ndarray:
    """A number in [0, 1) for each episode, of its first row's state, action and reward, its length and the seed."""
    found = []
    for start, stop in transitions.episode_bounds().tolist():
        digest = hashlib.blake2b(f"{seed}:{stop - start};".encode(), digest_size=8)
        for array in (transitions.observations, transitions.actions, transitions.rewards):
            digest.update(array[start].tobytes())
        found.append(int.from_bytes(digest.digest(), "big") / 2**64)
    return np.array(found)
