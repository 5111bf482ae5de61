"""The options that algorithms share, in groups: each algorithm's `.training` takes those groups that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypedDict

from rllib_damo.core.options import (
    Check,
    Option,
    columns,
    count,
    count_or_zero,
    decays,
    entropy,
    existing_file,
    flag,
    learning_rate,
    names,
    not_negative,
    one_of,
    optional,
    path,
    positive,
    positive_or_inf,
    rate,
    share,
    share_or_all,
    share_or_count,
    termination_rule,
    widths,
)
from rllib_damo.data.in_memory import InMemory
from rllib_damo.data.schema import Transitions
from rllib_damo.dynamics.termination import TerminationFn
from rllib_damo.nn.batched_matmul import PRODUCT_DTYPES

#: A number, or a schedule in gradient steps: ``[[0, 3e-4], [100_000, 0.0]]`` falls linearly to 0.
Schedule: TypeAlias = float | Sequence[Sequence[float]]
precisions = one_of(*PRODUCT_DTYPES)


def _is_dataset(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(_is_dataset, value))
    if isinstance(value, InMemory):
        return value.transitions is not None
    return isinstance(value, (Path, Transitions)) or (isinstance(value, str) and value not in ("", "sampler"))


def _how_to_give_it(value: Any) -> str:
    if isinstance(value, InMemory):
        return " A checkpoint does not hold them: give them to `from_checkpoint(path, input_=transitions)`."
    return " Set it in `.offline_data(input_=...)`."


dataset = Check(
    "a dataset: a short name such as 'hopper-medium', 'minari://ID', a path, an address, a list of these, or "
    "Transitions",
    _is_dataset,
    _how_to_give_it,
)


class OfflineTraining(TypedDict, total=False):
    """What every algorithm's ``.training`` takes."""

    gamma: Annotated[float, Option(0.99, share, "Discount factor γ.")]
    rollout_freq: Annotated[
        int, Option(1000, count, "Gradient steps of an iteration, and between two rounds of rollouts.")
    ]
    train_batch_size_per_learner: Annotated[int, Option(256, count, "Rows of a gradient step, for each learner.")]
    data_fraction: Annotated[
        float,
        Option(
            1.0,
            rate,
            "Share of the dataset that the policy, the critics and the classifier learn from, and that rollouts start "
            "from: the episodes of highest return. The dynamics model learns from all of it.",
        ),
    ]
    hidden_dims: Annotated[tuple[int, ...], Option((256, 256), widths, "Widths of the networks' hidden layers.")]
    normalize_observations: Annotated[
        bool, Option(True, flag, "Standardise the networks' observations by the dataset's statistics.")
    ]
    actor_lr: Annotated[
        Schedule,
        Option(
            3e-4,
            learning_rate,
            "Adam's learning rate for the actor, or a schedule in gradient steps: [[0, 3e-4], [100_000, 0.0]] falls "
            "linearly to 0, set anew at the end of each iteration.",
        ),
    ]
    policy_tau: Annotated[
        float,
        Option(
            0.001,
            rate,
            "Smallest weight of the newest policy in the moving average that evaluation, inference and value estimates "
            "use; 1 is the policy itself. The weight begins at 1 and falls as 5 / (steps + 5), so that the mean "
            "age of what is averaged is a sixth of the steps so far, and at most 1 / policy_tau steps.",
        ),
    ]
    grad_clip: Annotated[
        float | None, Option(None, optional(positive), "Largest norm of each network's gradient; None does not clip.")
    ]


class CriticTraining(TypedDict, total=False):
    """Options of algorithms with critics Q(s,a)."""

    twin_q: Annotated[bool, Option(True, flag, "Two critics, of which the smaller one counts; False: one.")]
    critic_layer_norm: Annotated[
        bool,
        Option(
            False,
            flag,
            "Layer normalisation in the critics. It keeps values from running away where actions leave the data.",
        ),
    ]
    critic_lr: Annotated[Schedule, Option(3e-4, learning_rate, "Adam's learning rate for the critics, or a schedule.")]
    tau: Annotated[float, Option(0.005, rate, "Weight of the critics in the moving average of their targets.")]


class PrecisionTraining(TypedDict, total=False):
    """The option of algorithms whose gradient steps go through `FastMLP`."""

    precision: Annotated[
        str,
        Option(
            "fp32",
            precisions,
            '"bf16": products between hidden layers of the policy phase\'s networks in bfloat16, and all else '
            "(parameters, first and last layers, losses, Adam, targets) in float32; faster on CPUs with bfloat16 "
            "instructions.",
        ),
    ]


class EntropyTraining(TypedDict, total=False):
    """Options of the automatic entropy coefficient α (Haarnoja et al. 2018, arXiv 1812.05905, section 5)."""

    alpha_lr: Annotated[Schedule, Option(3e-4, learning_rate, "Adam's learning rate for α, or a schedule.")]
    target_entropy: Annotated[float | str, Option("auto", entropy, 'In nats; "auto" is -dim(A).')]
    initial_alpha: Annotated[float, Option(1.0, positive, "First value of α.")]
    max_alpha: Annotated[float, Option(float("inf"), positive_or_inf, "Upper bound of α.")]


class RolloutTraining(TypedDict, total=False):
    """Options of model rollouts."""

    rollout_length: Annotated[int, Option(5, count, "Steps h of each model rollout.")]
    rollout_batch_size: Annotated[int, Option(50_000, count, "Start states of each round of rollouts.")]
    model_retain_epochs: Annotated[
        int,
        Option(
            5, count, "The model buffer holds the rows of this many full rounds; of rounds that end early, more rounds."
        ),
    ]
    rollout_margin: Annotated[
        float | None,
        Option(
            None,
            optional(not_negative),
            "A rollout ends where the model leaves the range of the dataset's states by more than this share of it, as "
            "if the lowest reward of the dataset, or 0 if that is above it, followed for ever. For long rollouts: 0.1, "
            "say. None: no bound.",
        ),
    ]
    episode_start_ratio: Annotated[
        float,
        Option(
            0.0,
            share,
            "Share of the rollouts that start where an episode of the dataset starts, as the policy's own do; the "
            "others start in any of its states. For long rollouts: 0.5, say.",
        ),
    ]
    real_ratio: Annotated[float, Option(0.05, share, "Share of dataset rows in the batches of critics and actor.")]
    overlap_rollouts: Annotated[
        bool,
        Option(
            False,
            flag,
            "Runners roll out the next iteration's round during this one's gradient steps, with the policy at their "
            "start. Needs num_env_runners >= 1.",
        ),
    ]


class ModelBasedTraining(OfflineTraining, RolloutTraining, total=False):
    """What every model-based algorithm's ``.training`` takes."""

    policy_check_freq: Annotated[
        int,
        Option(
            0,
            count_or_zero,
            "Gradient steps between two checks of the policy in the model, each at the end of an iteration, in which "
            "its moving average plays whole episodes. Evaluation, inference and checkpoints use the newest one that "
            "did not return clearly less there than the best so far, by the member of the ensemble that gives least. "
            "0: no checks, and the moving average itself.",
        ),
    ]


class DynamicsOptions(TypedDict, total=False):
    """What ``.dynamics`` of model-based algorithms takes (paper C.3, Table 3)."""

    num_ensemble: Annotated[int, Option(7, count, "Networks in the ensemble.")]
    num_elites: Annotated[
        int, Option(5, count, "How many of them, the best ones on the hold-out rows, generate rollouts.")
    ]
    dynamics_hidden_dims: Annotated[
        tuple[int, ...], Option((200, 200, 200, 200), widths, "Widths of their hidden layers.")
    ]
    dynamics_lr: Annotated[float, Option(2e-3, positive, "Adam's learning rate.")]
    dynamics_weight_decay: Annotated[
        tuple[float, ...],
        Option((2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4), decays, "One value for each layer, hidden ones and output."),
    ]
    dynamics_batch_size: Annotated[int, Option(256, count, "Rows of a minibatch, drawn for each network by itself.")]
    dynamics_max_epochs: Annotated[
        int | None, Option(None, optional(count), "Largest number of epochs; None: until no network improves.")
    ]
    max_epochs_since_update: Annotated[
        int, Option(5, count, "Training ends when no network improved by 1 % for this many epochs.")
    ]
    holdout_size: Annotated[int, Option(1000, count, "Rows that are kept out of training to measure the error.")]
    logvar_loss_coef: Annotated[
        float,
        Option(
            0.01,
            not_negative,
            "Weight of the loss that tightens the bounds of the log-variance.",
        ),
    ]
    dynamics_precision: Annotated[
        str,
        Option(
            "fp32",
            precisions,
            '"bf16": in training, products between hidden layers in bfloat16, all else in float32; faster on CPUs '
            "with bfloat16 instructions. The trained model is float32.",
        ),
    ]
    dynamics_refit_interval: Annotated[
        int | None,
        Option(
            5_000,
            optional(count),
            "Steps in the real environment after which the model is trained further, on the dataset and the online "
            "rows together; None: never.",
        ),
    ]
    dynamics_path: Annotated[
        str | Path | None, Option(None, optional(existing_file), "A trained model's file, which is used as it is.")
    ]
    dynamics_cache_dir: Annotated[
        str | Path | None,
        Option(
            None,
            optional(path),
            "Where trained models are kept, for all runs on the same data, settings and seed (runs without a seed: "
            "seed 0). None: the folder in the environment variable RLLIB_DAMO_CACHE, or ~/.cache/rllib_damo.",
        ),
    ]
    termination_fn: Annotated[
        TerminationFn | None,
        Option(
            None,
            optional(termination_rule),
            "(obs, env actions, next_obs) -> bool (B,), all torch tensors. None: known for MuJoCo's environments by "
            "their exact id, learned from the dataset's terminals for all others.",
        ),
    ]


class OnlineOptions(TypedDict, total=False):
    """What ``.online`` takes: steps in the real environment ``env``, and their rows."""

    online_steps_per_iteration: Annotated[
        int,
        Option(
            0,
            count_or_zero,
            "Steps in the real environment before the gradient steps of each iteration, by the policy's exploring "
            "actions, in `num_envs_per_env_runner` copies of it. 0 takes none, and goes on with the rows that there "
            "are.",
        ),
    ]
    online_after_steps: Annotated[
        int,
        Option(
            0, count_or_zero, "Gradient steps on the dataset alone, before the first real step; a checkpoint's count."
        ),
    ]
    online_first_steps: Annotated[
        int,
        Option(
            0,
            count_or_zero,
            "Real steps of the first such iteration, if more: rows of the policy as it was trained offline, before the "
            "first gradient step that reads online rows.",
        ),
    ]
    online_ratio: Annotated[
        float,
        Option(
            0.5,
            share_or_all,
            "Share of online rows among the rows of a batch that are not the model's, and among the states that "
            "rollouts start from.",
        ),
    ]
    online_buffer_size: Annotated[int, Option(100_000, count, "The newest online rows that are kept.")]
    online_noise: Annotated[
        float | None,
        Option(
            None,
            optional(not_negative),
            "Standard deviation of normal noise on the actions of real steps, in units of [-1, 1]. None: 0.1 for "
            "policies that draw no actions (TD3+BC, ReBRAC, cloning), and 0 for all others.",
        ),
    ]


class DataOptions(TypedDict, total=False):
    """What ``.offline_data`` takes, beside RLlib's other options of that method."""

    input_: Annotated[
        Any,
        Option(
            None,
            dataset,
            'The dataset: a short name ("hopper-medium"), minari://ID, a file or folder, an address, a list of these, '
            "or `Transitions`. Relative paths are made absolute.",
        ),
    ]
    start_from: Annotated[
        str | None,
        Option(
            None,
            optional(path),
            "A checkpoint, by folder or address, to go on from with this dataset: networks and optimisers are taken "
            "over, the dynamics model is trained further from its weights, rollouts start anew.",
        ),
    ]
    max_dataset_rows: Annotated[
        int | None,
        Option(
            None,
            optional(count),
            "Largest number of rows in memory; a larger dataset is read in windows, one after the other. The dynamics "
            "model and the networks' input statistics are those of the first window.",
        ),
    ]
    input_read_schema: Annotated[
        Any, Option({}, columns, 'Names of columns: {"obs": "o_t"}, or a list of columns that make a vector.')
    ]
    observation_keys: Annotated[
        list[str] | None,
        Option(
            None,
            optional(names),
            "Keys of Dict observations, in datasets of Minari or robomimic, that make the observation, flattened and "
            "joined. Give an environment that does the same, by gymnasium.wrappers: "
            "FlattenObservation(FilterObservation(env, keys)).",
        ),
    ]
    skip_bad_episodes: Annotated[
        bool, Option(False, flag, "Leave out episodes of Minari's datasets that can't be used; they are counted.")
    ]
    actions_in_input_normalized: Annotated[
        bool | None,
        Option(
            None,
            optional(flag),
            "Whether the dataset's actions lie in [-1, 1]. None: in RLlib's recordings, and in nothing else.",
        ),
    ]
    holdout_episodes: Annotated[
        float,
        Option(
            0.0,
            share_or_count,
            "Episodes that no part of training sees, for the choice of a policy: a share, or a number. A hash of their "
            "content chooses them. The dataset must fit in memory.",
        ),
    ]
    holdout_seed: Annotated[int, Option(0, count_or_zero, "Another one holds out other episodes.")]
