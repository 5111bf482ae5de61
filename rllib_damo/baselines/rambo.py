"""RAMBO: "Robust Adversarial Model-Based Offline Reinforcement Learning" (Rigter et al. 2022, arXiv 2204.12581)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from rllib_damo.core.config import ModelBasedConfig
from rllib_damo.core.model_based_algorithm import ModelBasedAlgorithm
from rllib_damo.core.model_based_learner import ModelBasedTorchLearner
from rllib_damo.core.option_groups import CriticTraining, EntropyTraining, ModelBasedTraining, PrecisionTraining
from rllib_damo.core.options import Option, count, count_or_zero, not_negative, positive
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.rl_module import SACTorchRLModule
from rllib_damo.core.sac import NETWORK_OPTIONS, SHORT_RUN, SACUpdate
from rllib_damo.core.update import Draw, Metrics, RowGroup
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.termination import rule_of_model
from rllib_damo.nn.adam import FusedAdam, load_optimizer_state, optimizer_state
from rllib_damo.nn.batched_matmul import PRODUCT_DTYPES
from rllib_damo.nn.flat_parameters import gradient_of
from rllib_damo.nn.gaussian_mlp import Gradients
from rllib_damo.utils.batch import Batch

#: What actions are clipped to where a policy is cloned: atanh is infinite at ±1, and data is often clipped there.
_LARGEST_ACTION = 0.999


class Imagined(NamedTuple):
    """A step of the policy in the model, and how much better it went than expected, for B rows."""

    inputs: Tensor  # (B, obs + act) standardised
    targets: Tensor  # (B, obs + 1) standardised: what was drawn of [s' - s, r]
    responsibilities: Tensor  # (E, B) of the members for what was drawn; 0 for those that are no elites
    advantages: Tensor  # (B,) standardised over the batch
    values: Tensor  # (B,) r + γ (1 - terminated) V(s')
    next_obs: Tensor  # (B, obs)


class RAMBOUpdate(SACUpdate):
    """SAC on rollouts of a model that is itself trained on, against the policy.

    After the gradient steps of each iteration the model minimises λ E[A log p(s',r|s,a)] plus its likelihood loss on
    rows of the dataset. p is the mixture of the elites, (s',r) is drawn from it for actions of the policy, and
    A = r + γ (1 - terminated) min_i Q_i(s',π(s')) - min_i Q_i(s,a), standardised over the batch: what went better than
    expected becomes less likely. The gradient of log p is that of the members' own log likelihoods, each weighted by
    its responsibility ρ_j = softmax_j log p_j; so both losses are one likelihood with weights (`model_step`).
    """

    uses_dynamics = True

    def __init__(self, module: Any, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        actor = [param for group in self.optimizers["actor"].param_groups for param in group["params"]]
        self.optimizers = {**self.optimizers, "cloning": FusedAdam(actor, config.cloning_lr)}
        self.params["cloning"] = self.params["actor"]
        self._dynamics: DynamicsEnsemble | None = None

    # -- the start of the policy -----------------------------------------------------------------------------------

    def pretrain(self, draw: Draw) -> Metrics:
        """Clones the dataset's policy."""
        losses = []
        for _ in range(self.config.cloning_steps):
            losses.append(self.cloning_loss(draw(RowGroup(self.config.train_batch_size_per_learner))))
            self.apply("cloning", losses[-1])
        return {"cloning_loss": torch.stack(losses[-100:]).detach().mean()} if losses else {}

    def cloning_loss(self, rows: Batch) -> Tensor:
        """The mean of -log π(a|s) over the rows."""
        mean, log_std = self.module.actor(rows.obs)
        actions = rows.actions.clamp(-_LARGEST_ACTION, _LARGEST_ACTION)
        z = (actions.atanh() - mean) / log_std.exp()
        log_prob = -0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi) - (1 - actions.square()).log()
        return -log_prob.sum(-1).mean()

    # -- the model -------------------------------------------------------------------------------------------------

    def set_dynamics(self, dynamics: DynamicsEnsemble) -> None:
        o, device = self.config, dynamics.input_mean.device
        self._dynamics = dynamics.requires_grad_(True)  # `Gradients` writes those of parameters that require one
        self._terminated = rule_of_model(o, dynamics, self.module.action_space, device)
        self._model_params = [*dynamics.weights, *dynamics.biases, dynamics.max_logvar, dynamics.min_logvar]
        decay = [*o.dynamics_weight_decay, *[0.0] * (len(dynamics.biases) + 2)]
        self._model_optimizer = FusedAdam(
            [{"params": [p], "weight_decay": d} for p, d in zip(self._model_params, decay, strict=True)], o.adversary_lr
        )
        self._gradients = Gradients(self._model_params, o.logvar_loss_coef, PRODUCT_DTYPES[o.dynamics_precision])
        self._is_elite = torch.zeros(dynamics.num_ensemble, 1, dtype=torch.bool, device=device)
        self._is_elite[dynamics.elites] = True
        self._varies = dynamics.target_std > 0  # (obs + 1,): a quantity that is constant has no density

    def dynamics_state(self) -> Mapping[str, Any] | None:
        """A copy, which the next steps leave as it is."""
        if not self.config.adversarial_weight:
            return None
        assert self._dynamics is not None
        return {name: value.clone() for name, value in self._dynamics.state_dict().items()}

    def after_iteration(self, draw: Draw) -> Metrics:
        """The adversarial steps, along rollouts from states of the dataset."""
        o = self.config
        if not o.adversarial_weight:
            return {}
        assert self._dynamics is not None
        num, losses, values = o.train_batch_size_per_learner, [], []
        for step in range(o.adversarial_steps):
            if step % o.rollout_length == 0:
                obs = draw(RowGroup(num)).obs
            imagined = self.imagine(obs)
            losses.append(self.model_step(draw(RowGroup(num * self._dynamics.num_ensemble, of="known")), imagined))
            values.append(imagined.values.mean())
            obs = imagined.next_obs  # past terminal states too, as in the authors' code
        return {"model_loss": torch.stack(losses).mean(), "model_value_mean": torch.stack(values).mean()}

    @torch.no_grad()
    def imagine(self, obs: Tensor) -> Imagined:
        """One step of the policy from ``obs (B, obs)``, each row by an elite drawn for it."""
        m, model = self.module, self._dynamics
        assert model is not None
        actions, _ = m.sample_actions(obs, self.generator)
        mean, logvar = model(obs, actions)  # (E, B, obs + 1)
        picks = torch.randint(model.num_elites, (len(obs),), generator=self.generator, device=obs.device)
        rows = torch.arange(len(obs), device=obs.device)
        mean_drawn, logvar_drawn = mean[model.elites[picks], rows], logvar[model.elites[picks], rows]
        noise = torch.randn(mean_drawn.shape, generator=self.generator, device=obs.device, dtype=obs.dtype)
        drawn = mean_drawn + (0.5 * logvar_drawn).exp() * noise
        terms = (drawn - mean).square() * (-logvar).exp() + logvar
        log_density = -0.5 * torch.where(self._varies, terms, 0.0).sum(-1)
        responsibilities = log_density.masked_fill(~self._is_elite, -math.inf).softmax(0)

        next_obs, rewards = model.clip(obs + drawn[:, :-1]), drawn[:, -1]
        terminated = self._terminated(obs, actions, next_obs).to(obs.dtype)
        next_q = m.critics(next_obs, m.actor(next_obs)[0].tanh()).min(0).values
        values = rewards + self.config.gamma * (1 - terminated) * next_q
        advantages = values - m.critics(obs, actions).min(0).values
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-6)
        inputs, targets = self._standardized(obs, actions, drawn)
        return Imagined(inputs, targets, responsibilities, advantages, values, next_obs)

    def model_step(self, rows: Batch, imagined: Imagined) -> Tensor:
        """One step of the model on λ mean_b[A log p] + Σ_members mean[(μ - y)²/σ² + log σ²], bounds' loss and decay.

        λ A_b ρ_jb ∇log N_j is the gradient of the member's likelihood terms, (μ - y)²/σ² + log σ², with the weights
        -½ λ A_b ρ_jb. So the imagined rows join those of the dataset, in one likelihood with weights. That takes a mean
        over both kinds of rows and over the dimensions, which the weights undo where need be.

        Args:
            rows: E · B rows of the dataset, B for each member.
            imagined: B rows.

        Returns:
            The loss without those of bounds and decay.
        """
        assert self._dynamics is not None
        num_members, num = imagined.responsibilities.shape
        changes = torch.cat((rows.next_obs - rows.obs, rows.rewards[:, None]), -1)
        x, y = (part.view(num_members, num, -1) for part in self._standardized(rows.obs, rows.actions, changes))
        scale = -self.config.adversarial_weight * y.shape[-1]  # -½ λ / B over 1 / (2 B D)
        weights = (scale * imagined.advantages * imagined.responsibilities).unsqueeze(-1) * self._varies
        loss = self._gradients.compute(
            torch.cat((x, imagined.inputs.expand(num_members, -1, -1)), 1),
            torch.cat((y, imagined.targets.expand(num_members, -1, -1)), 1),
            torch.cat((torch.full_like(y, 2.0), weights), 1),
        )
        if self.reduce_gradients is not None:
            self.reduce_gradients([gradient_of(param).view(-1) for param in self._model_params])
        self._model_optimizer.step()
        return loss

    def _standardized(self, obs: Tensor, actions: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
        """The model's inputs and targets, from ``changes`` [s' - s, r]."""
        model = self._dynamics
        assert model is not None
        inputs = (torch.cat((obs, actions), -1) - model.input_mean) / model.input_std
        return inputs, (changes - model.target_mean) / torch.where(self._varies, model.target_std, 1.0)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        if self._dynamics is None:
            return {}
        model = {name: value.cpu().numpy().copy() for name, value in self._dynamics.state_dict().items()}
        return {"dynamics": model, "optimizer": optimizer_state(self._model_optimizer)}

    def set_state(self, state: dict[str, Any]) -> None:
        if state:
            assert self._dynamics is not None
            self._dynamics.load_state_dict({name: torch.as_tensor(value) for name, value in state["dynamics"].items()})
            load_optimizer_state(self._model_optimizer, state["optimizer"])


class RAMBOTorchLearner(ModelBasedTorchLearner):
    """The model-based learner with `RAMBOUpdate`.

    Metrics: those of `SACUpdate` (``qf_loss`` is the sum over critics of half the mean squared TD error,
    ``td_error_abs`` the mean absolute one, ``qf_mean`` the mean Q(s,a), ``policy_loss`` the mean of α log π - Q,
    ``alpha_value`` α, ``entropy`` the mean of -log π, ``reward_mean`` the batch's mean reward), and ``cloning_loss``,
    the mean -log π(a|s) of the last 100 cloning steps. With ``adversarial_weight``, means over the iteration's
    adversarial steps: ``model_loss``, what the model minimises, summed over the members (in units of the targets'
    spread, without weight decay and the bounds' loss), and ``model_value_mean``, r + γ (1 - terminated) V(s') in the
    model, which the adversary lowers.
    """

    update_class = RAMBOUpdate
    divergence_hint = "smaller learning rates, a smaller adversarial_weight or a shorter rollout_length"


class RAMBOTraining(ModelBasedTraining, CriticTraining, EntropyTraining, PrecisionTraining, total=False):
    """What ``RAMBOConfig.training`` takes."""

    adversarial_weight: Annotated[
        float,
        Option(
            3e-4,
            not_negative,
            "λ, weight of the adversary against the model's likelihood loss. 0 leaves the model as it was "
            "trained, and takes no adversarial steps.",
        ),
    ]
    adversarial_steps: Annotated[
        int,
        Option(
            200,
            count,
            "Steps of the model after each iteration's `rollout_freq` gradient steps. The published 1,000 take some 5 "
            "times the arithmetic of the latter.",
        ),
    ]
    adversary_lr: Annotated[float, Option(3e-4, positive, "Adam's learning rate for these steps; the published one.")]
    cloning_steps: Annotated[
        int,
        Option(
            5_000,
            count_or_zero,
            "Steps that clone the dataset's policy, by its likelihood, before the first rollouts. Published: 50 "
            "passes over the dataset.",
        ),
    ]
    cloning_lr: Annotated[float, Option(1e-4, positive, "Adam's learning rate for cloning; the published one.")]


class RAMBOConfig(ModelBasedConfig):
    """Configuration of RAMBO. The defaults are for some 100,000 gradient steps; `paper` has the published settings.

    Where episodes can end by a fall, `long_rollouts` may serve better: the defaults do not learn hopper-medium.

    .. code-block:: python

        from rllib_damo import RAMBOConfig

        config = RAMBOConfig().environment("HalfCheetah-v5").offline_data(input_="halfcheetah-medium")
    """

    option_groups: ClassVar[Mapping[str, type]] = {**ModelBasedConfig.option_groups, "training": RAMBOTraining}
    defaults = SHORT_RUN
    network_options = NETWORK_OPTIONS
    default_module_class = SACTorchRLModule
    default_learner_class = RAMBOTorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return RAMBO

    @classmethod
    def paper(cls, num_rows: int = 1_000_000) -> RAMBOConfig:
        """The settings of the authors' code: 2 M gradient steps.

        ``rollout_length`` and ``adversarial_weight`` are per task and still to be set. On D4RL's v2 data, [length, λ]
        is

        ============= ========= ========= =============== ===============
        task          random    medium    medium-replay   medium-expert
        ============= ========= ========= =============== ===============
        halfcheetah   [5, 0]    [5, 3e-4] [5, 3e-4]       [5, 3e-4]
        hopper        [2, 3e-4] [5, 3e-4] [2, 3e-4]       [5, 3e-4]
        walker2d      [5, 0]    [5, 0]    [5, 0]          [2, 3e-4]
        ============= ========= ========= =============== ===============

        The hold-out set of the model has 1,000 rows, where theirs has a tenth of the data.

        Args:
            num_rows: of the dataset, for 50 passes of cloning.
        """
        config = cls().dynamics(dynamics_lr=3e-4, max_epochs_since_update=10, logvar_loss_coef=0.001)
        return config.training(
            adversarial_steps=1000, cloning_steps=math.ceil(50 * num_rows / 256), critic_layer_norm=False,
            initial_alpha=1.0, max_alpha=float("inf"), policy_tau=1.0,
        )  # fmt: skip

    def training(self, **options: Unpack[RAMBOTraining]) -> RAMBOConfig:  # type: ignore[override]
        """Sets the options of RAMBO."""
        return super().training(**options)


@register_algorithm
class RAMBO(ModelBasedAlgorithm):
    """RAMBO (arXiv 2204.12581)."""

    config_class: ClassVar[Any] = RAMBOConfig
