"""DAMOConfig: every option of DAMO, its default, and the checks that precede any work."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import LearningRateOrSchedule

from rllib_damo.core.learner import DAMOTorchLearner
from rllib_damo.core.options import check_options, is_number
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.data.offline_data import DAMOOfflineData
from rllib_damo.data.schema import Transitions
from rllib_damo.dynamics.rollout_runner import ModelRolloutEnvRunner
from rllib_damo.dynamics.termination import TerminationFn
from rllib_damo.evaluation.runner import EvaluationEnvRunner
from rllib_damo.evaluation.scores import DAMOCallbacks
from rllib_damo.utils.environments import make_env
from rllib_damo.utils.names import near
from rllib_damo.utils.paths import absolute, absolute_input, cache_root


class DAMOConfig(AlgorithmConfig):
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

    #: Whether the algorithm trains a dynamics model and rolls out in it: its nature, and not an option.
    uses_model = True

    def __init__(self, algo_class: type | None = None):
        from rllib_damo.core.algorithm import DAMO

        super().__init__(algo_class=algo_class or DAMO)

        # The objective (docs/damo.md 1-12)
        self.eta = 1.0
        self.actor_eta: float | None = 1.0
        self.f_divergence = "half_squared"
        self.actor_f_divergence = "chi_squared"
        self.max_actor_weight = 5.0
        self.policy_improvement = "consistent"
        self.data_alignment = True
        self.behavior_alignment = True
        self.target_networks = True
        self.initial_states = "dataset"
        self.bc_weight = 2.0
        self.data_fraction = 0.5
        self.actor_warmup_steps = 10_000
        # Networks and optimisation
        self.hidden_dims: tuple[int, ...] = (256, 256)
        self.twin_q = True
        self.critic_layer_norm = True
        self.normalize_observations = True
        self.actor_lr: LearningRateOrSchedule = 3e-4
        self.critic_lr: LearningRateOrSchedule = 3e-4
        self.alpha_lr: LearningRateOrSchedule = 3e-4
        self.classifier_lr: LearningRateOrSchedule = 3e-4
        self.lr = None
        self.tau = 0.02
        self.policy_tau = 0.001
        self.gamma = 0.99
        self.target_entropy: float | str = "auto"
        self.initial_alpha = 0.05
        self.max_alpha = 0.05
        self.grad_clip = None
        self.train_batch_size_per_learner = 256
        self.precision = "fp32"
        self.cuda_graphs = False
        # Classifier
        self.label_smoothing = 0.1
        self.classifier_gradient_penalty = 0.0
        self.classifier_noise = 0.0
        self.classifier_spectral_norm = False
        self.max_logit = 10.0
        # Rollouts and data
        self.rollout_length = 5
        self.rollout_batch_size = 50_000
        self.rollout_freq = 1000
        self.model_retain_epochs = 5
        self.real_ratio = 0.5
        self.overlap_rollouts = False
        self.max_dataset_rows: int | None = None
        self.actions_in_input_normalized = None
        # Dynamics model
        self.num_ensemble = 7
        self.num_elites = 5
        self.dynamics_hidden_dims: tuple[int, ...] = (200, 200, 200, 200)
        self.dynamics_lr = 2e-3
        self.dynamics_weight_decay: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
        self.dynamics_batch_size = 256
        self.dynamics_max_epochs: int | None = None
        self.max_epochs_since_update = 5
        self.holdout_size = 1000
        self.logvar_loss_coef = 0.01
        self.dynamics_precision = "fp32"
        self.dynamics_path: str | None = None
        self.dynamics_cache_dir: str | None = None
        self.termination_fn: TerminationFn | None = None

        # Wiring into RLlib: the training "environment" is the model; the real one is for evaluation alone.
        self.env_runner_cls = ModelRolloutEnvRunner
        self.offline_data_class = DAMOOfflineData
        self.callbacks_class = DAMOCallbacks
        self.num_env_runners = 0
        self.evaluation_interval = 10
        self.evaluation_duration = 10
        self.evaluation_duration_unit = "episodes"
        self.evaluation_config = None
        self._dont_auto_sync_env_runner_states = True

    @classmethod
    def paper(cls) -> DAMOConfig:
        """The paper's settings (its Tables 3 and 4; η and rollout length are per task and still to be set).

        3 M gradient steps; no anchor to the data, one divergence for critic and actor, raw observations. The classifier
        keeps its regularisation (label smoothing, clipped logit, standardised inputs): without, it saturates.
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
            actor_lr=1e-4,
            alpha_lr=1e-4,
            real_ratio=0.05,
            rollout_batch_size=50_000,
            rollout_freq=1000,
            model_retain_epochs=5,
        )

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        eta: float | None = NotProvided,
        actor_eta: float | None = NotProvided,
        f_divergence: str | None = NotProvided,
        actor_f_divergence: str | None = NotProvided,
        max_actor_weight: float | None = NotProvided,
        policy_improvement: str | None = NotProvided,
        data_alignment: bool | None = NotProvided,
        behavior_alignment: bool | None = NotProvided,
        target_networks: bool | None = NotProvided,
        initial_states: str | None = NotProvided,
        bc_weight: LearningRateOrSchedule | None = NotProvided,
        data_fraction: float | None = NotProvided,
        actor_warmup_steps: int | None = NotProvided,
        hidden_dims: tuple[int, ...] | None = NotProvided,
        twin_q: bool | None = NotProvided,
        critic_layer_norm: bool | None = NotProvided,
        normalize_observations: bool | None = NotProvided,
        actor_lr: LearningRateOrSchedule | None = NotProvided,
        critic_lr: LearningRateOrSchedule | None = NotProvided,
        alpha_lr: LearningRateOrSchedule | None = NotProvided,
        classifier_lr: LearningRateOrSchedule | None = NotProvided,
        tau: float | None = NotProvided,
        policy_tau: float | None = NotProvided,
        target_entropy: float | str | None = NotProvided,
        initial_alpha: float | None = NotProvided,
        max_alpha: float | None = NotProvided,
        precision: str | None = NotProvided,
        cuda_graphs: bool | None = NotProvided,
        label_smoothing: float | None = NotProvided,
        classifier_gradient_penalty: float | None = NotProvided,
        classifier_noise: float | None = NotProvided,
        classifier_spectral_norm: bool | None = NotProvided,
        max_logit: float | None = NotProvided,
        rollout_length: int | None = NotProvided,
        rollout_batch_size: int | None = NotProvided,
        rollout_freq: int | None = NotProvided,
        model_retain_epochs: int | None = NotProvided,
        real_ratio: float | None = NotProvided,
        overlap_rollouts: bool | None = NotProvided,
        **kwargs: Any,
    ) -> DAMOConfig:
        """Sets the options of DAMO's objective, networks, classifier and model rollouts.

        Args:
            eta: η > 0, the one coefficient of the objective, in units of a step's reward; larger is more conservative.
            actor_eta: the coefficient inside the actor's density ratio (paper C.2: 1.0); None takes ``eta``.
            f_divergence: the critic's f, "half_squared", or without target networks "chi_squared" (docs/damo.md 7).
            actor_f_divergence: the f whose f*' turns Bellman residuals into the actor's density ratio (step 10 there).
            max_actor_weight: upper bound of that ratio; it is never below 0.
            policy_improvement: "consistent", the actor ascends the critic's objective; "inconsistent", SAC's loss.
            data_alignment: False trains on the plain reward (the paper's "w/o er"): no classifier.
            behavior_alignment: False trains critics by plain TD and the actor by SAC ("w/o ir").
            target_networks: False takes the critic's full residual gradient, without target networks.
            initial_states: where s0 comes from: "dataset", any state of it (the paper's), or "episode_start", of all
                episodes, whatever `data_fraction`.
            bc_weight: weight of an anchor to the dataset's actions, the mean of (π(s) - a)² over the rows of s0 and the
                action's coordinates, against a value term in units of (mean |r| + η) / (1-γ), about the largest a
                modified return can be. 0 is the paper's, without units; TD3+BC's is 0.4 in units of mean |Q|. Or a
                schedule in gradient steps, between whose points the weight is interpolated: ``[[0, 2.0], [10_000, 2.0],
                [30_000, 0.0]]`` begins at the data and then leaves it.
            data_fraction: share of the dataset that policy, critics and classifier learn from and rollouts branch from:
                the episodes of highest return. The dynamics model learns from all of it. 1 is the paper's.
            actor_warmup_steps: with ``bc_weight``, first gradient steps in which the policy follows its anchor (and its
                entropy) alone, while critics and classifier learn what it is worth.
            hidden_dims: widths of the hidden layers of actor, critics and classifier.
            twin_q: two critics, of which the smaller counts; False: one.
            critic_layer_norm: layer normalisation in the critics, which keeps their values from running away where
                actions leave the data.
            normalize_observations: standardise the inputs of actor and critics by the dataset's statistics.
            actor_lr, critic_lr, alpha_lr, classifier_lr: Adam's learning rates (``lr`` stays None), or schedules in
                gradient steps: [[0, 3e-4], [100_000, 0.0]] falls linearly to 0, set anew at each iteration's end.
            tau: weight of the critics in the targets' moving average.
            policy_tau: weight of the policy in its own moving average, which evaluation, inference and value estimates
                use; 1 is the policy itself, as in the paper.
            target_entropy: of the automatic entropy coefficient, in nats; "auto" is -dim(A).
            initial_alpha, max_alpha: first value and upper bound of the entropy coefficient.
            precision: "fp32", or "bf16": products between hidden layers of the policy phase's networks in bfloat16, and
                all else (parameters, first and last layers, losses, Adam, targets) in float32; faster on CPUs with
                bfloat16 instructions.
            cuda_graphs: record gradient steps as CUDA graphs and replay these: the same operations, launched at once.
                For one learner on a GPU. Off by default, since it has not been run on one so far.
            label_smoothing: ε of the classifier's labels; its best logit then lies within ± log((1-ε)/ε).
            classifier_gradient_penalty: weight of a one-sided penalty on the classifier's input gradient.
            classifier_noise: standard deviation of the noise on the classifier's standardised training inputs.
            classifier_spectral_norm: spectral normalisation of the classifier's layers.
            max_logit: the logit is clipped to ± this in the modified reward.
            rollout_length: h, steps of each model rollout.
            rollout_batch_size: start states of each round of rollouts.
            rollout_freq: gradient steps between rounds, which are also the gradient steps of one iteration.
            model_retain_epochs: rounds of rollouts that the model buffer keeps.
            real_ratio: share of dataset rows in the critics' and actor's batches.
            overlap_rollouts: runners roll out the next iteration's round during this one's gradient steps, under the
                policy at its start, one iteration old when it is used; needs ``num_env_runners`` >= 1.
            kwargs: RLlib's own training options (``gamma``, ``train_batch_size_per_learner``, ``grad_clip``, ...).
        """
        known = TRAINING_OPTIONS | set(inspect.signature(super().training).parameters)
        for name in kwargs:
            if name not in known:
                raise TypeError(f"`{type(self).__name__}.training()` has no option {name!r}.{near(name, known)}")
        super().training(**kwargs)
        self._set(locals(), TRAINING_OPTIONS)
        return self

    def dynamics(
        self,
        *,
        num_ensemble: int | None = NotProvided,
        num_elites: int | None = NotProvided,
        dynamics_hidden_dims: tuple[int, ...] | None = NotProvided,
        dynamics_lr: float | None = NotProvided,
        dynamics_weight_decay: tuple[float, ...] | None = NotProvided,
        dynamics_batch_size: int | None = NotProvided,
        dynamics_max_epochs: int | None = NotProvided,
        max_epochs_since_update: int | None = NotProvided,
        holdout_size: int | None = NotProvided,
        logvar_loss_coef: float | None = NotProvided,
        dynamics_precision: str | None = NotProvided,
        dynamics_path: str | None = NotProvided,
        dynamics_cache_dir: str | None = NotProvided,
        termination_fn: TerminationFn | None = NotProvided,
    ) -> DAMOConfig:
        """Sets the options of the dynamics ensemble (paper C.3, Table 3).

        Args:
            num_ensemble: networks in the ensemble.
            num_elites: how many of them, the best on the hold-out rows, generate rollouts.
            dynamics_hidden_dims: widths of their hidden layers.
            dynamics_lr: Adam's learning rate.
            dynamics_weight_decay: one value for each layer, hidden ones and output.
            dynamics_batch_size: rows of a minibatch, drawn for each member by itself.
            dynamics_max_epochs: stop after so many epochs at the latest; None: when no member improves.
            max_epochs_since_update: stop when no member improved by 1 % for so many epochs.
            holdout_size: rows that are held out of training.
            logvar_loss_coef: weight of the loss that tightens the bounds of the log-variance.
            dynamics_precision: "fp32", or "bf16": in training, products between hidden layers in bfloat16, all else in
                float32; faster on CPUs with bfloat16 instructions. The trained model is one of float32.
            dynamics_path: a trained model's file, which is then used as it is.
            dynamics_cache_dir: where trained models are kept, for all runs on the same data and settings with the same
                seed; runs without one share that of seed 0. Of both, relative ones are made absolute: trials of Tune
                work in folders of their own.
            termination_fn: (obs, env actions, next_obs) → bool ``(B,)``; None: known for MuJoCo's environments by
                their exact id, learned from the dataset's terminals for all others.
        """
        dynamics_path, dynamics_cache_dir = absolute(dynamics_path), absolute(dynamics_cache_dir)
        self._set(locals(), DYNAMICS_OPTIONS)
        return self

    @override(AlgorithmConfig)
    def environment(self, env: Any = NotProvided, *, env_config: Any = NotProvided, **kwargs: Any) -> DAMOConfig:
        """As RLlib's. Spaces that belong to the environment before are forgotten when another one is set."""
        changed = (env is not NotProvided and env != self.env) or env_config is not NotProvided
        if self.env is not None and changed and not self.in_evaluation:
            kwargs = {"observation_space": None, "action_space": None, **kwargs}
        super().environment(env, env_config=env_config, **kwargs)
        return self

    @override(AlgorithmConfig)
    def offline_data(self, *, max_dataset_rows: int | None = NotProvided, **kwargs: Any) -> DAMOConfig:
        """Sets the dataset.

        Args:
            max_dataset_rows: at most so many rows are held in memory; a larger dataset streams through in windows. The
                dynamics model and the networks' input statistics are those of the first window.
            kwargs: RLlib's own options; above all ``input_``: a short name ("hopper-medium"), ``minari://ID``, an
                HDF5 file in D4RL's format, Parquet files, or a folder of episodes recorded by RLlib. Relative paths
                are made absolute. ``input_read_schema`` names columns, {"obs": "o_t"}; ``actions_in_input_normalized``
                says that actions lie in [-1, 1] (None: in RLlib's recordings, and in nothing else).
        """
        if "input_" in kwargs:
            kwargs["input_"] = absolute_input(kwargs["input_"])
        super().offline_data(**kwargs)
        self._set(locals(), ["max_dataset_rows"])
        return self

    def _set(self, arguments: Mapping[str, Any], names: Iterable[str]) -> None:
        """Sets the options of these names that a method was given, whose arguments these are."""
        for name in names:
            if arguments[name] is not NotProvided:
                setattr(self, name, arguments[name])

    # -- what RLlib asks for ---------------------------------------------------------------------------------------

    @property
    @override(AlgorithmConfig)
    def is_offline(self) -> bool:
        """Names and paths, as for RLlib, and a dataset in memory."""
        return isinstance(self.input_, Transitions) or super().is_offline

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=DAMOTorchRLModule)

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type:
        return DAMOTorchLearner

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        names = ("hidden_dims", "twin_q", "critic_layer_norm", "classifier_spectral_norm", "initial_alpha")
        return super()._model_config_auto_includes | {name: getattr(self, name) for name in names}

    @override(AlgorithmConfig)
    def get_evaluation_config_object(self) -> AlgorithmConfig | None:
        """The evaluation workers act in the real environment, by the mean action, whatever else is overridden."""
        config = super().get_evaluation_config_object()
        if config is not None:
            config.env_runner_cls = EvaluationEnvRunner
            config.num_gpus_per_env_runner = 0
            config.explore = False
            config.normalize_actions = True
        return config

    @override(AlgorithmConfig)
    def get_state(self) -> dict[str, Any]:
        """As RLlib's, which leaves out whatever is -1, its mark of a deprecated option: here that may be a value."""
        defaults = vars(type(self)())
        meant = {name: value for name, value in vars(self).items() if is_number(value) and value == -1}
        return super().get_state() | {name: value for name, value in meant.items() if defaults.get(name, -1) != -1}

    def resolve_target_entropy(self, action_space: gym.spaces.Box) -> float:
        """-dim(A) nats for "auto"."""
        return -float(action_space.shape[0]) if self.target_entropy == "auto" else float(self.target_entropy)

    # -- checks ----------------------------------------------------------------------------------------------------

    @override(AlgorithmConfig)
    def validate(self) -> None:
        if self.framework_str != "torch":  # before RLlib looks for another one's installation
            self._value_error(f"{self._name} runs on torch: found `framework`={self.framework_str!r}.")
        if self._is_frozen:  # the checks fill in what follows from other options
            self.copy(copy_frozen=False).validate()
            return
        self._resolve()
        if self.uses_model and not (self.dynamics_path or self.dynamics_cache_dir):
            cache_root()  # raises for an address
        super().validate()
        if self.in_evaluation:
            return
        check_options(self)

    @property
    def _name(self) -> str:
        return str(self.algo_class.__name__)

    def _resolve(self) -> None:
        """Fills in what follows from other options."""
        # `.callbacks(Mine)` replaces the default: the scores stay beside the user's own.
        callbacks = self.callbacks_class if isinstance(self.callbacks_class, (list, tuple)) else [self.callbacks_class]
        if not any(isinstance(c, type) and issubclass(c, DAMOCallbacks) for c in callbacks):
            self.callbacks([DAMOCallbacks, *callbacks])
        # Tune's `param_space` may be a dictionary, which has passed no method of this class.
        for name, find in (("dynamics_path", absolute), ("dynamics_cache_dir", absolute), ("input_", absolute_input)):
            given, place = getattr(self, name), find(getattr(self, name))
            if place != given:
                setattr(self, name, place)
        if self.observation_space is None and self.env is not None and not self.in_evaluation:
            env = make_env(self.env, self.env_config)
            self.environment(observation_space=env.observation_space, action_space=env.action_space)
            env.close()


TRAINING_OPTIONS = frozenset(inspect.signature(DAMOConfig.training).parameters) - {"self", "kwargs"}
DYNAMICS_OPTIONS = frozenset(inspect.signature(DAMOConfig.dynamics).parameters) - {"self"}
