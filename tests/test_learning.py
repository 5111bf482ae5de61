"""Learning runs of minutes: `pytest -m slow tests/test_learning.py`. Last figures: benchmarks/RESULTS.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import ray

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import pendulum

EXAMPLES = Path(__file__).parent.parent / "tuned_examples"


def load_config(name: str):
    """The ``config`` of a tuned example."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.config


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pendulum_is_solved_from_mixed_data(seed: int):
    """Mean return >= -200 over the last two evaluations, of data whose own mean is below -500."""
    config = load_config("damo_pendulum").debugging(seed=seed)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        algo = config.build_algo()
        assert algo.offline_data.transitions.episode_returns().mean() < -500
        evaluations, steps = [], 0
        while steps < 10_000:
            result = algo.train()
            steps = result.get("num_gradient_steps_lifetime", 0)
            value = result.get("evaluation", {}).get("env_runners", {}).get("episode_return_mean")
            if value is not None:
                evaluations.append(value)
        algo.stop()
    finally:
        ray.shutdown()
    print(f"seed {seed}: {np.round(evaluations, 1).tolist()}")
    assert np.mean(evaluations[-2:]) >= -200, evaluations


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MOPO", "MOBILE", "COMBO", "RAMBO", "AlgaeDICE"])
def test_sac_based_methods_solve_pendulum(name: str):
    """Return >= -200 after 10,000 steps."""
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        returns = pendulum.run(name, {}, seed=0)["returns"]
    finally:
        ray.shutdown()
    assert returns[pendulum.STEPS] >= -200, returns
