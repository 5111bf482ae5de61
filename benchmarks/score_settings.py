"""Which settings each method gets on each task; `scores.py` runs them."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.cql import CQLConfig
from ray.rllib.algorithms.iql import IQLConfig
from ray.rllib.algorithms.marwil import MARWILConfig

from rllib_damo import ALGORITHMS
from rllib_damo.command.inputs import apply_config, parse_json
from rllib_damo.core.config import OfflineConfig
from rllib_damo.data.generate.datasets import ENVS
from rllib_damo.data.rllib_input import with_package_readers
from rllib_damo.errors import UsageError
from rllib_damo.utils.names import near

_OWN: dict[str, Callable[[], AlgorithmConfig]] = {
    "bc": ALGORITHMS["BehaviorCloning"].get_default_config,
    "iql": ALGORITHMS["OfflineIQL"].get_default_config,
} | {
    name.lower(): ALGORITHMS[name].get_default_config
    for name in ("DAMO", "MOPO", "MOBILE", "COMBO", "RAMBO", "TD3BC", "ReBRAC", "ODICE", "AlgaeDICE", "OptiDICE")
}  # fmt: skip
_PAPER, _LONG = "-paper", "-long"
_PRESETS = {_PAPER: "paper", _LONG: "long_rollouts"}
#: What the settings of a method start from. "iql-paper" has the published ones, with schedules over the run's length;
#: networks, rounds and model are as in "iql", and RAMBO clones for as many steps as on a million rows. "damo-long" has
#: `long_rollouts`, with short ones where the model is too weak for them.
METHODS: dict[str, Callable[..., AlgorithmConfig]] = _OWN | {
    f"{name}{suffix}": make
    for suffix, preset in _PRESETS.items()
    for name, default in _OWN.items()
    if (make := getattr(default(), preset, None))
} | {
    # RLlib's own, with RLlib's networks and settings
    "rllib-bc": BCConfig, "rllib-marwil": MARWILConfig, "rllib-cql": CQLConfig, "rllib-iql": IQLConfig,
}  # fmt: skip

# All methods alike: small networks, for a small budget.
_MUJOCO: dict[str, Any] = {"hidden_dims": (128, 128)}
_MUJOCO_MODEL: dict[str, Any] = {**_MUJOCO, "rollout_batch_size": 20_000}
# Near the paper's DAMO. It needs a model of many epochs, and did not learn Walker2d in one.
NO_ANCHOR: dict[str, Any] = {
    "bc_weight": 0.0, "data_fraction": 1.0, "tau": 0.005, "initial_alpha": 0.1, "max_alpha": 1.0,
}  # fmt: skip
# An anchor that ends, for data of several policies where no episode ends by a fall. The model as before.
_ENDING_ANCHOR: dict[str, Any] = {
    "bc_weight": [[0, 2.0], [10_000, 2.0], [30_000, 0.0]], "tau": 0.005, "initial_alpha": 0.1, "max_alpha": 0.1,
}  # fmt: skip
# What "-long" has where the model is too weak for long rollouts, and for its own epochs. There are as many transitions
# a round.
_SHORT: dict[str, Any] = {
    "dynamics_max_epochs": 40, "rollout_length": 5, "rollout_batch_size": 20_000, "rollout_margin": None,
    "episode_start_ratio": 0.0, "policy_check_freq": 0, "tau": 0.005,
}  # fmt: skip
_PENDULUM: dict[str, Any] = {"hidden_dims": (64, 64), "rollout_freq": 500}
_PENDULUM_MODEL: dict[str, Any] = {
    **_PENDULUM, "critic_lr": 1e-3, "rollout_length": 3, "rollout_batch_size": 5_000,
    "dynamics_hidden_dims": (64, 64), "dynamics_weight_decay": (2.5e-5, 5e-5, 1e-4), "dynamics_max_epochs": 10,
}  # fmt: skip


#: What public code was tuned to on D4RL's tasks (sources: each algorithm's `paper`; COMBO's random tasks are a guess);
#: "hopper" stands for hopper-medium. MOPO, MOBILE, COMBO and RAMBO as in `_WEIGHTS`, [rollout length, weight], and
#: ReBRAC [β₁, β₂].
_PUBLISHED: dict[str, tuple[tuple[float, float], ...]] = {
    "halfcheetah": ((5, 0.5), (5, 0.5), (5, 0.5), (5, 3e-4), (0.001, 0.01)),
    "halfcheetah-random": ((5, 0.5), (5, 0.5), (5, 0.5), (5, 0), (0.001, 0.1)),
    "halfcheetah-medium-replay": ((5, 0.5), (5, 0.1), (5, 0.5), (5, 3e-4), (0.01, 0.001)),
    "halfcheetah-medium-expert": ((5, 2.5), (5, 2.0), (5, 5.0), (5, 3e-4), (0.01, 0.1)),
    "hopper": ((5, 5.0), (5, 1.5), (5, 5.0), (5, 3e-4), (0.01, 0.01)),
    "hopper-random": ((5, 5.0), (5, 5.0), (5, 0.5), (2, 3e-4), (0.001, 0.01)),
    "hopper-medium-replay": ((5, 2.5), (5, 0.1), (5, 0.5), (2, 3e-4), (0.05, 0.5)),
    "hopper-medium-expert": ((5, 5.0), (5, 1.5), (5, 5.0), (5, 3e-4), (0.1, 0.01)),
    "walker2d": ((5, 0.5), (5, 0.5), (1, 5.0), (5, 0), (0.05, 0.1)),
    "walker2d-random": ((5, 0.5), (5, 2.0), (5, 0.5), (5, 0), (0.01, 0.0)),
    "walker2d-medium-replay": ((1, 2.5), (1, 0.5), (1, 0.5), (5, 0), (0.05, 0.01)),
    "walker2d-medium-expert": ((1, 2.5), (1, 1.5), (1, 5.0), (2, 3e-4), (0.01, 0.01)),
}
#: Method -> its option that is tuned for each task beside the rollout length.
_WEIGHTS = {
    "mopo": "penalty_coef", "mobile": "penalty_coef", "combo": "conservative_weight", "rambo": "adversarial_weight",
}  # fmt: skip


def _mujoco(task: str, eta: float, rollout_length: int, /, epochs: int = 8, **damo: Any) -> dict[str, dict[str, Any]]:
    """DAMO's defaults with some options of its own, and the paper's DAMO with its η and rollout length (Table 4).

    The others have what public implementations were tuned to on D4RL's task of the name, or their defaults.
    """
    model = {**_MUJOCO_MODEL, "dynamics_max_epochs": epochs}
    paper = {"eta": eta, "rollout_length": rollout_length, "dynamics_lr": 2e-3}
    *pairs, rebrac = _PUBLISHED[task.removesuffix("-medium")]
    published = dict(zip(_WEIGHTS.items(), pairs, strict=True))
    long = {**_MUJOCO, **(_SHORT if task.startswith("halfcheetah") else {})}
    return {
        "damo": {**model, **damo},
        "damo-paper": {**model, **paper},
        "damo-long": long,
        **{name: {**model, "rollout_length": n, weight: w} for (name, weight), (n, w) in published.items()},
        **{f"{name}{_LONG}": {**long, weight: w} for (name, weight), (_, w) in published.items()},
        "rebrac": {**_MUJOCO, "actor_bc_coef": rebrac[0], "critic_bc_coef": rebrac[1]},
    } | dict.fromkeys(("td3bc", "bc", "iql", "odice", "algaedice", "optidice"), _MUJOCO)


#: Task -> method -> options over the method's defaults. A task of another level has its environment's ("hopper").
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    # Its episodes end by a fall after 272 to 1000 steps: the more selected, the better a clone.
    "hopper": _mujoco("hopper", 2.0, 5, data_fraction=0.2),
    "hopper-random": _mujoco("hopper-random", 2.0, 5),
    "hopper-medium-replay": _mujoco("hopper-medium-replay", 3.0, 5),
    "hopper-medium-expert": _mujoco("hopper-medium-expert", 3.0, 5),
    "halfcheetah": _mujoco("halfcheetah", 0.5, 5),
    "halfcheetah-medium": _mujoco("halfcheetah-medium", 0.5, 5, epochs=40, eta=0.5, **NO_ANCHOR),
    "halfcheetah-random": _mujoco("halfcheetah-random", 0.1, 5),
    "halfcheetah-medium-replay": _mujoco("halfcheetah-medium-replay", 0.1, 5),
    "halfcheetah-medium-expert": _mujoco("halfcheetah-medium-expert", 2.5, 5, epochs=40, **_ENDING_ANCHOR),
    # Nearly all of its episodes are alike; those that end by a fall show how one comes about.
    "walker2d": _mujoco("walker2d", 2.0, 1, data_fraction=1.0),
    "walker2d-random": _mujoco("walker2d-random", 2.0, 5),
    "walker2d-medium-replay": _mujoco("walker2d-medium-replay", 1.5, 5),
    "walker2d-medium-expert": _mujoco("walker2d-medium-expert", 1.5, 3),
    "pendulum": {
        "damo": {
            **_PENDULUM_MODEL,
            "eta": 0.1,
            "bc_weight": 0.0,
            "data_fraction": 1.0,
            "initial_alpha": 0.1,
            "max_alpha": 1.0,
            "policy_tau": 0.01,
        },
        "mopo": {**_PENDULUM_MODEL, "penalty_coef": 0.5, "real_ratio": 0.5, "initial_alpha": 0.1, "actor_lr": 3e-4},
    }
    | dict.fromkeys(("mobile", "combo", "rambo"), _PENDULUM_MODEL)
    | {f"{name}{_LONG}": {**_SHORT, **_PENDULUM_MODEL} for name in ("damo", "mobile", "combo", "rambo")}
    | {f"mopo{_LONG}": {**_SHORT, **_PENDULUM_MODEL, "penalty_coef": 0.5}}
    | dict.fromkeys(("td3bc", "rebrac", "bc", "iql", "odice", "algaedice", "optidice"), _PENDULUM),
}
# The published α is fixed there, and on no other task (`MOBILEConfig.paper`).
SETTINGS["hopper"]["mobile-paper"] = {
    **SETTINGS["hopper"]["mobile"], "initial_alpha": 0.2, "max_alpha": 0.2, "target_entropy": 100,
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--options``, a JSON object of options over a method's."""

    def parse(text: str) -> dict[str, Any]:
        try:
            return parse_json("--options", text) or {}
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    parser.add_argument("--options", type=parse, default={}, help="over the settings, JSON")


def environment(task: str) -> str:
    """The Gymnasium id of a task, whose name starts with its environment's: "hopper-medium@1M", "hopper-mine".

    Raises:
        UsageError: no such environment.
    """
    name = task.split("-")[0]
    if name not in ENVS:
        raise UsageError(f"--tasks: {task!r} starts with no known environment.{near(name, ENVS)} Known: {[*ENVS]}.")
    return ENVS[name]


def settings(task: str, method: str) -> dict[str, Any]:
    """The options of a method on a task of any size: those of the task, else of its environment, else none."""
    task = task.partition("@")[0]
    table = SETTINGS.get(task) or SETTINGS.get(task.split("-")[0]) or {}
    return table.get(method) or table.get(method.removesuffix(_PAPER), {})


def steps_per_iteration(config: AlgorithmConfig) -> int:
    """Gradient steps of one `train()`."""
    return config.rollout_freq if isinstance(config, OfflineConfig) else config.dataset_num_iters_per_learner


def start(method: str, steps: int) -> AlgorithmConfig:
    """What the settings of a method start from, for a run of so many gradient steps."""
    make = METHODS[method]
    return make(num_steps=steps) if "num_steps" in inspect.signature(make).parameters else make()


def make_config(
    task: str, method: str, seed: int, input_: str, overrides: Mapping[str, Any], episodes: int, steps: int = 100_000
) -> AlgorithmConfig:
    """The config of one trial: one thread, and evaluations that wait to be asked for.

    Args:
        task: "hopper-medium", say.
        method: a key of ``METHODS``.
        seed: of everything, dynamics model included.
        input_: the dataset.
        overrides: options over those of `settings`.
        episodes: of an evaluation.
        steps: of the run, over which published schedules fall.

    Raises:
        UsageError, ValueError: unknown names or wrong values, the option named.
    """
    if method not in METHODS:
        raise UsageError(f"--methods: unknown {method!r}.{near(method, METHODS)} Known: {', '.join(METHODS)}.")
    config = start(method, steps).environment(environment(task)).offline_data(input_=input_).debugging(seed=seed)
    config.resources(num_cpus_for_main_process=1)
    if isinstance(config, OfflineConfig):
        config.evaluation(evaluation_interval=1_000_000_000, evaluation_duration=episodes)
    else:
        config = with_package_readers(config.training(train_batch_size_per_learner=256))
    made = apply_config(config, {**settings(task, method), **overrides}, "settings")
    made.copy(copy_frozen=False).validate()
    return made
