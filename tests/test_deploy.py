"""Exported policies: equal to `load_policy`, played without Ray, and errors before a file is written."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import torch
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.cql import CQLConfig
from ray.rllib.algorithms.iql import IQLConfig
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn

from rllib_damo import ALGORITHMS, DAMOConfig, export_policy, load_policy
from rllib_damo.command.data import invoke
from rllib_damo.deploy import numpy_policy
from rllib_damo.deploy.numpy_policy import LAYERS, NumpyPolicy
from rllib_damo.errors import CheckpointError, DataError, UsageError, UserError
from rllib_damo.nn.standardize import Standardize
from tests.test_evaluation_checkpoints import write

OBSERVATIONS = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)
ACTIONS = gym.spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 2.0], np.float32))
FORMATS = ("policy.onnx", "policy.pt", "policy.npz")
RLLIBS = {
    "CQL": CQLConfig,
    "SAC": SACConfig,
    "PPO": PPOConfig,
    "BC": BCConfig,
    "MARWIL": MARWILConfig,
    "IQL": IQLConfig,
}


def save_module(
    folder: Path, config: Any, observations: gym.Space = OBSERVATIONS, actions: gym.Space = ACTIONS
) -> Path:
    """The checkpoint of an untrained module, with statistics of observations and larger actions than those of such."""
    config.environment(observation_space=OBSERVATIONS, action_space=actions)
    spec = config.get_rl_module_spec(spaces={DEFAULT_MODULE_ID: (OBSERVATIONS, actions)})
    torch.manual_seed(0)
    module = spec.build()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear) and part.out_features <= 4:
                part.weight.mul_(2.0)
            if isinstance(part, Standardize) and part.mean.shape == OBSERVATIONS.shape:
                part.mean.copy_(torch.linspace(-1, 3, 5))
                part.std.copy_(torch.linspace(0.1, 3, 5))
    module.save_to_path(folder)
    return folder


def default_config(name: str) -> Any:
    return (RLLIBS[name] if name in RLLIBS else ALGORITHMS[name].get_default_config)()


def play(file: Path, obs: np.ndarray) -> np.ndarray:
    """The actions of an exported file."""
    if file.suffix == ".npz":
        return NumpyPolicy(str(file))(obs)
    if file.suffix == ".pt":
        return torch.jit.load(str(file))(torch.from_numpy(obs)).numpy()
    return onnxruntime.InferenceSession(str(file)).run(["actions"], {"observations": obs})[0]


def observations(rows: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(rows, 5)) * np.linspace(0.1, 3, 5) + np.linspace(-1, 3, 5)).astype(np.float32)


def play_without_ray(folder: Path, obs: np.ndarray) -> dict[str, np.ndarray]:
    """The actions of the folder's .onnx and .npz, in a process that cannot import Ray, torch or the package."""
    np.save(folder / "obs.npy", obs)
    (folder / "play.py").write_text(WITHOUT_RAY)
    done = subprocess.run([sys.executable, "play.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "actions.npz") as file:
        return dict(file)


WITHOUT_RAY = """
import sys

class Refuse:
    def find_spec(self, name, *args):
        if name.split(".")[0] in ("ray", "torch", "rllib_damo"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Refuse())
import numpy as np
import onnxruntime

with open("loader.py", "w") as file:
    file.write(str(np.load("policy.npz")["loader"]))
from loader import NumpyPolicy

obs = np.load("obs.npy")
onnx = onnxruntime.InferenceSession("policy.onnx").run(["actions"], {"observations": obs})[0]
np.savez("actions.npz", npz=NumpyPolicy("policy.npz")(obs), onnx=onnx)
assert not {"ray", "torch", "rllib_damo"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_module(tmp_path_factory.mktemp("module") / "module", DAMOConfig())


@pytest.mark.parametrize("name", [*ALGORITHMS, *RLLIBS])
def test_actions_are_those_of_load_policy(name: str, tmp_path: Path) -> None:
    module = save_module(tmp_path / "module", default_config(name))
    obs = observations(1000)
    expected = load_policy(module)(obs)
    assert expected.std(axis=0).min() > 0.05
    for out in FORMATS:
        actions = play(export_policy(module, tmp_path / out), obs)
        np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-6, err_msg=out)
        assert actions.dtype == expected.dtype


def test_files_are_played_without_ray_and_torch(checkpoint: Path, tmp_path: Path) -> None:
    for out in ("policy.onnx", "policy.npz"):
        export_policy(checkpoint, tmp_path / out)
    obs = observations(1000)
    for actions in play_without_ray(tmp_path, obs).values():
        np.testing.assert_allclose(actions, load_policy(checkpoint)(obs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("out", FORMATS)
def test_any_number_of_observations(checkpoint: Path, tmp_path: Path, out: str) -> None:
    file, obs = export_policy(checkpoint, tmp_path / out), observations(7)
    for rows in (0, 1, 7):
        assert play(file, obs[:rows]).shape == (rows, 2)
    if out != "policy.onnx":
        np.testing.assert_allclose(play(file, obs[0]), load_policy(checkpoint)(obs[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("out", FORMATS)
def test_actions_stay_in_a_box_of_any_units(tmp_path: Path, out: str) -> None:
    box = gym.spaces.Box(np.array([-0.3, 1.1]), np.array([0.7, 300.3]), dtype=np.float64)
    module = save_module(tmp_path / "module", DAMOConfig(), actions=box)
    obs = 1000 * observations(100)  # saturated, so that most actions are at the bounds
    actions = play(export_policy(module, tmp_path / out), obs)
    assert actions.dtype == np.float64
    assert all(box.contains(action) for action in actions)
    np.testing.assert_allclose(actions, load_policy(module)(obs), rtol=0, atol=1e-6 * 150)


class NetModule(TorchRLModule):
    """A policy of the layers that are given; with a shortcut around them if asked for."""

    def setup(self) -> None:
        self.net = nn.Sequential(*self.model_config["layers"])

    def _forward(self, batch: dict, **kwargs: Any) -> dict:
        x = self.net(batch[Columns.OBS])
        if self.model_config.get("shortcut"):
            x = x + batch[Columns.OBS][:, :4]
        return {Columns.ACTION_DIST_INPUTS: x}

    def get_inference_action_dist_cls(self) -> type:
        return TorchDiagGaussian


def save_net(folder: Path, *layers: nn.Module, **settings: Any) -> Path:
    module = RLModuleSpec(NetModule, OBSERVATIONS, ACTIONS, model_config={"layers": layers, **settings}).build()
    module.save_to_path(folder)
    return folder


@pytest.mark.parametrize("out", FORMATS)
def test_every_kind_of_layer(tmp_path: Path, out: str) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(16, eps=1e-3)
    nn.init.normal_(norm.weight)
    module = save_net(
        tmp_path / "module", Standardize(5), nn.Linear(5, 16), norm, nn.SiLU(), nn.Linear(16, 16, bias=False), nn.ELU(),
        nn.Dropout(), nn.Linear(16, 16), nn.Sigmoid(), nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 16),
        nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    obs = observations(100)
    file = export_policy(module, tmp_path / out)
    np.testing.assert_allclose(play(file, obs), load_policy(module)(obs), rtol=0, atol=1e-6)
    if file.suffix == ".npz":
        assert {str(kind) for kind in np.load(file)["layers"]} == set(LAYERS)


def test_a_policy_that_is_no_chain_of_known_layers_is_refused(tmp_path: Path) -> None:
    layers = nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 4)
    with pytest.raises(CheckpointError, match=r"a layer GELU\(.*\) cannot be exported; known are Standardize, Linear"):
        export_policy(save_net(tmp_path / "gelu", *layers), tmp_path / "policy.npz")
    with pytest.raises(CheckpointError, match=r"NetModule is no plain network.*% of the range away"):
        export_policy(save_net(tmp_path / "shortcut", nn.Linear(5, 4), shortcut=True), tmp_path / "policy.npz")
    with pytest.raises(CheckpointError, match=r"the last of its 2 known layers is not linear"):
        export_policy(save_net(tmp_path / "relu", nn.Linear(5, 4), nn.ReLU()), tmp_path / "policy.npz")
    assert not list(tmp_path.glob("*policy*"))


def test_metadata_are_in_every_format(checkpoint: Path, tmp_path: Path) -> None:
    import onnx

    files = [export_policy(checkpoint, tmp_path / out) for out in FORMATS]
    model = onnx.load(str(files[0]))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    extra = {"metadata.json": ""}
    torch.jit.load(str(files[1]), _extra_files=extra)
    found = NumpyPolicy(str(files[2])).metadata
    assert json.loads(model.metadata_props[0].value) == json.loads(extra["metadata.json"]) == found
    assert found["input"] == {"name": "observations", "shape": ["batch", 5], "dtype": "float32"}
    assert found["observation_space"]["low"] == [None] * 5
    assert found["action_space"] == {"shape": [2], "dtype": "float32", "low": [-1.0, 0.0], "high": [1.0, 2.0]}
    assert found["versions"].keys() == {"rllib_damo", "ray", "torch", "numpy"}


def test_the_documentation_shows_the_loader(checkpoint: Path, tmp_path: Path) -> None:
    loader = Path(numpy_policy.__file__).read_text()
    assert f"```python\n{loader}```" in (Path(__file__).parent.parent / "docs" / "export.md").read_text()
    assert str(np.load(export_policy(checkpoint, tmp_path / "policy.npz"))["loader"]) == loader


def test_a_file_is_replaced_only_if_asked(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy.npz"
    out.write_text("mine")
    with pytest.raises(DataError, match=r"policy\.npz exists.*--overwrite"):
        export_policy(checkpoint, out)
    assert out.read_text() == "mine"
    export_policy(checkpoint, out, overwrite=True)
    NumpyPolicy(str(out))


@pytest.mark.parametrize(
    ("out", "format", "message"),
    [
        ("policy.h5", None, r"policy\.h5: no known format; end the name in \.onnx, \.pt, \.npz, or give --format"),
        ("policy", "onx", r"--format onx: unknown\. Did you mean 'onnx'\? There are onnx, torchscript, npz"),
        ("s3://bucket/policy.npz", None, "a file of this machine is written"),
    ],
)
def test_wrong_formats_and_places(checkpoint: Path, out: str, format: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_policy(checkpoint, out, format=format)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    """In whichever file: the metadata are from others than the policy."""
    folder = write(tmp_path / "checkpoint_000003")
    (folder / "algorithm_state.pkl").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"the content of algorithm_state\.pkl has changed"):
        export_policy(folder, tmp_path / "policy.npz")


def test_a_missing_extra_is_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"needs the package onnx .*pip install -e '\.\[onnx\]'"):
        export_policy(checkpoint, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_recurrent_and_discrete_policies_are_refused(tmp_path: Path) -> None:
    recurrent = PPOConfig().rl_module(model_config=DefaultModelConfig(use_lstm=True))
    with pytest.raises(CheckpointError, match="is recurrent"):
        export_policy(save_module(tmp_path / "recurrent", recurrent), tmp_path / "policy.npz")
    discrete = save_module(tmp_path / "discrete", PPOConfig(), actions=gym.spaces.Discrete(3))
    with pytest.raises(UserError, match=r"action space must be a one-dimensional Box, but is Discrete\(3\)"):
        export_policy(discrete, tmp_path / "policy.npz")


def test_the_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, log = str(tmp_path / "policy.bin"), logging.getLogger("ray.rllib")
    log.setLevel(logging.WARNING)
    assert invoke(["export", str(checkpoint), out, "--format", "npz"]) == 0
    assert not log.isEnabledFor(logging.WARNING)  # RLlib's warnings of its own deprecations are hidden
    digest = hashlib.sha256(Path(out).read_bytes()).hexdigest()
    assert capsys.readouterr().out == f"Written: {out}\nSHA-256: {digest}\n"
    assert invoke(["export", str(tmp_path / "nowhere"), str(tmp_path / "other.npz")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert invoke(["export", str(checkpoint), out, "--format", "npz"]) == 2
    assert "--overwrite" in capsys.readouterr().err
