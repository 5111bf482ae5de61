"""Bad configurations: each is refused before any work, by an error that names the option and what was found."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from ray.tune.registry import register_env

from rllib_damo import DAMOConfig
from rllib_damo.baselines.td3bc import TD3BCTorchLearner
from rllib_damo.damo.divergences import DIVERGENCES

OBS, ACT = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-2, 2, (2,))
Change = Callable[[DAMOConfig], Any]


def good() -> DAMOConfig:
    return (
        DAMOConfig()
        .environment(observation_space=OBS, action_space=ACT)
        .offline_data(input_="hopper-medium")
        .evaluation(evaluation_interval=None)
    )


def error_of(config: DAMOConfig) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011, its text is what the tests look at
        config.validate()
    return str(caught.value)


def test_the_good_configuration_is_valid() -> None:
    good().validate()
    good().environment("Pendulum-v1", observation_space=None, action_space=None).validate()


POSITIVE = (
    "eta", "actor_eta", "actor_lr", "critic_lr", "alpha_lr", "classifier_lr", "tau", "policy_tau", "initial_alpha",
    "max_alpha", "max_logit", "max_actor_weight", "dynamics_lr",
)  # fmt: skip
NOT_NEGATIVE = ("classifier_gradient_penalty", "classifier_noise", "logvar_loss_coef")
COUNTS = (
    "rollout_length", "rollout_batch_size", "rollout_freq", "model_retain_epochs", "num_ensemble", "num_elites",
    "dynamics_batch_size", "max_epochs_since_update", "holdout_size", "train_batch_size_per_learner",
)  # fmt: skip
OPTIONAL_COUNTS = ("dynamics_max_epochs", "max_dataset_rows")
CHOICES = (
    "f_divergence",
    "actor_f_divergence",
    "policy_improvement",
    "initial_states",
    "precision",
    "dynamics_precision",
)
SWITCHES = (
    "data_alignment", "behavior_alignment", "target_networks", "twin_q", "critic_layer_norm",
    "normalize_observations", "classifier_spectral_norm", "overlap_rollouts", "cuda_graphs",
)  # fmt: skip

BAD_VALUES: list[tuple[str, Any]] = [
    *((name, value) for name in POSITIVE for value in (0.0, -1.0, "large", math.nan)),
    *((name, value) for name in NOT_NEGATIVE for value in (-0.1, "some", None)),
    *((name, value) for name in COUNTS for value in (0, -3, 2.5)),
    *((name, value) for name in OPTIONAL_COUNTS for value in (0, 2.5, "all")),
    *((name, value) for name in CHOICES for value in ("other", 3)),
    *((name, value) for name in SWITCHES for value in ("no", None)),
    ("eta", None),
    ("eta", True),
    ("eta", math.inf),
    ("critic_lr", math.inf),
    ("actor_lr", [[0, 3e-4]]),
    ("actor_lr", [[100, 3e-4], [200, 0.0]]),
    ("actor_lr", [[0, 3e-4], [200, 0.0], [100, 0.0]]),
    ("actor_lr", [[0, 3e-4], [math.nan, 0.0]]),
    ("actor_lr", [[0, 0.0], [100, 3e-4]]),
    ("critic_lr", [[0, 3e-4], [100, -1e-4]]),
    ("critic_lr", [[0, 3e-4], [100, math.inf]]),
    ("alpha_lr", [0, 3e-4]),
    *(("bc_weight", value) for value in (-0.1, "some", None, math.inf, [[0, 2.0]], [[0, 2.0], [100, -1.0]])),
    ("num_elites", True),
    ("max_dataset_rows", True),
    ("tau", 1.5),
    ("policy_tau", 1.5),
    ("gamma", 1.0),
    ("gamma", -0.1),
    ("gamma", "0.9"),
    ("actor_warmup_steps", -1),
    ("actor_warmup_steps", 1.5),
    ("data_fraction", 0.0),
    ("data_fraction", 1.5),
    ("data_fraction", "all"),
    ("real_ratio", 1.0),
    ("real_ratio", -0.1),
    ("real_ratio", "half"),
    ("label_smoothing", 0.5),
    ("label_smoothing", -0.1),
    ("label_smoothing", None),
    ("hidden_dims", ()),
    ("hidden_dims", 256),
    ("hidden_dims", (256, 0)),
    ("hidden_dims", (256, 12.5)),
    ("dynamics_hidden_dims", "200x4"),
    ("dynamics_weight_decay", 1e-4),
    ("dynamics_weight_decay", (1e-4, -1e-4, 1e-4, 1e-4, 1e-4)),
    ("target_entropy", "low"),
    ("target_entropy", None),
    ("target_entropy", math.nan),
    ("termination_fn", "hopper"),
    ("termination_fn", len),
    ("max_dataset_rows", 255),
    ("dynamics_path", "/nowhere.pt"),
    ("grad_clip", 0.0),
    ("grad_clip", "yes"),
    ("lr", 1e-3),
    ("actions_in_input_normalized", "yes"),
    ("actions_in_input_normalized", 1),
    ("input_read_schema", ["obs"]),
    ("input_read_schema", {"obs": 1}),
]


@pytest.mark.parametrize(("option", "value"), BAD_VALUES, ids=[f"{o}={v!r}" for o, v in BAD_VALUES])
def test_bad_value(option: str, value: Any) -> None:
    config = good()
    setattr(config, option, value)
    message = error_of(config)
    assert f"`{option}`" in message
    assert repr(value) in message


def test_a_model_config_without_a_module_of_ones_own_would_be_ignored() -> None:
    message = error_of(good().rl_module(model_config={"fcnet_hiddens": [64]}))
    assert "{'fcnet_hiddens': [64]}" in message
    assert "`hidden_dims`" in message
    message = error_of(good().training(model={"fcnet_hiddens": [64]}))
    assert "`.training(model={'fcnet_hiddens': [64]})`" in message
    assert "`hidden_dims`" in message
    spec = good().get_default_rl_module_spec()
    good().rl_module(rl_module_spec=spec, model_config={"fcnet_hiddens": [64]}).validate()


def test_every_runner_needs_a_start() -> None:
    message = error_of(good().training(rollout_batch_size=3).env_runners(num_env_runners=4))
    assert "`rollout_batch_size`" in message
    assert "num_env_runners=4" in message


def test_relative_places_become_absolute(tmp_path, monkeypatch) -> None:
    """A trial of Tune works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.parquet").touch()
    config = good().dynamics(dynamics_cache_dir="cache", dynamics_path=Path("model.pt"))
    assert config.dynamics_cache_dir == str(tmp_path / "cache")
    assert config.dynamics_path == str(tmp_path / "model.pt")
    for given in ("mine.parquet", Path("mine.parquet")):
        assert config.offline_data(input_=given).input_ == str(tmp_path / "mine.parquet")
    mixed = ["*.parquet", "hopper-medium", "minari://a/b-v0", "s3://bucket/x"]
    assert config.offline_data(input_=mixed).input_ == [str(tmp_path / "*.parquet"), *mixed[1:]]
    assert config.dynamics(dynamics_cache_dir=None).dynamics_cache_dir is None


def test_relative_places_of_a_dictionary_are_of_the_searchs_folder(tmp_path, monkeypatch) -> None:
    """Tune gives a trial whose `param_space` is no config a plain dictionary, in the trial's own folder."""
    (tmp_path / "trial").mkdir()
    (tmp_path / "mine.parquet").touch()
    monkeypatch.chdir(tmp_path / "trial")
    monkeypatch.setenv("TUNE_ORIG_WORKING_DIR", str(tmp_path))
    config = good().update_from_dict({"dynamics_cache_dir": "cache", "input_": ["mine.parquet", "hopper-medium"]})
    config.validate()
    assert config.dynamics_cache_dir == str(tmp_path / "cache")
    assert config.input_ == [str(tmp_path / "mine.parquet"), "hopper-medium"]


def test_minus_one_is_a_value_and_not_rllibs_mark_of_a_deprecated_option() -> None:
    """`build_algo` passes the state on."""
    config = DAMOConfig.from_state(good().training(target_entropy=-1, eta=-1.0).get_state())
    assert config.target_entropy == -1
    assert "`eta`" in error_of(config)
    assert "buffer_size" not in good().get_state()


def test_a_misspelt_option_is_told_with_the_near_ones() -> None:
    with pytest.raises(TypeError, match=r"no option 'rollout_len'. Did you mean 'rollout_length'"):
        DAMOConfig().training(rollout_len=3)


def test_another_environment_has_spaces_of_its_own() -> None:
    config = good().environment("Pendulum-v1", observation_space=None, action_space=None)
    config.validate()
    assert config.observation_space.shape == (3,)
    config.environment("MountainCarContinuous-v0").validate()
    assert config.observation_space.shape == (2,)
    given = gym.spaces.Box(-2, 2, (2,))
    config.environment("MountainCarContinuous-v0", observation_space=given)
    assert config.observation_space is given


def test_environments_of_ones_own_are_made_with_rllibs_context() -> None:
    def make(context: Any) -> gym.Env:
        assert context.worker_index == 0
        return gym.make("Pendulum-v1", g=context["g"])

    register_env("needs-context", make)
    for env in ("needs-context", make):
        config = good().environment(env, env_config={"g": 9.0}, observation_space=None, action_space=None)
        config.validate()
        assert config.observation_space.shape == (3,)


def test_a_learning_rate_may_be_a_schedule() -> None:
    good().training(actor_lr=[[0, 3e-4], [100_000, 0.0]], critic_lr=((0, 1e-3), (10, 1e-4), (20, 1e-5))).validate()


def test_the_anchor_may_be_a_schedule_but_not_in_cuda_graphs() -> None:
    config = good().training(bc_weight=[[0, 2.0], [100, 0.0]])
    config.validate()
    assert "bc_weight=[[0, 2.0]" in error_of(config.training(cuda_graphs=True).learners(num_gpus_per_learner=1))


def test_several_learners_need_a_gpu_each() -> None:
    message = error_of(good().learners(num_learners=2, num_gpus_per_learner=0.5))
    assert "`num_gpus_per_learner` must be 0 or a whole number" in message


def test_a_chi_squared_critic_is_refused_with_target_networks_alone() -> None:
    message = error_of(good().training(f_divergence="chi_squared"))
    assert "half_squared" in message
    assert "target_networks=False" in message
    good().training(f_divergence="chi_squared", target_networks=False).validate()
    good().training(f_divergence="chi_squared", behavior_alignment=False).validate()


def test_half_chi_squared_is_refused_with_its_reason() -> None:
    for option in ("f_divergence", "actor_f_divergence"):
        message = error_of(good().training(**{option: "half_chi_squared"}))
        assert "half_chi_squared" in message
        assert "KL" in message
        assert all(name in message for name in DIVERGENCES)


def unspecified(config: DAMOConfig) -> DAMOConfig:
    return config.environment(observation_space=None, action_space=None)


# Of wrong spaces two; `test_spaces.py` has the others.
BAD_CONFIGS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "no input": (lambda c: c.offline_data(input_=None), ("input_", "None", "hopper-medium")),
    "more elites than members": (
        lambda c: c.dynamics(num_ensemble=3, num_elites=5), ("`num_elites` (5)", "`num_ensemble` (3)"),
    ),
    "initial above greatest alpha": (
        lambda c: c.training(initial_alpha=2.0), ("`initial_alpha` (2.0)", "`max_alpha` (0.05)"),
    ),
    "too few weight decays": (
        lambda c: c.dynamics(dynamics_hidden_dims=(200, 200)), ("`dynamics_weight_decay`", "3 layers", "found 5"),
    ),
    "too many weight decays": (
        lambda c: c.dynamics(dynamics_weight_decay=(1e-4,) * 6), ("`dynamics_weight_decay`", "5 layers", "found 6"),
    ),
    "unknown environment": (lambda c: unspecified(c).environment("Hoper-v5"), ("env='Hoper-v5'",)),
    "unknown version": (lambda c: unspecified(c).environment("Pendulum-v99"), ("env='Pendulum-v99'",)),
    "unknown namespace": (lambda c: unspecified(c).environment("no_such_package:Hopper-v5"), ("no_such_package",)),
    "bad env_config": (
        lambda c: unspecified(c).environment("Pendulum-v1", env_config={"gravity": 9.8}), ("Pendulum-v1", "gravity"),
    ),
    "no spaces": (unspecified, ("config.environment(",)),
    "discrete actions": (lambda c: unspecified(c).environment("CartPole-v1"), ("Discrete(2)", "action")),
    "image observations": (
        lambda c: c.environment(observation_space=gym.spaces.Box(0, 1, (8, 8, 3))), ("observation", "(8, 8, 3)"),
    ),
    "evaluation without an environment": (
        lambda c: c.evaluation(evaluation_interval=5), ("environment", "evaluation_interval"),
    ),
    "several policies": (
        lambda c: c.multi_agent(policies={"a", "b"}, policy_mapping_fn=lambda agent, *a, **k: "a"), ("multi_agent",),
    ),
    "another framework": (lambda c: c.framework("tf2"), ("framework", "tf2")),
    "bfloat16 with options of the plain step alone": (
        lambda c: c.training(precision="bf16", target_networks=False, classifier_gradient_penalty=1.0),
        ("`precision`='bf16'", "target_networks=False", "classifier_gradient_penalty=1.0", "precision='fp32'"),
    ),
    "CUDA graphs without a GPU": (
        lambda c: c.training(cuda_graphs=True),
        ("`cuda_graphs`=True", "num_gpus_per_learner=1", "num_gpus_per_learner=0", "cuda_graphs=False"),
    ),
    "CUDA graphs for several learners and with options of the plain step alone": (
        lambda c: c.learners(num_learners=2, num_gpus_per_learner=1).training(cuda_graphs=True, target_networks=False),
        ("`cuda_graphs`=True", "target_networks=False", "num_learners=2", "cuda_graphs=False"),
    ),
    "overlapped rollouts without runners": (
        lambda c: c.training(overlap_rollouts=True), ("`overlap_rollouts`", "num_env_runners=0", "num_env_runners=1"),
    ),
    "a learning rate of RLlib's": (lambda c: c.training(lr=1e-3), ("`lr`", "0.001", "actor_lr")),
    "gradients clipped by value": (
        lambda c: c.training(grad_clip=1.0, grad_clip_by="value"), ("grad_clip_by", "'value'"),
    ),
    "an environment that is made already": (
        lambda c: unspecified(c).environment(gym.make("Pendulum-v1")), ("not an instance",),
    ),
    "an interval of a part": (
        lambda c: c.evaluation(evaluation_interval=2.5), ("`evaluation_interval`", "found 2.5"),
    ),
    "a negative interval": (lambda c: c.evaluation(evaluation_interval=-3), ("`evaluation_interval`", "found -3")),
    "an interval as text": (lambda c: c.evaluation(evaluation_interval="10"), ("`evaluation_interval`", "found '10'")),
    "an offline interval of a part": (
        lambda c: c.evaluation(offline_evaluation_interval=2.5), ("`offline_evaluation_interval`", "found 2.5"),
    ),
    "an unknown unit": (
        lambda c: c.evaluation(evaluation_duration_unit="steps"), ("`evaluation_duration_unit`", "found 'steps'"),
    ),
    "runners as text": (lambda c: c.env_runners(num_env_runners="2"), ("`num_env_runners`", "found '2'")),
    "negative runners": (lambda c: c.env_runners(num_env_runners=-1), ("`num_env_runners`", "found -1")),
    "evaluation runners as text": (
        lambda c: c.evaluation(evaluation_num_env_runners="1"), ("`evaluation_num_env_runners`", "found '1'"),
    ),
    "negative learners": (lambda c: c.learners(num_learners=-1), ("`num_learners`", "found -1")),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configuration(case: str) -> None:
    change, expected = BAD_CONFIGS[case]
    message = error_of(change(good()))
    for part in expected:
        assert part in message


def test_unknown_options_are_refused() -> None:
    for method in ("training", "dynamics", "offline_data"):
        with pytest.raises(TypeError, match="etta"):
            getattr(good(), method)(etta=1.0)


def test_an_option_changed_after_validate_still_counts() -> None:
    """What follows from other options is not frozen by the first look at the configuration."""
    config = good().training(actor_eta=None, eta=1.0)
    config.validate()
    config.training(eta=3.0)
    config.validate()
    assert (config.actor_eta or config.eta) == 3.0


def test_an_option_of_a_dictionary_that_no_algorithm_has_is_refused() -> None:
    """Tune's `param_space` may be one, which passes no method of the config."""
    config = good().update_from_dict({"etta": 2.0})
    message = error_of(config)
    assert "DAMOConfig has no option 'etta'" in message
    assert "'eta'" in message


def test_a_learner_of_another_kind_is_refused() -> None:
    message = error_of(good().training(learner_class=TD3BCTorchLearner))
    assert "`learner_class` must extend ModelBasedTorchLearner" in message


def test_an_environment_for_evaluation_alone_is_enough() -> None:
    overrides = {"env": "Pendulum-v1", "env_config": {"g": 9.0}}
    config = unspecified(good()).evaluation(evaluation_interval=5, evaluation_config=overrides)
    config.validate()
    assert config.observation_space.shape == (3,)
    assert config.env is None
    evaluating = config.get_evaluation_config_object()
    assert (evaluating.env, evaluating.env_config) == ("Pendulum-v1", {"g": 9.0})
    assert evaluating.observation_space is config.observation_space
