"""Observations that are dictionaries, as vectors: the chosen entries one after the other, in the order of the space.

gymnasium's `FlattenObservation(FilterObservation(env, observation_keys))` gives the environment the same vectors.
"""

from __future__ import annotations

from collections.abc import Collection

import gymnasium as gym
import numpy as np

from rllib_damo.errors import DataError


def check_keys(name: str, space: gym.Space, keys: Collection[str]) -> None:
    """Raises DataError unless a space is a Dict, and its entries of these keys are Boxes; `keys` must not be empty."""
    if not isinstance(space, gym.spaces.Dict):
        raise DataError(f"{name}: observation_keys={list(keys)}: its observations are {space!r}. Leave it empty.")
    entries = {key: entry for key, entry in space.spaces.items() if _is_numbers(entry)}
    if not keys or set(keys) - set(entries):
        found = f"found observation_keys={list(keys)}" if keys else "they are dictionaries"
        raise DataError(
            f"{name}: observations must be vectors, and {found}. Choose among {sorted(entries)} by "
            f"observation_keys=[...] (--observation-key), such as {list(entries)}; the environment is then flattened "
            "likewise."
        )


def key_paths(space: gym.Space, keys: Collection[str]) -> list[tuple[str, ...]]:
    """Where the parts of the vector are: paths of names, in the order in which gymnasium flattens them."""
    assert isinstance(space, gym.spaces.Dict)
    return [path for key, entry in space.spaces.items() if key in keys for path in _paths((key,), entry)]


def flat_space(space: gym.Space, keys: Collection[str]) -> gym.spaces.Box:
    """The Box of the vectors."""
    assert isinstance(space, gym.spaces.Dict)
    chosen = gym.spaces.flatten_space(gym.spaces.Dict({key: space[key] for key in space.spaces if key in keys}))
    assert isinstance(chosen, gym.spaces.Box)
    return gym.spaces.Box(chosen.low.astype(np.float32), chosen.high.astype(np.float32), dtype=np.float32)


def _paths(path: tuple[str, ...], entry: gym.Space) -> list[tuple[str, ...]]:
    if not isinstance(entry, gym.spaces.Dict):
        return [path]
    return [inner for key, value in entry.spaces.items() for inner in _paths((*path, key), value)]


def _is_numbers(entry: gym.Space) -> bool:
    if isinstance(entry, gym.spaces.Dict):
        return all(map(_is_numbers, entry.spaces.values()))
    return isinstance(entry, gym.spaces.Box)
