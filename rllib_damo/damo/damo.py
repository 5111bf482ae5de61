"""DAMO, Dual Alignment Maximin Optimization for offline model-based RL (arXiv 2502.00850): config, learner, algorithm.

The maths is in `docs/damo.md`, the losses in ``losses.py``, one gradient step in ``update.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from typing_extensions import Self, Unpack

from rllib_damo.core.config import ModelBasedConfig
from rllib_damo.core.dataset_checks import reward_divisor
from rllib_damo.core.model_based_algorithm import ModelBasedAlgorithm
from rllib_damo.core.model_based_learner import ModelBasedTorchLearner
from rllib_damo.core.option_groups import (
    CriticTraining,
    EntropyTraining,
    ModelBasedTraining,
    PrecisionTraining,
    Schedule,
)
from rllib_damo.core.options import (
    Option,
    count_or_zero,
    flag,
    learning_rate,
    not_negative,
    number,
    one_of,
    optional,
    positive,
    positive_or_inf,
    schedule_of,
)
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.update import cosine
from rllib_damo.damo.divergences import DIVERGENCES
from rllib_damo.damo.fast_update import fastest_update
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.damo.update import DAMOUpdate
from rllib_damo.data.schema import Transitions

divergences = one_of(
    *DIVERGENCES, hint=lambda v: " It is not >= KL, which the bound needs." if v == "half_chi_squared" else ""
)


class DAMOTraining(ModelBasedTraining, CriticTraining, EntropyTraining, PrecisionTraining, total=False):
    """What ``DAMOConfig.training`` takes; step numbers are those of docs/damo.md."""

    eta: Annotated[
        float,
        Option(
            1.0,
            positive,
            "η, the one coefficient of the objective, in units of a step's reward (step 1); larger is more "
            "conservative. The paper's: 0.1 to 3.",
        ),
    ]
    actor_eta: Annotated[
        float | None,
        Option(1.0, optional(positive), "η inside the actor's density ratio (paper C.2: 1.0); None takes `eta`."),
    ]
    f_divergence: Annotated[
        str,
        Option("half_squared", divergences, "f of the critic's loss (step 7); chi_squared without target networks."),
    ]
    f_power: Annotated[
        float,
        Option(
            1.5,
            number("a number in (1, 2]", lambda v: 1 < v <= 2),
            'p of the divergence "power", f*(y) = |y|^p/p (step 7); 2 is half_squared.',
        ),
    ]
    actor_f_divergence: Annotated[
        str,
        Option("chi_squared", divergences, "f whose f*' turns Bellman residuals into the actor's density ratio."),
    ]
    max_actor_weight: Annotated[
        float, Option(5.0, positive_or_inf, "Upper bound of the density ratio; the lower one is 0 (step 10).")
    ]
    policy_improvement: Annotated[
        str,
        Option(
            "consistent",
            one_of("consistent", "inconsistent"),
            '"consistent": the actor ascends the critic\'s objective; "inconsistent": SAC\'s loss (paper 6.1.2).',
        ),
    ]
    data_alignment: Annotated[
        bool, Option(True, flag, 'False trains on the plain reward, without a classifier (the paper\'s "w/o er").')
    ]
    behavior_alignment: Annotated[
        bool, Option(True, flag, 'False trains critics by plain TD and the actor by SAC (the paper\'s "w/o ir").')
    ]
    target_networks: Annotated[
        bool, Option(True, flag, "False takes the critic's full residual gradient, without target networks (step 9).")
    ]
    initial_states: Annotated[
        str,
        Option(
            "dataset",
            one_of("dataset", "episode_start"),
            'Where s0 comes from: "dataset", any state of it (the paper\'s), or "episode_start", of all episodes, '
            "whatever `data_fraction` (step 8).",
        ),
    ]
    bc_weight: Annotated[
        Schedule,
        Option(
            2.0,
            schedule_of(not_negative),
            "Weight of an anchor to the dataset's actions: the mean of (π(s) - a)² over the rows of s0 and the "
            "action's coordinates, against a value term in units of (mean |r| + η) / (1-γ), about the largest a "
            "modified return can be. 0 is the paper's, without units; TD3+BC's is 0.4 in units of mean |Q|. Or a "
            "schedule in gradient steps, [[0, 2.0], [10_000, 2.0], [30_000, 0.0]], which starts at the data and then "
            "leaves it.",
        ),
    ]
    actor_warmup_steps: Annotated[
        int,
        Option(
            10_000,
            count_or_zero,
            "With `bc_weight`, the first gradient steps in which the policy follows its anchor (and its entropy) "
            "alone, while critics and classifier learn what it is worth.",
        ),
    ]
    classifier_lr: Annotated[
        Schedule, Option(3e-4, learning_rate, "Adam's learning rate for the classifier, or a schedule.")
    ]
    label_smoothing: Annotated[
        float,
        Option(
            0.1,
            number("a number in [0, 0.5)", lambda v: 0 <= v < 0.5),
            "ε of the classifier's labels; its best logit then lies within ± log((1-ε)/ε).",
        ),
    ]
    classifier_gradient_penalty: Annotated[
        float, Option(0.0, not_negative, "Weight of a one-sided penalty on the classifier's input gradient.")
    ]
    classifier_noise: Annotated[
        float,
        Option(0.0, not_negative, "Standard deviation of the noise on the classifier's standardised training inputs."),
    ]
    classifier_spectral_norm: Annotated[bool, Option(False, flag, "Spectral normalisation of the classifier's layers.")]
    max_logit: Annotated[float, Option(10.0, positive_or_inf, "The modified reward clips the logit to ± this.")]
    logit_bonus: Annotated[
        bool,
        Option(
            True,
            flag,
            "False: the modified reward clips the logit at 0 from above (step 5), so that rows that look real get no "
            "bonus, and r̃ <= r. Values then stay below the true ones without an anchor, too.",
        ),
    ]
    terminal_alignment: Annotated[
        bool,
        Option(
            False,
            flag,
            "True: a terminal state is worth what the classifier's part of the modified reward is in the mean, for "
            "ever after (step 13), so that this part pays neither for an episode's end nor for its going on. False: 0. "
            "It matters without an anchor, where episodes can end.",
        ),
    ]
    cuda_graphs: Annotated[
        bool,
        Option(
            False,
            flag,
            "Record gradient steps as CUDA graphs and replay these: the same operations, launched at once. For one "
            "learner on a GPU. Not run on a GPU so far.",
        ),
    ]


class DAMOTorchLearner(ModelBasedTorchLearner):
    """The model-based learner with `DAMOUpdate`, by its fastest form."""

    update_class = DAMOUpdate
    divergence_hint = "smaller learning rates, a larger label_smoothing or a smaller eta"

    def make_update(self, module: Any, **parts: Any) -> DAMOUpdate:
        return fastest_update(module, self.config, **parts)


class DAMOConfig(ModelBasedConfig):
    """Configuration of DAMO, Dual Alignment Maximin Optimization (arXiv 2502.00850).

    .. code-block:: python

        from rllib_damo import DAMOConfig

        config = (
            DAMOConfig()
            .environment("Hopper-v5")  # spaces, termination rule and evaluation; never sampled from while training
            .offline_data(input_="hopper-medium-expert")
            .training(eta=3.0, rollout_length=5)
        )
        algo = config.build_algo()
        algo.train()
    """

    option_groups: ClassVar[Mapping[str, type]] = {**ModelBasedConfig.option_groups, "training": DAMOTraining}
    defaults: ClassVar[Mapping[str, Any]] = {
        "data_fraction": 0.5,
        "critic_layer_norm": True,
        "tau": 0.02,
        "initial_alpha": 0.05,
        "max_alpha": 0.05,
        "real_ratio": 0.5,
    }
    network_options = ("hidden_dims", "twin_q", "critic_layer_norm", "classifier_spectral_norm", "initial_alpha")
    default_module_class = DAMOTorchRLModule
    default_learner_class = DAMOTorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return DAMO

    @classmethod
    def paper(cls, num_steps: int = 3_000_000) -> DAMOConfig:
        """The paper's settings (its Tables 3 and 4; η and rollout length are per task and still to be set).

        No anchor to the data, one divergence for critic and actor, raw observations. The classifier keeps its
        regularisation (label smoothing, clipped logit, standardised inputs): without, it saturates.

        Args:
            num_steps: gradient steps of the run, over which the actor's learning rate falls to 0 as half a cosine, as
                in OfflineRL-Kit, which the paper's code is built on.
        """
        config = cls().dynamics(dynamics_lr=1e-3)
        return config.training(
            f_divergence="half_squared",
            actor_f_divergence="half_squared",
            max_actor_weight=float("inf"),
            normalize_observations=False,
            critic_layer_norm=False,
            bc_weight=0.0,
            data_fraction=1.0,
            tau=0.005,
            policy_tau=1.0,
            initial_alpha=1.0,
            max_alpha=1.0,
            actor_lr=cosine(1e-4, num_steps),
            alpha_lr=1e-4,
            real_ratio=0.05,
            rollout_batch_size=50_000,
            rollout_freq=1000,
            model_retain_epochs=5,
        )

    @classmethod
    def long_rollouts(cls) -> Self:
        """Those of all model-based algorithms, and for DAMO no anchor to the data.

        No row's modified reward is above its own (step 5), a fall costs in the mean what it costs without the
        classifier (step 13), and with η near 1 so is the mean weight of the actor's rows.
        """
        config = super().long_rollouts()
        return config.training(
            bc_weight=0.0, f_divergence="power", actor_f_divergence="power", logit_bonus=False, terminal_alignment=True
        )

    def training(self, **options: Unpack[DAMOTraining]) -> DAMOConfig:  # type: ignore[override]
        """Sets the options of DAMO's objective, networks, classifier and model rollouts."""
        return super().training(**options)

    def check(self) -> None:
        super().check()
        divergence = DIVERGENCES[self.f_divergence](self.f_power)
        if divergence.has_linear_part and self.target_networks and self.behavior_alignment:
            self.refuse(
                f"`f_divergence`={self.f_divergence!r} has a linear part, which with target networks raises the values "
                "without bound. Set f_divergence='half_squared', or target_networks=False, or "
                "behavior_alignment=False (plain TD)."
            )
        if self.bc_weight and self.initial_states != "dataset":
            self.refuse(
                f"`bc_weight` anchors the policy at s0, which must then be any state of the dataset: found bc_weight="
                f"{self.bc_weight!r} with initial_states={self.initial_states!r}; set bc_weight=0 or "
                "initial_states='dataset'."
            )
        self._check_fast_step()

    def _check_fast_step(self) -> None:
        """What the gradient step in bfloat16, and recorded ones, do not go with."""
        plain = {"target_networks": True, "classifier_spectral_norm": False, "classifier_gradient_penalty": 0}
        others = [f"{name}={getattr(self, name)!r}" for name, value in plain.items() if getattr(self, name) != value]
        if self.precision == "bf16" and others:
            self.refuse(f"`precision`='bf16' does not go with {', '.join(others)}: set precision='fp32'.")
        if not (self.num_learners <= 1 and self.num_gpus_per_learner > 0):
            others += [f"num_learners={self.num_learners}", f"num_gpus_per_learner={self.num_gpus_per_learner}"]
        if isinstance(self.bc_weight, (list, tuple)):  # each step would be recorded anew
            others += [f"bc_weight={self.bc_weight!r}"]
        if self.cuda_graphs and others:
            self.refuse(
                "`cuda_graphs`=True is for one learner on a GPU, `.learners(num_gpus_per_learner=1)`, and does not go "
                f"with {', '.join(others)}: set cuda_graphs=False."
            )


@register_algorithm
class DAMO(ModelBasedAlgorithm):
    """Dual Alignment Maximin Optimization for offline model-based RL (arXiv 2502.00850)."""

    config_class = DAMOConfig

    def dataset_warnings(self, transitions: Transitions) -> Iterator[str]:
        yield from super().dataset_warnings(transitions)
        if not self.config.data_alignment:
            return
        typical, divisor = transitions.reward_size(), reward_divisor(self.config, transitions)
        if divisor > 1:
            yield f"with rewards divided by {divisor:,}, set eta to a third of theirs ({typical / divisor / 3:.2g})"
        if self.config.eta > typical > 0:
            ends = "; without an anchor it may gain by ending its episodes: set terminal_alignment=True"
            if self.config.terminal_alignment:
                ends = ""
            yield (
                f"eta={self.config.eta:g} is larger than the rewards ({typical:.3g} in the mean of absolute values), "
                "and the classifier's logit that it multiplies is about -1 to 1, so that the policy will follow the "
                f"data more than the reward: set eta to a third of that ({typical / 3:.2g}), or scale the rewards{ends}"
            )
