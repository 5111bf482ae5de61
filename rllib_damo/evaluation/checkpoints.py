"""What RLlib's checkpoint folders hold: the algorithm's config, its module, and how to play the policy again."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray.rllib.core import (
    COMPONENT_ENV_RUNNER,
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_LEARNER,
    COMPONENT_LEARNER_GROUP,
    COMPONENT_RL_MODULE,
)
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from rllib_damo.errors import CheckpointError
from rllib_damo.utils.ray_internals import env_to_module

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

CONSTRUCTOR = "class_and_ctor_args.pkl"


def checkpoint_dir(path: str | Path) -> Path:
    """The absolute path of an Algorithm's checkpoint folder.

    Raises:
        CheckpointError: if there is none at `path`; where checkpoints lie further down, the message lists them.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.exists():
        raise CheckpointError(f"no checkpoint at {folder}: there is no such folder.")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a checkpoint is a folder, such as .../checkpoint_000009.")
    if (folder / COMPONENT_LEARNER_GROUP).is_dir() and (folder / CONSTRUCTOR).is_file():
        return folder
    inner = sorted(found for depth in ("*", "*/*") for found in folder.glob(f"{depth}/{COMPONENT_LEARNER_GROUP}"))
    raise no_checkpoint(folder, [str(found.parent) for found in inner])


def no_checkpoint(place: str | Path, inner: Sequence[str]) -> CheckpointError:
    """The error for a folder or address that is no checkpoint, but may hold some."""
    if inner:
        shown = "\n  ".join(inner[-10:])
        return CheckpointError(f"{place} is no checkpoint itself, but holds some; pass one of them:\n  {shown}")
    return CheckpointError(
        f"{place} holds no RLlib checkpoint (no {COMPONENT_LEARNER_GROUP}/ and {CONSTRUCTOR}). Pass a folder written "
        "by `rllib train` or `algo.save_to_path()`."
    )


def module_dir(checkpoint: str | Path, module_id: str = "default_policy") -> Path:
    """The folder of one RLModule inside an Algorithm's checkpoint; a module's own checkpoint folder is taken as it is.

    Raises:
        CheckpointError: no checkpoint, or no module of that name in it.
    """
    given = Path(checkpoint).expanduser().absolute()
    if (given / "module_state.pkl").is_file() and (given / CONSTRUCTOR).is_file():
        return given
    modules = checkpoint_dir(given) / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER / COMPONENT_RL_MODULE
    if not (modules / module_id).is_dir():
        found = sorted(entry.name for entry in modules.glob("*/")) if modules.is_dir() else []
        raise CheckpointError(f"{modules} has no module {module_id!r}; it has {found or 'none'}.")
    return modules / module_id


def load_config(checkpoint: str | Path, algorithm: type[Algorithm] | None = None) -> AlgorithmConfig:
    """The AlgorithmConfig that the checkpoint's algorithm was built from.

    The file is a pickle: load only checkpoints that you trust.

    Args:
        checkpoint: an Algorithm's checkpoint folder.
        algorithm: the Algorithm's class, if it isn't to be taken from the checkpoint.
    """
    file = checkpoint_dir(checkpoint) / CONSTRUCTOR
    try:
        with file.open("rb") as stream:
            stored = pickle.load(stream)
        args, kwargs = stored["ctor_args_and_kwargs"]
        config = args[0] if args else kwargs["config"]
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, ImportError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read ({type(error).__name__}: {error}).") from error
    if isinstance(config, dict):
        config = (algorithm or stored["class"]).get_default_config().update_from_dict(config)
    return config


def play(
    checkpoint: str | Path,
    *,
    episodes: int = 10,
    steps: int | None = None,
    env: str | None = None,
    seed: int | None = None,
    render: bool = False,
    explore: bool = False,
    algorithm: type[Algorithm] | None = None,
) -> list[SingleAgentEpisode]:
    """Plays a checkpoint's policy in its evaluation environment, in this process and without starting Ray.

    RLlib's own EnvRunner does the playing, so its connectors (filters, unsquashing of actions) apply as in training.

    Args:
        checkpoint: an Algorithm's checkpoint folder.
        episodes: number of episodes; ignored if `steps` is given.
        steps: number of environment steps; the last episode may be cut.
        env: environment instead of the checkpoint's own.
        seed: seed of the environment.
        render: show the environment in a window.
        explore: draw actions from the policy instead of its mean.
        algorithm: class of the checkpoint's Algorithm, if it isn't to be taken from the checkpoint.

    Returns:
        The episodes, with their actions as the policy gave them (unit actions, for DAMO).
    """
    folder = checkpoint_dir(checkpoint)
    config = load_config(folder, algorithm)
    if config.is_multi_agent:
        raise CheckpointError(f"{folder} is of a multi-agent algorithm, which can't be played here.")
    config = (config.get_evaluation_config_object() or config).copy(copy_frozen=False)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=1, num_gpus_per_env_runner=0, explore=explore)
    config.environment(
        env=env or config.env,
        env_config={**config.env_config, **({"render_mode": "human"} if render else {})},
    )
    if seed is not None:
        config.debugging(seed=seed)
    runner = SingleAgentEnvRunner(config=config)
    try:
        assert runner.module is not None
        try:
            runner.module.restore_from_path(module_dir(folder))
        except RuntimeError as error:
            raise CheckpointError(
                f"the policy in {folder} doesn't fit the environment {config.env} (observations "
                f"{runner.module.observation_space}, actions {runner.module.action_space}). Name the one that it was "
                "trained for."
            ) from error
        connectors = folder / COMPONENT_ENV_RUNNER / COMPONENT_ENV_TO_MODULE_CONNECTOR
        if connectors.is_dir():
            env_to_module(runner).restore_from_path(connectors)
        if steps is not None:
            return runner.sample(num_timesteps=steps, explore=explore)
        return runner.sample(num_episodes=episodes, explore=explore)
    finally:
        runner.stop()
