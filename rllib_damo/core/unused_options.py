"""RLlib's options that would change nothing in the package's algorithms, or not what they say: they are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.rllib.models import MODEL_DEFAULTS

from rllib_damo.utils import ray_internals

if TYPE_CHECKING:
    from rllib_damo.core.config import OfflineConfig

_UNUSED: tuple[tuple[str, Any, str], ...] = (
    # name, the value that it must keep, what to do instead
    ("normalize_actions", True, "the policy's actions lie in [-1, 1]"),
    ("min_sample_timesteps_per_iteration", 0, "set `rollout_freq`, the gradient steps of an iteration"),
    ("min_train_timesteps_per_iteration", 0, "set `rollout_freq`, the gradient steps of an iteration"),
    ("train_batch_size", 32, "set `train_batch_size_per_learner`"),
    (
        "offline_evaluation_type",
        "eval_loss",
        "offline evaluations are by fitted Q evaluation; RLlib's 'is' and 'pdis' take the density of newly drawn "
        "actions for that of the recorded ones",
    ),
    ("num_offline_eval_runners", 0, "fitted Q evaluation runs in the algorithm's process"),
    ("offline_eval_runner_class", None, "offline evaluations are by fitted Q evaluation"),
    ("num_epochs", 1, "set `rollout_freq`, the gradient steps of an iteration"),
    ("minibatch_size", None, "set `train_batch_size_per_learner`, the rows of a gradient step"),
    ("shuffle_batch_per_epoch", False, "every batch is drawn at random"),
    ("torch_compile_learner", False, "the gradient step is written out by hand already"),
    ("torch_compile_worker", False, "rollouts are batched already"),
    (
        ray_internals.LEARNER_CONNECTOR,
        None,
        "batches are drawn from the dataset and the model buffer, rows of their own",
    ),
    ("prelearner_class", None, "rows go to the learner as they are; change the dataset instead"),
    ("postprocess_inputs", False, "rows go to the learner as they are; change the dataset instead"),
    ("clip_rewards", None, "rewards are the dataset's; change the dataset instead"),
    ("observation_filter", "NoFilter", "set `normalize_observations`"),
    ("optimizer", {}, "each network has an Adam of its own: set `critic_lr`, `actor_lr` and the like"),
    (ray_internals.LR_SCHEDULERS, None, "learning rates take schedules in gradient steps"),
    (ray_internals.GRADIENT_SCALER, None, "set `precision`"),
    ("torch_skip_nan_gradients", False, "a step that is not finite ends the run with an error"),
    ("algorithm_config_overrides_per_module", {}, "there is one module: set its options themselves"),
)


def check_unused(config: OfflineConfig) -> None:
    """Raises ValueError for an option of RLlib's that is set and would change nothing."""
    for name, value, instead in _UNUSED:
        if getattr(config, name) != value:
            config.refuse(
                f"`{name}`={getattr(config, name)!r} is not for {config.algorithm_name}: leave it {value}; {instead}."
            )
    model = {name: value for name, value in config.model.items() if value != MODEL_DEFAULTS.get(name)}
    for given, found in (
        ("rl_module(model_config", ray_internals.given_model_config(config)),
        ("training(model", model),
    ):
        if found and ray_internals.given_module_spec(config) is None:
            networks = ", ".join(f"`{name}`" for name in config.network_options)
            config.refuse(
                f"`.{given}={found!r})` is not for {config.algorithm_name}'s own networks: set {networks} in "
                "`.training()`."
            )
