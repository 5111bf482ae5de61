"""An algorithm of OfflineRL-Kit on a dataset of this package: an independent implementation, for comparison.

    git clone https://github.com/yihaosun1124/OfflineRL-Kit
    python benchmarks/offlinerl_kit.py mopo halfcheetah-medium --kit OfflineRL-Kit --out FILE --epoch 30

Runs the example ``run_example/run_NAME.py`` of the checkout as it is; other arguments are the example's own. The
modules that it imports beside torch (`gym`, `d4rl`, tensorboard) are replaced by the package's dataset and Gymnasium's
environment. With ``--dynamics`` it plays in a dynamics model that this package has trained, so that only the rules
differ (and, on Hopper and Walker2d, the limits of states, which the kit's models do not have). Writes FILE: the scores
of the example's evaluations, and the CPU time of all that it did.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import gymnasium
import numpy as np
import torch
from score_settings import environment, make_config

from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.tasks import normalized_score


class Environment(gymnasium.Wrapper):
    """Gymnasium's environment as the examples expect it: of the older interface, and with D4RL's methods."""

    def __init__(self, task: str):
        super().__init__(gymnasium.make(environment(task)))
        self._task = task
        self._first_seed: int | None = None

    def seed(self, seed: int) -> None:
        self._first_seed = seed

    def reset(self) -> np.ndarray:  # type: ignore[override]
        obs, _ = self.env.reset(seed=self._first_seed)
        self._first_seed = None
        return obs

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:  # type: ignore[override]
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, float(reward), terminated or truncated, info

    def get_normalized_score(self, returns: float) -> float:
        return normalized_score(environment(self._task), float(returns)) / 100  # type: ignore[operator]

    def rows(self, *_: Any, **__: Any) -> dict[str, np.ndarray]:
        """All transitions of the task's dataset."""
        config = make_config(self._task, "bc", 0, self._task, {}, 1)
        config.validate()
        data = BulkOfflineData(config).transitions
        return {
            "observations": data.observations, "actions": data.actions, "next_observations": data.next_observations,
            "rewards": data.rewards, "terminals": data.terminations,
        }  # fmt: skip


class _NoWriter:
    """Stands for tensorboard's."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def replace_modules(task: str, kit: Path) -> None:
    """Puts modules in the place of those that the examples import."""
    stand_ins: dict[str, dict[str, Any]] = {
        "gym": {"make": lambda _: Environment(task), "Env": gymnasium.Env, "spaces": gymnasium.spaces},
        "gym.envs": {},
        "gym.envs.mujoco": {"mujoco_env": SimpleNamespace(MujocoEnv=None)},  # not used here
        "d4rl": {"qlearning_dataset": lambda env, *_: env.rows()},
        "torch.utils.tensorboard": {"SummaryWriter": _NoWriter},
    }
    for name, content in stand_ins.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    sys.path.insert(0, str(kit))
    from offlinerlkit.utils import load_dataset

    load_dataset.qlearning_dataset = lambda env, *_, **__: env.rows()


def use_dynamics(path: Path) -> None:
    """Makes ``--load-dynamics-path`` take a file of this package: the same function, in the kit's units."""
    from offlinerlkit.dynamics import EnsembleDynamics

    ours = DynamicsEnsemble.load(path).requires_grad_(False)
    shift, scale = ours.target_mean, ours.target_std

    def load(dynamics: Any, _: str) -> None:
        model = dynamics.model
        layers = [*model.backbones, model.output_layer]
        for layer, weight, bias in zip(layers, ours.weights, ours.biases, strict=True):
            layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
        # means and log variances of the data's units
        mean, _ = layers[-1].weight.data.chunk(2, -1)
        mean.mul_(scale)
        mean, logvar = layers[-1].bias.data.chunk(2, -1)
        mean.mul_(scale).add_(shift)
        logvar.add_(2 * scale.log())
        for name in ("max_logvar", "min_logvar"):
            setattr(model, name, torch.nn.Parameter(getattr(ours, name) + 2 * scale.log()))
        model.set_elites(ours.elites.tolist())
        dynamics.scaler.mu, dynamics.scaler.std = ours.input_mean.numpy()[None], ours.input_std.numpy()[None]

    EnsembleDynamics.load = load


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("algorithm", help="mopo, mobile, combo, rambo, td3bc, iql ...")
    parser.add_argument("task", help="a dataset by short name: halfcheetah-medium ...")
    parser.add_argument("--kit", type=Path, required=True, help="the checkout")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dynamics", type=Path, help="a dynamics file of this package")
    args, own = parser.parse_known_args()
    kit, out = args.kit.absolute(), args.out.absolute()
    torch.set_num_threads(1)
    replace_modules(args.task, kit)
    sys.argv = [args.algorithm, "--task", args.task, "--device", "cpu", *own]
    if args.dynamics is not None:
        use_dynamics(args.dynamics.absolute())
        sys.argv += ["--load-dynamics-path", str(args.dynamics)]
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        example = runpy.run_path(str(kit / "run_example" / f"run_{args.algorithm}.py"))
        example["train"]()
        with next(Path(folder).glob("log/**/policy_training_progress.csv")).open() as file:
            rows = list(csv.DictReader(file))
    seconds = round(time.process_time() - start)
    scores = [
        {"steps": int(float(row["timestep"])), "score": float(row["eval/normalized_episode_reward"])} for row in rows
    ]
    out.write_text(json.dumps({"arguments": sys.argv, "cpu_seconds": seconds, "evaluations": scores}, indent=1))


if __name__ == "__main__":
    main()
