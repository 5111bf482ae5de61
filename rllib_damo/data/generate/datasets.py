"""Datasets with D4RL's meaning, made on this machine by behaviour policies of our own.

``make("hopper-medium")`` plays the shipped medium policy and writes the Minari dataset ``rllib_damo/hopper/medium-v0``.
Levels: ``random`` (uniform actions), ``medium`` (about a third of an expert), ``expert``, ``medium-expert`` (half and
half), ``medium-replay`` (what a training run met on its way to medium, from snapshots of its policy) and, for the
pendulum, ``mixed``. Actions are always sampled, as in D4RL. A name may say its size: ``hopper-medium@1M``.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from filelock import FileLock
from tqdm import tqdm

from rllib_damo.data.formats import minari_files
from rllib_damo.data.generate import units
from rllib_damo.data.generate.policies import FOLDER, PolicyRecord, load_index, policy_version
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError
from rllib_damo.tasks import REFERENCE_RETURNS
from rllib_damo.utils.paths import cache_root

NAMESPACE = "rllib_damo"
RECIPE_VERSION = 1  # raise it when equal settings would give other data
ENVS = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5", "pendulum": "Pendulum-v1"}
# rounded mean episode lengths of uniform actions: they only set how many episodes a work unit has
RANDOM_LENGTH = {"hopper": 22.0, "halfcheetah": 1000.0, "walker2d": 20.0, "pendulum": 200.0}
LEVELS = {
    "random": "uniformly random actions",
    "medium": "a policy of about a third of the expert's return",
    "expert": "the best policy of the training run",
    "medium-expert": "one half medium, one half expert",
    "medium-replay": "snapshots of the training run from its start up to medium",
    "mixed": "swing-up controllers from aimless to nearly optimal, with noise",
}


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A dataset that ``make`` knows.

    ``default_transitions`` take less than a minute on two cores; D4RL's own sets have up to 1 M
    (2 M for medium-expert).
    """

    task: str
    level: str
    default_transitions: int
    size: str = ""  # "1M" of the name "hopper-medium@1M"

    @property
    def base(self) -> str:
        """The name without a size."""
        return f"{self.task}-{self.level}"

    @property
    def name(self) -> str:
        return self.base + (f"@{self.size}" if self.size else "")

    @property
    def env_id(self) -> str:
        return ENVS[self.task]

    @property
    def dataset_id(self) -> str:
        return f"{NAMESPACE}/{self.task}/{self.level}{self.size and '-'}{self.size}-v0"

    @property
    def description(self) -> str:
        return LEVELS[self.level]

    def parts(self) -> dict[str, float]:
        """Policies by name and the share of transitions of each.

        Raises:
            DataError: when a policy that is needed is not shipped.
        """
        parts = self._shipped_parts()
        if not parts:
            there = ", ".join(name for name, spec in NAMES.items() if spec.is_shipped())
            raise DataError(
                f"{self.name}: its behaviour policies are not shipped with this version; there are {there}. "
                "scripts/train_behavior.py and scripts/ship_behavior.py make policies."
            )
        return parts

    def is_shipped(self) -> bool:
        return bool(self._shipped_parts())

    def _shipped_parts(self) -> dict[str, float]:
        if self.level in ("random", "mixed"):
            return {self.base: 1.0}
        index = load_index()
        if self.level == "medium-replay":
            replay = {n: r.share for n, r in index.items() if r.env_id == self.env_id and r.share > 0}
            return {n: share / sum(replay.values()) for n, share in replay.items()}
        levels = self.level.split("-")
        parts = {f"{self.task}-{level}": 1 / len(levels) for level in levels}
        return parts if all(name in index for name in parts) else {}

    def streams(self, transitions: int) -> list[units.Stream]:
        """The parts as streams which want ``transitions`` rows together."""
        streams, share, before = [], 0.0, 0
        for name, part in self.parts().items():
            share += part
            upto = round(share * transitions)
            reference, length = self._policy(name)
            streams.append(units.Stream(self.env_id, reference, f"{self.env_id}/{name}", upto - before, length))
            before = upto
        return streams

    def _policy(self, name: str) -> tuple[str, float]:
        """Reference and expected episode length of a part's policy."""
        if name == f"{self.task}-mixed":
            return "pendulum-mixed", RANDOM_LENGTH[self.task]
        record = load_index().get(name)
        if record is None or record.file is None:
            return "uniform", RANDOM_LENGTH[self.task]
        return str(FOLDER / record.file), record.length_mean

    def recorded_return(self) -> float | None:
        """Mean episode return to expect, from the policies' measured ones; None where one was not measured."""
        index = load_index()
        records: list[tuple[float, PolicyRecord | None]] = [(s, index.get(n)) for n, s in self.parts().items()]
        episodes = returns = 0.0
        for share, record in records:
            if record is None:
                return None
            episodes += share / record.length_mean
            returns += share / record.length_mean * record.return_mean
        return returns / episodes


def _specs() -> Iterator[DatasetSpec]:
    for task in ("hopper", "halfcheetah", "walker2d"):
        for level in ("random", "medium", "medium-replay", "medium-expert", "expert"):
            yield DatasetSpec(task, level, 200_000)
    yield DatasetSpec("pendulum", "mixed", 30_000)
    yield DatasetSpec("pendulum", "random", 30_000)


NAMES: dict[str, DatasetSpec] = {spec.name: spec for spec in _specs()}
_UNITS = {"": 1, "k": 1_000, "M": 1_000_000}


def find_spec(name: str) -> DatasetSpec | None:
    """The dataset of a short name, ``hopper-medium`` or ``hopper-medium@1M``; None for other names.

    Raises:
        DataError: what follows the "@" is no size.
    """
    base, at, size = name.partition("@")
    if base not in NAMES or not at:
        return NAMES.get(name)
    found = re.fullmatch(r"([1-9]\d*)([kM]?)", size)
    if not found:
        raise DataError(f"{name}: after the @ comes a number of transitions, such as {base}@500k or {base}@1M.")
    num = int(found[1]) * _UNITS[found[2]]
    unit = next(unit for unit in ("M", "k", "") if num % _UNITS[unit] == 0)
    return dataclasses.replace(NAMES[base], default_transitions=num, size=f"{num // _UNITS[unit]}{unit}")


def of_dataset_id(dataset_id: str) -> DatasetSpec | None:
    """The dataset with a size that has this Minari id; None for others."""
    found = re.fullmatch(rf"{NAMESPACE}/(\w+)/([\w-]+)-(\d+[kM]?)-v0", dataset_id)
    return find_spec(f"{found[1]}-{found[2]}@{found[3]}") if found else None


def get_spec(name: str) -> DatasetSpec:
    """The dataset of a short name.

    Raises:
        DataError: naming the near matches.
    """
    spec = find_spec(name)
    if spec is None:
        base, at, size = name.partition("@")
        near = difflib.get_close_matches(base.lower().replace("_", "-"), NAMES, n=3, cutoff=0.5)
        raise DataError(f"There is no dataset {name!r}. " + _near_or_all([one + at + size for one in near]))
    return spec


def _near_or_all(near: list[str]) -> str:
    return f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(NAMES)}."


def generate(
    name: str, transitions: int | None = None, seed: int = 0, *, progress: bool = False, workers: int | None = None
) -> Transitions:
    """Plays dataset ``name`` without storing it; arguments and errors are those of ``make``.

    Returns:
        Exactly ``transitions`` rows; only the very last episode may be cut, and then ends with a truncation.
    """
    spec = get_spec(name)
    with _work_folder(spec, seed) as folder:
        rows = _generate(spec, _size(spec, transitions), seed, folder, progress, workers)
        shutil.rmtree(folder)
    return rows


def make(
    name: str,
    *,
    transitions: int | None = None,
    seed: int = 0,
    progress: bool = True,
    workers: int | None = None,
) -> str:
    """Makes dataset ``name`` as a local Minari dataset, unless the same one is there already.

    A dataset of another size or seed under the same id is replaced once the new one is complete. Equal arguments and
    package versions give equal bytes, with any number of workers, and on all x86 processors since AVX2; others round
    and so play otherwise. What was played before an interruption is used by the next call.

    Args:
        name: one of ``NAMES``, e.g. ``hopper-medium``, or with its size, ``hopper-medium@1M``.
        transitions: rows; by default the set's ``default_transitions`` (or whatever size is there already).
        seed: of the episodes' seeds, at least 0.
        progress: show a progress bar.
        workers: processes; by default one a usable core. 0 plays in this process.

    Returns:
        The Minari dataset id; ``minari.load_dataset`` opens it.

    Raises:
        DataError: for an unknown name (with near matches), policies that are not shipped, or a bad argument.
        RuntimeError: when a worker process stops.
    """
    spec = get_spec(name)
    size = _size(spec, transitions)
    with _work_folder(spec, seed) as folder:
        recipe = _recipe(spec, seed)
        if _is_there(spec, transitions, recipe):
            shutil.rmtree(folder)
            return spec.dataset_id
        rows = _generate(spec, size, seed, folder, progress, workers)
        low, high = REFERENCE_RETURNS[spec.task]
        minari_files.write_minari(
            rows,
            spec.dataset_id,
            env_spec=spec.env_id,
            metadata={
                "ref_min_score": low,
                "ref_max_score": high,
                "num_episodes_average_score": 100,
                "algorithm_name": f"rllib_damo behaviour policies, {spec.level}",
                "description": f"{spec.env_id}, {spec.level}: {spec.description}. Sampled actions.",
                "behavior_seed": seed,
                "behavior_recipe": recipe,
                "behavior_parts": spec.parts(),
                "behavior_return_mean": spec.recorded_return(),
            },
            overwrite=True,
        )
        shutil.rmtree(folder)
    return spec.dataset_id


def _size(spec: DatasetSpec, transitions: int | None) -> int:
    size = spec.default_transitions if transitions is None else transitions
    if spec.size and size != spec.default_transitions:
        raise DataError(f"{spec.name} has {spec.default_transitions} transitions, not {size}: say the size once.")
    if size < 1:
        raise DataError(f"transitions must be at least 1, but is {size}")
    return size


def _generate(
    spec: DatasetSpec, transitions: int, seed: int, folder: pathlib.Path, progress: bool, workers: int | None
) -> Transitions:
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 0:
        raise DataError(f"workers must be at least 0, but is {workers}")
    streams = spec.streams(transitions)
    with tqdm(total=transitions, unit=" steps", unit_scale=True, desc=spec.name, disable=not progress) as bar:
        units.play_units(streams, folder, seed, workers, lambda played: bar.update(played - bar.n) and None)
    return Transitions(**units.join(streams, folder), name=spec.name)


def _recipe(spec: DatasetSpec, seed: int) -> str:
    """Changes whenever the episodes would: versions, policies, seed. Independent of the number of transitions."""
    versions = {package: importlib.metadata.version(package) for package in ("gymnasium", "mujoco", "numpy")}
    parts = []
    for name, share in spec.parts().items():
        reference, length = spec._policy(name)
        parts.append([name, share, policy_version(reference), length])
    content = json.dumps([RECIPE_VERSION, units.UNIT_TRANSITIONS, spec.env_id, seed, versions, parts], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _is_there(spec: DatasetSpec, transitions: int | None, recipe: str) -> bool:
    folder = minari_files.local_path(spec.dataset_id)
    if folder is None:
        return False
    metadata = json.loads((folder / minari_files.METADATA_FILE).read_text())
    return metadata.get("behavior_recipe") == recipe and transitions in (None, metadata["total_steps"])


@contextlib.contextmanager
def _work_folder(spec: DatasetSpec, seed: int) -> Iterator[pathlib.Path]:
    """The folder of the work units of this recipe, for one process at a time."""
    if seed < 0:
        raise DataError(f"seed must be at least 0, but is {seed}")
    root = cache_root() / "behavior"
    folder = root / f"{spec.name}-{_recipe(spec, seed)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{root} cannot be made or written ({error.strerror}). Name a writable cache in the environment variable "
            "RLLIB_DAMO_CACHE."
        ) from error
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        yield folder
