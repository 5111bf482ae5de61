"""What is asked of a dataset before dynamics are trained on it: enough rows, and a termination rule that fits them."""

from __future__ import annotations

import numpy as np
import torch

from rllib_damo.buffers import as_constant, unknown_successors
from rllib_damo.data.schema import DataError, Transitions
from rllib_damo.dynamics.rollout import as_terminated
from rllib_damo.dynamics.termination import TerminationFn

_FEWEST = 10  # `DynamicsTrainer` takes no fewer
_ROWS = 256  # tried of those that are terminal, and of the others
_TOLERANCE = 0.05  # share of these


def check_enough_rows(transitions: Transitions) -> None:
    """Raises DataError unless there are rows enough with a known successor."""
    found = int(_known_successors(transitions).sum())
    if found < _FEWEST:
        raise DataError(
            f"{transitions.name}: training the dynamics model needs {_FEWEST} transitions with known next "
            f"observations (a terminal that repeats its observation has none), and {found} of {len(transitions)} have "
            "them. Give more data in .offline_data(input_=...), or data with next observations."
        )


def try_rule(rule: TerminationFn, transitions: Transitions, device: torch.device) -> list[str]:
    """Calls a termination rule on a sample of the dataset's rows whose successors are known.

    Args:
        rule: takes actions in the environment's units.
        transitions: the dataset.
        device: where rollouts will call the rule.

    Returns:
        Cautions, a sentence each, where the rule and the dataset's terminations are at odds.

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
