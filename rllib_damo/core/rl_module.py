"""The RLModule that all algorithms share: an actor with its moving average, and how RLlib acts by it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from rllib_damo.core.networks import Actor, Critics
from rllib_damo.nn.fast_network import FastNetwork
from rllib_damo.nn.stacked_mlp import is_plain
from rllib_damo.utils.batch import Batch
from rllib_damo.utils.spaces import check_spaces

#: Networks that are not trained, but copied from the actor.
_PLAYED = ("averaged_actor", "kept_actor")


class OfflineTorchRLModule(TorchRLModule, InferenceOnlyAPI):
    """A squashed-Gaussian actor. An inference-only copy holds the actor, its moving average and the kept actor alone.

    With the config's ``policy_check_freq`` there is a kept actor: a moving average that did well in the model
    (``policy_checks.py``). Evaluation and inference then play its mean, and the moving average's otherwise. Exploring
    actions are the moving average's.

    A subclass adds its networks in `setup`, their optimisers in `trainable` and their targets in `targets`. The
    config's ``network_options`` are in ``model_config``.
    """

    #: Whether the networks are `FastNetwork`s, and the dtype of their products between hidden layers.
    is_fast: bool = False
    fast_dtype: torch.dtype | None = None
    #: Standard deviation of the noise that exploration adds to unit actions.
    exploration_noise: float = 0.0
    #: What it is in real steps, where no option says otherwise.
    online_noise: float = 0.0

    def setup(self) -> None:
        check_spaces(self.observation_space, self.action_space)
        self.actor: Any = self.make_actor()
        self.averaged_actor: Any = copy.deepcopy(self.actor).requires_grad_(False)
        if self.model_config.get("policy_check_freq"):
            self.kept_actor: Any = copy.deepcopy(self.averaged_actor)

    @property
    def sizes(self) -> tuple[int, int]:
        """Widths of observations and actions."""
        return self.observation_space.shape[0], self.action_space.shape[0]

    def make_actor(self) -> nn.Module:
        """The policy's network: ``net(obs)`` gives (mean, log std) before the squashing, each ``(B, act_dim)``."""
        return Actor(*self.sizes, self.model_config["hidden_dims"])

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each optimiser by its name; the option ``<name>_lr`` is its learning rate."""
        return {"actor": list(self.actor.parameters())}

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        """Networks with the moving averages that serve as their targets."""
        return []

    def use_fast_networks(self, dtype: torch.dtype | None) -> None:
        """From now on the networks are `FastNetwork`s, the averaged actor apart, with products in ``dtype``.

        Networks of another kind, of a subclass, stay as they are.

        Raises:
            ValueError: there are such, and ``dtype`` is given.
        """
        trained = [child for name, child in self.named_children() if name not in _PLAYED and hasattr(child, "net")]
        if not all(is_plain(child.net) for child in trained):
            if dtype is not None:
                raise ValueError(
                    f"{type(self).__name__} has networks that are no plain chains of linear layers and ReLU or SiLU: "
                    'set precision="fp32".'
                )
            return
        self.is_fast, self.fast_dtype = True, dtype
        for child in trained:
            child.net.forward = FastNetwork(child.net, dtype)

    def get_non_inference_attributes(self) -> list[str]:
        own = [*self._modules, *self._parameters]
        return [name for name in own if name not in ("actor", *_PLAYED)]

    def set_state(self, state: dict[str, Any]) -> None:
        """As RLlib's.

        Raises:
            RuntimeError: the state is of other networks. One of the policy alone is taken.
        """
        state = self._with_kept_actor(state)
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
                "The checkpoint's networks are not this configuration's: restore with its "
                f"{', '.join(self.model_config)} and spaces ({error})."
            ) from error

    def _with_kept_actor(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state for this module, where one of the two runs checks the policy and the other does not.

        A kept actor begins as the moving average, and is left out where there are no checks.
        """
        if not hasattr(self, "kept_actor"):
            return {name: value for name, value in state.items() if not name.startswith("kept_actor.")}
        played = {name: value for name, value in state.items() if name.startswith("averaged_actor.")}
        return {"kept_actor." + name.split(".", 1)[1]: value for name, value in played.items()} | state

    def fit_standardizers(self, rows: Batch, policy_inputs: bool = True) -> None:
        """Sets the input statistics from the dataset's rows; ``policy_inputs=False`` leaves the observations raw."""
        if policy_inputs:
            for net in self.children():
                if hasattr(net, "standardize"):
                    net.standardize.fit(rows.obs)

    def sample_actions(self, obs: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Unit actions ``(B, act_dim)`` of the policy in training, and their log densities ``(B,)``.

        Args:
            obs: ``(B, obs_dim)`` raw observations.
            generator: source of the noise.
        """
        noise = torch.randn(len(obs), self.action_space.shape[0], generator=generator, device=obs.device)
        return self.actor.sample(obs, noise)

    @property
    def played_actor(self) -> Any:
        """The policy whose mean evaluation and inference play."""
        return getattr(self, "kept_actor", self.averaged_actor)

    def keep_averaged_actor(self) -> None:
        """Copies the moving average, as it is now, into the kept actor."""
        with torch.no_grad():
            for kept, current in zip(self.kept_actor.parameters(), self.averaged_actor.parameters(), strict=True):
                kept.copy_(current)

    def mean_actions(self, obs: Tensor, actor: Any = None) -> Tensor:
        """tanh of a policy's mean, ``(B, act_dim)`` unit actions.

        Args:
            obs: ``(B, obs_dim)`` raw observations.
            actor: one of the policies; None: the one that evaluation and inference play.
        """
        return (self.played_actor if actor is None else actor)(obs)[0].tanh()

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
        if self.exploration_noise:
            return {Columns.ACTIONS: self.with_noise(actions)}
        return {Columns.ACTIONS: actions, Columns.ACTION_LOGP: log_prob}

    def with_noise(self, actions: Tensor) -> Tensor:
        """Unit actions with the noise of exploration, if any, within [-1, 1]."""
        if not self.exploration_noise:
            return actions
        return (actions + self.exploration_noise * torch.randn_like(actions)).clamp(-1, 1)


class ActorCriticTorchRLModule(OfflineTorchRLModule):
    """Actor, critics and the critics' targets."""

    def setup(self) -> None:
        super().setup()
        cfg = self.model_config
        num = 2 if cfg["twin_q"] else 1
        self.critics: Any = Critics(*self.sizes, cfg["hidden_dims"], num, cfg["critic_layer_norm"])
        self.target_critics: Any = copy.deepcopy(self.critics).requires_grad_(False)

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        return super().trainable() | {"critic": list(self.critics.parameters())}

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [*super().targets(), (self.critics, self.target_critics)]


class SACTorchRLModule(ActorCriticTorchRLModule):
    """Squashed-Gaussian actor, twin critics with targets, and the entropy coefficient."""

    def setup(self) -> None:
        super().setup()
        self.log_alpha = nn.Parameter(torch.tensor(float(self.model_config["initial_alpha"])).log())

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        return super().trainable() | {"alpha": [self.log_alpha]}


class DeterministicMixin:
    """π(s) = tanh(mean), in exploration with noise: the actor's head for the standard deviation is not used."""

    online_noise = 0.1

    def _forward_exploration(self: Any, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.with_noise(self._forward_inference(batch, **kwargs)[Columns.ACTIONS])}
