"""What an algorithm asks of its dataset before any work: what would fail, or mislead, only after hours of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from rllib_damo.core.config import ModelBasedConfig, OfflineConfig
from rllib_damo.data.schema import Transitions
from rllib_damo.data.warnings import dataset_warnings, selection_warnings, space_warnings
from rllib_damo.dynamics.rollout import as_terminated
from rllib_damo.dynamics.termination import TerminationFn, resolve_termination
from rllib_damo.dynamics.training import MIN_TRANSITIONS
from rllib_damo.errors import DataError
from rllib_damo.utils.batch import as_constant, unknown_successors
from rllib_damo.utils.ray_internals import given_connector

_FAR_VALUE = 10_000  # D4RL's tasks have values of up to 1,200
_ROWS = 256  # tried of those that are terminal, and of the others
_TOLERANCE = 0.05  # share of these


def warnings_of_all(config: OfflineConfig, transitions: Transitions) -> Iterator[str]:
    """Yields warnings about the dataset (or its first window) that concern every algorithm, a sentence each."""
    yield from dataset_warnings(transitions)
    yield from space_warnings(transitions, config.observation_space, config.action_space)
    yield from selection_warnings(transitions, transitions.best_rows(config.data_fraction))
    if given_connector(config) is not None:
        yield (
            "`env_to_module_connector` changes the observations that the policy sees where it plays, and none of the "
            "dataset: if it changes values, the dataset's must have gone through it before"
        )
    yield from warnings_of_values(config, transitions)


def warnings_of_values(config: OfflineConfig, transitions: Transitions) -> Iterator[str]:
    """Critics with layer normalisation reach a value at a pace that does not depend on it, 37 in 1,000 steps."""
    typical, divisor = transitions.reward_size(), reward_divisor(config, transitions)
    value = typical / (1 - config.gamma)
    if divisor > 1:
        yield (
            f"rewards are {typical:.3g} in the mean of absolute values, which over 1-gamma is a value of {value:.3g}, "
            "and Q moves by some 4,000 in 100,000 gradient steps, so that it stays far from it: divide the rewards by "
            f"{divisor:,}"
        )


def reward_divisor(config: OfflineConfig, transitions: Transitions) -> int:
    """What to divide rewards by so that critics with layer normalisation reach their values; 1: they do already."""
    value = transitions.reward_size() / (1 - config.gamma)
    if not getattr(config, "critic_layer_norm", False) or value <= _FAR_VALUE:
        return 1
    return 10 ** math.ceil(math.log10(value / 1000))


def warnings_of_model(
    config: ModelBasedConfig, transitions: Transitions, is_capped: bool, device: torch.device | None
) -> Iterator[str]:
    """Yields warnings about the dataset that concern a dynamics model, a sentence each.

    Args:
        config: the algorithm's.
        transitions: the dataset, or its first window.
        is_capped: whether it is the latter.
        device: where rollouts will call the termination rule; None: on one that is not here.

    Raises:
        DataError: there are too few rows for a dynamics model.
        ValueError: the termination rule fails, or returns something else than a flag a row.
    """
    if config.dynamics_path is None:
        check_enough_rows(transitions)
        if is_capped:
            yield (
                f"the dataset is larger than max_dataset_rows={config.max_dataset_rows}: the dynamics model and the "
                "networks' input statistics are of its first window alone; where its parts differ, shuffle the "
                "episodes or raise max_dataset_rows"
            )
    rule = resolve_termination(config.env, config.termination_fn, config.env_config)
    if rule is not None and device is not None:
        yield from try_rule(rule, transitions, device)


def check_enough_rows(transitions: Transitions) -> None:
    """Raises DataError unless there are rows enough with a known successor."""
    found = int(_known_successors(transitions).sum())
    if found < MIN_TRANSITIONS:
        raise DataError(
            f"{transitions.name}: training the dynamics model needs {MIN_TRANSITIONS} transitions with known "
            f"next observations (a terminal that repeats its observation has none), and {found} of {len(transitions)} "
            "have them. Give more data in .offline_data(input_=...), or data with next observations."
        )


def try_rule(rule: TerminationFn, transitions: Transitions, device: torch.device) -> list[str]:
    """Calls a termination rule on a sample of the dataset's rows whose successors are known.

    Args:
        rule: takes actions in the environment's units.
        transitions: the dataset.
        device: where rollouts will call the rule.

    Returns:
        Warnings, a sentence each, where the rule and the dataset's terminations are at odds.

    Raises:
        ValueError: the rule fails, or returns something else than a flag a row.
    """
    rng = np.random.default_rng(0)
    known, found = _known_successors(transitions), []
    for is_terminal, says in (
        (True, "terminal in the dataset, the termination rule goes on after"),
        (False, "not terminal in the dataset, the termination rule ends at"),
    ):
        rows = np.flatnonzero(known & (transitions.terminations == is_terminal))
        if not len(rows):
            continue
        rows = np.sort(rng.choice(rows, min(len(rows), _ROWS), replace=False))
        wrong = rows[_terminated(rule, transitions, rows, device) != is_terminal]
        _terminated(rule, transitions, rows[:1], device)  # a rollout may be down to one row
        if len(wrong) > _TOLERANCE * len(rows):
            found.append(
                f"of {len(rows)} transitions {says} {len(wrong)}, first row {wrong[0]}; rollouts follow the rule: "
                "compare .dynamics(termination_fn=...) and the dataset's terminations with the environment"
            )
    return found


def _known_successors(transitions: Transitions) -> np.ndarray:
    columns = transitions.observations, transitions.next_observations, transitions.terminations
    return ~unknown_successors(*map(as_constant, columns)).numpy()


def _terminated(rule: TerminationFn, transitions: Transitions, rows: np.ndarray, device: torch.device) -> np.ndarray:
    obs, actions, next_obs = (
        torch.from_numpy(column[rows]).to(device)
        for column in (transitions.observations, transitions.actions, transitions.next_observations)
    )
    with torch.inference_mode():
        try:
            result = rule(obs, actions, next_obs)
        except Exception as error:  # of the user's code, any
            raise ValueError(
                f"`termination_fn` failed on {len(rows)} transition(s) of {transitions.name} ({type(error).__name__}: "
                f"{error}): it must take torch tensors obs {tuple(obs.shape)}, actions {tuple(actions.shape)} and "
                f"next_obs {tuple(next_obs.shape)}, and return bool ({len(rows)},)."
            ) from error
        return as_terminated(result, next_obs).cpu().numpy()
