"""The dynamics model within a run: its cache, which runs share, and what can go wrong with it."""

from __future__ import annotations

import errno
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from ray.tune.registry import register_env

from rllib_damo import DAMO
from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.dynamics import DynamicsEnsemble, cache
from rllib_damo.dynamics import trained_model as component
from rllib_damo.errors import UserError
from tests.data_helpers import make_transitions
from tests.small_runs import train_policy

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_second_run_takes_the_model_from_the_cache(config):
    """And says as the first one how large the model's error is."""
    algo = config.build_algo()
    assert "model_error" not in algo.train()
    error = algo.train()["model_error"]  # the last epoch
    assert train_policy(algo, 1)["model_error"] == error
    assert error["20"]["error"] > error["1"]["error"] > 0
    algo.stop()
    algo = config.copy(copy_frozen=False).training(eta=0.5).build_algo()
    result = algo.train()
    assert result["phase"] == "policy"
    assert result["model_error"] == error
    algo.stop()


def test_interrupted_dynamics_training_resumes(config, tmp_path):
    config.dynamics(dynamics_max_epochs=3, dynamics_cache_dir=str(tmp_path / "a"))
    algo = config.build_algo()
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    restored = DAMO.from_checkpoint(path)
    assert restored.train()["dynamics"]["epoch"] == 2
    restored.stop()


def test_a_rule_that_fails_is_told_when_the_algorithm_is_built(config):
    config.dynamics(termination_fn=lambda obs, actions, next_obs: next_obs[:, 3] > 0)
    with pytest.raises(ValueError, match=r"`termination_fn` failed on .*pendulum\.parquet \(IndexError"):
        config.build_algo()


def test_a_rule_at_odds_with_the_data_is_warned_of(config, caplog):
    config.dynamics(termination_fn=lambda obs, actions, next_obs: next_obs[:, 0] < 2).build_algo().stop()
    assert any("the termination rule ends at 256, first row" in message for message in caplog.messages)


def test_too_few_rows_are_told_when_the_algorithm_is_built(config, tmp_path):
    few = make_transitions([9])
    path = write_parquet(replace(few, actions=few.actions[:, :1]), tmp_path / "few.parquet")
    with pytest.raises(ValueError, match=r"few\.parquet: .*needs 10 transitions.*, and 9 of 9 have them.*input_="):
        config.offline_data(input_=str(path)).build_algo()


def test_a_run_waits_for_anothers_model(config, tmp_path, monkeypatch, caplog):
    """In one iteration, whatever it lasts, and in whichever thread: as many iterations as where the model was there."""
    monkeypatch.setattr(component, "WAIT_SECONDS", 0.05)
    config.dynamics(dynamics_cache_dir=str(tmp_path)).evaluation(evaluation_interval=None)
    first, second = config.build_algo(), config.copy(copy_frozen=False).build_algo()
    first.train()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(second.train)
        time.sleep(0.3)
        assert not waiting.done()
        with ThreadPoolExecutor(1) as other:
            other.submit(first.train).result()
        result = waiting.result()
    assert result["phase"] == "dynamics"
    assert result["dynamics"]["waited_seconds"] > 0.2
    assert f"(lock {second.dynamics.path}.lock)" in caplog.text
    assert second.train()["phase"] == "policy"
    first.stop()
    second.stop()


def test_a_cache_may_be_emptied_while_a_run_goes_on(config, tmp_path):
    algo = config.dynamics(dynamics_cache_dir=str(tmp_path / "cache")).build_algo()
    train_policy(algo, 1)
    algo.dynamics.path.unlink()
    path = algo.save_to_path(tmp_path / "checkpoint")
    assert algo.train()["phase"] == "policy"
    assert algo.dynamics.path.exists()
    algo.stop()
    restored = DAMO.from_checkpoint(path)
    assert restored.train()["phase"] == "policy"
    restored.stop()


def test_a_damaged_file_in_the_cache_is_trained_anew(config, tmp_path, caplog, monkeypatch):
    config.dynamics(dynamics_cache_dir=str(tmp_path)).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    train_policy(algo, 1)
    path = algo.dynamics.path
    algo.stop()
    path.write_bytes(path.read_bytes()[:1000])
    unlink = Path.unlink

    def refuse(self, missing_ok=False):
        if self == path:
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(ValueError, match=r"can't be removed \(Read-only file system"):
            config.copy(copy_frozen=False).build_algo()
    again = config.copy(copy_frozen=False).build_algo()
    assert "is damaged" in caplog.text
    assert "trained again" in caplog.text
    assert again.train()["phase"] == "dynamics"
    again.stop()


def test_a_damaged_file_in_the_cache_is_repaired_from_a_checkpoint(config, tmp_path, caplog):
    config.dynamics(dynamics_cache_dir=str(tmp_path / "cache")).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    train_policy(algo, 1)
    checkpoint, file = algo.save_to_path(tmp_path / "checkpoint"), algo.dynamics.path
    algo.stop()
    good = file.read_bytes()
    file.write_bytes(good[:2000] + b"?" + good[2001:])
    restored = DAMO.from_checkpoint(checkpoint)
    assert f"{file} is damaged" in caplog.text
    assert "A checkpoint that is restored brings its own copy" in caplog.text
    assert restored.dynamics.path == file
    assert file.read_bytes() == good
    assert restored.train()["phase"] == "policy"
    restored.stop()


def test_a_copy_by_content_that_was_damaged_is_written_again(tmp_path):
    content = Path(DynamicsEnsemble(3, 1, hidden_dims=(4,)).save(tmp_path / "model.pt")).read_bytes()
    copy = cache.write(content, tmp_path)
    copy.write_bytes(b"damaged")
    assert cache.write(content, tmp_path) == copy
    assert copy.read_bytes() == content


@pytest.mark.parametrize("members", [[0, 1, 2], [1]], ids=["all", "one"])
def test_a_model_whose_predictions_are_not_finite(members, config, tmp_path, caplog):
    model = DynamicsEnsemble(3, 1, hidden_dims=(8,), num_ensemble=3, num_elites=2)
    with torch.no_grad():
        model.weights[0][members] = torch.nan
    config.dynamics(dynamics_path=model.save(tmp_path / "model.pt")).evaluation(evaluation_interval=None)
    if len(members) > 1:
        with pytest.raises(UserError, match=r"model\.pt: no prediction of this dynamics model is finite.*Delete it"):
            config.build_algo()
        return
    algo = config.build_algo()
    assert train_policy(algo, 2)["env_runners"]["rollout"]["num_transitions"] < 200
    algo.stop()
    warnings = [message for message in caplog.messages if "not finite" in message]
    assert len(warnings) == 1
    assert "1 of 2 elites of this dynamics model" in warnings[0]
    assert "(member 1 in 100% of 1000 rows of the dataset" in warnings[0]


def test_a_round_without_a_finite_prediction_names_the_model(config, tmp_path):
    algo = config.evaluation(evaluation_interval=None).build_algo()
    train_policy(algo, 1)
    with torch.no_grad():
        for weight in algo.env_runner._dynamics.weights:
            weight.fill_(torch.inf)
    with pytest.raises(RuntimeError, match=r"No prediction of the dynamics model .*\.pt is finite.*dynamics_lr"):
        algo.train()
    algo.stop()


def test_a_model_that_cannot_be_written_is_not_lost(config, tmp_path, monkeypatch):
    algo = config.dynamics(dynamics_cache_dir=str(tmp_path)).evaluation(evaluation_interval=None).build_algo()
    algo.train()
    with monkeypatch.context() as patch:
        patch.setattr(DynamicsEnsemble, "save", _full_disk)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"can't be written to .*dynamics-.*No space left.*dynamics_cache_dir"):
                algo.train()
    assert algo.train()["phase"] == "dynamics"
    assert algo.dynamics.path.exists()
    assert algo.train()["phase"] == "policy"
    algo.stop()


def _full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_model_trained_in_bfloat16_is_another_one(config, tmp_path):
    """Not the one that float32 has left in the cache; near it, and as the cache's to whoever asks for it again."""
    losses = []
    for precision in ("fp32", "bf16"):
        config = config.copy(copy_frozen=False)
        config.dynamics(dynamics_cache_dir=str(tmp_path), dynamics_precision=precision)
        algo = config.build_algo()
        losses.append(algo.train()["dynamics"]["train_loss"])
        train_policy(algo, 1)
        algo.stop()
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)
    algo = config.build_algo()
    assert algo.train()["phase"] == "policy"
    algo.stop()


def test_a_model_without_terminations_is_refused_where_they_are_needed(config, tmp_path):
    path = DynamicsEnsemble(3, 1, hidden_dims=(4,)).save(tmp_path / "model.pt")
    register_env("no-known-rule", lambda context: gym.make("Pendulum-v1"))
    config.environment("no-known-rule").dynamics(dynamics_path=path)
    with pytest.raises(ValueError, match=r"dynamics_path.*no-known-rule.*termination_fn"):
        config.build_algo()
