"""Baselines on DAMO's own parts: BC and TD3+BC, which need no model, and MOPO, which penalises the model's doubt.

They share DAMO's dataset store, learner, dynamics model, rollouts, evaluation and checkpoints, and differ in the update
alone: what one of them scores says whether the data, the model or the update is at fault.
"""

from __future__ import annotations

from rllib_damo.baselines.bc import BehaviorCloning, BehaviorCloningConfig
from rllib_damo.baselines.mopo import MOPO, MOPOConfig
from rllib_damo.baselines.td3bc import TD3BC, TD3BCConfig

__all__ = ["MOPO", "TD3BC", "BehaviorCloning", "BehaviorCloningConfig", "MOPOConfig", "TD3BCConfig"]
