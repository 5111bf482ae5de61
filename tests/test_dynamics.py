"""The ensemble and its training: recovery of a known system, calibration, elites, files, resuming."""

import copy

import numpy as np
import pytest
import torch

from rllib_damo.dynamics import DynamicsEnsemble, DynamicsTrainer
from rllib_damo.nn.gaussian_mlp import Gradients, reference_loss

OBS, ACT, NOISE = 3, 2, 0.1
OPTIMISER = {"lr": 1e-3, "weight_decay": (2.5e-5, 7.5e-5, 1e-4)}
SMALL = {"hidden_dims": (48, 48), "num_ensemble": 4, "num_elites": 2}


def linear_system(num: int, seed: int) -> dict[str, np.ndarray]:
    """s' = s + 0.3 s A + a B + noise, r = s·c + noise; no terminals."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    A, B, c = fixed.normal(size=(OBS, OBS)), fixed.normal(size=(ACT, OBS)), fixed.normal(size=OBS)
    obs, actions = rng.normal(size=(num, OBS)), rng.uniform(-1, 1, size=(num, ACT))
    mean = np.concatenate([0.3 * obs @ A + actions @ B, (obs @ c)[:, None]], axis=1)
    drawn = mean + NOISE * rng.normal(size=mean.shape)
    arrays = {
        "observations": obs,
        "unit_actions": actions,
        "next_observations": obs + drawn[:, :OBS],
        "rewards": drawn[:, OBS],
        "terminations": np.zeros(num, bool),
    }
    data = {k: v.astype(np.float32) if v.dtype != bool else v for k, v in arrays.items()}
    return data | {"mean": mean.astype(np.float32), "drawn": drawn.astype(np.float32)}


def arguments(data: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [data[k] for k in ("observations", "unit_actions", "next_observations", "rewards", "terminations")]


def make_trainer(num: int = 600, **kwargs) -> DynamicsTrainer:
    torch.manual_seed(0)
    ensemble = DynamicsEnsemble(OBS, ACT, **SMALL)
    return DynamicsTrainer(ensemble, *arguments(linear_system(num, 1)), **(OPTIMISER | kwargs))


@pytest.fixture(scope="module")
def trained() -> tuple[DynamicsEnsemble, list[dict[str, float]]]:
    trainer = make_trainer(5000, batch_size=64, max_epochs=30)
    history = []
    while not trainer.done:
        history.append(trainer.train_epoch())
    return trainer.finish(), history


def test_recovers_a_linear_gaussian_system(trained):
    model, history = trained
    test = linear_system(2000, 2)
    with torch.no_grad():
        mean, logvar = model(torch.from_numpy(test["observations"]), torch.from_numpy(test["unit_actions"]))
    mean, std = mean[model.elites].numpy(), (0.5 * logvar[model.elites]).exp().numpy()
    assert np.sqrt(np.mean((mean - test["mean"]) ** 2)) < 0.5 * NOISE
    assert np.median(std) == pytest.approx(NOISE, rel=0.25)
    assert history[-1]["holdout_mse"] < 0.2 * history[0]["holdout_mse"]
    assert history[-1]["holdout_calibration"] == pytest.approx(1.0, abs=0.2)


def test_is_calibrated(trained):
    model, _ = trained
    test = linear_system(4000, 3)
    with torch.no_grad():
        mean, logvar = model(torch.from_numpy(test["observations"]), torch.from_numpy(test["unit_actions"]))
    z = (torch.from_numpy(test["drawn"]) - mean[model.elites]) / (0.5 * logvar[model.elites]).exp()
    coverage = (z.abs() < 1.645).float().mean((1, 2))
    assert ((coverage > 0.85) & (coverage < 0.95)).all(), coverage


def test_sample_has_the_elites_moments(trained):
    model, _ = trained
    obs, actions = torch.tensor([[0.5, -1.0, 0.2]]), torch.tensor([[0.3, -0.6]])
    num = 20_000
    next_obs, rewards = model.sample(obs.expand(num, -1), actions.expand(num, -1), torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, logvar = model(obs, actions)
    mean, var = mean[model.elites, 0], logvar[model.elites, 0].exp()
    drawn = torch.cat((next_obs - obs, rewards[:, None]), 1)
    torch.testing.assert_close(drawn.mean(0), mean.mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.var(0), (var + mean**2).mean(0) - mean.mean(0) ** 2, atol=0, rtol=0.1)


@pytest.mark.parametrize("batch", [1, 2, 5, 7])
def test_each_row_falls_to_each_elite_alike(batch):
    model = DynamicsEnsemble(1, 1, hidden_dims=(2,), num_ensemble=5, num_elites=3)
    with torch.no_grad():
        model.elites.copy_(torch.tensor([0, 2, 4]))
        for weight in model.weights:
            weight.zero_()
        model.max_logvar.fill_(-60.0)
        model.min_logvar.fill_(-80.0)
        model.biases[-1][:, 0, 1] = torch.arange(5.0)  # member k predicts reward k
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(batch, 5)
    for _ in range(600):
        _, rewards = model.sample(torch.zeros(batch, 1), torch.zeros(batch, 1), generator)
        counts[torch.arange(batch), rewards.round().long()] += 1
    assert (counts[:, [1, 3]] == 0).all()
    assert ((counts[:, [0, 2, 4]] - 200).abs() < 60).all(), counts  # five standard deviations


def gradients_and_autograds(
    own: torch.dtype, inner: torch.dtype | None, hidden_dims: tuple[int, ...], is_weighted: bool = False
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Loss and gradients by `Gradients` and by autograd, at the same parameters of dtype ``own``."""
    torch.manual_seed(1)
    model = DynamicsEnsemble(OBS, ACT, hidden_dims=hidden_dims, num_ensemble=4, num_elites=2).to(own)
    params = [*model.weights, *model.biases, model.max_logvar, model.min_logvar]
    for param in params:
        param.data += 0.1 * torch.randn_like(param)
    x, y = torch.randn(4, 32, OBS + ACT, dtype=own), torch.randn(4, 32, OBS + 1, dtype=own)
    weights = (torch.rand_like(y) < 0.5).to(own) if is_weighted else None
    gradients = Gradients(params, 0.01, inner)
    for shift in (0.1, -0.1):  # buffers are used again, and parameters read anew
        for param in params:
            param.data += shift
        loss = gradients.compute(x, y, weights)
    mine = [loss, *(p.grad.clone() for p in params)]
    for param in params:
        param.grad = None
    expected, full = reference_loss(params, x, y, 0.01, weights)
    full.backward()
    return mine, [expected.detach(), *(p.grad for p in params)]


@pytest.mark.parametrize("hidden_dims", [(48,), (48, 48), (24, 48, 32)], ids=str)
@pytest.mark.parametrize(
    ("own", "inner", "rtol", "atol"),
    [
        (torch.float32, None, 1e-4, 1e-6),
        (torch.float64, None, 1e-10, 1e-12),
        (torch.float64, torch.float32, 1e-4, 1e-6),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_weighted", [False, True], ids=["all targets", "some targets"])
def test_gradients_equal_autograd(own, inner, rtol, atol, hidden_dims, is_weighted):
    for got, expected in zip(*gradients_and_autograds(own, inner, hidden_dims, is_weighted), strict=True):
        torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("hidden_dims", [(48,), (48, 48), (24, 48, 32)], ids=str)
def test_bfloat16_gradients_are_near_float32s(hidden_dims):
    for got, expected in zip(*gradients_and_autograds(torch.float32, torch.bfloat16, hidden_dims), strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).norm() <= (0.02 if len(hidden_dims) > 1 else 1e-5) * expected.norm()


def test_bfloat16_training_stays_with_float32():
    """As exact a model, from the same rows in the same order."""
    errors = []
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(2000, max_epochs=8, lr=3e-3, precision=precision)
        errors.append([trainer.train_epoch()["holdout_mse"] for _ in range(8)])
    exact, rounded = errors
    assert exact[-1] < 0.2 * exact[0]
    assert rounded != exact
    assert rounded[-1] == pytest.approx(exact[-1], rel=0.1)


def test_elites_are_the_best_members_with_their_best_weights():
    trainer = make_trainer()
    for _ in range(3):
        trainer.train_epoch()
    best = [p.detach().clone() for p in trainer.ensemble.parameters()]
    trainer._best[:] = [0.4, 0.1, 0.3, 0.2]
    model = trainer.finish()
    assert model.elites.tolist() == [1, 3]
    assert all(torch.equal(a, b) for a, b in zip(best, model.parameters(), strict=True))


def test_a_member_without_improvement_is_dropped_and_the_others_go_on():
    trainer = make_trainer(max_epochs_since_update=1)
    trainer.train_epoch()
    trainer._best[2] = 0.0  # cannot be improved on
    kept = [p[[0, 1, 3]].clone() for p in trainer._params]
    result = trainer.train_epoch()
    assert result["num_members_training"] <= 3
    assert 2 not in trainer._active
    assert len(trainer._params[0]) == len(trainer._active) == result["num_members_training"]
    if trainer._active == [0, 1, 3]:
        assert not torch.equal(kept[0], trainer._params[0])
        trainer.train_epoch()


def test_stops_at_max_epochs():
    trainer = make_trainer(max_epochs=2)
    assert [trainer.train_epoch()["epoch"], trainer.train_epoch()["epoch"]] == [1, 2]
    assert trainer.done
    with pytest.raises(RuntimeError, match="finish"):
        trainer.train_epoch()


@pytest.mark.parametrize("learn_terminations", [False, True])
def test_resumed_training_is_bit_exact(learn_terminations):
    def make() -> DynamicsTrainer:
        torch.manual_seed(0)
        data = linear_system(600, 1)
        data["terminations"] = data["observations"][:, 0] > 1
        ensemble = DynamicsEnsemble(OBS, ACT, **SMALL, learn_terminations=learn_terminations)
        trainer = DynamicsTrainer(ensemble, *arguments(data), **OPTIMISER, max_epochs_since_update=1, seed=3)
        if trainer._termination is not None:
            trainer._termination._steps_left = 20
        return trainer

    straight = make()
    for _ in range(3):
        straight.train_epoch()
    state = copy.deepcopy(straight.state_dict())
    torch.manual_seed(99)  # another ensemble to start with
    resumed = make()
    resumed.load_state_dict(state)
    for _ in range(4):
        if not straight.done:
            assert straight.train_epoch() == resumed.train_epoch()
    for trainer in (straight, resumed):
        trainer.finish()
    for a, b in zip(straight.ensemble.state_dict().values(), resumed.ensemble.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_resuming_with_other_data_is_refused():
    with pytest.raises(ValueError, match="same dataset"):
        make_trainer(500).load_state_dict(make_trainer(600).state_dict())


def test_a_state_that_scaled_the_data_otherwise_is_refused():
    state = make_trainer(500).state_dict()
    state["ensemble"]["target_std"][1] *= 1.1
    with pytest.raises(ValueError, match=r"target_std.*earlier version"):
        make_trainer(500).load_state_dict(state)


def train(data: dict[str, np.ndarray], **kwargs) -> DynamicsEnsemble:
    torch.manual_seed(0)
    trainer = DynamicsTrainer(DynamicsEnsemble(OBS, ACT, **SMALL), *arguments(data), **(OPTIMISER | kwargs))
    while not trainer.done:
        trainer.train_epoch()
    return trainer.finish()


def test_of_unknown_successors_the_reward_alone_is_learned():
    data = linear_system(3000, 1)
    crash = data["terminations"] = data["observations"][:, 0] > 1
    data["rewards"][crash] = -20.0
    data["next_observations"][crash] = data["observations"][crash]  # what a reader does when the source has none
    model = train(data, max_epochs=25, max_epochs_since_update=25, lr=3e-3, batch_size=64)
    torch.testing.assert_close(
        model.target_mean[:-1].numpy(), (data["next_observations"] - data["observations"])[~crash].mean(0), atol=1e-4,
        rtol=0,
    )  # fmt: skip
    test = linear_system(1000, 2)
    crashes = test["observations"][:, 0] > 1.2
    with torch.no_grad():
        mean = model(torch.from_numpy(test["observations"]), torch.from_numpy(test["unit_actions"]))[0].mean(0).numpy()
    assert mean[crashes, -1].mean() < -13  # as where all successors are known; a likelihood is slow at a jump
    others = test["observations"][:, 0] < 0.8
    assert np.sqrt(np.mean((mean[others, :-1] - test["mean"][others, :-1]) ** 2)) < 0.1
    # where no successor was known, the model goes on as beside it, and does not stand still
    changes = test["mean"][crashes, :-1]
    assert np.mean((mean[crashes, :-1] - changes) ** 2) < 0.2 * np.mean(changes**2)


def test_what_never_changes_in_the_data_does_not_in_the_model():
    """A set-point, a clock, and a reward that is always the same, beside columns that vary."""
    data = linear_system(1000, 1)
    data["observations"][:, 0] = data["next_observations"][:, 0] = 0.5 + 0.01 * (np.arange(1000) // 50)
    data["observations"][:, 1] = np.arange(1000) % 50 * 1e-3
    data["next_observations"][:, 1] = data["observations"][:, 1] + np.float32(1e-3)
    data["rewards"][:] = 7
    model = train(data, max_epochs=2)
    obs, actions = (torch.from_numpy(data[name]) for name in ("observations", "unit_actions"))
    for _ in range(5):
        new, rewards = model.sample(obs, actions)
        assert torch.equal(new[:, 0], obs[:, 0])
        torch.testing.assert_close(new[:, 1], obs[:, 1] + 1e-3, atol=1e-6, rtol=0)
        assert (rewards == 7).all()
        obs = new
    with torch.no_grad():
        mean, logvar = model(obs, actions)
    assert mean.isfinite().all()
    assert (logvar.exp()[..., [0, 3]] == 0).all()
    assert (logvar.exp()[..., 2] > 0).all()


@pytest.mark.parametrize("unit", [1e-8, 1e6])
def test_units_make_no_difference(unit):
    """Of a model's predictions, in units of their own."""
    predictions = []
    for scale in (1.0, unit):
        data = linear_system(1000, 1)
        for name in ("observations", "next_observations", "rewards"):
            data[name] = (data[name].astype(np.float64) * scale).astype(np.float32)
        model = train(data, max_epochs=3)
        with torch.no_grad():
            mean, logvar = model(*(torch.from_numpy(data[name]) for name in ("observations", "unit_actions")))
        predictions.append((mean / scale, (0.5 * logvar).exp() / scale))
    torch.testing.assert_close(*predictions, rtol=0.05, atol=0.05)


def test_save_and_load(tmp_path):
    model = make_trainer().ensemble
    path = model.save(tmp_path / "sub" / "model.pt")
    loaded = DynamicsEnsemble.load(path)
    assert loaded.hparams == model.hparams
    for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["model.pt"]


def test_load_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt.*dynamics_path"):
        DynamicsEnsemble.load(tmp_path / "nowhere.pt")
    for content in (b"not a model", b"hello", b""):
        (tmp_path / "noise.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"noise\.pt is damaged"):
            DynamicsEnsemble.load(tmp_path / "noise.pt")
    torch.save({"other": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is not a dynamics file"):
        DynamicsEnsemble.load(tmp_path / "other.pt")


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_elites=8"):
        DynamicsEnsemble(OBS, ACT, num_elites=8)
    with pytest.raises(ValueError, match="dynamics_weight_decay has 5 values"):
        make_trainer(weight_decay=(0.0,) * 5)
    data = linear_system(50, 1)
    wrong = data | {"rewards": data["rewards"][:, None]}
    with pytest.raises(ValueError, match=r"rewards have shape \(50, 1\)"):
        DynamicsTrainer(DynamicsEnsemble(OBS, ACT, **SMALL), *arguments(wrong), **OPTIMISER)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_trains_on_a_gpu(precision):
    trainer = make_trainer(2000, max_epochs=5, device="cuda", precision=precision)
    first = trainer.train_epoch()
    while not trainer.done:
        last = trainer.train_epoch()
    assert last["holdout_mse"] < first["holdout_mse"]
    model = trainer.finish()
    obs = torch.zeros(10, OBS, device="cuda")
    next_obs, _ = model.sample(obs, torch.zeros(10, ACT, device="cuda"), torch.Generator("cuda").manual_seed(0))
    assert next_obs.isfinite().all()
