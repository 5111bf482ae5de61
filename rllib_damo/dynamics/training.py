"""Maximum-likelihood training of the dynamics ensemble, one epoch a call (docs/damo.md, "Model, rollouts, buffers")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.termination_head import TerminationTrainer
from rllib_damo.nn.adam import FusedAdam, load_optimizer_state, optimizer_state
from rllib_damo.nn.batched_matmul import PRODUCT_DTYPES
from rllib_damo.nn.gaussian_mlp import Gradients, bounded_gaussian
from rllib_damo.nn.stacked_mlp import stacked_forward
from rllib_damo.nn.standardize import input_scales, mean_and_std
from rllib_damo.utils.batch import unknown_successors
from rllib_damo.utils.limits import clipping_limits

#: A member counts as improved when its hold-out error falls by this fraction.
_IMPROVEMENT = 0.01
#: Fewest transitions with known successors that are trained on.
MIN_TRANSITIONS = 10

ArrayLike = np.ndarray | Tensor


def holdout_rows(num: int, size: int, seed: int) -> Tensor:
    """The rows that a `DynamicsTrainer` with this ``seed`` and ``holdout_size`` keeps aside of ``num``."""
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed))[: num_holdout_rows(num, size)]


def num_holdout_rows(num: int, size: int) -> int:
    """How many of ``num`` rows are kept aside where ``size`` are asked for."""
    return min(size, num // 5)


class DynamicsTrainer:
    """Fits each member to its own bootstrap sample of the transitions until its hold-out error stops falling.

    A member that has not improved by 1 % for ``max_epochs_since_update`` epochs is done and is computed no longer; its
    best weights are already in the ensemble. Of terminals whose successor the source did not record (the reader repeats
    the observation there), the reward alone is fitted.

    Args:
        ensemble: the networks; trained in place.
        observations: ``(N, obs)``.
        unit_actions: ``(N, act)`` in [-1, 1].
        next_observations: ``(N, obs)``.
        rewards: ``(N,)``.
        terminations: ``(N,)`` bool.
        lr: Adam's learning rate.
        weight_decay: one coefficient a layer, first to last.
        batch_size: rows a step, drawn separately for each member.
        max_epochs: stop after this many at the latest; None for no limit.
        max_epochs_since_update: patience, in epochs.
        holdout_size: transitions kept aside; at most a fifth of the data.
        logvar_loss_coef: weight of the loss that pulls the log-variance bounds together.
        precision: "fp32", or "bf16" for products between hidden layers in bfloat16.
        seed: of the split, the bootstrap samples and the order of rows.
        device: where data and networks live.
        fit_statistics: False for networks that are trained already, on other data: the statistics that their weights
            go with stay.
        holdout: the rows that are kept aside, in the place of ``holdout_size`` drawn ones.

    Raises:
        ValueError: sizes that do not fit each other, or fewer than ``MIN_TRANSITIONS`` usable rows.
    """

    def __init__(
        self,
        ensemble: DynamicsEnsemble,
        observations: ArrayLike,
        unit_actions: ArrayLike,
        next_observations: ArrayLike,
        rewards: ArrayLike,
        terminations: ArrayLike,
        *,
        lr: float,
        weight_decay: Sequence[float],
        batch_size: int = 256,
        max_epochs: int | None = None,
        max_epochs_since_update: int = 5,
        holdout_size: int = 1000,
        logvar_loss_coef: float = 0.01,
        precision: str = "fp32",
        seed: int = 0,
        device: torch.device | str = "cpu",
        fit_statistics: bool = True,
        holdout: Tensor | None = None,
    ):
        num_layers = len(ensemble.weights)
        if len(weight_decay) != num_layers:
            raise ValueError(
                f"dynamics_weight_decay has {len(weight_decay)} values, but the networks have {num_layers} layers "
                f"(dynamics_hidden_dims={ensemble.hidden_dims} and the output): give one value a layer."
            )
        self.ensemble = ensemble.to(device)
        self.device = torch.device(device)
        self._batch_size, self._max_epochs, self._patience = batch_size, max_epochs, max_epochs_since_update
        self._logvar_loss_coef = logvar_loss_coef
        self._dtype = PRODUCT_DTYPES[precision]
        self._generator = torch.Generator().manual_seed(seed)  # the CPU's: the same draws on every device

        obs, actions, next_obs, rew = (
            torch.as_tensor(a).to(self.device, torch.float32)
            for a in (observations, unit_actions, next_observations, rewards)
        )
        term = torch.as_tensor(terminations).to(self.device, torch.bool)
        self._check_shapes(obs, actions, next_obs, rew, term)
        unknown = unknown_successors(obs, next_obs, term)
        self._known = ~unknown if unknown.any() else None  # (N,) bool; None: all
        num_known = len(unknown) if self._known is None else int(self._known.sum())
        if num_known < MIN_TRANSITIONS:
            raise ValueError(
                f"Training the dynamics needs {MIN_TRANSITIONS} transitions with known successors; found {num_known}."
            )
        inputs, targets = torch.cat((obs, actions), -1), torch.cat((next_obs - obs, rew[:, None]), -1)
        self._set_limits(obs, next_obs, keep=not fit_statistics)
        if fit_statistics:
            self._set_statistics(inputs, targets)
        else:  # outputs that were constant before have none
            unseen = ensemble.target_std == 0
            if unseen.any():
                mean, std = mean_and_std(targets[:, unseen])
                ensemble.target_mean[unseen], ensemble.target_std[unseen] = mean, std
        scale = torch.where(ensemble.target_std > 0, ensemble.target_std, 1.0)
        self._inputs = inputs.sub_(ensemble.input_mean).div_(ensemble.input_std)
        self._targets = targets.sub_(ensemble.target_mean).div_(scale)

        order = self._randperm(len(inputs))
        if holdout is None:  # those of `holdout_rows`
            num_holdout = num_holdout_rows(len(inputs), holdout_size)
            self._holdout, train = order[:num_holdout], order[num_holdout:]
        else:
            self._holdout = holdout.to(self.device)
            train = order[~torch.isin(order, self._holdout)]
        draws = torch.randint(len(train), (ensemble.num_ensemble, len(train)), generator=self._generator)
        self._bootstrap = train[draws.to(self.device)]  # (E, N) rows of each member's sample

        self._termination = None
        if ensemble.termination is not None:
            self._termination = TerminationTrainer(
                ensemble.termination, obs, actions, next_obs, term, generator=self._generator
            )

        # Working copies of the members still in training, (A, ...) each; the ensemble itself keeps the best weights.
        self._active = list(range(ensemble.num_ensemble))
        self._params = [
            p.detach().clone().requires_grad_()
            for p in (*ensemble.weights, *ensemble.biases, ensemble.max_logvar, ensemble.min_logvar)
        ]
        decay = [*weight_decay, *[0.0] * (num_layers + 2)]
        self._optimizer = FusedAdam(
            [{"params": [p], "weight_decay": d} for p, d in zip(self._params, decay, strict=True)], lr=lr
        )
        self._epoch = 0
        self._best = np.full(ensemble.num_ensemble, np.inf, np.float32)  # hold-out MSE of the best weights
        self._since_update = np.zeros(ensemble.num_ensemble, np.int64)

    # -- the public side ---------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """No member is in training any more, or ``max_epochs`` is reached."""
        return not self._active or (self._max_epochs is not None and self._epoch >= self._max_epochs)

    def train_epoch(self) -> dict[str, float]:
        """One pass over the bootstrap samples of the members in training.

        Returns:
            ``epoch`` (epochs done), ``train_loss`` (mean negative log likelihood of the epoch), ``holdout_loss`` (the
            same on the hold-out rows), ``holdout_mse`` (in units of the targets' variance), ``holdout_calibration``
            (mean squared error in units of the predicted variance), all means over the members in training,
            ``num_members_training`` (left after this epoch), and ``termination_loss`` if that is learned.

        Raises:
            RuntimeError: called when `done`, or the training diverged.
        """
        if self.done:
            raise RuntimeError("The dynamics are trained: call finish().")
        members = torch.tensor(self._active, device=self.device)
        bootstrap = self._bootstrap[members] if len(self._active) < len(self._bootstrap) else self._bootstrap
        order = self._randperm(self._bootstrap.shape[1])
        total, steps = torch.zeros((), device=self.device), 0
        gradients = Gradients(self._params, self._logvar_loss_coef, self._dtype)
        for columns in order.split(self._batch_size):
            rows = bootstrap[:, columns]  # (A, B)
            total += gradients.compute(self._inputs[rows], self._targets[rows], self._weights(rows)) * len(columns)
            self._optimizer.step()
            steps += len(columns)
        result: dict[str, float] = {"train_loss": float(total) / steps / len(self._active)}
        if self._termination is not None:
            result["termination_loss"] = self._termination.train(-(-len(order) // self._batch_size))
        losses, mse = self._evaluate()
        result |= losses
        self._epoch += 1
        self._keep_improved(mse)
        return {"epoch": self._epoch, **result, "num_members_training": len(self._active)}

    def finish(self) -> DynamicsEnsemble:
        """Chooses the elites by hold-out error and returns the ensemble with every member's best weights."""
        if self._termination is not None:
            self._termination.finish()
        ranking = np.argsort(self._best, kind="stable")[: self.ensemble.num_elites]
        self.ensemble.elites.copy_(torch.from_numpy(np.sort(ranking)))
        return self.ensemble

    def state_dict(self) -> dict[str, Any]:
        """All that changes while training, as NumPy arrays.

        With the same data and arguments, training continues from it bit for bit.
        """
        return {
            "epoch": self._epoch,
            "active": np.array(self._active, np.int64),
            "best": self._best.copy(),
            "since_update": self._since_update.copy(),
            "params": [_numpy(p) for p in self._params],
            "optimizer": optimizer_state(self._optimizer),
            "ensemble": {k: _numpy(v) for k, v in self.ensemble.state_dict().items()},
            "generator": self._generator.get_state().numpy(),
            "termination": {} if self._termination is None else self._termination.state_dict(),
            "num_rows": len(self._inputs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`, given a trainer made with the same data and arguments.

        Raises:
            ValueError: the state belongs to other data, or to an earlier version that scaled it otherwise.
        """
        if int(state["num_rows"]) != len(self._inputs):
            raise ValueError(
                f"The saved dynamics training used {state['num_rows']} transitions, this one has {len(self._inputs)}: "
                "restore with the same dataset."
            )
        for name in ("input_std", "target_std"):
            saved, own = torch.as_tensor(state["ensemble"][name]), getattr(self.ensemble, name).cpu()
            if not torch.allclose(saved, own, rtol=1e-3, atol=0):
                raise ValueError(
                    f"The saved dynamics training scaled its data otherwise than this one does ({name} {saved.tolist()}"
                    f", now {own.tolist()}), as an earlier version did: train the model anew, in a new run."
                )
        self._epoch, self._active = int(state["epoch"]), [int(member) for member in state["active"]]
        self._best = _numpy(torch.as_tensor(state["best"]))
        self._since_update = _numpy(torch.as_tensor(state["since_update"]))
        for param, saved in zip(self._params, state["params"], strict=True):
            param.data = torch.as_tensor(saved).to(self.device, copy=True)
            param.grad = None
        load_optimizer_state(self._optimizer, state["optimizer"])
        limits = {"obs_low": self.ensemble.obs_low, "obs_high": self.ensemble.obs_high}  # of the same data
        saved_model = {k: torch.as_tensor(v) for k, v in state["ensemble"].items()}
        self.ensemble.load_state_dict(saved_model | limits)
        self._generator.set_state(torch.as_tensor(state["generator"]))
        if self._termination is not None:
            self._termination.load_state_dict(state["termination"])

    # -- inside ------------------------------------------------------------------------------------------------------

    def _check_shapes(self, obs: Tensor, actions: Tensor, next_obs: Tensor, rewards: Tensor, term: Tensor) -> None:
        n, o, a = len(obs), self.ensemble.obs_dim, self.ensemble.act_dim
        for name, tensor, shape in (
            ("observations", obs, (n, o)),
            ("unit_actions", actions, (n, a)),
            ("next_observations", next_obs, (n, o)),
            ("rewards", rewards, (n,)),
            ("terminations", term, (n,)),
        ):
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} have shape {tuple(tensor.shape)}, but the dynamics need {shape}.")

    def _set_statistics(self, inputs: Tensor, targets: Tensor) -> None:
        """Sets the ensemble's statistics to those of the data."""
        model = self.ensemble
        mean, std = mean_and_std(targets)
        if self._known is not None:
            for statistic, known in zip((mean, std), mean_and_std(targets[self._known, :-1]), strict=True):
                statistic[:-1] = known
        actions = slice(model.obs_dim, model.obs_dim + model.act_dim)
        statistics = (model.input_mean, model.input_std, model.target_mean, model.target_std)
        for statistic, value in zip(statistics, (*input_scales(inputs, actions), mean, std), strict=True):
            statistic.copy_(value)

    def _set_limits(self, obs: Tensor, next_obs: Tensor, keep: bool) -> None:
        """Sets the ensemble's limits to those of the data; ``keep`` those that it has and no state contradicts."""
        model, known = self.ensemble, slice(None) if self._known is None else self._known
        low, high = clipping_limits(next_obs[known], obs[known])
        if keep:
            lowest = torch.minimum(obs.amin(0), next_obs.amin(0))
            highest = torch.maximum(obs.amax(0), next_obs.amax(0))
            low = torch.where(low.isinf() & (lowest >= model.obs_low), model.obs_low, low)
            high = torch.where(high.isinf() & (highest <= model.obs_high), model.obs_high, high)
        model.obs_low.copy_(low)
        model.obs_high.copy_(high)

    def _weights(self, rows: Tensor) -> Tensor | None:
        """Of the targets of ``rows (...)``, ``(..., D)``: 0 for the changes of unknown successors; None: all 1."""
        if self._known is None:
            return None
        weights = self._targets.new_ones(*rows.shape, self._targets.shape[1])
        weights[..., :-1] = self._known[rows].unsqueeze(-1)
        return weights

    def _randperm(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self._generator).to(self.device)

    @torch.no_grad()
    def _evaluate(self) -> tuple[dict[str, float], np.ndarray]:
        """The hold-out metrics, and each active member's mean squared error ``(A,)``."""
        num_layers = len(self.ensemble.weights)
        x, y = self._inputs[self._holdout], self._targets[self._holdout]
        x = x.expand(len(self._active), *x.shape)
        raw = stacked_forward(x, self._params[:num_layers], self._params[num_layers:-2], F.silu)
        mean, logvar = bounded_gaussian(raw, self._params[-2], self._params[-1])
        squared = (mean - y).square()
        weights = self._weights(self._holdout)
        if weights is None:
            weights = torch.ones_like(y)
        chi = squared * (-logvar).exp()
        mse, chi_mean, nll = ((terms * weights).sum((1, 2)) / weights.sum() for terms in (squared, chi, chi + logvar))
        members = mse.cpu().numpy()
        if not np.isfinite(members).all():
            raise RuntimeError(
                f"Training the dynamics diverged in epoch {self._epoch + 1} (hold-out error not finite): "
                "lower dynamics_lr, and look for extreme values in the dataset."
            )
        loss, calibration = torch.stack((nll.mean(), chi_mean.mean())).tolist()  # in one copy from the device
        return {
            "holdout_loss": loss, "holdout_mse": float(members.mean()), "holdout_calibration": calibration
        }, members  # fmt: skip

    def _keep_improved(self, mse: np.ndarray) -> None:
        """Copies improved members into the ensemble, and drops the members whose patience is over."""
        model = self.ensemble
        own = (*model.weights, *model.biases, model.max_logvar, model.min_logvar)
        for place, member in enumerate(self._active):
            if mse[place] < (1 - _IMPROVEMENT) * self._best[member]:
                self._best[member], self._since_update[member] = mse[place], 0
                with torch.no_grad():
                    for target, source in zip(own, self._params, strict=True):
                        target[member].copy_(source[place])
            else:
                self._since_update[member] += 1
        keep = [place for place, member in enumerate(self._active) if self._since_update[member] < self._patience]
        if len(keep) == len(self._active):
            return
        self._active = [self._active[place] for place in keep]
        index = torch.tensor(keep, device=self.device, dtype=torch.long)
        for param in self._params:
            state = self._optimizer.state[param]
            param.data = param.data[index]
            param.grad = None
            state["exp_avg"], state["exp_avg_sq"] = state["exp_avg"][index], state["exp_avg_sq"][index]


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
