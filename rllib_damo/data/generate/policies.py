"""Trained behaviour policies: squashed Gaussian networks, shipped as plain arrays beside their measured returns.

``policies/index.json`` lists what is shipped; ``scripts/ship_behavior.py`` writes it.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rllib_damo.data.generate.controllers import BehaviorPolicy, PendulumMixed, RandomPolicy

FOLDER = pathlib.Path(__file__).parent / "weights"
ARRAYS = ("w0", "b0", "w1", "b1", "w_mean", "b_mean", "w_log_std", "b_log_std")
LOG_STD_RANGE = (-20.0, 2.0)


@dataclasses.dataclass(frozen=True)
class PolicyRecord:
    """One shipped policy, as in ``index.json``.

    Returns are undiscounted, of ``episodes`` episodes with sampled actions; ``source_steps`` is how many environment
    steps it had been trained for, and ``share`` a replay snapshot's part of the replay data (0 otherwise).
    """

    env_id: str
    level: str
    return_mean: float
    return_std: float
    length_mean: float
    episodes: int
    source_steps: int = 0
    share: float = 0.0
    file: str | None = None


@functools.lru_cache(maxsize=4)
def load_index(folder: pathlib.Path = FOLDER) -> dict[str, PolicyRecord]:
    """The shipped policies by name, e.g. ``hopper-medium`` or ``hopper-replay-0100000``."""
    path = folder / "index.json"
    if not path.exists():
        return {}
    return {name: PolicyRecord(**record) for name, record in json.loads(path.read_text())["policies"].items()}


class GaussianPolicy:
    """tanh(mean + exp(log_std) * noise), scaled to the Box; two ReLU layers, float32.

    Args:
        arrays: ``ARRAYS``: weights (in, out) and biases (out,).
        action_space: bounded Box of the environment.
    """

    def __init__(self, arrays: dict[str, np.ndarray], action_space: spaces.Box):
        self.arrays = {name: np.ascontiguousarray(arrays[name], np.float32) for name in ARRAYS}
        self.center = (action_space.high + action_space.low) / 2
        self.half_range = (action_space.high - action_space.low) / 2

    @classmethod
    def load(cls, path: str | pathlib.Path, action_space: spaces.Box) -> "GaussianPolicy":
        """Reads an ``.npz`` of ``ARRAYS`` (any float type); nothing is unpickled.

        Raises:
            ValueError: naming the file, when arrays are missing or do not fit together or the action space.
        """
        path = pathlib.Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: cannot be read as an .npz file of arrays ({error})") from error
        missing = [name for name in ARRAYS if name not in arrays]
        if missing:
            raise ValueError(f"{path}: has no {', '.join(missing)}; a behaviour policy has {', '.join(ARRAYS)}")
        hidden, width = arrays["w1"].shape[-1], action_space.shape[0]
        for name in ("w_mean", "w_log_std"):
            if arrays[name].shape != (hidden, width):
                raise ValueError(f"{path}: {name} has shape {arrays[name].shape}, expected {(hidden, width)}")
        return cls(arrays, action_space)

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        return rng.standard_normal((steps, len(self.center)), dtype=np.float32)

    def actions(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        a = self.arrays
        hidden = np.maximum(observations @ a["w0"] + a["b0"], 0)  # (B, hidden)
        hidden = np.maximum(hidden @ a["w1"] + a["b1"], 0)
        mean = hidden @ a["w_mean"] + a["b_mean"]  # (B, act)
        log_std = np.clip(hidden @ a["w_log_std"] + a["b_log_std"], *LOG_STD_RANGE)
        return self.center + self.half_range * np.tanh(mean + np.exp(log_std) * noise)


@functools.lru_cache(maxsize=32)
def resolve_policy(env_id: str, reference: str) -> BehaviorPolicy:
    """The policy that ``reference`` names: ``uniform``, ``pendulum-mixed``, or the path of an ``.npz`` file."""
    if reference == "pendulum-mixed":
        return PendulumMixed()
    env = gym.make(env_id)
    space = env.action_space
    env.close()
    if not isinstance(space, spaces.Box):
        raise ValueError(f"{env_id} has the action space {space}, behaviour policies need a Box")
    return RandomPolicy(space) if reference == "uniform" else GaussianPolicy.load(reference, space)


def policy_version(reference: str) -> str:
    """Changes when the actions of the policy that ``reference`` names would."""
    builtin = {"uniform": RandomPolicy.version, "pendulum-mixed": PendulumMixed.version}
    return builtin.get(reference) or hashlib.sha256(pathlib.Path(reference).read_bytes()).hexdigest()[:16]
