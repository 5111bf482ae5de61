"""A few real episodes, spent where they tell most: sequential halving (Karnin, Koren and Somekh, 2013).

The candidates begin with a prior from their values, which counts less with each episode. Every return is written to a
file before the next episode, so that a person can play them, and an interruption loses nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rllib_damo.errors import UsageError, UserError
from rllib_damo.selection.candidates import Act
from rllib_damo.utils.environments import make_env

#: ``(number of the candidate, number of the episode) -> return``
Play = Callable[[int, int], float]
_SEED = 10_000  # of the first episode, the same for all candidates


@dataclass(frozen=True)
class Played:
    """What the episodes say: by candidate the mean return with the prior, its standard error, and the returns."""

    best: int
    means: np.ndarray
    errors: np.ndarray
    returns: list[list[float]]


def sequential_halving(
    play: Play, values: np.ndarray, halves: np.ndarray, budget: int, names: Sequence[str], file: Path | None = None
) -> Played:
    """Plays at most ``budget`` episodes: in each of ⌈log2 k⌉ rounds equally many of those left; the worse half goes.

    Args:
        play: plays an episode. The same number means the same start for all candidates.
        values: by which the prior is made, ``(k,)``; NaN: none.
        halves: half their 90 % intervals, ``(k,)``.
        budget: episodes.
        names: of the candidates, for the file.
        file: where each episode becomes a line; the lines that are there are not played again.

    Raises:
        UsageError: the budget is too small for one episode of each candidate, or ``file`` is damaged.
        UserError: a return is not finite.
    """
    num = len(values)
    rounds = max(1, math.ceil(math.log2(num)))
    if budget < num:
        raise UsageError(f"--budget {budget}: there are {num} candidates, and each needs an episode.")
    known, left = _read(file), budget
    returns: list[list[float]] = [[] for _ in range(num)]
    alive = list(range(num))
    for number in range(rounds):
        each = max(1, min(left // (rounds - number) // len(alive), left // len(alive)))
        for i in alive:
            for _ in range(min(each, left)):
                episode = len(returns[i])
                found = known.get((names[i], episode))
                if found is None:
                    found = float(play(i, episode))
                    if not math.isfinite(found):
                        raise UserError(
                            f"the return of {names[i]} in episode {episode} is {found}: the environment's rewards must "
                            "be finite."
                        )
                    _write(file, names[i], episode, found)
                returns[i].append(found)
                left -= 1
        means, errors = posterior(values, halves, returns)
        alive = sorted(alive, key=lambda i: -means[i])[: max(1, math.ceil(len(alive) / 2))]
        if left < len(alive):
            break
    return Played(max(alive, key=lambda i: means[i]), means, errors, returns)


def posterior(
    values: np.ndarray, halves: np.ndarray, returns: Sequence[Sequence[float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Means of the returns and standard errors ``(k,)``, the values as a prior where they agree with what was played.

    One line is fitted through the played candidates' (value, mean return). Where it does not rise, the values say
    nothing and are left out. The episodes' standard deviation is pooled.
    """
    counts = np.array([len(own) for own in returns], float)
    means = np.array([np.mean(own) if len(own) else np.nan for own in returns])
    residuals = [np.asarray(own) - np.mean(own) for own in returns if len(own) > 1]
    freedom = sum(len(r) - 1 for r in residuals)
    spread = float(np.ptp(means[counts > 0])) if (counts > 0).any() else 0.0
    variance = sum(float((r**2).sum()) for r in residuals) / freedom if freedom else spread**2
    variance = variance or 1e-12
    usable = (counts > 0) & np.isfinite(values)
    precision, center = np.zeros(len(means)), np.zeros(len(means))
    if usable.sum() >= 3 and np.ptp(values[usable]) > 0:
        slope, offset = np.polyfit(values[usable], means[usable], 1)
        if slope > 0:
            width = np.maximum(slope * np.nan_to_num(halves, nan=np.inf, posinf=np.inf), 0.2 * spread)
            precision = np.where(np.isfinite(values) & (width > 0), 1 / np.maximum(width, 1e-12) ** 2, 0.0)
            center = np.nan_to_num(offset + slope * values)
    total = precision + counts / variance
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(total > 0, (precision * center + counts / variance * np.nan_to_num(means)) / total, -np.inf)
        return mean, np.sqrt(1 / total)


def in_environment(policies: Sequence[Act], env: Any, env_config: dict[str, Any] | None = None) -> Play:
    """Plays in an environment, from the same starts for all policies."""
    made = make_env(env, env_config)

    def play(i: int, episode: int) -> float:
        obs, _ = made.reset(seed=_SEED + episode)
        total, over = 0.0, False
        while not over:
            action = policies[i](np.asarray(obs, np.float32)[None])[0]
            obs, reward, terminated, truncated, _ = made.step(action)
            total, over = total + float(reward), terminated or truncated
        return total

    return play


def by_hand(names: Sequence[str], paths: Sequence[str], ask: Callable[[str], str] = input) -> Play:
    """Asks a person, who plays elsewhere and enters the returns."""

    def play(i: int, episode: int) -> float:
        while True:
            answer = ask(f"Play {paths[i] or names[i]}, episode {episode}, and enter the return: ")
            try:
                value = float(answer)
            except ValueError:
                value = math.nan
            if math.isfinite(value):
                return value

    return play


def _read(file: Path | None) -> dict[tuple[str, int], float]:
    if file is None or not file.exists():
        return {}
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        found = {(line["candidate"], line["episode"]): float(line["return"]) for line in lines}
        if not all(map(math.isfinite, found.values())):
            raise ValueError("a return is not finite")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is damaged ({error}): correct its lines, or delete it.") from error


def _write(file: Path | None, name: str, episode: int, found: float) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            stream.write(json.dumps({"candidate": name, "episode": episode, "return": found}) + "\n")
