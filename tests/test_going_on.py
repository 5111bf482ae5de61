"""Going on from a checkpoint with other data (`start_from`)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from rllib_damo import (
    DAMO,
    RAMBO,
    DAMOConfig,
    MOPOConfig,
    OfflineIQL,
    OfflineIQLConfig,
    RAMBOConfig,
    TD3BCConfig,
    load_policy,
)  # fmt: skip
from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.going_on import Start
from rllib_damo.core.policy_checks import NUM_STARTS
from rllib_damo.dynamics import DynamicsEnsemble
from rllib_damo.errors import CheckpointError, UserError
from rllib_damo.evaluation.checkpoints import MANIFEST
from tests.small_runs import make_small, module_state, train_policy, write_dataset
from tests.test_evaluation_checkpoints import write

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """A second recording of the same system."""
    return write_dataset(tmp_path_factory.mktemp("other") / "more.parquet", 1000, seed=1)


@pytest.fixture(scope="module")
def checkpoint(dataset, cache_dir, tmp_path_factory) -> str:
    """Of a run of 40 gradient steps."""
    algo = make_small(DAMOConfig(), dataset, cache_dir).evaluation(evaluation_interval=None).build_algo()
    train_policy(algo, 2)
    path = algo.save_to_path(str(tmp_path_factory.mktemp("checkpoint")))
    algo.stop()
    return path


def test_networks_and_steps_go_on_and_the_model_is_trained_further(checkpoint, dataset, other, tmp_path):
    algo = DAMO.from_checkpoint(checkpoint, input_=[dataset, other])
    before = DAMO.from_checkpoint(checkpoint)
    for name, value in module_state(before).items():
        np.testing.assert_array_equal(module_state(algo)[name], value)
    assert len(algo.dynamics.columns.obs) == 3000
    assert algo.training_iteration == 0
    obs = np.zeros((1, 3), np.float32)
    np.testing.assert_array_equal(
        load_policy(algo.save_to_path(str(tmp_path / "a")))(obs), load_policy(checkpoint)(obs)
    )

    result = train_policy(algo, 1)
    assert result["num_gradient_steps_lifetime"] == 60
    old, new = (DynamicsEnsemble.load(a.dynamics.file()) for a in (before, algo))
    assert torch.equal(old.input_mean, new.input_mean)  # which the weights go with
    assert (old.weights[0] != new.weights[0]).any()

    # Its checkpoint needs the first one no more, and names the data of both.
    path = algo.save_to_path(str(tmp_path / "b"))
    state = Start.read(path, "offline_training").training
    assert state["earlier_dataset_fingerprints"] == [before._dataset[1]]
    assert state["dataset_fingerprint"] == algo._dataset[1] != before._dataset[1]
    again = DAMO.from_checkpoint(path)
    assert again.config.start_from is None
    assert train_policy(again, 1)["num_gradient_steps_lifetime"] == 80
    for running in (algo, before, again):
        running.stop()


def test_a_model_in_training_goes_on_after_a_restore(checkpoint, other, tmp_path):
    algo = DAMO.from_checkpoint(checkpoint, input_=other)
    assert algo.train()["phase"] == "dynamics"
    path = algo.save_to_path(str(tmp_path))
    train_policy(algo, 1)
    restored = DAMO.from_checkpoint(path)
    assert restored.dynamics.path == algo.dynamics.path  # the cache keeps models of other parents apart
    assert train_policy(restored, 1)["num_gradient_steps_lifetime"] == 60
    for running in (algo, restored):
        running.stop()


def test_a_model_of_a_parent_is_trained_from_it_after_a_restore_before_the_first_epoch(checkpoint, other, tmp_path):
    algo = DAMO.from_checkpoint(checkpoint, input_=other, dynamics_lr=1.7e-3)
    restored = DAMO.from_checkpoint(algo.save_to_path(str(tmp_path)))
    assert not restored.dynamics.ready
    assert restored.dynamics.path == algo.dynamics.path
    for running in (algo, restored):
        running.stop()


def test_a_checkpoints_model_is_cached_under_no_other_key(checkpoint, other, tmp_path):
    """A later run of the same data, from the start, must not take a model that was trained from another one."""
    algo = DAMO.from_checkpoint(checkpoint, input_=other)
    train_policy(algo, 1)
    key, path = algo.dynamics.key, algo.save_to_path(str(tmp_path / "a"))
    algo.stop()
    empty = str(tmp_path / "cache")
    for name in ("b", "c"):
        again = DAMO.from_checkpoint(path, dynamics_cache_dir=empty)
        assert again.dynamics.key == key
        path = again.save_to_path(str(tmp_path / name))
        again.stop()
    fresh = make_small(DAMOConfig(), other, empty).evaluation(evaluation_interval=None).build_algo()
    assert fresh.dynamics.key != key
    assert not fresh.dynamics.ready
    fresh.stop()


def test_a_checkpoint_on_a_filesystem_of_the_users_goes_on(checkpoint, other, dataset):
    filesystem = SubTreeFileSystem(str(Path(checkpoint).parent), LocalFileSystem())
    for data, is_same in ((other, False), (dataset, True)):
        algo = DAMO.from_checkpoint(Path(checkpoint).name, filesystem, input_=data)
        assert algo._is_same_data == is_same
        assert algo._num_gradient_steps == 40
        algo.stop()


def test_trials_of_other_seeds_differ(checkpoint, other):
    algos = [DAMO.from_checkpoint(checkpoint, input_=other, seed=seed) for seed in (3, 4)]
    assert len({algo.learner_group._learner._base_seed for algo in algos}) == 2
    for running in algos:
        running.stop()


def test_episodes_held_out_now_may_have_been_learned_from(checkpoint, dataset):
    algo = DAMO.from_checkpoint(checkpoint, input_=dataset, holdout_episodes=2)
    assert any("is not independent" in warning for warning in algo._warnings)
    assert algo.readable_files()["selection.json"]["in_sample"]
    algo.stop()


def test_rewards_keep_their_scale(dataset, other, cache_dir, tmp_path):
    config = make_small(OfflineIQLConfig(), dataset, cache_dir).evaluation(evaluation_interval=None)
    algo = config.training(reward_scale="return_range").build_algo()
    train_policy(algo, 1)
    going_on = OfflineIQL.from_checkpoint(algo.save_to_path(str(tmp_path / "a")), input_=other)
    again = OfflineIQL.from_checkpoint(going_on.save_to_path(str(tmp_path / "b")))
    assert algo._reward_scale == going_on._reward_scale == again._reward_scale != 1
    rewards = [
        a.learner_group._learner._layout.unpack(a.learner_group._learner._offline).rewards for a in (going_on, again)
    ]
    assert torch.equal(*rewards)
    scale, path = algo._reward_scale, str(tmp_path / "a")
    same = OfflineIQL.from_checkpoint(path, input_=other, reward_scale=scale)
    with pytest.raises(UserError, match=rf"reward_scale=2\.0: .* rewards times .*Set reward_scale={scale!r}"):
        OfflineIQL.from_checkpoint(path, input_=other, reward_scale=2.0)
    for running in (algo, going_on, again, same):
        running.stop()


def test_rambo_goes_on_with_the_model_that_was_trained_further(dataset, other, cache_dir, tmp_path):
    config = make_small(RAMBOConfig(), dataset, cache_dir).evaluation(evaluation_interval=None)
    config.training(adversarial_steps=2, cloning_steps=2)
    algo = config.build_algo()
    train_policy(algo, 1)
    going_on = RAMBO.from_checkpoint(algo.save_to_path(str(tmp_path)), input_=other, adversary_lr=1e-9)
    train_policy(going_on, 1)
    trained = DynamicsEnsemble.load(going_on.dynamics.file())
    learners = going_on._dynamics_state()
    assert torch.allclose(learners["weights.0"], trained.weights[0], atol=1e-6)
    for running in (algo, going_on):
        running.stop()


def test_with_the_same_data_the_model_is_the_checkpoints(checkpoint, dataset):
    algo = DAMO.from_checkpoint(checkpoint, input_=dataset)
    assert algo.train()["phase"] == "policy"
    algo.stop()


def test_what_does_not_fit_is_refused(checkpoint, other, cache_dir, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        make_small(DAMOConfig(), other, cache_dir).offline_data(start_from=str(tmp_path)).build_algo()
    wide = make_small(DAMOConfig(), other, cache_dir).training(hidden_dims=(64, 64))
    with pytest.raises(CheckpointError, match="its networks do not fit this configuration"):
        wide.offline_data(start_from=checkpoint).build_algo()
    with pytest.raises(ValueError, match="The checkpoint is of DAMO, and this is TD3BC"):
        make_small(TD3BCConfig(), other, cache_dir).offline_data(start_from=checkpoint).build_algo()


def test_a_model_of_other_sizes_is_refused_by_the_options_name(checkpoint, other, tmp_path):
    for name, value, found in (
        ("dynamics_hidden_dims", (16, 16), r"\(32, 32\)"),
        ("num_ensemble", 4, "3"),
        ("num_elites", 1, "2"),
    ):
        with pytest.raises(ValueError, match=rf"start_from: its dynamics model has {name}={found}.*Set `\.dynamics\("):
            DAMO.from_checkpoint(checkpoint, input_=other, dynamics_cache_dir=str(tmp_path), **{name: value})


def test_no_steps_are_taken_before_the_first_round_after_a_restore_either(
    checkpoint, dataset, cache_dir, tmp_path, monkeypatch
):
    config = make_small(DAMOConfig(), dataset, cache_dir).evaluation(evaluation_interval=None)
    algo = config.offline_data(start_from=checkpoint).build_algo()
    restored = DAMO.from_checkpoint(algo.save_to_path(str(tmp_path)))
    for running in (algo, restored):
        with monkeypatch.context() as patch:
            patch.setattr(running._rounds, "collect", lambda: ([], []))
            running._rounds.discard()
            assert running.train()["num_gradient_steps_lifetime"] == 40
        running._rounds.discard()
        assert running.train()["num_gradient_steps_lifetime"] == 60
        running.stop()


def test_a_resumed_trial_does_without_a_start_that_is_gone(tmp_path):
    """Its own checkpoint has what it took over; without a whole one it would begin from nothing."""
    trial = SimpleNamespace(
        config=SimpleNamespace(start_from=str(tmp_path / "gone")),
        _storage=SimpleNamespace(
            storage_filesystem=pyarrow.fs.LocalFileSystem(), trial_fs_path=str(tmp_path), checkpoint_fs_path=""
        ),
    )
    own = write(tmp_path / "checkpoint_000003")
    assert OfflineAlgorithm._read_start(trial) is None
    (own / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="gone"):
        OfflineAlgorithm._read_start(trial)


def test_a_checkpoint_of_another_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rllib_damo.core.going_on.verify", lambda *args: {})
    monkeypatch.setattr("rllib_damo.core.going_on.read_pickle", lambda *args: {"learner_group": {}})
    with pytest.raises(CheckpointError, match="not a checkpoint of an algorithm of this package"):
        Start.read(str(tmp_path), "offline_training")


def test_a_run_checks_at_its_interval_and_goes_on_from_a_checkpoint(dataset: str, tmp_path: Path) -> None:
    def build() -> Any:
        config = make_small(MOPOConfig(), dataset, str(tmp_path))
        return config.training(policy_check_freq=40, policy_tau=1.0).build_algo()

    algo = build()
    assert "policy_check" not in train_policy(algo, 1)
    module = algo.learner_group._learner.module["default_policy"]
    newest = [p.clone() for p in module.averaged_actor.parameters()]
    assert all(map(torch.equal, module.kept_actor.parameters(), newest))  # no check so far
    found = train_policy(algo, 1)["policy_check"]
    assert found["kept_step"] == 40
    assert -17 * 200 < found["return_lower"] <= found["return_mean"] < 0
    # a policy that nothing comes near
    checks = algo.learner_group._learner._checks
    checks._best, checks.kept_return = torch.ones_like(checks._best), 1.0
    kept = [p.clone() for p in module.kept_actor.parameters()]
    train_policy(algo, 2)
    assert all(map(torch.equal, module.kept_actor.parameters(), kept))
    assert not all(map(torch.equal, module.averaged_actor.parameters(), kept))
    path = algo.save_to_path(tmp_path / "checkpoint")
    algo.stop()

    other = build()
    other.restore_from_path(path)
    state = other.learner_group._learner._checks.get_state()
    assert (state["kept_return"], state["kept_step"], state["terms"][0].shape) == (1.0, 40, (NUM_STARTS, 3))
    module = other.learner_group._learner.module["default_policy"]
    assert all(map(torch.equal, module.kept_actor.parameters(), kept))
    assert "policy_check" in train_policy(other, 2)
    assert all(map(torch.equal, module.kept_actor.parameters(), kept))
    other.stop()


def test_without_checks_there_is_no_kept_actor(dataset: str, tmp_path: Path) -> None:
    algo = make_small(MOPOConfig(), dataset, str(tmp_path)).build_algo()
    assert not any("kept" in name for name in module_state(algo))
    algo.stop()
