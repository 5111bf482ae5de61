"""The policies to choose among: found below a run's folder, loaded from checkpoints, or given as functions."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from pyarrow import fs
from ray.rllib.core import COMPONENT_LEARNER_GROUP
from torch import Tensor

from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.errors import CheckpointError, UsageError
from rllib_damo.evaluation.checkpoints import CONSTRUCTOR, SPLIT_FILE, STATES, load_config, read_pickle, verify
from rllib_damo.evaluation.policy import load_policy
from rllib_damo.evaluation.storage import local_copy
from rllib_damo.selection.clone import CHUNK, Policy
from rllib_damo.utils.spaces import to_unit
from rllib_damo.utils.uris import address, connect, why, without_password

#: ``raw observations (B, obs) -> actions (B, act)`` in the environment's units
Act = Callable[[np.ndarray], np.ndarray]
Place: TypeAlias = "str | Path | Act"

_SHOWN_SETTINGS = 3
_GIVE = "Give the folder of a run, or of checkpoints, that `rllib train` printed."


@dataclass
class Candidate:
    """A policy.

    Attributes:
        name: for the table.
        path: of its checkpoint; "" for a function.
        act: the policy, in the environment's units.
        record: what its checkpoint says of its data (`selection.json`); None where it says nothing.
        config: its algorithm's; None for a function and for a module alone.
        own_model: the dynamics model that it was trained with, if its checkpoint holds one.
    """

    name: str
    path: str
    act: Act
    record: Mapping[str, Any] | None = None
    config: Any = None
    own_model: DynamicsEnsemble | None = None

    def unit_policy(self, space: gym.Space) -> Policy:
        """The policy on tensors, in unit actions.

        Raises:
            CheckpointError: an action is not finite, or of another width than the space's.
        """

        def act(obs: Tensor) -> Tensor:
            parts = []
            for start in range(0, len(obs), CHUNK):
                part = obs[start : start + CHUNK].numpy()
                actions = np.asarray(self.act(part), np.float32)
                if actions.shape != (len(part), space.shape[0]):  # type: ignore[index]
                    raise CheckpointError(
                        f"the policy {self.name} gives actions of shape {actions.shape[1:]}, and the action space is "
                        f"{space}: choose among policies of one environment."
                    )
                if not np.isfinite(actions).all():
                    row = start + int(np.flatnonzero(~np.isfinite(actions).all(-1))[0])
                    raise CheckpointError(
                        f"the policy {self.name} gives an action that is not finite in row {row} "
                        f"({without_password(self.path) or 'a function'}): leave it out."
                    )
                parts.append(torch.from_numpy(np.clip(to_unit(actions, space), -1, 1)))
            return torch.cat(parts)

        return act


def load(given: Sequence[Place] | Mapping[str, Place], which: str = "last") -> list[Candidate]:
    """Loads policies; a checkpoint's pickles are executed, so load only those that you trust.

    Args:
        given: folders or addresses of checkpoints or of runs, and functions; or these by the names to show.
        which: of each trial's checkpoints: "last", "all", or "every:N", each N-th and the last.

    Raises:
        CheckpointError: a place holds no checkpoint, or it cannot be loaded.
        UsageError: a wrong ``which``.
    """
    places = list(given.values()) if isinstance(given, Mapping) else list(given)
    names = list(given) if isinstance(given, Mapping) else [""] * len(places)
    found: list[Candidate] = []
    models: dict[str, DynamicsEnsemble] = {}
    for name, place in zip(names, places, strict=True):
        if callable(place):
            found.append(Candidate(name or getattr(place, "__name__", "function"), "", place))
        else:
            paths = find(str(place), which)
            own = [_from_checkpoint(path, models) for path in paths]
            for number, candidate in enumerate(own):
                if name:
                    candidate.name = name if len(own) == 1 else f"{name}/{number}"
            found += own
    _give_names([candidate for candidate in found if not candidate.name])
    taken = {"clone": 1}  # the selection has one of its own
    for candidate in found:  # one name each
        taken[candidate.name] = taken.get(candidate.name, 0) + 1
        if taken[candidate.name] > 1:
            candidate.name += f" ({taken[candidate.name]})"
    return found


def find(place: str, which: str = "last") -> list[str]:
    """Checkpoints at or below a folder or address, of each trial those that ``which`` says; arguments as of `load`."""
    every = re.fullmatch(r"every:([1-9]\d*)", which)
    if which not in ("last", "all") and every is None:
        raise UsageError(f"--checkpoints {which}: write last, all, or every:N.")
    shown = without_password(place)
    try:
        filesystem, root = connect(place.rstrip("/") if "://" in place else str(Path(place).expanduser().absolute()))
        infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except (FileNotFoundError, NotADirectoryError) as error:
        found = "there is no such folder" if isinstance(error, FileNotFoundError) else "it is no folder"
        raise CheckpointError(f"no checkpoint at {shown}: {found}. {_GIVE}") from error
    except Exception as error:
        fix = why(error) if "://" in place else f"{error}."
        raise CheckpointError(f"no checkpoint at {shown}: {fix}") from error
    marks = {info.path.rsplit("/", 1)[0] for info in infos if info.base_name == CONSTRUCTOR}
    groups = {info.path.rsplit("/", 1)[0] for info in infos if info.base_name == COMPONENT_LEARNER_GROUP}
    folders = sorted(marks & groups, key=_number)
    if not folders:
        raise CheckpointError(f"{shown} holds no checkpoint. {_GIVE}")
    trials: dict[str, list[str]] = {}
    for folder in folders:
        trials.setdefault(folder.rsplit("/", 1)[0], []).append(folder)
    kept = []
    for trial in sorted(trials):
        own = trials[trial] if all(map(_NAMED.search, trials[trial])) else []
        step = len(own) if which == "last" else int(every[1]) if every else 1
        # others than numbered ones are no series: each is meant
        kept += [p for n, p in enumerate(own, 1) if n % step == 0 or n == len(own)] if own else trials[trial]
    return [address(path, place) if "://" in place else path for path in kept]


_NAMED = re.compile(r"checkpoint_(\d+)$")


def _number(path: str) -> tuple[int, str]:
    match = _NAMED.search(path)
    return int(match[1]) if match else 0, path


def _from_checkpoint(path: str, models: dict[str, DynamicsEnsemble]) -> Candidate:
    with local_copy(path) as folder:
        try:
            verify(folder.absolute())
            policy, config = load_policy(folder), load_config(folder)
        except CheckpointError:
            raise
        except ValueError as error:  # a module that is no function of an observation
            raise CheckpointError(f"{without_password(path)} cannot be a candidate: {error}") from error
        file = Path(folder) / SPLIT_FILE
        record = json.loads(file.read_text()) if file.is_file() else None
        return Candidate("", path, policy, record, config, _own_model(Path(folder), models))


def _own_model(folder: Path, models: dict[str, DynamicsEnsemble]) -> DynamicsEnsemble | None:
    """The dynamics model in the state of a checkpoint; those of one content are kept once, in ``models``."""
    file = folder / STATES[0]
    state = read_pickle(file) if file.is_file() else {}
    content = state.get("offline_training", {}).get("dynamics", {}).get("file")
    if content is None:
        return None
    key = hashlib.sha256(content).hexdigest()
    if key not in models:
        with tempfile.NamedTemporaryFile(suffix=".pt") as copy:
            copy.write(content)
            copy.flush()
            models[key] = DynamicsEnsemble.load(copy.name)
    return models[key]


def settings(config: Any) -> dict[str, Any]:
    """The algorithm, its own training options and the seed of a config, as a flat dict."""
    own = config.own_options("training") if hasattr(config, "own_options") else {}
    name = config.algo_class.__name__ if config.algo_class else type(config).__name__
    return {"algorithm": name, "seed": config.seed} | {key: getattr(config, key) for key in own}


def changed_settings(config: Any) -> dict[str, Any]:
    """Those of the algorithm's own training options that do not have their defaults, as plain values."""
    own = config.own_options("training") if hasattr(config, "own_options") else {}
    values = {key: (_plain(getattr(config, key)), _plain(option.default)) for key, option in own.items()}
    return {key: value for key, (value, default) in values.items() if value != default}


def is_default(config: Any) -> bool:
    """Whether all the algorithm's training options have their defaults."""
    return bool(getattr(config, "own_options", None)) and not changed_settings(config)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def _give_names(candidates: Sequence[Candidate]) -> None:
    """Names candidates by the settings in which they differ, and by their gradient steps."""
    found = [settings(candidate.config) for candidate in candidates]
    keys = [key for key in dict.fromkeys(key for one in found for key in one) if _differs(key, found)]
    for candidate, own in zip(candidates, found, strict=True):
        parts = [str(own["algorithm"])] if "algorithm" in keys or not keys else []
        parts += [f"{key}={own[key]}" for key in keys if key != "algorithm" and key in own][:_SHOWN_SETTINGS]
        steps = (candidate.record or {}).get("num_gradient_steps_lifetime")
        candidate.name = " ".join(parts) + (f" at {steps}" if steps is not None else "")
    names = [candidate.name for candidate in candidates]
    for candidate in candidates:  # the same settings: by their places
        if names.count(candidate.name) > 1:
            candidate.name = "/".join(Path(candidate.path).parts[-3:])


def _differs(key: str, found: Sequence[Mapping[str, Any]]) -> bool:
    values = [repr(_plain(one[key])) for one in found if key in one]
    return len(set(values)) > 1
