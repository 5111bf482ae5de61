"""An algorithm from outside of the package is one file: registered, it trains by Python and by the command."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune.registry import get_trainable_cls

from rllib_damo import ALGORITHMS
from rllib_damo.command import rllib
from rllib_damo.command.report import OK

SMALL = {"hidden_dims": (8,), "rollout_freq": 10, "train_batch_size_per_learner": 16, "action_noise": 0.3}


@pytest.fixture
def toy() -> Iterator[Any]:
    """The module, imported for a test and forgotten after it: other tests take all algorithms that are registered."""
    from tests import toy_algorithm

    ALGORITHMS["Toy"] = toy_algorithm.Toy
    yield toy_algorithm
    del ALGORITHMS["Toy"]


def test_its_option_has_a_check(toy: Any) -> None:
    config = toy.ToyConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed")
    assert config.action_noise == 0.1
    with pytest.raises(ValueError, match=r"`action_noise` must be a finite number >= 0; found -1.0"):
        config.training(action_noise=-1.0).validate()
    with pytest.raises(TypeError, match=r"`ToyConfig.training\(\)` has no option 'eta'"):
        config.training(eta=1.0)


def test_trains_by_python_and_by_the_command(toy: Any, dataset: str, tmp_path: Path) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert get_trainable_cls("Toy") is toy.Toy
        config = toy.ToyConfig().environment("Pendulum-v1").offline_data(input_=dataset).training(**SMALL)
        algo = config.evaluation(evaluation_interval=1, evaluation_duration=1).build_algo()
        result = algo.train()
        algo.stop()
        assert math.isfinite(result["learners"]["default_policy"]["toy_loss"])
        assert math.isfinite(result["evaluation"]["env_runners"]["episode_return_mean"])

        options = {**SMALL, "input_": dataset, "evaluation_interval": 1, "evaluation_duration": 1}
        assert rllib.invoke([
            "train", "--algo", "Toy", "--env", "Pendulum-v1", "--config", json.dumps(options),
            "--stop", '{"training_iteration": 1}', "--storage-path", str(tmp_path),
        ]) == OK  # fmt: skip
    finally:
        ray.shutdown()
    (results,) = tmp_path.rglob("result.json")
    last = json.loads(results.read_text().splitlines()[-1])
    assert math.isfinite(last["learners"]["default_policy"]["toy_loss"])
    assert last["config"]["action_noise"] == 0.3
