"""Configs that all algorithms of the package share: options with their checks, and the wiring into RLlib."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override
from typing_extensions import Self, Unpack

from rllib_damo.core.option_groups import (
    DataOptions,
    DynamicsOptions,
    ModelBasedTraining,
    OfflineTraining,
    OnlineOptions,
)
from rllib_damo.core.options import Option, is_number, options_of, seed, unknown_option
from rllib_damo.core.rllib_values import check_rllib_values
from rllib_damo.core.unused_options import check_unused
from rllib_damo.data.in_memory import InMemory
from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.data.schema import Transitions
from rllib_damo.dynamics.rollout_runner import ModelRolloutEnvRunner
from rllib_damo.evaluation.play import evaluated_env
from rllib_damo.evaluation.runner import EvaluationEnvRunner
from rllib_damo.evaluation.scores import ScoreCallbacks
from rllib_damo.utils import ray_internals
from rllib_damo.utils.environments import make_env
from rllib_damo.utils.names import near
from rllib_damo.utils.paths import absolute, absolute_input, cache_root
from rllib_damo.utils.policy_runner import PolicyRunner
from rllib_damo.utils.spaces import check_spaces


def _document(method: Any, options: Mapping[str, Option]) -> None:
    """Gives a method with ``**options`` the signature and the docstring of the options that it takes."""
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=NotProvided) for name in options]
    parameters.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
    method.__signature__ = inspect.Signature(parameters)
    rows = "\n".join(f"    {name}: {option.meaning} Default: {option.default!r}." for name, option in options.items())
    method.__doc__ = f"{inspect.getdoc(method)}\n\nArgs:\n{rows}\n    kwargs: RLlib's own options of this method."


class OfflineConfig(AlgorithmConfig):
    """What the configs of all algorithms share: a dataset, gradient steps on it, and evaluation.

    A subclass says which options its methods take (``option_groups``), which defaults of its own they have
    (``defaults``), and which classes do the work (``algorithm_class``, ``default_module_class``,
    ``default_learner_class``).
    """

    #: Method -> `TypedDict` of the options that it takes, beside RLlib's.
    option_groups: ClassVar[Mapping[str, type]] = {
        "training": OfflineTraining,
        "offline_data": DataOptions,
        "online": OnlineOptions,
    }
    #: The algorithm's own defaults, where they differ from the options'.
    defaults: ClassVar[Mapping[str, Any]] = {}
    #: Options that the networks are built from: the module gets them in its ``model_config``.
    network_options: ClassVar[tuple[str, ...]] = ("hidden_dims",)
    default_module_class: ClassVar[type]
    default_learner_class: ClassVar[type]
    rollout_runner_class: ClassVar[type] = PolicyRunner

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.own_options()
        for name in cls.defaults:
            if name not in own:
                raise TypeError(f"{cls.__name__}.defaults: there is no option {name!r}.{near(name, own)}")
        for name in own:
            if inspect.isroutine(getattr(cls, name, None)):
                raise TypeError(f"{cls.__name__}: {name!r} is one of its methods: give the option another name.")
        for method in cls.option_groups:
            if method in vars(cls):
                _document(vars(cls)[method], cls.own_options(method))

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or self.algorithm_class())
        self.lr = None
        self._set_defaults()
        # Wiring into RLlib. The training "environment" is the dataset (and the model): the real one is for evaluation,
        # and for `online`.
        self.env_runner_cls = self.rollout_runner_class
        self.offline_data_class = BulkOfflineData
        self.callbacks_class = ScoreCallbacks
        self.num_env_runners = 0
        self.evaluation_interval = 10
        self.evaluation_duration = 10
        self.evaluation_duration_unit = "episodes"
        self.evaluation_error_after_n_consecutive_skips = 3
        self.evaluation_config = None
        ray_internals.keep_runner_states(self)

    @classmethod
    def algorithm_class(cls) -> type:
        """The algorithm of this config."""
        raise NotImplementedError(f"{cls.__name__}.algorithm_class(): return the class of its algorithm.")

    # -- options ---------------------------------------------------------------------------------------------------

    @classmethod
    def own_options(cls, method: str | None = None) -> dict[str, Option]:
        """The package's options of a method, or of all, with this algorithm's defaults."""
        methods = cls.option_groups if method is None else [method]
        found = {name: option for m in methods for name, option in options_of(cls.option_groups[m]).items()}
        for name, default in cls.defaults.items():
            if name in found:
                found[name] = Option(default, found[name].check, found[name].meaning)
        return found

    def _set_defaults(self) -> None:
        for name, option in self.own_options().items():
            setattr(self, name, copy.deepcopy(option.default))

    def training(self, **options: Any) -> Self:
        """Sets the options of the algorithm, and RLlib's own of this method."""
        return self._take("training", options)

    @override(AlgorithmConfig)
    def offline_data(self, **options: Unpack[DataOptions]) -> Self:
        """Sets the dataset: the package's options, and RLlib's own of this method."""
        for name in ("input_", "start_from"):
            if name in options:
                options[name] = absolute_input(options[name])
        return self._take("offline_data", options)

    def online(self, **options: Unpack[OnlineOptions]) -> Self:
        """Sets steps in the real environment while training."""
        return self._take("online", options)

    def _take(self, method: str, given: Mapping[str, Any]) -> Self:
        """Sets the options that a method was given: the package's here, RLlib's by RLlib's own method.

        Raises:
            TypeError: the method takes no such option; the message says which one does, or what is meant.
        """
        rllibs = getattr(AlgorithmConfig, method, None)
        theirs = set(inspect.signature(rllibs).parameters) - {"self"} if rllibs else set()
        own = self.own_options(method)
        for name in given:
            if name not in own and name not in theirs:
                raise TypeError(unknown_option(type(self).__name__, method, name, self.methods()))
        given = {name: value for name, value in given.items() if value is not NotProvided}
        if rllibs:
            rllibs(self, **{name: value for name, value in given.items() if name in theirs})
        for name, value in given.items():
            if name not in theirs:
                setattr(self, name, value)
        return self

    def methods(self) -> dict[str, set[str]]:
        """The options that each of the config's methods takes, RLlib's methods included."""
        methods = {
            name: set(inspect.signature(method).parameters) - {"self", "kwargs", "options"}
            for name, method in inspect.getmembers(AlgorithmConfig, inspect.isfunction)
            if not name.startswith("_") and "NotProvided" in str(inspect.signature(method))
        }
        for name in self.option_groups:
            methods[name] = methods.get(name, set()) | set(self.own_options(name))
        return methods

    @override(AlgorithmConfig)
    def environment(self, env: Any = NotProvided, *, env_config: Any = NotProvided, **kwargs: Any) -> Self:
        """As RLlib's. Spaces that belong to the environment before are forgotten when another one is set."""
        changed = (env is not NotProvided and env != self.env) or env_config is not NotProvided
        if self.env is not None and changed and not self.in_evaluation:
            kwargs = {"observation_space": None, "action_space": None, **kwargs}
        super().environment(env, env_config=env_config, **kwargs)
        return self

    # -- what RLlib asks for ---------------------------------------------------------------------------------------

    @property
    @override(AlgorithmConfig)
    def is_offline(self) -> bool:
        """Names and paths, as for RLlib, and a dataset in memory."""
        return isinstance(self.input_, (InMemory, Transitions)) or super().is_offline

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=self.default_module_class)

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type:
        return self.default_learner_class

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return super()._model_config_auto_includes | {name: getattr(self, name) for name in self.network_options}

    @override(AlgorithmConfig)
    def get_evaluation_config_object(self) -> AlgorithmConfig | None:
        """The evaluation workers act in the real environment, by the mean action, whatever else is overridden."""
        config = super().get_evaluation_config_object()
        if config is not None:
            config.env_runner_cls = EvaluationEnvRunner
            config.num_gpus_per_env_runner = 0
            config.explore = False
            config.normalize_actions = True
            if None in (config.observation_space, config.action_space):  # forgotten for an `env_config` of its own
                config.observation_space, config.action_space = self.observation_space, self.action_space
        return config

    def evaluation_env(self) -> tuple[Any, dict[str, Any]]:
        """The environment of the evaluation, ``evaluation_config``'s or the config's own, and its ``env_config``."""
        overrides: Any = self.evaluation_config or {}
        return evaluated_env(self), {**self.env_config, **overrides.get("env_config", {})}

    @override(AlgorithmConfig)
    def get_state(self) -> dict[str, Any]:
        """As RLlib's, which leaves out whatever is -1, its mark of a deprecated option: here that may be a value."""
        defaults = vars(type(self)())
        meant = {name: value for name, value in vars(self).items() if is_number(value) and value == -1}
        return super().get_state() | {name: value for name, value in meant.items() if defaults.get(name, -1) != -1}

    # -- checks ----------------------------------------------------------------------------------------------------

    def refuse(self, message: str) -> None:
        """Raises ValueError for a wrong option; or warns, where the user switched RLlib's checks off."""
        ray_internals.refuse(self, message)

    @override(AlgorithmConfig)
    def validate(self) -> None:
        self._check_stack()  # before RLlib looks for another framework's installation
        if ray_internals.is_frozen(self):  # the checks fill in what follows from other options
            self.copy(copy_frozen=False).validate()
            return
        self._resolve()
        if self.in_evaluation:
            super().validate()
            return
        defaults = vars(type(self)())
        known = {*defaults, "class"}  # the latter is in RLlib's dictionaries
        for name in vars(self):
            if name not in known and not name.startswith("_"):
                # Tune's `param_space` may be a dictionary, or another algorithm's config
                self.refuse(f"{type(self).__name__} has no option {name!r}.{near(name, known)}")
        check_unused(self, defaults)
        check_rllib_values(self, AlgorithmConfig())  # the package's own options have tables, below
        super().validate()
        for name, option in self.own_options().items():
            value = getattr(self, name)
            if not option.check.holds(value):
                hint = option.check.hint(value)
                self.refuse(f"`{name}` must be {option.check.expected}; found {value!r}.{hint}")
        self.check()

    def _check_stack(self) -> None:
        if self.framework_str != "torch":
            self.refuse(
                f"{self.algorithm_name} runs on PyTorch: leave `framework` 'torch'; found {self.framework_str!r}."
            )
        for name in ("enable_rl_module_and_learner", "enable_env_runner_and_connector_v2"):
            if not getattr(self, name):
                self.refuse(
                    f"{self.algorithm_name} runs on RLlib's new API stack alone: leave `{name}` True; found "
                    f"{getattr(self, name)!r}. Remove `.api_stack(...)`."
                )

    def check(self) -> None:
        """Checks what options have to do with each other; a subclass adds its own.

        Raises:
            ValueError: at the first wrong combination.
        """
        if self.is_multi_agent:
            self.refuse(f"{self.algorithm_name} is a single-agent algorithm: remove the `.multi_agent()` settings.")
        if self.lr is not None:
            rates = ", ".join(f"`{name}`" for name in self.own_options("training") if name.endswith("_lr"))
            self.refuse(f"{self.algorithm_name} has {rates}: leave `lr` None; found {self.lr!r}.")
        if "max_alpha" in self.own_options("training") and self.initial_alpha > self.max_alpha:
            self.refuse(f"`initial_alpha` ({self.initial_alpha}) must not exceed `max_alpha` ({self.max_alpha}).")
        if self.grad_clip_by != "global_norm":
            self.refuse(
                f"`grad_clip_by` must be 'global_norm' (of each network's gradient); found {self.grad_clip_by!r}."
            )
        if self.max_dataset_rows is not None and self.max_dataset_rows < self.train_batch_size_per_learner:
            self.refuse(
                f"`max_dataset_rows` must hold a batch, `train_batch_size_per_learner`="
                f"{self.train_batch_size_per_learner}, and better many; found {self.max_dataset_rows!r}."
            )
        if self.num_learners > 1 and 0 < self.num_gpus_per_learner < 1:
            self.refuse(
                "`num_gpus_per_learner` must be 0 or a whole number for several learners, which can't share a GPU: "
                f"found num_gpus_per_learner={self.num_gpus_per_learner} with num_learners={self.num_learners}."
            )
        if not seed.holds(self.seed):
            self.refuse(f"`seed` must be {seed.expected}; found {self.seed!r}.")
        if self.online_steps_per_iteration and self.env is None:
            self.refuse(
                f"`online_steps_per_iteration`={self.online_steps_per_iteration!r} takes steps in an environment, and "
                "there is none: set `config.environment(env=...)`, or leave it 0."
            )
        for name in ("env_to_module_connector", "module_to_env_connector"):
            if self.online_steps_per_iteration and getattr(self, ray_internals.attribute_of(name)) is not None:
                self.refuse(
                    f"`online_steps_per_iteration`={self.online_steps_per_iteration!r} records what the environment "
                    f"gives and gets, and `{name}` changes it on the way to or from the policy: do that in a wrapper "
                    "of the environment, and in the dataset, or leave online_steps_per_iteration 0."
                )
        self._check_classes()
        self._check_runners()
        self._check_spaces()

    def _check_classes(self) -> None:
        """Checks the classes that a user may replace."""
        learner = next(c for c in self.default_learner_class.__mro__ if c.__module__.startswith("rllib_damo.core."))
        for name, found, base in (
            ("learner_class", self.learner_class, learner),
            ("env_runner_cls", self.env_runner_cls, self.rollout_runner_class),
            ("offline_data_class", self.offline_data_class, BulkOfflineData),
        ):
            if not (isinstance(found, type) and issubclass(found, base)):
                self.refuse(f"`{name}` must extend {base.__name__}; found {found!r}.")
        spec = ray_internals.given_module_spec(self)
        if spec is not None:
            module = getattr(spec, "module_class", None) or self.default_module_class
            is_one = isinstance(spec, RLModuleSpec)
            if not (is_one and isinstance(module, type) and issubclass(module, self.default_module_class)):
                self.refuse(
                    f"`rl_module_spec` must be an RLModuleSpec whose module_class extends "
                    f"{self.default_module_class.__name__}, the networks of {self.algorithm_name}; found "
                    f"{module.__name__ if is_one else type(spec).__name__}."
                )
        if self.learner_config_dict and self.learner_class is self.default_learner_class:
            self.refuse(
                f"`learner_config_dict`={self.learner_config_dict!r} is for a `learner_class` of your own, which reads "
                "it: set that, or leave it {}."
            )

    def _check_runners(self) -> None:
        if self.num_env_runners:
            self.refuse(
                f"{self.algorithm_name} has no rollouts: leave `num_env_runners` 0; found {self.num_env_runners}."
            )

    def _check_spaces(self) -> None:
        if self.observation_space is None or self.action_space is None:
            self.refuse(
                f"{self.algorithm_name} needs the spaces: set `config.environment('Hopper-v5')`, or, without a "
                "simulator, `config.environment(observation_space=..., action_space=...)`."
            )
        try:
            check_spaces(self.observation_space, self.action_space)
        except ValueError as error:
            self.refuse(str(error))
        if self.evaluation_env()[0] is None and self.evaluation_interval and self.custom_evaluation_function is None:
            self.refuse(
                "Evaluation needs an environment: set `config.environment(env=...)`, or, for evaluation alone, "
                "`config.evaluation(evaluation_config={'env': ...})`; or give a `custom_evaluation_function`, or "
                "switch it off by `config.evaluation(evaluation_interval=None)`."
            )

    @property
    def algorithm_name(self) -> str:
        """The algorithm's name, for messages."""
        return str(self.algo_class.__name__)

    def _resolve(self) -> None:
        """Fills in what follows from other options."""
        # `.callbacks(Mine)` replaces the default: the scores stay beside the user's own.
        callbacks = self.callbacks_class if isinstance(self.callbacks_class, (list, tuple)) else [self.callbacks_class]
        if not any(isinstance(c, type) and issubclass(c, ScoreCallbacks) for c in callbacks):
            self.callbacks([ScoreCallbacks, *callbacks])
        # Tune's `param_space` may be a dictionary, which has passed no method of this class.
        self._make_absolute("input_", absolute_input)
        self._make_absolute("start_from", absolute_input)
        if self.observation_space is None and not self.in_evaluation:
            name, arguments = self.evaluation_env() if self.env is None else (self.env, self.env_config)
            if name is not None:
                env = make_env(name, arguments)
                self.environment(observation_space=env.observation_space, action_space=env.action_space)
                env.close()

    def _make_absolute(self, name: str, find: Any) -> None:
        given = getattr(self, name)
        place = find(given)
        if place != given:
            setattr(self, name, place)


class ModelBasedConfig(OfflineConfig):
    """The config of an algorithm that learns a dynamics model and rolls out in it."""

    option_groups: ClassVar[Mapping[str, type]] = {
        **OfflineConfig.option_groups,
        "training": ModelBasedTraining,
        "dynamics": DynamicsOptions,
    }
    rollout_runner_class: ClassVar[type] = ModelRolloutEnvRunner

    @classmethod
    def long_rollouts(cls) -> Self:
        """Settings for tasks whose episodes can end, by a fall for one: rollouts that go where the policy goes.

        Rollouts of 200 steps, half of them from where episodes start, come to the policy's own falls. Policies swing
        while they learn of these: what is delivered is a long moving average of their weights, and of these averages
        the newest that does not clearly return less in the model. All rows are learned from. DAMO, MOPO and
        MOBILE were run with it, on Hopper and Walker2d, with 128 units; a penalty, or other weight, is still to be set.
        """
        return cls().dynamics(dynamics_max_epochs=20).training(
            rollout_length=200, rollout_batch_size=500, rollout_margin=0.1, episode_start_ratio=0.5, policy_tau=2e-5,
            policy_check_freq=5_000, data_fraction=1.0, real_ratio=0.5, critic_layer_norm=True, tau=0.02,
            actor_lr=3e-4, alpha_lr=3e-4, initial_alpha=0.1, max_alpha=1.0,
        )  # fmt: skip

    def dynamics(self, **options: Unpack[DynamicsOptions]) -> Self:
        """Sets the options of the dynamics ensemble."""
        for name in ("dynamics_path", "dynamics_cache_dir"):
            if name in options:
                options[name] = absolute(options[name])
        return self._take("dynamics", options)

    @property
    @override(OfflineConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        checks = {"policy_check_freq": self.policy_check_freq} if self.policy_check_freq else {}
        return super()._model_config_auto_includes | checks

    @override(OfflineConfig)
    def _resolve(self) -> None:
        super()._resolve()
        self._make_absolute("dynamics_path", absolute)
        self._make_absolute("dynamics_cache_dir", absolute)
        if not (self.dynamics_path or self.dynamics_cache_dir):
            cache_root()  # raises for an address

    @override(OfflineConfig)
    def check(self) -> None:
        super().check()
        if self.num_elites > self.num_ensemble:
            self.refuse(f"`num_elites` ({self.num_elites}) must not exceed `num_ensemble` ({self.num_ensemble}).")
        if len(self.dynamics_weight_decay) != len(self.dynamics_hidden_dims) + 1:
            self.refuse(
                f"`dynamics_weight_decay` needs one value for each of the {len(self.dynamics_hidden_dims) + 1} layers "
                f"(hidden and output); found {len(self.dynamics_weight_decay)}."
            )

    @override(OfflineConfig)
    def _check_runners(self) -> None:
        if self.overlap_rollouts and not self.num_env_runners:
            self.refuse(
                "`overlap_rollouts` needs runners beside the learner: set `.env_runners(num_env_runners=1)` or more, "
                f"or overlap_rollouts=False; found num_env_runners={self.num_env_runners!r}."
            )
        if self.rollout_batch_size < self.num_env_runners:
            self.refuse(
                f"`rollout_batch_size` must give each of num_env_runners={self.num_env_runners} runners a start; "
                f"found {self.rollout_batch_size!r}."
            )


def resolve_target_entropy(target_entropy: float | str, action_space: gym.spaces.Box) -> float:
    """-dim(A) nats for "auto"."""
    return -float(action_space.shape[0]) if target_entropy == "auto" else float(target_entropy)


for _method in ("offline_data", "online"):
    _document(getattr(OfflineConfig, _method), OfflineConfig.own_options(_method))
