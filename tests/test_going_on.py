"""Going on from a checkpoint with other data (`start_from`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rllib_damo import DAMO, DAMOConfig, TD3BCConfig, load_policy
from rllib_damo.core.going_on import Start
from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.data.generate import datasets
from rllib_damo.dynamics import DynamicsEnsemble, DynamicsTrainer
from rllib_damo.errors import CheckpointError
from tests.small_runs import make_small, module_state, train_policy

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """A second recording of the same system."""
    path = tmp_path_factory.mktemp("other") / "more.parquet"
    write_parquet(datasets.generate("pendulum-mixed", 1000, seed=1), path)
    return str(path)


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


def test_a_trained_model_is_kept_where_training_does_not_improve_it() -> None:
    generator = np.random.default_rng(0)
    obs, actions = generator.normal(size=(500, 2)).astype(np.float32), generator.uniform(-1, 1, (500, 1))
    columns = obs, actions.astype(np.float32), obs + 0.1, obs[:, 0], np.zeros(500, bool)
    torch.manual_seed(0)
    ensemble = DynamicsEnsemble(2, 1, hidden_dims=(8,), num_ensemble=2, num_elites=1)
    options = {"weight_decay": (0.0, 0.0), "batch_size": 50, "max_epochs": 3}
    trainer = DynamicsTrainer(ensemble, *columns, lr=1e-2, **options)
    while not trainer.done:
        trainer.train_epoch()
    trained = trainer.finish()
    before = [weight.clone() for weight in trained.weights]
    worse = DynamicsTrainer(trained, *columns, lr=10.0, fit_statistics=False, **options)
    worse.train_epoch()
    for weight, kept in zip(worse.finish().weights, before, strict=True):
        assert torch.equal(weight, kept)


def test_a_checkpoint_of_another_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rllib_damo.core.going_on.verify", lambda *args: {})
    monkeypatch.setattr("rllib_damo.core.going_on.read_pickle", lambda *args: {"learner_group": {}})
    with pytest.raises(CheckpointError, match="not a checkpoint of an algorithm of this package"):
        Start.read(str(tmp_path), "offline_training")
