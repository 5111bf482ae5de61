"""DAMO's RLModule: actor, critics, target critics, classifier and entropy coefficient."""

from __future__ import annotations

import copy
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from rllib_damo.core.networks import Actor, Classifier, Critics
from rllib_damo.utils.batch import Batch, unknown_successors
from rllib_damo.utils.spaces import check_spaces


class DAMOTorchRLModule(TorchRLModule, InferenceOnlyAPI):
    """All of DAMO's networks. An inference-only copy holds the actor and its moving average alone.

    ``model_config`` keys, which ``DAMOConfig`` fills from its options of the same names: ``hidden_dims``, ``twin_q``,
    ``critic_layer_norm``, ``classifier_spectral_norm``, ``initial_alpha``.
    """

    def setup(self) -> None:
        check_spaces(self.observation_space, self.action_space)
        obs_dim, act_dim = self.observation_space.shape[0], self.action_space.shape[0]
        cfg = self.model_config
        hidden_dims = cfg["hidden_dims"]
        self.actor = Actor(obs_dim, act_dim, hidden_dims)
        self.averaged_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.critics = Critics(obs_dim, act_dim, hidden_dims, 2 if cfg["twin_q"] else 1, cfg["critic_layer_norm"])
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.classifier = Classifier(obs_dim, act_dim, hidden_dims, cfg["classifier_spectral_norm"])
        self.log_alpha = nn.Parameter(torch.tensor(float(cfg["initial_alpha"])).log())

    def get_non_inference_attributes(self) -> list[str]:
        return ["critics", "target_critics", "classifier", "log_alpha"]

    def set_state(self, state: dict[str, Any]) -> None:
        """As RLlib's.

        Raises:
            RuntimeError: the state is of other networks. One of the policy alone is taken.
        """
        others = set(self.get_non_inference_attributes())
        if others & {name.split(".")[0] for name in state}:
            others = set()
        missing = [name for name in self.state_dict() if name not in state and name.split(".")[0] not in others]
        try:
            if missing:  # RLlib would leave these as they are
                raise RuntimeError(f"it has no {', '.join(missing)}")
            super().set_state(state)
        except RuntimeError as error:
            raise RuntimeError(
                "The checkpoint's networks are not this configuration's: restore with its hidden_dims, twin_q, "
                f"critic_layer_norm, classifier_spectral_norm and spaces ({error})."
            ) from error

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each optimiser by its name; the option ``<name>_lr`` is its learning rate."""
        return {
            "actor": list(self.actor.parameters()),
            "critic": list(self.critics.parameters()),
            "classifier": list(self.classifier.parameters()),
            "alpha": [self.log_alpha],
        }

    def fit_standardizers(self, rows: Batch, policy_inputs: bool = True) -> None:
        """Sets the input statistics from the dataset's rows; ``policy_inputs=False`` leaves actor and critics raw."""
        if policy_inputs:
            for net in (self.actor, self.averaged_actor, self.critics, self.target_critics):
                net.standardize.fit(rows.obs)
        inputs = torch.cat((rows.obs, rows.actions, rows.next_obs - rows.obs), dim=-1)
        unknown = unknown_successors(rows.obs, rows.next_obs, rows.terminated)
        if unknown.any():
            inputs = inputs[~unknown]
        obs_dim, act_dim = rows.obs.shape[1], rows.actions.shape[1]
        self.classifier.standardize.fit(inputs, slice(obs_dim, obs_dim + act_dim))

    def sample_actions(self, obs: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Unit actions ``(B, act_dim)`` of the policy in training, and their log densities ``(B,)``.

        Args:
            obs: ``(B, obs_dim)`` raw observations.
            generator: source of the noise.
        """
        noise = torch.randn(len(obs), self.action_space.shape[0], generator=generator, device=obs.device)
        return self.actor.sample(obs, noise)

    def mean_actions(self, obs: Tensor) -> Tensor:
        """tanh of the averaged policy's mean, ``(B, act_dim)`` unit actions: what evaluation and inference play."""
        return self.averaged_actor(obs)[0].tanh()

    # RLlib's EnvRunners act through these. Emitting the actions themselves, and not the inputs of an action
    # distribution, keeps RLlib from clipping the raw mean (its deterministic squashed Gaussian does).
    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {Columns.ACTIONS: self.mean_actions(batch[Columns.OBS].float())}

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        obs = batch[Columns.OBS].float()
        with torch.no_grad():
            actions, log_prob = self.averaged_actor.sample(
                obs, torch.randn(len(obs), self.action_space.shape[0], device=obs.device)
            )
        return {Columns.ACTIONS: actions, Columns.ACTION_LOGP: log_prob}
