"""What each `paper()` sets is what was published; the values are written out here, from its docstring's sources."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rllib_damo import ALGORITHMS

INF = float("inf")


def falling(lr: float, steps: int) -> list[Any]:
    """Half a cosine from ``lr`` to 0, at 21 points."""
    return [[k * steps // 20, pytest.approx(lr * (1 + math.cos(math.pi * k / 20)) / 2, abs=1e-12)] for k in range(21)]


#: The policy itself is played, on raw observations.
PLAIN: dict[str, Any] = {"policy_tau": 1.0, "normalize_observations": False}
NETS: dict[str, Any] = {"gamma": 0.99, "hidden_dims": (256, 256), "train_batch_size_per_learner": 256}
CRITICS: dict[str, Any] = {**NETS, "critic_lr": 3e-4, "tau": 0.005, "twin_q": True, "critic_layer_norm": False}
#: OfflineRL-Kit's SAC in a model.
KIT: dict[str, Any] = {
    **CRITICS, **PLAIN, "alpha_lr": 1e-4, "initial_alpha": 1.0, "max_alpha": 1.0, "target_entropy": "auto",
    "real_ratio": 0.05, "rollout_batch_size": 50_000, "rollout_freq": 1000, "model_retain_epochs": 5,
    "num_ensemble": 7, "num_elites": 5, "dynamics_hidden_dims": (200,) * 4, "dynamics_lr": 1e-3,
    "dynamics_weight_decay": (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4), "dynamics_batch_size": 256,
    "max_epochs_since_update": 5, "dynamics_max_epochs": None, "logvar_loss_coef": 0.01,
}  # fmt: skip

#: Algorithm -> its published options, those that the package has as defaults, too; per-task ones apart.
PUBLISHED: dict[str, dict[str, Any]] = {
    "DAMO": {
        **KIT, "actor_lr": falling(1e-4, 3_000_000), "actor_eta": 1.0, "f_divergence": "half_squared",
        "actor_f_divergence": "half_squared", "max_actor_weight": INF, "policy_improvement": "consistent",
        "initial_states": "dataset", "target_networks": True, "bc_weight": 0.0, "data_fraction": 1.0,
    },
    "MOPO": {**KIT, "actor_lr": falling(1e-4, 3_000_000), "uncertainty": "aleatoric"},
    "MOBILE": {
        **KIT, "actor_lr": falling(1e-4, 3_000_000), "num_samples": 10, "min_target": 0.0, "deterministic_backup": True,
        "dynamics_max_epochs": 30,
    },
    "COMBO": {
        **KIT, "actor_lr": falling(1e-4, 1_000_000), "hidden_dims": (256, 256, 256), "real_ratio": 0.5,
        "max_alpha": INF, "num_actions": 10, "logsumexp_over": "triples", "rho_s": "mix", "deterministic_backup": True,
    },
    "RAMBO": {
        **KIT, "actor_lr": 1e-4, "real_ratio": 0.5, "max_alpha": INF, "normalize_observations": True,
        "adversarial_steps": 1000, "adversary_lr": 3e-4, "cloning_lr": 1e-4, "cloning_steps": 195_313,
        "dynamics_lr": 3e-4, "max_epochs_since_update": 10, "logvar_loss_coef": 0.001,
    },
    "TD3BC": {
        **CRITICS, "policy_tau": 1.0, "normalize_observations": True, "actor_lr": 3e-4, "bc_alpha": 2.5,
        "policy_noise": 0.2, "noise_clip": 0.5, "policy_delay": 2,
    },
    "ReBRAC": {
        **CRITICS, **PLAIN, "hidden_dims": (256, 256, 256), "train_batch_size_per_learner": 1024, "actor_lr": 1e-3,
        "critic_lr": 1e-3, "critic_layer_norm": True, "normalize_q": True, "policy_noise": 0.2, "noise_clip": 0.5,
        "policy_delay": 2,
    },
    "OfflineIQL": {
        **CRITICS, **PLAIN, "actor_lr": falling(3e-4, 1_000_000), "value_lr": 3e-4, "expectile": 0.7, "beta": 3.0,
        "max_weight": 100.0, "reward_scale": "return_range",
    },
    "ODICE": {
        **NETS, **PLAIN, "actor_hidden_dims": (1024, 1024), "actor_lr": 2e-4, "value_lr": 2e-4, "tau": 0.005,
        "value_layer_norm": True, "actor_weight_decay": 1e-4, "lambda_": 0.6, "eta": 1.0, "max_weight": 100.0,
        "policy_weights": "residual", "reward_scale": "return_range",
    },
    "AlgaeDICE": {
        **CRITICS, **PLAIN, "actor_lr": 1e-3, "critic_lr": 1e-3, "alpha_lr": 1e-3, "initial_alpha": 1.0,
        "max_alpha": INF, "target_entropy": "auto", "residual_gradient": 0.05, "policy_delay": 2, "f_power": 1.5,
        "eta": pytest.approx(0.01**2),  # their α is η^(p-1)
    },
    "OptiDICE": {
        **NETS, "policy_tau": 1.0, "normalize_observations": True, "train_batch_size_per_learner": 512,
        "actor_lr": 3e-4, "value_lr": 3e-4, "advantage_lr": 3e-4, "divergence_coef": 1.0, "reward_scale": "std",
        "f_divergence": "soft_chi_squared", "advantage_loss": "minimax", "actor_warmup_steps": 500_000,
    },
}  # fmt: skip


def config_class(name: str) -> Any:
    return type(ALGORITHMS[name].get_default_config())


def test_every_algorithm_with_published_settings_is_in_the_table() -> None:
    own = [name for name, algorithm in ALGORITHMS.items() if algorithm.__module__.startswith("rllib_damo.")]
    assert sorted(PUBLISHED) == sorted(name for name in own if hasattr(config_class(name), "paper"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_those_of_the_table(name: str) -> None:
    config = config_class(name).paper()
    assert {option: getattr(config, option) for option in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_change_nothing_beside_the_table(name: str) -> None:
    config, default = config_class(name).paper(), vars(config_class(name)())
    changed = {option.removeprefix("_") for option, value in vars(config).items() if value != default[option]}
    assert changed <= PUBLISHED[name].keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_valid(name: str) -> None:
    config_class(name).paper().environment("Hopper-v5").offline_data(input_="hopper-medium").validate()


@pytest.mark.parametrize(
    ("name", "argument", "option", "value"),
    [
        ("DAMO", "num_steps", "actor_lr", falling(1e-4, 4000)),
        ("MOPO", "num_steps", "actor_lr", falling(1e-4, 4000)),
        ("MOBILE", "num_steps", "actor_lr", falling(1e-4, 4000)),
        ("COMBO", "num_steps", "actor_lr", falling(1e-4, 4000)),
        ("OfflineIQL", "num_steps", "actor_lr", falling(3e-4, 4000)),
        ("OptiDICE", "num_steps", "actor_warmup_steps", 666),
        ("RAMBO", "num_rows", "cloning_steps", 782),  # 50 passes of 4000 rows, 256 at a time
    ],
)
def test_schedules_are_as_long_as_the_run(name: str, argument: str, option: str, value: Any) -> None:
    assert getattr(config_class(name).paper(**{argument: 4000}), option) == value


# -- long rollouts -----------------------------------------------------------------------------------------------------

MODEL_BASED = ("DAMO", "MOPO", "MOBILE", "COMBO", "RAMBO")


@pytest.mark.parametrize("name", MODEL_BASED)
def test_settings_of_long_rollouts_are_valid_and_the_same_for_all(name: str) -> None:
    config = config_class(name).long_rollouts().environment("Hopper-v5").offline_data(input_="hopper-medium")
    config.validate()
    expected = {
        "rollout_length": 200, "rollout_batch_size": 500, "rollout_margin": 0.1, "episode_start_ratio": 0.5,
        "policy_tau": 2e-5, "policy_check_freq": 5000, "data_fraction": 1, "real_ratio": 0.5, "tau": 0.02,
        "critic_layer_norm": True, "actor_lr": 3e-4, "critic_lr": 3e-4, "alpha_lr": 3e-4, "initial_alpha": 0.1,
        "max_alpha": 1, "dynamics_max_epochs": 20,
    }  # fmt: skip
    assert {option: getattr(config, option) for option in expected} == expected


def test_settings_of_long_rollouts_are_without_an_anchor_for_damo() -> None:
    config, default = config_class("DAMO").long_rollouts(), config_class("DAMO")()
    shared = vars(config_class("MOPO").long_rollouts())
    own = {o for o, value in vars(config).items() if value != getattr(default, o) and value != shared.get(o)}
    assert own == {"bc_weight", "f_divergence", "actor_f_divergence", "logit_bonus", "terminal_alignment"}
    assert (config.bc_weight, config.f_divergence, config.actor_f_divergence) == (0, "power", "power")
    assert (config.logit_bonus, config.terminal_alignment, config.eta, config.actor_eta) == (False, True, 1, 1)


def test_only_model_based_algorithms_have_long_rollouts() -> None:
    own = [name for name, algorithm in ALGORITHMS.items() if algorithm.__module__.startswith("rllib_damo.")]
    assert sorted(MODEL_BASED) == sorted(name for name in own if hasattr(config_class(name), "long_rollouts"))
