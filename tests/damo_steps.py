"""Small modules, batches and options for the tests of DAMO's gradient step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from rllib_damo import DAMOConfig
from rllib_damo.core.update import DatasetFacts, StepBatch
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.utils.batch import Batch

OBS, ACT, ROWS, STARTS = 3, 2, 12, 8
SEED = 7
FACTS = DatasetFacts(reward_size=0.3)

#: Options under which steps differ.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "chi_squared critic": {"f_divergence": "chi_squared"},
    "half_squared actor": {"actor_f_divergence": "half_squared"},
    "bounded weight": {"actor_f_divergence": "half_squared", "actor_eta": 0.1},
    "unbounded weight": {"actor_f_divergence": "half_squared", "actor_eta": 0.1, "max_actor_weight": float("inf")},
    "tight weight": {"max_actor_weight": 0.8},
    "without data alignment": {"data_alignment": False},
    "without behavior alignment": {"behavior_alignment": False, "policy_improvement": "inconsistent"},
    "inconsistent": {"policy_improvement": "inconsistent"},
    "full gradient": {"target_networks": False},
    "full gradient chi_squared": {"target_networks": False, "f_divergence": "chi_squared"},
    "full gradient inconsistent": {"target_networks": False, "policy_improvement": "inconsistent"},
    "anchor": {"bc_weight": 0.4},
    "anchor inconsistent": {"bc_weight": 0.4, "policy_improvement": "inconsistent"},
    "warm-up": {"bc_weight": 0.4, "actor_warmup_steps": 1},
    "warm-up inconsistent": {"bc_weight": 0.4, "actor_warmup_steps": 1, "policy_improvement": "inconsistent"},
    "clipped logit": {"max_logit": 0.01},
    "no bonus": {"logit_bonus": False},
    "terminal alignment": {"terminal_alignment": True},
    "terminal alignment full gradient": {"terminal_alignment": True, "target_networks": False},
    "terminal alignment full gradient chi_squared": {
        "terminal_alignment": True, "target_networks": False, "f_divergence": "chi_squared",
    },
    "terminal alignment without data alignment": {
        "terminal_alignment": True, "target_networks": False, "data_alignment": False,
    },
    "terminal alignment of plain TD": {
        "terminal_alignment": True, "behavior_alignment": False, "policy_improvement": "inconsistent",
    },
    "no smoothing": {"label_smoothing": 0.0},
    "neither alignment": {"data_alignment": False, "behavior_alignment": False, "policy_improvement": "inconsistent"},
}  # fmt: skip


def make_config(**options: Any) -> DAMOConfig:
    """No anchor, and numbers that differ from each other; not validated."""
    config = DAMOConfig().training(
        eta=0.7, actor_eta=1.3, gamma=0.9, tau=0.1, bc_weight=0.0, actor_warmup_steps=0, target_entropy=-2.0,
        max_alpha=1.0,
    )  # fmt: skip
    return config.training(**options)


def make_module(twin_q: bool = True, **model_config: Any) -> DAMOTorchRLModule:
    torch.manual_seed(0)
    module = DAMOTorchRLModule(
        observation_space=gym.spaces.Box(-1, 1, (OBS,)),
        action_space=gym.spaces.Box(-1, 1, (ACT,)),
        inference_only=False,
        model_config={
            "hidden_dims": (16, 16),
            "twin_q": twin_q,
            "critic_layer_norm": False,
            "classifier_spectral_norm": False,
            "initial_alpha": 0.3,
        }
        | model_config,
    ).double()
    with torch.no_grad():  # targets that differ from the critics, or nothing would tell the two apart
        for p in module.target_critics.parameters():
            p += 0.1 * torch.randn(p.shape)
    module.fit_standardizers(shifted(make_batch(seed=9, num=64)["update"]))
    return module


def shifted(rows: Batch) -> Batch:
    """Rows by whose statistics standardising is not the identity."""
    scale, shift = torch.tensor([0.7, 1.5, 2.0]), torch.tensor([0.4, -0.3, 1.0])
    return rows._replace(
        obs=scale * rows.obs + shift, actions=0.5 * rows.actions + 0.2, next_obs=scale * rows.next_obs + shift + 0.1
    )


def make_batch(seed: int = 1, num: int = ROWS, num_starts: int = STARTS) -> StepBatch:
    generator = torch.Generator().manual_seed(seed)

    def rows(num: int, shift: float = 0.0) -> Batch:
        obs = torch.randn(num, OBS, generator=generator, dtype=torch.float64)
        return Batch(
            obs=obs,
            actions=torch.rand(num, ACT, generator=generator, dtype=torch.float64) * 2 - 1,
            next_obs=obs + shift + 0.1 * torch.randn(num, OBS, generator=generator, dtype=torch.float64),
            rewards=torch.randn(num, generator=generator, dtype=torch.float64),
            terminated=(torch.arange(num) % 4 == 0).double(),
        )

    return StepBatch(
        {
            "update": rows(num), "initial": rows(num_starts), "classifier_offline": rows(num),
            "classifier_synthetic": rows(num, 0.5),
        }
    )  # fmt: skip


def convert(batch: StepBatch, function: Callable[[Tensor], Tensor]) -> StepBatch:
    return StepBatch({name: Batch(*map(function, rows)) for name, rows in batch.items()})


def first_rows(batch: StepBatch, update: int, initial: int, classifier: int) -> StepBatch:
    """So many rows of each group."""
    sizes = {
        "update": update, "initial": initial, "classifier_offline": classifier, "classifier_synthetic": classifier,
    }  # fmt: skip
    return StepBatch({name: Batch(*(column[: sizes[name]] for column in rows)) for name, rows in batch.items()})
