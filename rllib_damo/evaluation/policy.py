"""A trained policy as a plain function: it takes raw observations and returns actions in the environment's units."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module import RLModule
from ray.rllib.core.rl_module.torch import TorchRLModule

from rllib_damo.errors import CheckpointError
from rllib_damo.evaluation.checkpoints import CONSTRUCTOR, MODULE_STATE, module_dir, read_pickle, verify
from rllib_damo.evaluation.storage import local_copy
from rllib_damo.utils.spaces import from_unit


class Policy:
    """A deterministic policy of one RLModule with Box observations.

    Attributes:
        observation_space, action_space: the environment's, as at training.
        module: the RLModule.
    """

    def __init__(self, module: TorchRLModule, device: str | torch.device = "cpu") -> None:
        if module.is_stateful():
            raise CheckpointError(
                f"{type(module).__name__} is recurrent; single observations need a module without state."
            )
        if not isinstance(module.observation_space, gym.spaces.Box):
            raise CheckpointError(
                f"observations must be a Box, but the module's space is {module.observation_space!r}."
            )
        self.module = module.to(device)
        self.module.eval()
        self.device = torch.device(device)
        self.observation_space = module.observation_space
        self.action_space = module.action_space

    @torch.no_grad()
    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Actions for one observation or a batch.

        Args:
            observations: raw, as the environment returns them, (obs,) or (B, obs).

        Returns:
            Actions in the environment's own units, inside its Box and of its dtype: (act,) or (B, act).

        Raises:
            ValueError: for another shape, or values that are not finite.
        """
        obs = np.asarray(observations, dtype=np.float32)
        shape = self.observation_space.shape
        single = obs.shape == shape
        if not single and obs.shape[1:] != shape:
            raise ValueError(f"observations must have shape {shape} or {('B', *shape)}, but have {obs.shape}.")
        if not np.isfinite(obs).all():
            raise ValueError("observations must be finite, but some are NaN or infinite.")
        batch = torch.from_numpy(obs[None] if single else obs).to(self.device)
        output = self.module.forward_inference({Columns.OBS: batch})
        if Columns.ACTIONS in output:
            actions = output[Columns.ACTIONS]
        else:
            distribution = self.module.get_inference_action_dist_cls().from_logits(output[Columns.ACTION_DIST_INPUTS])
            actions = distribution.to_deterministic().sample()
        result = actions.cpu().numpy()
        if isinstance(self.action_space, gym.spaces.Box):  # RLlib's `normalize_actions`: policies act in [-1, 1]
            space = self.action_space
            unit = np.clip(result, -1.0, 1.0).astype(space.dtype)
            result = np.clip(from_unit(unit, space), space.low, space.high)  # rounding may leave the Box
        return result[0] if single else result


def load_policy(checkpoint: str | Path, *, module_id: str = "default_policy", device: str = "cpu") -> Policy:
    """The policy of a checkpoint written by `rllib train`, Tune, or `algo.save_to_path()`.

    The checkpoint's pickles are executed on loading: load only those that you trust.

    Args:
        checkpoint: an Algorithm's checkpoint folder or its address (``s3://...``), or an RLModule's inside it.
        module_id: name of the module; RLlib calls the only one of a single-agent algorithm "default_policy".
        device: torch device.

    Raises:
        CheckpointError: if there is no such checkpoint or module, or it can't be read.
    """
    with local_copy(checkpoint) as place:
        folder = module_dir(place, module_id)
        verify(folder)
        for name in (CONSTRUCTOR, MODULE_STATE):
            read_pickle(folder / name)  # names the file if it cannot be read
        try:
            module = RLModule.from_checkpoint(str(folder))
        except Exception as error:
            raise CheckpointError(
                f"the module in {folder} cannot be loaded ({type(error).__name__}: {error})."
            ) from error
    assert isinstance(module, TorchRLModule)
    return Policy(module, device)
