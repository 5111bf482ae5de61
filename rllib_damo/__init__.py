"""DAMO, Dual Alignment Maximin Optimization for offline model-based RL (arXiv 2502.00850), as an RLlib plugin.

Importing the package registers the trainable "DAMO" with Ray Tune.
"""

from __future__ import annotations

from ray.tune.registry import register_trainable

from rllib_damo.algorithm import DAMO
from rllib_damo.config import DAMOConfig

__version__ = "0.1.0"
__all__ = ["DAMO", "DAMOConfig", "register"]


def register() -> None:
    """Registers the trainable "DAMO"; done on import, and needed again after ``ray.shutdown()``, which forgets it."""
    register_trainable("DAMO", DAMO)


register()
