"""What a checkpoint does not hold or does not fit: data in memory, more runners than CPUs, other options."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pyarrow import fs
from ray.tune import Checkpoint

from rllib_damo import (
    TD3BC,
    BehaviorCloning,
    BehaviorCloningConfig,
    TD3BCConfig,
    Transitions,
    export_policy,
    load_policy,
)
from rllib_damo.core.resources import check_actors
from rllib_damo.core.sealed_checkpoints import stored_config
from rllib_damo.data.generate import datasets
from rllib_damo.data.in_memory import InMemory
from rllib_damo.deploy.numpy_policy import NumpyPolicy
from rllib_damo.evaluation.checkpoints import CONSTRUCTOR, load_config
from rllib_damo.evaluation.play import evaluated_env, play
from tests.small_runs import make_small, module_state

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def data() -> Transitions:
    return datasets.generate("pendulum-mixed", 20_000, seed=0)


@pytest.fixture(scope="module")
def checkpoint(data: Transitions, ray_cluster: None, tmp_path_factory: Any) -> Path:
    """Of a run on data in memory, whose environment is the evaluation's alone; with the parameters an iteration later.

    The folder's neighbours, "later.npz", are these.
    """
    config = make_small(BehaviorCloningConfig(), data, "").environment(env=None)
    config.evaluation(evaluation_config={"env": "Pendulum-v1", "env_config": {"g": 9.0}})
    algo = config.build_algo()
    result = algo.train()
    assert result["evaluation"]["env_runners"]["num_episodes"] == 1
    assert algo.config.input_.transitions is data
    path = algo.save_to_path(tmp_path_factory.mktemp("in_memory") / "checkpoint")
    algo.train()
    np.savez(Path(path).parent / "later.npz", **module_state(algo))
    algo.stop()
    return Path(path)


# -- data in memory --------------------------------------------------------------------------------------------------


def test_data_in_memory_is_not_in_the_checkpoint(checkpoint: Path, data: Transitions) -> None:
    assert sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()) < data.nbytes / 4


def test_data_in_memory_is_asked_for(checkpoint: Path, data: Transitions) -> None:
    with pytest.raises(ValueError, match="`input_` must be a dataset") as caught:
        BehaviorCloning.from_checkpoint(checkpoint)
    assert f"Transitions {data.name!r} of 20,000 rows in memory" in str(caught.value)
    assert "give them to `from_checkpoint(path, input_=transitions)`" in str(caught.value)


def test_other_data_than_trained_on_are_said(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = datasets.generate("pendulum-mixed", 1000, seed=1)
    algo = BehaviorCloning.from_checkpoint(checkpoint, input_=other)
    algo.stop()
    assert "is not the data that" in caplog.text
    assert "networks and optimisers go on from it, and rollouts start anew" in caplog.text


@pytest.mark.parametrize("given", ["a path", "a relative path", "Tune's Checkpoint"])
def test_with_the_data_it_goes_on_exactly(
    given: str, checkpoint: Path, data: Transitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent.parent)
    relative = f"{checkpoint.parent.name}/{checkpoint.name}"
    place: Any = {"a path": checkpoint, "a relative path": relative}.get(given, Checkpoint(str(checkpoint)))
    restored = BehaviorCloning.from_checkpoint(place, input_=data)
    restored.train()
    restored.save_to_path("saved/again")
    continued = module_state(restored)
    restored.stop()
    assert Path("saved/again/manifest.json").is_file()
    with np.load(checkpoint.parent / "later.npz") as later:
        for name, value in continued.items():
            np.testing.assert_array_equal(value, later[name], err_msg=name)


def test_playing_needs_no_data(checkpoint: Path) -> None:
    assert load_policy(checkpoint)(np.zeros(3)).shape == (1,)
    assert evaluated_env(load_config(checkpoint)) == "Pendulum-v1"
    assert len(play(checkpoint, episodes=1, seed=0)) == 1


def test_a_config_that_was_read_makes_an_algorithm_as_tune_passes_it(checkpoint: Path) -> None:
    """`rllib train --from CHECKPOINT` does so: a "class" among its options would make RLlib take it for a state."""
    passed = load_config(checkpoint).to_dict()
    assert passed["input"]
    assert "class" not in passed


def test_an_export_names_the_environment_of_the_evaluation(checkpoint: Path, tmp_path: Path) -> None:
    file = export_policy(checkpoint, tmp_path / "policy.npz")
    assert NumpyPolicy(str(file)).metadata["environment"] == "Pendulum-v1"


def test_data_in_memory_is_neither_copied_nor_sent(data: Transitions) -> None:
    config = BehaviorCloningConfig().offline_data(input_=InMemory(data))
    assert config.copy().input_.transitions is data
    sent = pickle.dumps(config.input_)
    assert len(sent) < 1000
    assert pickle.loads(sent).transitions is None
    assert BehaviorCloningConfig().offline_data(input_=data).copy().input_ is data


# -- other options ---------------------------------------------------------------------------------------------------


def test_options_may_be_given_anew(checkpoint: Path, data: Transitions) -> None:
    restored = BehaviorCloning.from_checkpoint(checkpoint, input_=data, evaluation_interval=7)
    assert restored.config.evaluation_interval == 7
    restored.stop()
    with pytest.raises(TypeError, match=r"no option 'evaluation_intervall'. Did you mean"):
        BehaviorCloning.from_checkpoint(checkpoint, evaluation_intervall=7)


def test_an_option_may_be_newer_than_the_checkpoint(tmp_path: Path) -> None:
    state = {name: value for name, value in TD3BCConfig().get_state().items() if name != "precision"}
    stored = {"class": TD3BC, "ctor_args_and_kwargs": ((state,), {})}
    (tmp_path / CONSTRUCTOR).write_bytes(pickle.dumps(stored))
    config = stored_config(str(tmp_path), fs.LocalFileSystem(), {"precision": "bf16"})
    assert config == {**state, "precision": "bf16"}
    with pytest.raises(TypeError, match=r"no option 'precisions'. Did you mean 'precision'"):
        stored_config(str(tmp_path), fs.LocalFileSystem(), {"precisions": "bf16"})


def test_more_runners_than_cpus_are_refused(
    checkpoint: Path, data: Transitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        pytest.fail("Runners are waited for.")

    monkeypatch.setattr("ray.rllib.algorithms.algorithm.EnvRunnerGroup", fail)
    with pytest.raises(ValueError, match="ask for 5 CPU") as caught:
        BehaviorCloning.from_checkpoint(checkpoint, input_=data, evaluation_num_env_runners=5)
    message = str(caught.value)
    assert "evaluation_num_env_runners=5" in message
    assert "Ray has 2" in message
    assert "`BehaviorCloning.from_checkpoint(path, num_env_runners=0)`" in message


def test_runners_that_others_leave_no_room_for_are_told(
    data: Transitions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_small(BehaviorCloningConfig(), data, "").evaluation(evaluation_num_env_runners=1)
    check_actors(BehaviorCloning, config)
    assert not caplog.text
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.5})
    check_actors(BehaviorCloning, config)
    assert "ask for 1 CPU, of which 0.5 are free" in caplog.text
