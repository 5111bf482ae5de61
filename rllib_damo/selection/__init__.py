"""Choosing a policy without a simulator: `select` compares trained policies by their dataset alone."""

from rllib_damo.selection.result import Judged, Selection
from rllib_damo.selection.run import select

__all__ = ["Judged", "Selection", "select"]
