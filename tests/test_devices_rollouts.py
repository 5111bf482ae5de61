"""What a GPU asks of rollouts, of the dynamics' training, of the stores and of a whole call of the Learner.

As in `test_devices`, on the "meta" device. The places where the CPU waits for a value are counted: each one there is
meant, and none lies within a gradient step or a batch.
"""

from __future__ import annotations

from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_damo import DAMOConfig, MOPOConfig
from rllib_damo.baselines.mopo import MOPORolloutEnvRunner
from rllib_damo.core.config import ModelBasedConfig
from rllib_damo.dynamics import DynamicsEnsemble
from rllib_damo.dynamics.rollout_runner import ModelRolloutEnvRunner
from rllib_damo.dynamics.termination import resolve_termination
from rllib_damo.dynamics.training import DynamicsTrainer
from rllib_damo.nn.gaussian_mlp import Gradients
from rllib_damo.tasks import TERMINATION_RULES
from rllib_damo.utils.batch import Layout, RingBuffer
from tests.watching import DEVICE, Watch, pretend

OBS, ACT, ROWS = 11, 3, 400  # Hopper's widths
OPTIMISER = {"lr": 1e-3, "weight_decay": (1e-5, 1e-5, 1e-5)}


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch):
    pretend(monkeypatch)


def make_config(
    base: type[ModelBasedConfig] = DAMOConfig, env: str | None = "Hopper-v5", **training
) -> ModelBasedConfig:
    return (
        base()
        .environment(
            env, observation_space=gym.spaces.Box(-np.inf, np.inf, (OBS,)), action_space=gym.spaces.Box(-1, 1, (ACT,))
        )
        .training(hidden_dims=(16, 16), rollout_batch_size=20, rollout_length=4, **training)
    )


def make_ensemble(**kwargs) -> DynamicsEnsemble:
    return DynamicsEnsemble(OBS, ACT, hidden_dims=(16, 16), num_ensemble=3, num_elites=2, **kwargs)


def columns() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(ROWS, width)).astype(np.float32) for width in (OBS, ACT, OBS)] + [
        rng.normal(size=ROWS).astype(np.float32), np.zeros(ROWS, bool)
    ]  # fmt: skip


# -- rollouts --------------------------------------------------------------------------------------------------------


def make_runner(config: ModelBasedConfig, kind: type[ModelRolloutEnvRunner] = ModelRolloutEnvRunner, **model):
    runner = kind(config=config, worker_index=0)
    runner.set_dynamics(make_ensemble(**model))
    runner.set_start_states(columns()[0], np.arange(0, ROWS, 2))
    return runner


@pytest.mark.parametrize("is_known", [True, False], ids=["known rule", "learned rule"])
def test_a_round_of_rollouts_stays_on_its_device(is_known):
    """Once a step it asks whether all rows go on, and at the end for two metrics."""
    config = make_config(env="Hopper-v5" if is_known else None).learners(num_gpus_per_learner=1)
    runner = make_runner(config, learn_terminations=not is_known)
    with Watch() as seen:
        (batch,) = runner.sample()
    assert {column.device for column in batch.values()} == {DEVICE}
    assert seen.moves == []
    assert Counter(seen.reads) == {"rollout.py:rollout": 4, "rollout_runner.py:_log": 2}


def test_a_round_for_a_learner_on_the_same_gpu_goes_to_its_buffer_from_there():
    runner, layout = make_runner(make_config().learners(num_gpus_per_learner=1)), Layout(OBS, ACT)
    buffer = RingBuffer(layout, 100, DEVICE)
    with Watch() as seen:
        (batch,) = runner.sample()
        buffer.add(layout.pack(**batch))
    assert len(buffer) == 20 * 4 == runner.get_metrics()["rollout"]["num_transitions"]
    assert seen.moves == []
    assert set(seen.reads) == {"rollout.py:rollout", "rollout_runner.py:_log"}


def test_rows_of_tensors_are_those_of_arrays():
    layout, arrays = Layout(OBS, ACT), columns()
    np.testing.assert_array_equal(layout.pack(*map(torch.from_numpy, arrays)).numpy(), layout.pack(*arrays))


def test_tables_are_the_only_copy_to_the_cpu():
    runner = make_runner(make_config())
    with Watch() as seen:
        (table,) = runner.sample()
    assert len(table) == 20 * 4
    assert Counter(seen.reads)["arrow.py:to_arrow"] == len(table.column_names)


def test_mopos_penalty_stays_on_its_device():
    runner = make_runner(make_config(MOPOConfig).learners(num_gpus_per_learner=1), MOPORolloutEnvRunner)
    with Watch() as seen:
        runner.sample()
    assert seen.moves == []
    assert set(seen.reads) == {"rollout.py:rollout", "rollout_runner.py:_log", "uncertainty.py:uncertainty_mean"}


@pytest.mark.parametrize("env", [env for env in TERMINATION_RULES if env.endswith(("-v5", "-v1", "-v0"))])
def test_known_rules_stay_on_their_device(env):
    rule = resolve_termination(env)
    width = gym.make(env).observation_space.shape[0]
    obs, actions = torch.zeros((5, width), device=DEVICE), torch.zeros((5, 2), device=DEVICE)
    with Watch() as seen:
        assert rule(obs, actions, obs).device == DEVICE
    assert seen.moves + seen.reads == []


# -- dynamics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_batch_of_ensemble_training_stays_on_its_device(precision):
    with Watch(flag=False):  # as to whether a successor is unknown
        trainer = DynamicsTrainer(make_ensemble(), *columns(), **OPTIMISER, precision=precision, device=DEVICE)
    gradients = Gradients(trainer._params, 0.01, trainer._dtype)
    rows = trainer._bootstrap[:, :32]
    with Watch() as seen:
        for _ in range(2):
            gradients.compute(trainer._inputs[rows], trainer._targets[rows])
            trainer._optimizer.step()
    assert seen.moves + seen.reads == []
    assert {tensor.device for state in trainer._optimizer.state.values() for tensor in state.values()} == {DEVICE}


def test_an_epoch_of_ensemble_training_waits_at_its_end():
    with Watch(flag=False):
        trainer = DynamicsTrainer(make_ensemble(), *columns(), **OPTIMISER, batch_size=32, device=DEVICE)
    with Watch() as seen:
        trainer.train_epoch()
    assert Counter(seen.reads) == {"training.py:train_epoch": 1, "training.py:_evaluate": 2}


# -- stores, and the Learner -----------------------------------------------------------------------------------------


def test_the_model_buffer_stays_on_its_device():
    layout = Layout(OBS, ACT)
    buffer = RingBuffer(layout, 25, DEVICE)
    with Watch() as seen:
        for _ in range(4):
            buffer.add(torch.zeros((10, layout.width), device=DEVICE))
        picks = torch.randint(len(buffer), (8,), device=DEVICE)
        assert torch.index_select(buffer.rows, 0, picks).device == DEVICE
    assert seen.moves + seen.reads == []
    with Watch() as seen:
        buffer.set_state(buffer.get_state())
    assert seen.reads == ["batch.py:get_state"]


def make_learner(**options):
    config = make_config(train_batch_size_per_learner=8, actor_warmup_steps=5, **options)
    spaces = {DEFAULT_MODULE_ID: (config.observation_space, config.action_space)}
    spec = config.get_multi_rl_module_spec(spaces=spaces)
    learner = config.get_default_learner_class()(config=config, module_spec=spec)
    learner.build()
    rows = learner._layout.pack(*columns())
    with Watch(flag=False) as seen:  # as to whether a successor is unknown
        learner.set_dataset(rows, np.arange(0, ROWS, 50), np.arange(ROWS), True)
    assert seen.moves == ["learner.py:set_dataset"] * 4  # the data
    assert set(seen.reads) == {"learner.py:set_dataset", "rl_module.py:fit_standardizers"}
    learner.model_buffer.add(torch.zeros((50, rows.shape[1]), device=DEVICE))
    return learner


@pytest.mark.parametrize("options", [{}, {"target_networks": False}, {"precision": "bf16"}], ids=str)
def test_many_gradient_steps_wait_once_at_their_end(options):
    """For the metrics, for whether all weights are finite, and for the value at the initial states."""
    learner = make_learner(**options)
    with Watch() as seen:
        learner.update_many(12)
    assert seen.moves == []
    assert Counter(seen.reads) == {
        "learner.py:_take_steps": 1, "learner.py:_non_finite_tensors": 1, "learner.py:initial_value": 1,
    }  # fmt: skip
    tensors = [*learner.module[DEFAULT_MODULE_ID].state_dict().values()]
    tensors += [t for o in learner._named_optimizers.values() for state in o.state.values() for t in state.values()]
    assert {tensor.device for tensor in tensors} == {DEVICE}


@pytest.mark.parametrize(
    ("options", "launches"),
    [({}, 174), ({"critic_layer_norm": False}, 166), ({"precision": "bf16"}, 205)],
    ids=str,
)
def test_a_gradient_step_is_of_no_more_operations(options, launches):
    """A GPU takes a step of such small networks in the time of its kernels' starts: more of them make it slower."""
    learner, counts = make_learner(**options), []
    for num_steps in (10, 12, 13):  # the first of Adam, whose state comes to be; then one step more or less
        with Watch() as seen:
            learner.update_many(num_steps)
        counts.append(seen.launches)
    assert counts[2] - counts[1] <= launches


def test_the_watch_finds_what_a_gpu_would_not_like():
    here, there = torch.zeros(3), torch.zeros(3, device=DEVICE)
    with Watch() as seen:
        assert bool((there > 0).all())
        assert there.sum().item() == 1
        assert there.tolist() == [1, 1, 1]
        assert there.cpu().device == here.device
    assert len(seen.reads) == 4
    with Watch() as seen:
        here.to(DEVICE)
        there.copy_(here)
        torch.tensor([1.0]).to(DEVICE)
    assert len(seen.moves) == 3
    with pytest.raises(RuntimeError, match="meta"), Watch():
        here + there
    with pytest.raises(NotImplementedError), Watch():
        there[there > 0]
