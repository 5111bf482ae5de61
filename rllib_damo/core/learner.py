"""The Learners that all algorithms share: they hold the data on their device and take many gradient steps in a call."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.typing import StateDict
from torch import Tensor

from rllib_damo.core.cuda_graph import RecordedSteps
from rllib_damo.core.update import DatasetFacts, RowGroup, StepBatch, Update
from rllib_damo.nn.adam import FusedAdam
from rllib_damo.nn.batched_matmul import PRODUCT_DTYPES
from rllib_damo.nn.flat_parameters import flatten
from rllib_damo.utils import ray_internals
from rllib_damo.utils.batch import Batch, Layout, as_constant, unknown_successors
from rllib_damo.utils.seeds import fresh_seed

COMPONENT_TRAINING = "training"
#: Gradient steps between those whose metrics are taken, which costs up to a tenth of a step.
METRICS_INTERVAL = 10

ArrayOrRef: TypeAlias = "np.ndarray | ray.ObjectRef"


def newest_weight(step: int) -> float:
    """The weight of the newest policy in a moving average whose mean age is a sixth of the ``step`` steps so far.

    The first one has all of it: nothing of the untrained policy stays. Polynomial-decay averaging with η = 4 (Shamir
    and Zhang 2013, arXiv 1212.1824).
    """
    return 5 / (step + 5)


class OfflineTorchLearner(TorchLearner):
    """Gradient steps on minibatches that are drawn, by index, from a store on the learner's device.

    RLlib's per-minibatch update path is left aside: ``update_many`` takes all gradient steps of an iteration, and every
    random number in it derives from (seed, learner index, number of steps taken), so that a restored learner goes on
    exactly as if it had not been interrupted.

    A subclass for another algorithm names its rule in ``update_class``.
    """

    update_class: ClassVar[type[Update]]
    #: What to change where training diverged.
    divergence_hint: ClassVar[str] = "smaller learning rates"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.config.num_learners > 1 and not self.config.num_gpus_per_learner and hasattr(os, "SCHED_BATCH"):
            # Linux then lets a thread that computes go on when another wakes up. The threads that exchange gradients
            # are made after this one, and inherit it: else an all-reduce waits for a time slice now and then.
            with contextlib.suppress(OSError):  # refused in some containers
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    @override(TorchLearner)
    def build(self) -> None:
        super().build()
        # RLlib makes a seeded CPU run deterministic; filling every fresh tensor is not needed for that, and costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        cfg, module = self.config, self.module[DEFAULT_MODULE_ID]
        self._layout = Layout(*module.sizes)
        self._offline: Tensor | None = None
        self._extra: dict[str, Tensor] = {}
        self._rows_of: dict[str, Tensor] = {}  # indices of the dataset's rows that a group may be drawn of
        self._num_offline = self._num_online = 0  # rows of the store: the dataset's, and behind them online ones
        self._facts = DatasetFacts()
        self._generator = torch.Generator(self._device)
        self._base_seed = cfg.seed if cfg.seed is not None else fresh_seed()
        self._num_steps = 0
        self._has_pretrained = False
        self._pretrain_metrics: dict[str, Tensor] = {}  # until the first steps
        self._update = self.make_update(
            module=module,
            optimizers={name: self.get_optimizer(DEFAULT_MODULE_ID, name) for name in module.trainable()},
            generator=self._generator,
            reduce_gradients=self._average_gradients if cfg.num_learners > 1 else None,
        )
        self._recorded = RecordedSteps(self._update) if getattr(cfg, "cuda_graphs", False) else None
        self._place_rows()
        self._set_optimizer_options()
        if cfg.num_learners > 1:
            for tensor in module.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)

    def make_update(self, module: Any, **parts: Any) -> Update:
        """The update rule, with fast networks where there is an option `precision`.

        ``parts`` are the arguments of `Update` after ``config``.
        """
        if hasattr(self.config, "precision"):
            module.use_fast_networks(PRODUCT_DTYPES[self.config.precision])
        return self.update_class(module, self.config, **parts)

    def _place_rows(self) -> None:
        """Makes the memory of a step's rows: [groups of the dataset | the group of both | groups of the model]."""
        groups, name = self._update.row_groups(), type(self._update).__name__
        if "update" not in groups:
            raise ValueError(f'{name}.row_groups(): there must be a group "update"; found {list(groups)}.')
        order = sorted(groups, key=lambda name: (groups[name].num_model > 0, groups[name].num_real == 0))
        if sum(group.num_real > 0 and group.num_model > 0 for group in groups.values()) > 1:
            raise ValueError(f"{name}.row_groups(): at most one group may have rows of both dataset and model.")
        self._groups = {name: groups[name] for name in order}
        self._num_real = sum(group.num_real for group in groups.values())
        self._num_model = sum(group.num_model for group in groups.values())
        self._rows = torch.empty((self._num_real + self._num_model, self._layout.width), device=self._device)
        parts = self._rows.split([group.num_real + group.num_model for group in self._groups.values()])
        start = sum(groups[name].num_real for name in order[: order.index("update")])
        self._update_columns = slice(start, start + groups["update"].num_real)
        self._batch = StepBatch(
            {name: self._layout.unpack(part) for name, part in zip(self._groups, parts, strict=True)},
            groups["update"].num_real,
        )

    @override(TorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        for name, params in self.module[module_id].trainable().items():
            lr, flat = getattr(config, f"{name}_lr"), flatten(params)
            first = lr[0][1] if isinstance(lr, (list, tuple)) else lr
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=FusedAdam([flat], lr=first),
                params=[flat],
                lr_or_lr_schedule=lr,  # of gradient steps: see `_report`
            )

    @override(TorchLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        """Gradients are averaged by ``_average_gradients``; the losses do not pass through DDP's forward."""

    def _average_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replaces each, all flat, by its mean over all learners; in one all-reduce, which is mostly latency."""
        together = torch.cat(list(gradients))
        torch.distributed.all_reduce(together)
        together.div_(self.config.num_learners)
        torch._foreach_copy_(list(gradients), list(together.split([len(gradient) for gradient in gradients])))

    # -- data ------------------------------------------------------------------------------------------------------

    def set_dataset(
        self,
        rows: ArrayOrRef,
        starts: ArrayOrRef,
        selected: ArrayOrRef,
        fit: bool,
        extra: Mapping[str, np.ndarray] | ray.ObjectRef | None = None,
        reward_scale: float = 1.0,
    ) -> None:
        """Replaces the offline store.

        Args:
            rows: ``(N, Layout.width)`` packed transitions, with unit actions.
            starts: indices of the rows that start an episode.
            selected: indices of the rows that batches are drawn from.
            fit: also set the networks' input statistics from these rows (not when they come from a checkpoint).
            extra: extra columns of the dataset, ``(N, width)`` each, by name.
            reward_scale: what the rewards have been multiplied by.
        """
        if isinstance(rows, ray.ObjectRef):
            rows, starts, selected, extra = ray.get([rows, starts, selected, extra])
        self._offline = as_constant(rows).to(self._device)
        self._num_offline, self._num_online = len(self._offline), 0
        self._extra = {name: as_constant(values).to(self._device) for name, values in (extra or {}).items()}
        self._batch.extra = {
            name: values.new_empty(self._batch.num_real, values.shape[1]) for name, values in self._extra.items()
        }
        chosen, firsts, own_firsts = (
            torch.from_numpy(np.array(index)).to(self._device)
            for index in (selected, starts, starts[np.isin(starts, selected)])
        )
        self._rows_of = {"selected": chosen, "known": chosen, "starts": firsts, "selected_starts": own_firsts}
        batch = self._layout.unpack(self._offline)
        unknown = unknown_successors(batch.obs, batch.next_obs, batch.terminated)[chosen]
        knows_terminals = True
        if unknown.any() and not unknown.all():
            known = self._rows_of["known"] = chosen[~unknown]
            knows_terminals = bool(batch.terminated[known].any())
        self._facts = DatasetFacts(float(batch.rewards[chosen].abs().mean()), knows_terminals, reward_scale)
        self._update.fit(self._facts)
        if fit:
            self.module[DEFAULT_MODULE_ID].fit_standardizers(batch, self.config.normalize_observations)

    def add_online(self, rows: np.ndarray, extra: Mapping[str, np.ndarray], slots: np.ndarray, num: int) -> None:
        """Adds rows of the real environment behind those of the dataset, so that a batch is still a single gather.

        Args:
            rows: ``(N, Layout.width)``, with the rewards multiplied as the dataset's.
            extra: their extra columns.
            slots: ``(N,)``, where they lie in the ring of ``online_buffer_size`` rows.
            num: rows that the ring holds then.
        """
        assert self._offline is not None
        stores = {"": self._offline, **self._extra}
        if len(self._offline) == self._num_offline:  # the ring's room
            stores = {
                name: torch.cat((store, store.new_zeros(self.config.online_buffer_size, store.shape[1])))
                for name, store in stores.items()
            }
        places = torch.from_numpy(slots).to(self._device) + self._num_offline
        for name, values in {"": rows, **extra}.items():
            stores[name][places] = torch.as_tensor(values).to(self._device)
        self._offline, self._num_online = stores.pop(""), num
        self._extra = stores

    def forget_online(self) -> None:
        """Draws no rows of the real environment any more."""
        self._num_online = 0

    def _model_rows(self) -> Tensor:
        """The rows of the model buffer, ``(M, Layout.width)``."""
        return self._rows[:0]

    # -- gradient steps --------------------------------------------------------------------------------------------

    def update_many(self, num_steps: int, timesteps: dict[str, Any] | None = None) -> dict[str, Any]:
        """Takes ``num_steps`` gradient steps of every network.

        Returns:
            The reduced metrics: means over every ``METRICS_INTERVAL``-th step, the last included,
            under the module's id.

        Raises:
            RuntimeError: a loss or a network became infinite or NaN; the message names it. No checkpoint can hold that.
        """
        if self._offline is None or (self._num_model and not len(self._model_rows())):
            raise RuntimeError("update_many needs set_dataset and add_rollouts to be called first.")
        self._seed_generator(self._num_steps)
        metrics = self._take_steps(num_steps)
        single = self._pretrain_metrics | self._update.after_iteration(self._draw)
        self._pretrain_metrics = {}
        self._num_steps += num_steps
        ray_internals.count_new_weights(self)
        return self._report({**metrics, **{k: float(v) for k, v in single.items()}}, num_steps, timesteps or {})

    def pretrain(self) -> None:
        """What the update does before the first rollouts; once. Its metrics are among those of the first steps."""
        if not self._has_pretrained:
            self._has_pretrained = True
            self._seed_generator(0, 1)
            self._pretrain_metrics = self._update.pretrain(self._draw)

    def _seed_generator(self, *phase: int) -> None:
        seed = np.random.SeedSequence((self._base_seed, ray_internals.learner_index(self), *phase)).generate_state(1)
        self._generator.manual_seed(int(seed[0]))

    def _take_steps(self, num_steps: int) -> dict[str, float]:
        """The gradient steps of a call, with the policy's moving average; returns the means of their metrics."""
        # All indices of the call at once
        of_dataset = torch.cat([self._pick_real(group, num_steps) for group in self._groups.values()], dim=1)
        offline, model_rows = self._offline, self._model_rows()
        of_model = self._randint(len(model_rows), num_steps, self._num_model)
        from_dataset, from_model = self._rows.split((self._num_real, self._num_model))
        of_update = of_dataset[:, self._update_columns]

        take_step = (self._recorded or self._update).step
        module = self.module[DEFAULT_MODULE_ID]
        actor, averaged = ([p.data for p in net.parameters()] for net in (module.actor, module.averaged_actor))
        totals, names, measured = torch.zeros((), device=self._device), [], 0
        for step in range(num_steps):
            torch.index_select(offline, 0, of_dataset[step], out=from_dataset)  # type: ignore[arg-type]
            if self._num_model:
                torch.index_select(model_rows, 0, of_model[step], out=from_model)
            for name, values in self._extra.items():
                torch.index_select(values, 0, of_update[step], out=self._batch.extra[name])
            measure = (num_steps - 1 - step) % METRICS_INTERVAL == 0  # the last step's among them
            metrics = take_step(self._batch, self._num_steps + step, measure)
            if measure:
                names = list(metrics)
                totals, measured = totals + torch.stack(tuple(metrics.values())), measured + 1
            weight = max(self.config.policy_tau, newest_weight(self._num_steps + step))
            torch._foreach_lerp_(averaged, actor, weight)
        return dict(zip(names, (totals / measured).tolist(), strict=True))

    @override(TorchLearner)
    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        """Not RLlib's path: losses with separate gradients do not add up to one (see ``update.py``)."""
        raise NotImplementedError(f"{type(self).__name__} is trained by `update_many`, not by `update`.")

    def _draw(self, group: RowGroup) -> Batch:
        """Random rows, for an update's phases outside the gradient steps."""
        assert self._offline is not None
        rows = [self._offline[self._pick_real(group)]]
        if group.num_model:
            model_rows = self._model_rows()
            rows.append(model_rows[self._randint(len(model_rows), group.num_model)])
        return self._layout.unpack(torch.cat(rows))

    def _pick_real(self, group: RowGroup, *shape: int) -> Tensor:
        """Random rows of the store for a group ``(*shape, num_real)``: each with chance ``online_ratio`` an online one.

        Starts of episodes are the dataset's alone.
        """
        rows = self._pick(self._rows_of[group.of], *shape, group.num_real)
        if not (self._num_online and rows.numel()) or group.of.endswith("starts"):
            return rows
        online = self._num_offline + self._randint(self._num_online, *rows.shape)
        chance = torch.rand(rows.shape, generator=self._generator, device=self._device)
        return torch.where(chance < self.config.online_ratio, online, rows)

    def _pick(self, rows: Tensor, *shape: int) -> Tensor:
        """Random entries of ``rows``."""
        return rows[self._randint(len(rows), *shape)]

    def _randint(self, high: int, *shape: int) -> Tensor:
        if 0 in shape:  # nothing is drawn from an empty store
            return torch.empty(shape, dtype=torch.int64, device=self._device)
        return torch.randint(high, shape, generator=self._generator, device=self._device)

    def _report(self, values: dict[str, float], num_steps: int, timesteps: dict[str, Any]) -> dict[str, Any]:
        bad = [name for name, value in values.items() if not math.isfinite(value)] or self._non_finite_tensors()
        if bad:
            raise RuntimeError(
                f"Training diverged within the last {num_steps} gradient steps: {', '.join(bad)} not finite. Restore "
                f"the last checkpoint with {self.divergence_hint}."
            )
        if hasattr(self.module[DEFAULT_MODULE_ID], "critics"):
            values["initial_value_mean"] = self.initial_value()
        for name, value in values.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, window=1)
        ray_internals.log_trainable_parameters(self)
        self.after_gradient_based_update(timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self._num_steps} | timesteps)
        return self.metrics.reduce()

    def _non_finite_tensors(self) -> list[str]:
        """Names of tensors that are not finite: of the last step, whose loss was still finite.

        Those of the optimisers, too: where a squared gradient overflowed, Adam no longer moves its parameter.
        """
        tensors = dict(self.module[DEFAULT_MODULE_ID].state_dict())
        for name, optimizer in self._update.optimizers.items():
            for number, state in enumerate(optimizer.state.values()):
                tensors |= {f"the optimiser of {name} ({key} {number})": value for key, value in state.items()}
        are_finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
        return [name for name, is_finite in zip(tensors, are_finite, strict=True) if not is_finite][:3]

    @torch.no_grad()
    def initial_value(self, max_states: int = 1000) -> float:
        """E[min_i Q_i(s0, π(s0))] over the dataset's episode starts (π's mean action), in the dataset's rewards."""
        module = self.module[DEFAULT_MODULE_ID]
        obs = self._layout.unpack(self._offline[self._rows_of["starts"][:max_states]]).obs  # type: ignore[index]
        value = module.critics(obs, module.mean_actions(obs, module.averaged_actor)).min(0).values.mean()
        return float(value) / self._facts.reward_scale

    # -- checkpoints -----------------------------------------------------------------------------------------------

    @override(TorchLearner)
    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> StateDict:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if ray_internals.wants_component(self, COMPONENT_TRAINING, components, not_components):
            state[COMPONENT_TRAINING] = self._training_state()
        return state

    def _training_state(self) -> dict[str, Any]:
        return {
            "num_steps": self._num_steps,
            "base_seed": self._base_seed,
            "has_pretrained": self._has_pretrained,
            "update": self._get_update_state(),
        }

    def _set_training_state(self, state: dict[str, Any]) -> None:
        self._num_steps, self._base_seed = state["num_steps"], state["base_seed"]
        self._has_pretrained = state["has_pretrained"]
        self._set_update_state(state["update"])

    def draw_anew(self) -> None:
        """Takes the config's own seed again, which a restored state has replaced."""
        if self.config.seed is not None:
            self._base_seed = self.config.seed

    def _get_update_state(self) -> dict[str, Any] | None:
        return self._update.get_state()

    def _set_update_state(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self._update.set_state(state)

    @override(TorchLearner)
    def _set_optimizer_state(self, state: StateDict) -> None:
        try:
            super()._set_optimizer_state(copy.deepcopy(state))  # whose arrays would be Adam's own from then on
        except ValueError as error:
            raise ValueError(
                f"The checkpoint's optimisers are of another layout, perhaps of an earlier version ({error}). Training "
                "can't go on from it: train anew. Its policy can still be played (`rllib evaluate`, `load_policy`)."
            ) from error

    @override(TorchLearner)
    def set_state(self, state: StateDict) -> None:
        # RLlib ignores module states that are older than its own; a restore means what it says.
        ray_internals.accept_any_weights(self)
        super().set_state(state)
        if COMPONENT_TRAINING in state:
            self._set_training_state(state[COMPONENT_TRAINING])
        self._set_optimizer_options()  # the configuration's, not the checkpoint's
        if self._recorded is not None:  # the optimisers' states are new tensors
            self._recorded = RecordedSteps(self._update)

    def _set_optimizer_options(self) -> None:
        """The learning rates of this step, and each optimiser's weight decay, the option ``NAME_weight_decay``."""
        ray_internals.schedule_learning_rates(self, self._num_steps)
        for name, optimizer in self._update.optimizers.items():
            for group in optimizer.param_groups:
                group["weight_decay"] = getattr(self.config, f"{name}_weight_decay", 0.0)
