"""What the baselines' RLModules share. All act by tanh(mean) in evaluation, as DAMO's does."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from rllib_damo.core.networks import Actor, Critics
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.utils.batch import Batch
from rllib_damo.utils.spaces import check_spaces


class BaselineTorchRLModule(DAMOTorchRLModule):
    """DAMO's actor and, where ``has_critics``, its critics with their targets; no classifier."""

    has_critics = True

    def setup(self) -> None:
        check_spaces(self.observation_space, self.action_space)
        obs_dim, act_dim = self.observation_space.shape[0], self.action_space.shape[0]
        cfg = self.model_config
        self.actor = Actor(obs_dim, act_dim, cfg["hidden_dims"])
        self.averaged_actor = copy.deepcopy(self.actor).requires_grad_(False)
        if self.has_critics:
            num = 2 if cfg["twin_q"] else 1
            self.critics = Critics(obs_dim, act_dim, cfg["hidden_dims"], num, cfg["critic_layer_norm"])
            self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)

    def get_non_inference_attributes(self) -> list[str]:
        return ["critics", "target_critics"] if self.has_critics else []

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        params = {"actor": list(self.actor.parameters())}
        return params | {"critic": list(self.critics.parameters())} if self.has_critics else params

    def fit_standardizers(self, rows: Batch, policy_inputs: bool = True) -> None:
        if policy_inputs:
            for net in self.children():
                net.standardize.fit(rows.obs)


class DeterministicTorchRLModule(BaselineTorchRLModule):
    """π(s) = tanh(mean), in exploration too: the actor's head for the standard deviation is not used."""

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._forward_inference(batch, **kwargs)
