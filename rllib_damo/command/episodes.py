"""What `rllib evaluate` prints about played episodes, and the files it writes."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rllib_damo.errors import UsageError
from rllib_damo.tasks import normalized_score, normalized_std
from rllib_damo.utils.paths import check_new_file

if TYPE_CHECKING:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

_FORMATS = (".jsonl", ".npz")


def check_out(out: Path | None) -> None:
    """Refuses a file that could not be written, before the episodes are played."""
    if out is None:
        return
    if out.suffix not in _FORMATS:
        raise UsageError(f"--out {out}: the name must end in .jsonl (a line per episode) or .npz (all transitions).")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.absolute().parent}.")
    check_new_file(out)


def check_display() -> None:
    """Refuses to render if there is no display: MuJoCo's window would end the process without a message."""
    if not sys.platform.startswith("linux") or os.environ.get("SDL_VIDEODRIVER"):
        return
    import glfw  # what MuJoCo opens its window with

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = glfw.init()
    if answers:
        glfw.terminate()
        return
    given = [f"{name}={value}" for name in ("DISPLAY", "WAYLAND_DISPLAY") if (value := os.environ.get(name))]
    found = f"{' and '.join(given)} cannot be opened" if given else "neither DISPLAY nor WAYLAND_DISPLAY is set"
    raise UsageError(
        f"--render: there is no display ({found}). Play on a machine with a screen, or write the episodes with --out."
    )


def summary(episodes: Sequence[SingleAgentEpisode], env_id: Any) -> list[str]:
    """Lines with the number of episodes, return (mean ± standard deviation, range), length, and normalised score.

    A last episode that `--steps` cut counts only if it is the only one.
    """
    whole = [episode for episode in episodes if episode.is_done]
    lines = []
    if len(whole) < len(episodes):
        lines.append(f"{len(episodes) - len(whole)} unfinished episode{'' if whole else ', which alone is shown'}")
    shown = whole or list(episodes)
    returns = np.array([episode.get_return() for episode in shown], dtype=np.float64)
    lengths = np.array([len(episode) for episode in shown])
    lines += [
        f"episodes          {len(shown)}",
        f"return            {returns.mean():.2f} ± {returns.std():.2f} ({returns.min():.2f} to {returns.max():.2f})",
        f"length            {lengths.mean():.1f}",
    ]
    score, spread = normalized_score(env_id, float(returns.mean())), normalized_std(env_id, float(returns.std()))
    if score is not None:
        lines.append(f"normalised score  {score:.2f} ± {spread:.2f}")
    return lines


def write(episodes: Sequence[SingleAgentEpisode], out: Path) -> None:
    """Writes the episodes.

    `.jsonl`: a JSON object a line with `return`, `length`, `terminated`, `truncated`, `rewards`.
    `.npz`: arrays over all steps: `observations`, `next_observations`, `actions` (as the policy gave them: Box actions
    in [-1, 1]), `rewards`, `terminations`, `truncations`; read with `numpy.load`.
    """
    if out.suffix == ".jsonl":
        with out.open("w") as stream:
            for episode in episodes:
                record = {
                    "return": float(episode.get_return()),
                    "length": len(episode),
                    "terminated": bool(episode.is_terminated),
                    "truncated": bool(episode.is_truncated),
                    "rewards": [float(reward) for reward in episode.get_rewards()],
                }
                stream.write(json.dumps(record) + "\n")
        return
    columns: dict[str, list[np.ndarray]] = {}

    def add(name: str, values: Any) -> None:
        columns.setdefault(name, []).append(np.asarray(values))

    for episode in episodes:
        observations = np.asarray(episode.get_observations())
        last = np.arange(len(episode)) == len(episode) - 1
        add("observations", observations[:-1])
        add("next_observations", observations[1:])
        add("actions", episode.get_actions())
        add("rewards", episode.get_rewards())
        add("terminations", last & episode.is_terminated)
        add("truncations", last & (not episode.is_terminated))
    np.savez_compressed(out, **{name: np.concatenate(parts) for name, parts in columns.items()})  # type: ignore[arg-type]
