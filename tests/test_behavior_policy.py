"""Trained policies from plain arrays."""

import pathlib

import numpy as np
import pytest
from gymnasium import spaces

from rllib_damo.data.generate.policies import (
    ARRAYS,
    FOLDER,
    GaussianPolicy,
    load_index,
    policy_version,
    resolve_policy,
)

OBS, HIDDEN, ACT = 5, 8, 2
SPACE = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"0": (OBS, HIDDEN), "1": (HIDDEN, HIDDEN), "_mean": (HIDDEN, ACT), "_log_std": (HIDDEN, ACT)}
    weights = {f"w{name}": rng.normal(size=shape) for name, shape in shapes.items()}
    return weights | {f"b{name}": rng.normal(size=shape[1]) for name, shape in shapes.items()}


def test_actions_follow_the_formula(arrays: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    observations, noise = rng.normal(size=(7, OBS)).astype(np.float32), rng.normal(size=(7, ACT)).astype(np.float32)
    arrays["b_log_std"] += np.array([5.0, -40.0])  # both clips
    actions = GaussianPolicy(arrays, SPACE).actions(observations, noise)
    for observation, eps, action in zip(observations.astype(float), noise, actions, strict=True):
        hidden = np.maximum(
            arrays["w1"].T @ np.maximum(arrays["w0"].T @ observation + arrays["b0"], 0) + arrays["b1"], 0
        )
        log_std = np.minimum(np.maximum(arrays["w_log_std"].T @ hidden + arrays["b_log_std"], -20), 2)
        unit = np.tanh(arrays["w_mean"].T @ hidden + arrays["b_mean"] + np.exp(log_std) * eps)
        np.testing.assert_allclose(action, [unit[0], 2 + 2 * unit[1]], rtol=1e-3, atol=1e-4)
    assert actions.dtype == np.float32
    assert (actions >= SPACE.low).all()
    assert (actions <= SPACE.high).all()


def test_load(arrays: dict[str, np.ndarray], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "policy.npz"
    np.savez(path, **{name: array.astype(np.float16) for name, array in arrays.items()})
    policy = GaussianPolicy.load(path, SPACE)
    np.testing.assert_array_equal(policy.arrays["w0"], arrays["w0"].astype(np.float16).astype(np.float32))
    version = policy_version(str(path))
    np.savez(path, **arrays)
    assert policy_version(str(path)) != version


@pytest.mark.parametrize("what", ["missing", "pickle", "text", "other width", "no file"])
def test_load_errors_name_the_file(arrays: dict[str, np.ndarray], tmp_path: pathlib.Path, what: str) -> None:
    path = tmp_path / "policy.npz"
    if what == "missing":
        np.savez(path, **{name: array for name, array in arrays.items() if name != "w1"})
    elif what == "pickle":
        np.savez(path, **{name: array.astype(object) for name, array in arrays.items()})
    elif what == "text":
        path.write_text("weights")
    elif what == "other width":
        np.savez(path, **arrays | {"w_mean": np.zeros((HIDDEN, ACT + 1))})
    with pytest.raises(ValueError, match=str(path)):
        GaussianPolicy.load(path, SPACE)


def test_shipped_files_and_index_agree() -> None:
    index = load_index()
    assert {record.file for record in index.values()} - {None} == {path.name for path in FOLDER.glob("*.npz")}
    for record in index.values():
        assert record.episodes >= 50
        if record.file is not None:
            policy = resolve_policy(record.env_id, str(FOLDER / record.file))
            assert isinstance(policy, GaussianPolicy)
            assert set(policy.arrays) == set(ARRAYS)
    for task in ("hopper", "halfcheetah", "walker2d"):
        shares = [record.share for name, record in index.items() if name.startswith(f"{task}-replay")]
        assert not shares or sum(shares) == pytest.approx(1, abs=1e-4)
