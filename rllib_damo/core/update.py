"""What all update rules share: the rows that they ask for, and how gradients are averaged, clipped and applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.nn.flat_parameters import gradient_of
from rllib_damo.utils.batch import Batch


@dataclass(frozen=True)
class RowGroup:
    """Rows that a gradient step reads under one name: first those of the dataset, then those of the model buffer.

    Attributes:
        num_real: rows drawn from the dataset.
        num_model: rows drawn from the model buffer.
        of: which rows of the dataset: "selected" (by ``data_fraction``), "known" (of these, those whose successor the
            source recorded), "starts" (the first ones of all episodes), or "selected_starts" (those of the selected).
    """

    num_real: int
    num_model: int = 0
    of: str = "selected"


class StepBatch(dict[str, Batch]):
    """The rows of one gradient step, by the names of the update's `row_groups`.

    Attributes:
        num_real: how many rows of "update", the first ones, are the dataset's.
        extra: extra columns of these, ``(num_real, width)`` each, by name (`OfflineAlgorithm.extra_columns`).
    """

    def __init__(self, groups: Mapping[str, Batch], num_real: int = 0, extra: Mapping[str, Tensor] | None = None):
        super().__init__(groups)
        self.num_real, self.extra = num_real, extra or {}


@dataclass(frozen=True)
class DatasetFacts:
    """What an update may need of the dataset.

    Attributes:
        reward_size: mean |r| of the selected rows.
        knows_terminals: False where the dataset has terminals, but recorded the successor of none.
        reward_scale: what the rewards were multiplied by.
    """

    reward_size: float = 1.0
    knows_terminals: bool = True
    reward_scale: float = 1.0


#: Draws the rows of a group: for phases outside the gradient steps.
Draw = Callable[[RowGroup], Batch]
Metrics = dict[str, Tensor]


class Update:
    """The rule of one gradient step.

    A subclass implements `step`, and overrides `row_groups` where it reads other rows than
    ``train_batch_size_per_learner`` of the dataset. The other methods are hooks, which do nothing by default.

    Args:
        module: all networks; ``module.trainable()`` names the parameters of each optimiser.
        config: the algorithm's, or anything with the same attributes.
        optimizers: by the names of ``module.trainable()``.
        generator: source of random numbers, on the module's device.
        reduce_gradients: changes gradients in place before they are applied (averages over learners).
    """

    #: Whether the rule reads the dynamics model (`set_dynamics`).
    uses_dynamics: ClassVar[bool] = False

    def __init__(
        self,
        module: Any,
        config: Any,
        optimizers: Mapping[str, torch.optim.Optimizer],
        generator: torch.Generator,
        reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
    ):
        self.module, self.config, self.optimizers, self.generator = module, config, optimizers, generator
        self.reduce_gradients = reduce_gradients
        self.params: dict[str, list[nn.Parameter]] = module.trainable()
        pairs = module.targets()
        self._online_params = [p.data for net, _ in pairs for p in net.parameters()]
        self._target_params = [p.data for _, target in pairs for p in target.parameters()]

    def row_groups(self) -> dict[str, RowGroup]:
        """The rows that `step` reads, by name, "update" among them.

        At most one group has rows of the dataset and of the model.
        """
        return {"update": RowGroup(self.config.train_batch_size_per_learner)}

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        """Takes one gradient step.

        Args:
            batch: the rows of `row_groups`.
            step: gradient steps taken before this one.
            measure: whether metrics are wanted; without, what is returned is not read.

        Returns:
            The metrics, scalars on the module's device.
        """
        raise NotImplementedError

    # -- hooks -----------------------------------------------------------------------------------------------------

    def fit(self, facts: DatasetFacts) -> None:
        """Takes what is known of the dataset, before the first step and again for each window of a larger one."""

    def set_dynamics(self, dynamics: DynamicsEnsemble) -> None:
        """Takes the trained model, on the module's device (``uses_dynamics``): before the first step, and if restored.

        It is the update's own copy: an algorithm that goes on training it hands the weights out in `dynamics_state`.
        """

    def dynamics_state(self) -> Mapping[str, Any] | None:
        """The weights of the model that the next rollouts are to use; None: those of the trained model's file."""
        return None

    def pretrain(self, draw: Draw) -> Metrics:
        """What comes once, before the first rollouts and gradient steps."""
        return {}

    def after_iteration(self, draw: Draw) -> Metrics:
        """What comes after the gradient steps of each iteration."""
        return {}

    def get_state(self) -> dict[str, Any]:
        """What checkpoints need beside networks and optimisers; asked for after `set_dynamics`, if that is called."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_state` returned; after `set_dynamics`, where that is called."""

    def constants(self, step: int) -> Hashable:
        """Python's numbers, other than options and `measure`, that `step` puts into its operations.

        Raises:
            NotImplementedError: the rule can't be recorded (`RecordedSteps`).
        """
        raise NotImplementedError(f"{type(self).__name__} can't be recorded: set cuda_graphs=False.")

    # -- for subclasses --------------------------------------------------------------------------------------------

    def apply(self, name: str, loss: Tensor) -> None:
        """One optimiser step on ``loss`` with the parameters of one network alone."""
        gradients = torch.autograd.grad(loss, self.params[name])
        torch._foreach_copy_([gradient_of(param) for param in self.params[name]], list(gradients))
        self.apply_gradients([name])

    def apply_gradients(self, names: Sequence[str]) -> None:
        """One step of these optimisers with the gradients that are there, averaged over learners and clipped."""
        if self.reduce_gradients is not None:
            groups = [group for name in names for group in self.optimizers[name].param_groups]
            self.reduce_gradients([gradient_of(param) for group in groups for param in group["params"]])
        for name in names:
            if self.config.grad_clip is not None:
                nn.utils.clip_grad_norm_(self.params[name], self.config.grad_clip)
            self.optimizers[name].step()

    @torch.no_grad()
    def move_targets(self) -> None:
        """Moves all targets of ``module.targets()`` by ``tau`` towards their networks."""
        torch._foreach_lerp_(self._target_params, self._online_params, self.config.tau)


def mixed_rows(config: Any) -> RowGroup:
    """``real_ratio`` of the batch from the dataset, rounded down, the rest from the model buffer."""
    num = config.train_batch_size_per_learner
    num_real = int(num * config.real_ratio)
    return RowGroup(num_real, num - num_real)


def cosine(lr: float, steps: int, points: int = 20) -> list[list[float]]:
    """A schedule that falls from ``lr`` to 0 over ``steps`` gradient steps, as half a cosine."""
    points = min(points, steps)
    return [[steps * i // points, lr * (1 + math.cos(math.pi * i / points)) / 2] for i in range(points + 1)]
