"""Plays the policy of a checkpoint in its environment, with RLlib's own EnvRunner and without starting Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.rllib.core import COMPONENT_ENV_RUNNER, COMPONENT_ENV_TO_MODULE_CONNECTOR
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from rllib_damo.errors import CheckpointError
from rllib_damo.evaluation.checkpoints import MODULE_STATE, checkpoint_dir, load_config, module_dir, read_pickle, verify
from rllib_damo.utils.ray_internals import env_to_module

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode


def evaluated_env(config: AlgorithmConfig) -> Any:
    """The environment that a config's evaluation plays in: that of its ``evaluation_config``, or else its own."""
    overrides: Any = config.evaluation_config or {}
    return overrides.get("env", config.env)


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
    """Plays a checkpoint's policy in its evaluation environment, in this process.

    RLlib's own EnvRunner does the playing, so its connectors (filters, unsquashing of actions) apply as in training.

    Args:
        checkpoint: an Algorithm's checkpoint folder.
        episodes: number of episodes; ignored if `steps` is given.
        steps: number of environment steps; the last episode may be cut.
        env: environment instead of the checkpoint's own.
        seed: seed of the environment.
        render: show the environment in a window.
        explore: draw actions from the policy instead of its mean.
        algorithm: class of the checkpoint's Algorithm, if it shall replace the checkpoint's.

    Returns:
        The episodes, with their actions as the policy gave them (in [-1, 1] for a Box).

    Raises:
        CheckpointError: if the checkpoint is damaged, or does not fit the environment.
    """
    folder = checkpoint_dir(checkpoint)
    verify(folder)
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
        module = module_dir(folder)
        read_pickle(module / MODULE_STATE)  # names the file if it cannot be read
        try:
            runner.module.restore_from_path(module)
        except (RuntimeError, ValueError, KeyError) as error:
            if algorithm is not None:
                raise CheckpointError(
                    f"the policy in {folder} is none of {algorithm.__name__} in {config.env}: leave out algorithm "
                    "(--algo), or name the one it was trained by."
                ) from error
            raise CheckpointError(
                f"the policy in {folder} doesn't fit the environment {config.env} (observations "
                f"{runner.module.observation_space}, actions {runner.module.action_space}). Name the one "
                "that it was trained for: env (--env)."
            ) from error
        connectors = folder / COMPONENT_ENV_RUNNER / COMPONENT_ENV_TO_MODULE_CONNECTOR
        if connectors.is_dir():
            env_to_module(runner).restore_from_path(connectors)
        if steps is not None:
            return runner.sample(num_timesteps=steps, explore=explore)
        return runner.sample(num_episodes=episodes, explore=explore)
    finally:
        runner.stop()
