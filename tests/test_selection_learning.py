"""Does a selection rank? `pytest -m slow tests/test_selection_learning.py`. Other pools: benchmarks/RESULTS.md."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from selection import controllers, played, spearman

from rllib_damo.data.generate import datasets
from rllib_damo.selection import select


@pytest.mark.slow
def test_fourteen_controllers_are_put_in_order() -> None:
    acts = controllers()
    found = select(acts, datasets.generate("pendulum-mixed", 30_000, seed=0), env="Pendulum-v1", steps=4_500)
    rows = {one.name: one for one in found.table}
    real = np.array([played(act, "Pendulum-v1", 20).mean() for act in acts.values()])
    assert spearman(np.array([rows[name].value for name in acts]), real) >= 0.8
    assert spearman(np.array([rows[name].score for name in acts]), real) >= 0.8
