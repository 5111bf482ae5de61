"""DAMO's RLModule: actor, critics, target critics, classifier and entropy coefficient."""

from __future__ import annotations

import torch
from torch import nn

from rllib_damo.core.rl_module import SACTorchRLModule
from rllib_damo.damo.networks import Classifier
from rllib_damo.utils.batch import Batch, unknown_successors


class DAMOTorchRLModule(SACTorchRLModule):
    """All of DAMO's networks.

    ``model_config`` keys, which ``DAMOConfig`` fills from its options of the same names: ``hidden_dims``, ``twin_q``,
    ``critic_layer_norm``, ``classifier_spectral_norm``, ``initial_alpha``.
    """

    def setup(self) -> None:
        super().setup()
        cfg = self.model_config
        self.classifier = Classifier(*self.sizes, cfg["hidden_dims"], cfg["classifier_spectral_norm"])

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        return super().trainable() | {"classifier": list(self.classifier.parameters())}

    def fit_standardizers(self, rows: Batch, policy_inputs: bool = True) -> None:
        """As the base's, and the classifier's inputs; it never sees raw ones."""
        if policy_inputs:
            for net in self.children():
                if net is not self.classifier and hasattr(net, "standardize"):
                    net.standardize.fit(rows.obs)
        inputs = torch.cat((rows.obs, rows.actions, rows.next_obs - rows.obs), dim=-1)
        unknown = unknown_successors(rows.obs, rows.next_obs, rows.terminated)
        if unknown.any():
            inputs = inputs[~unknown]
        obs_dim, act_dim = self.sizes
        self.classifier.standardize.fit(inputs, slice(obs_dim, obs_dim + act_dim))
