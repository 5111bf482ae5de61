"""TD3+BC: "A Minimalist Approach to Offline Reinforcement Learning" (Fujimoto & Gu 2021, arXiv 2106.06860)."""

from __future__ import annotations

import copy
from typing import Any

from ray.rllib.algorithms.algorithm_config import NotProvided

from rllib_damo.baselines.config import BaselineConfig
from rllib_damo.baselines.modules import DeterministicTorchRLModule
from rllib_damo.baselines.updates import TD3BCOptions, TD3BCUpdate
from rllib_damo.core.algorithm import DAMO
from rllib_damo.core.learner import DAMOTorchLearner
from rllib_damo.core.options import is_count
from rllib_damo.damo.update import Update


class TD3BCTorchRLModule(DeterministicTorchRLModule):
    """Deterministic actor, twin critics, and the targets of both."""

    def setup(self) -> None:
        super().setup()
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)

    def get_non_inference_attributes(self) -> list[str]:
        return [*super().get_non_inference_attributes(), "target_actor"]


class TD3BCTorchLearner(DAMOTorchLearner):
    """DAMO's learner with `TD3BCUpdate`.

    Metrics: ``policy_loss`` is the actor's, ``bc_loss`` its part (π(s) - a)², ``value_scale`` λ; ``qf_loss`` is the sum
    of the critics' mean squared TD errors, ``td_error_abs`` the mean absolute one, ``qf_mean`` the mean Q(s,a).
    """

    metric_names = ("policy_loss", "bc_loss", "value_scale", "qf_loss", "qf_mean", "td_error_abs")
    divergence_hint = "smaller learning rates or a smaller bc_alpha"

    def make_update(self, module: Any, **parts: Any) -> Update:
        options = TD3BCOptions(**{name: getattr(self.config, name) for name in TD3BCOptions.__annotations__})
        return TD3BCUpdate(module, options=options, grad_clip=self.config.grad_clip, **parts)


class TD3BCConfig(BaselineConfig):
    """Configuration of TD3+BC, with the paper's settings; ``training`` reads the options in ``reads`` and its own.

    .. code-block:: python

        from rllib_damo.baselines import TD3BCConfig

        config = TD3BCConfig().environment("Hopper-v5").offline_data(input_="hopper-medium").training(bc_alpha=2.5)
    """

    uses_model = False
    reads = frozenset(
        {"hidden_dims", "twin_q", "critic_layer_norm", "normalize_observations", "actor_lr", "critic_lr", "tau"}
    )
    module_class = TD3BCTorchRLModule
    learner_class = TD3BCTorchLearner

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or TD3BC)
        self.real_ratio = 1.0
        self.bc_alpha = 2.5
        self.policy_noise = 0.2
        self.noise_clip = 0.5
        self.policy_delay = 2

    def training(
        self,
        *,
        bc_alpha: float = NotProvided,
        policy_noise: float = NotProvided,
        noise_clip: float = NotProvided,
        policy_delay: int = NotProvided,
        **kwargs: Any,
    ) -> TD3BCConfig:
        """Sets TD3+BC's options (the paper's appendix, Table 3).

        Args:
            bc_alpha: α, the weight of the value against the distance from the data's actions; 0 clones the behaviour.
            policy_noise: standard deviation of the noise on the target policy's unit actions.
            noise_clip: bound of that noise.
            policy_delay: gradient steps of the critics for each of the actor and the targets.
            kwargs: the options in ``reads``, see ``DAMOConfig.training``; and RLlib's own.
        """
        super().training(**kwargs)
        self._set(locals(), ("bc_alpha", "policy_noise", "noise_clip", "policy_delay"))
        return self

    def validate(self) -> None:
        super().validate()
        self._require_not_negative("bc_alpha", "policy_noise", "noise_clip")
        if not is_count(self.policy_delay):
            self._value_error(f"`policy_delay` must be a whole number >= 1; found {self.policy_delay!r}.")


class TD3BC(DAMO):
    """TD3+BC (arXiv 2106.06860), on DAMO's parts and without a model."""

    @classmethod
    def get_default_config(cls) -> TD3BCConfig:
        return TD3BCConfig()
