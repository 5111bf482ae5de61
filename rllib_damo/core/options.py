"""The checks that precede any work: each wrong option is an error that names it, what was found, and the mend."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.rllib.models import MODEL_DEFAULTS

from rllib_damo.damo.divergences import DIVERGENCES
from rllib_damo.nn.batched_matmul import PRODUCT_DTYPES
from rllib_damo.utils.spaces import check_spaces

if TYPE_CHECKING:
    from rllib_damo.core.config import DAMOConfig as Config

_SWITCHES = (
    "data_alignment", "behavior_alignment", "target_networks", "twin_q", "critic_layer_norm", "normalize_observations",
    "classifier_spectral_norm", "overlap_rollouts", "cuda_graphs",
)  # fmt: skip


def check_options(config: Config) -> None:
    """Checks all options of DAMO, and those of RLlib's that it reads differently or not at all.

    Raises:
        ValueError: at the first that is wrong.
    """
    _check_input(config)
    _check_unread(config)
    _check_choices(config)
    _check_numbers(config)
    _check_spaces(config)


def _check_input(config: Config) -> None:
    if not config.is_offline:
        config._value_error(
            f"{config._name} trains on a dataset: set `config.offline_data(input_=...)` to a short name such as "
            f"'hopper-medium', 'minari://ID', or a path; found input_={config.input_!r}."
        )
    if not isinstance(config.actions_in_input_normalized, (bool, type(None))):
        config._value_error(
            "`actions_in_input_normalized` must be True, False, or None (in RLlib's recordings, and in nothing else); "
            f"found {config.actions_in_input_normalized!r}."
        )
    schema = config.input_read_schema
    if not isinstance(schema, Mapping) or not all(isinstance(name, str) for item in schema.items() for name in item):
        config._value_error(
            f'`input_read_schema` must be a dict of column names, {{"obs": "o_t"}} for one; found {schema!r}.'
        )
    if config.is_multi_agent:
        config._value_error(f"{config._name} is a single-agent algorithm: remove the `.multi_agent()` settings.")
    if config.lr is not None:
        config._value_error(
            f"DAMO has `actor_lr`, `critic_lr`, `alpha_lr` and `classifier_lr`: leave `lr` None; found {config.lr!r}."
        )


def _check_unread(config: Config) -> None:
    """RLlib's options that would change nothing, or not what they say."""
    for name, value, why in (
        ("normalize_actions", True, "the policy's actions lie in [-1, 1]"),
        ("min_sample_timesteps_per_iteration", 0, "set `rollout_freq`, the gradient steps of an iteration"),
        ("min_train_timesteps_per_iteration", 0, "set `rollout_freq`, the gradient steps of an iteration"),
        ("train_batch_size", 32, "set `train_batch_size_per_learner`"),
        ("offline_evaluation_interval", None, "`initial_value_mean` is in every result"),
        ("num_epochs", 1, "set `rollout_freq`, the gradient steps of an iteration"),
        ("minibatch_size", None, "set `train_batch_size_per_learner`, the rows of a gradient step"),
        ("shuffle_batch_per_epoch", False, "every batch is drawn at random"),
        ("torch_compile_learner", False, "the gradient step is a fused one of its own"),
        ("torch_compile_worker", False, "rollouts are batched already"),
        ("_learner_connector", None, "batches are drawn from the dataset and the model buffer, rows of their own"),
        ("prelearner_class", None, "rows go to the learner as they are; change the dataset instead"),
        ("postprocess_inputs", False, "rows go to the learner as they are; change the dataset instead"),
        ("clip_rewards", None, "rewards are the dataset's; change the dataset instead"),
        ("observation_filter", "NoFilter", "set `normalize_observations`"),
        ("optimizer", {}, "each network has an Adam of its own: set `critic_lr`, `actor_lr` and the like"),
        ("_torch_lr_scheduler_classes", None, "learning rates take schedules in gradient steps"),
        ("_torch_grad_scaler_class", None, "set `precision`"),
        ("torch_skip_nan_gradients", False, "a step that is not finite ends the run with an error"),
        ("algorithm_config_overrides_per_module", {}, "there is one module: set its options themselves"),
    ):
        if getattr(config, name) != value:
            config._value_error(
                f"`{name}`={getattr(config, name)!r} is not for {config._name}: leave it {value}; {why}."
            )
    model = {name: value for name, value in config.model.items() if value != MODEL_DEFAULTS.get(name)}
    for given, found in (("rl_module(model_config", config._model_config), ("training(model", model)):
        if found and config._rl_module_spec is None:
            config._value_error(
                f"`.{given}={found!r})` is not for {config._name}'s own networks: set `hidden_dims` and "
                "`critic_layer_norm` in `.training()`."
            )


def _check_choices(config: Config) -> None:
    for name, choices in (
        ("f_divergence", tuple(DIVERGENCES)),
        ("actor_f_divergence", tuple(DIVERGENCES)),
        ("policy_improvement", ("consistent", "inconsistent")),
        ("initial_states", ("dataset", "episode_start")),
        ("precision", tuple(PRODUCT_DTYPES)),
        ("dynamics_precision", tuple(PRODUCT_DTYPES)),
    ):
        value = getattr(config, name)
        if value not in choices:
            hint = " It is not >= KL, which the bound needs." if value == "half_chi_squared" else ""
            config._value_error(f"`{name}` must be one of {', '.join(choices)}; found {value!r}.{hint}")
    if config.f_divergence == "chi_squared" and config.target_networks and config.behavior_alignment:
        config._value_error(
            "`f_divergence`='chi_squared' has a linear part, which with target networks raises the values without "
            "bound. Set f_divergence='half_squared', or target_networks=False, or behavior_alignment=False (plain TD)."
        )
    if config.termination_fn is not None and not _takes_three(config.termination_fn):
        config._value_error(
            "`termination_fn` must be a function of (obs, actions, next_obs) that returns a bool tensor; found "
            f"{config.termination_fn!r}."
        )
    if config.dynamics_path is not None and not Path(config.dynamics_path).expanduser().is_file():
        config._value_error(
            f"`dynamics_path`={config.dynamics_path!r}: no such file. Leave it None to train the model from the "
            "dataset."
        )
    for name in _SWITCHES:
        value = getattr(config, name)
        if not isinstance(value, bool):
            config._value_error(f"`{name}` must be True or False; found {value!r}.")
    if config.overlap_rollouts and not config.num_env_runners:
        config._value_error(
            "`overlap_rollouts` needs runners beside the learner: set `.env_runners(num_env_runners=1)` or more, "
            f"or overlap_rollouts=False; found num_env_runners={config.num_env_runners!r}."
        )
    if config.bc_weight and config.initial_states != "dataset":
        config._value_error(
            f"`bc_weight` anchors the policy at s0, which must then be any state of the dataset: found bc_weight="
            f"{config.bc_weight!r} with initial_states={config.initial_states!r}; set bc_weight=0 or "
            "initial_states='dataset'."
        )
    plain = {"target_networks": True, "classifier_spectral_norm": False, "classifier_gradient_penalty": 0}
    others = [f"{name}={getattr(config, name)!r}" for name, value in plain.items() if getattr(config, name) != value]
    if config.precision == "bf16" and others:
        config._value_error(f"`precision`='bf16' does not go with {', '.join(others)}: set precision='fp32'.")
    if not (config.num_learners <= 1 and config.num_gpus_per_learner > 0):
        others += [f"num_learners={config.num_learners}", f"num_gpus_per_learner={config.num_gpus_per_learner}"]
    if isinstance(config.bc_weight, (list, tuple)):  # each step would be recorded anew
        others += [f"bc_weight={config.bc_weight!r}"]
    if config.cuda_graphs and others:
        config._value_error(
            "`cuda_graphs`=True is for one learner on a GPU, `.learners(num_gpus_per_learner=1)`, and does not go "
            f"with {', '.join(others)}: set cuda_graphs=False."
        )
    if config.num_learners > 1 and 0 < config.num_gpus_per_learner < 1:
        config._value_error(
            "`num_gpus_per_learner` must be 0 or a whole number for several learners, which can't share a GPU: found "
            f"num_gpus_per_learner={config.num_gpus_per_learner} with num_learners={config.num_learners}."
        )
    if config.grad_clip_by != "global_norm":
        config._value_error(
            f"`grad_clip_by` must be 'global_norm' (of each network's gradient); found {config.grad_clip_by!r}."
        )


def _check_numbers(config: Config) -> None:
    positive = ("eta", "actor_eta", "tau", "policy_tau", "initial_alpha", "max_alpha", "max_logit",
                "max_actor_weight", "dynamics_lr", "grad_clip")  # fmt: skip
    counts = ("rollout_length", "rollout_batch_size", "rollout_freq", "model_retain_epochs", "num_ensemble",
              "num_elites", "dynamics_batch_size", "max_epochs_since_update", "holdout_size",
              "train_batch_size_per_learner")  # fmt: skip
    if not is_count(config.actor_warmup_steps) and config.actor_warmup_steps != 0:
        config._value_error(f"`actor_warmup_steps` must be a whole number >= 0; found {config.actor_warmup_steps!r}.")
    not_negative = ("classifier_gradient_penalty", "classifier_noise", "logvar_loss_coef")
    for name in positive + not_negative:
        value, zero = getattr(config, name), name in not_negative
        if name in ("actor_eta", "grad_clip") and value is None:
            continue
        bounded = name not in ("max_actor_weight", "max_logit", "max_alpha")
        if not is_number(value) or not (value > 0 or (zero and value == 0)) or (bounded and math.isinf(value)):
            config._value_error(
                f"`{name}` must be a {'finite ' * bounded}number {'>= 0' if zero else '> 0'}; found {value!r}."
            )
    for name in ("actor_lr", "critic_lr", "alpha_lr", "classifier_lr", "bc_weight"):
        _check_schedule(config, name)
    for name in counts:
        value = getattr(config, name)
        if not is_count(value):
            config._value_error(f"`{name}` must be a whole number >= 1; found {value!r}.")
    for name in ("dynamics_max_epochs", "max_dataset_rows"):
        value = getattr(config, name)
        if value is not None and not is_count(value):
            config._value_error(f"`{name}` must be None or a whole number >= 1; found {value!r}.")
    if config.rollout_batch_size < config.num_env_runners:
        config._value_error(
            f"`rollout_batch_size` must give each of num_env_runners={config.num_env_runners} runners a start; found "
            f"{config.rollout_batch_size!r}."
        )
    if config.max_dataset_rows is not None and config.max_dataset_rows < config.train_batch_size_per_learner:
        config._value_error(
            f"`max_dataset_rows` must hold a batch, `train_batch_size_per_learner`="
            f"{config.train_batch_size_per_learner}, and better many; found {config.max_dataset_rows!r}."
        )
    for name in ("hidden_dims", "dynamics_hidden_dims"):
        dims = getattr(config, name)
        if not isinstance(dims, (list, tuple)) or not dims or not all(map(is_count, dims)):
            config._value_error(f"`{name}` must be a tuple of layer widths, such as (256, 256); found {dims!r}.")
    for name in ("tau", "policy_tau"):
        if getattr(config, name) > 1:
            config._value_error(f"`{name}` must lie in (0, 1]; found {getattr(config, name)!r}.")
    if not (is_number(config.gamma) and 0 <= config.gamma < 1):
        config._value_error(f"`gamma` must lie in [0, 1): the discounted occupancy needs it; found {config.gamma!r}.")
    if not (is_number(config.data_fraction) and 0 < config.data_fraction <= 1):
        config._value_error(f"`data_fraction` must lie in (0, 1]; found {config.data_fraction!r}.")
    if config.uses_model and not (is_number(config.real_ratio) and 0 <= config.real_ratio < 1):
        config._value_error(f"`real_ratio` must lie in [0, 1); found {config.real_ratio!r}.")
    if not (is_number(config.label_smoothing) and 0 <= config.label_smoothing < 0.5):
        config._value_error(f"`label_smoothing` must lie in [0, 0.5); found {config.label_smoothing!r}.")
    if config.initial_alpha > config.max_alpha:
        config._value_error(
            f"`initial_alpha` ({config.initial_alpha}) must not exceed `max_alpha` ({config.max_alpha})."
        )
    if config.num_elites > config.num_ensemble:
        config._value_error(
            f"`num_elites` ({config.num_elites}) must not exceed `num_ensemble` ({config.num_ensemble})."
        )
    decay = config.dynamics_weight_decay
    if not isinstance(decay, (list, tuple)) or not all(is_number(d) and 0 <= d < math.inf for d in decay):
        config._value_error(f"`dynamics_weight_decay` must be a tuple of numbers >= 0; found {decay!r}.")
    if len(decay) != len(config.dynamics_hidden_dims) + 1:
        config._value_error(
            f"`dynamics_weight_decay` needs one value for each of the {len(config.dynamics_hidden_dims) + 1} layers "
            f"(hidden and output); found {len(decay)}."
        )
    entropy = config.target_entropy
    if entropy != "auto" and not (is_number(entropy) and math.isfinite(float(entropy))):
        config._value_error(f"`target_entropy` must be 'auto' or a finite number; found {config.target_entropy!r}.")


def _check_schedule(config: Config, name: str) -> None:
    """A finite number > 0, or a schedule of RLlib's form, which begins with one; the anchor's weight may be 0."""
    value = getattr(config, name)
    if not isinstance(value, (list, tuple)):
        zero = name == "bc_weight"
        if not (is_number(value) and (0 < value < math.inf or (zero and value == 0))):
            config._value_error(
                f"`{name}` must be a finite number {'>=' if zero else '>'} 0, or a schedule such as "
                f"[[0, 3e-4], [100_000, 0.0]]; found {value!r}."
            )
        return
    pairs = all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(is_number, pair)) for pair in value)
    steps = [pair[0] for pair in value] if pairs else []
    if len(steps) < 2 or steps[0] != 0 or steps != sorted(set(steps)) or not all(map(math.isfinite, steps)):
        config._value_error(
            f"`{name}`: a schedule is a list of at least two [gradient step, value], the steps rising from 0, such "
            f"as [[0, 3e-4], [100_000, 0.0]]; found {value!r}."
        )
    if value[0][1] <= 0 or not all(0 <= rate < math.inf for _, rate in value):
        config._value_error(f"`{name}`: a schedule's values must be finite and >= 0, the first > 0; found {value!r}.")


def _check_spaces(config: Config) -> None:
    if config.observation_space is None or config.action_space is None:
        config._value_error(
            f"{config._name} needs the spaces: set `config.environment('Hopper-v5')`, or, without a simulator, "
            "`config.environment(observation_space=..., action_space=...)`."
        )
    try:
        check_spaces(config.observation_space, config.action_space)
    except ValueError as error:
        config._value_error(str(error))
    if config.env is None and config.evaluation_interval and config.custom_evaluation_function is None:
        config._value_error(
            "Evaluation needs an environment: set `config.environment(env=...)`, give a "
            "`custom_evaluation_function`, or switch it off by `config.evaluation(evaluation_interval=None)`."
        )


def _takes_three(function: Any) -> bool:
    """Whether it can be called with three positional arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # a built-in that tells no signature
        return True
    return True


def is_number(value: Any) -> bool:
    """A real number, NumPy's included; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1
