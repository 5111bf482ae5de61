"""DAMO's Learner: holds the data on its device and takes many gradient steps in one call."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import math
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

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
from rllib_damo.damo.fast_update import fastest_update
from rllib_damo.damo.update import CLASSIFIER_METRICS, METRICS, StepBatch, Update, UpdateOptions
from rllib_damo.nn.adam import FusedAdam
from rllib_damo.nn.flat_parameters import flatten
from rllib_damo.utils.arrow import from_arrow
from rllib_damo.utils.batch import Layout, RingBuffer, as_constant, unknown_successors
from rllib_damo.utils.seeds import fresh_seed

COMPONENT_DAMO = "damo"
#: Gradient steps between those whose metrics are taken, which costs up to a tenth of a step.
METRICS_INTERVAL = 10

ArrayOrRef: TypeAlias = "np.ndarray | ray.ObjectRef"


class DAMOTorchLearner(TorchLearner):
    """Gradient steps on minibatches that are drawn, by index, from device-resident stores.

    RLlib's per-minibatch update path is left aside: ``update_many`` takes all gradient steps of an iteration, and every
    random number in it derives from (seed, learner index, number of steps taken), so that a restored learner goes on
    exactly as if it had not been interrupted.

    A subclass for another algorithm chooses its rule in ``make_update`` and names its metrics in ``metric_names``.
    """

    #: What the update's ``step`` returns, in order.
    metric_names: tuple[str, ...] = METRICS
    divergence_hint = "smaller learning rates, a larger label_smoothing or a smaller eta"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.config.num_learners > 1 and not self.config.num_gpus_per_learner and hasattr(os, "SCHED_BATCH"):
            # Linux then lets a thread that computes go on when another wakes up. The threads that exchange gradients
            # come to be after this one, and inherit it: else an all-reduce waits for a time slice now and then.
            with contextlib.suppress(OSError):  # refused in some containers
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    @override(TorchLearner)
    def build(self) -> None:
        super().build()
        # RLlib makes a seeded CPU run deterministic; filling every fresh tensor is not needed for that, and costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        cfg, module = self.config, self.module[DEFAULT_MODULE_ID]
        self._layout = Layout(module.observation_space.shape[0], module.action_space.shape[0])
        self._offline: Tensor | None = None
        self._episode_starts = self._used = self._known = torch.empty(0, dtype=torch.int64)
        capacity = cfg.rollout_batch_size * cfg.rollout_length * cfg.model_retain_epochs if cfg.uses_model else 0
        self._synthetic = RingBuffer(self._layout, math.ceil(capacity / max(1, cfg.num_learners)), self._device)
        self._generator = torch.Generator(self._device)
        self._base_seed = cfg.seed if cfg.seed is not None else fresh_seed()
        self._num_steps = 0
        self._update = self.make_update(
            module=module,
            optimizers={name: self.get_optimizer(DEFAULT_MODULE_ID, name) for name in module.trainable()},
            generator=self._generator,
            reduce_gradients=self._average_gradients if cfg.num_learners > 1 else None,
        )
        self._recorded = RecordedSteps(self._update) if cfg.cuda_graphs else None
        # A step's rows lie here, always: [initial states | classifier, offline | update | classifier, synthetic]
        num_update = cfg.train_batch_size_per_learner
        half = num_update if cfg.data_alignment else 0
        self._rows = torch.empty((2 * (num_update + half), self._layout.width), device=self._device)
        initial, classifier_offline, update, classifier_synthetic = self._rows.split((num_update, half) * 2)
        groups = (update, initial, classifier_offline, classifier_synthetic)
        self._batch = StepBatch(*map(self._layout.unpack, groups))
        self._schedule_rates()
        if cfg.num_learners > 1:
            for tensor in module.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)

    def make_update(self, module: Any, **parts: Any) -> Update:
        """The update rule. ``parts`` are the other arguments of `Update`, but for ``grad_clip``."""
        cfg = self.config
        options = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(UpdateOptions)}
        options["actor_eta"] = cfg.eta if cfg.actor_eta is None else cfg.actor_eta
        if not cfg.behavior_alignment:
            options["policy_improvement"] = "inconsistent"
        options["target_entropy"] = cfg.resolve_target_entropy(module.action_space)
        return fastest_update(module, options=UpdateOptions(**options), precision=cfg.precision, **parts)

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

    # -- data ----------------------------------------------------------------------------------------------------

    def set_dataset(self, rows: ArrayOrRef, starts: ArrayOrRef, used: ArrayOrRef, fit: bool) -> None:
        """Replaces the offline store.

        Args:
            rows: ``(N, Layout.width)`` packed transitions, with unit actions.
            starts: indices of the rows that start an episode.
            used: indices of the rows that batches are drawn from.
            fit: also set the networks' input statistics from these rows (not when they come from a checkpoint).
        """
        if isinstance(rows, ray.ObjectRef):
            rows, starts, used = ray.get([rows, starts, used])
        self._offline = as_constant(rows).to(self._device)
        self._episode_starts = torch.from_numpy(np.array(starts)).to(self._device)
        self._used = torch.from_numpy(np.array(used)).to(self._device)
        batch = self._layout.unpack(self._offline)
        unknown = unknown_successors(batch.obs, batch.next_obs, batch.terminated)[self._used]
        self._known, self._update.knows_terminals = self._used, True
        if unknown.any() and not unknown.all():
            self._known = self._used[~unknown]
            self._update.knows_terminals = bool(batch.terminated[self._known].any())
        reward_size = float(batch.rewards[self._used].abs().mean())
        self._update.return_size = (reward_size + self.config.eta) / (1 - self.config.gamma)
        if fit:
            self.module[DEFAULT_MODULE_ID].fit_standardizers(batch, self.config.normalize_observations)

    def add_rollouts(self, dataset: ray.data.Dataset) -> int:
        """Appends a Ray Dataset of rollouts (columns of ``dynamics.rollout``) to the model buffer; returns its rows."""
        count = 0
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows = self._layout.pack(**from_arrow(table))
            self._synthetic.add(torch.from_numpy(rows).to(self._device))
            count += len(rows)
        return count

    def add_tensors(self, batch: dict[str, Tensor]) -> None:
        """As `add_rollouts`, for a round on this learner's own device."""
        self._synthetic.add(self._layout.pack(**batch))

    def get_model_buffer(self) -> dict[str, Any]:
        """The state of this learner's part of the model buffer."""
        return self._synthetic.get_state()

    def set_model_buffer(self, state: dict[str, Any]) -> None:
        """Sets what `get_model_buffer` returned."""
        self._synthetic.set_state(state)

    # -- gradient steps ------------------------------------------------------------------------------------------

    def update_many(self, num_steps: int, timesteps: dict[str, Any] | None = None) -> dict[str, Any]:
        """Takes ``num_steps`` gradient steps of every network.

        Returns:
            The reduced metrics: means over every ``METRICS_INTERVAL``-th step, the last included,
            under the module's id.

        Raises:
            RuntimeError: a loss became infinite or NaN; the message names it.
        """
        offline = self._offline
        if offline is None or (self.config.uses_model and not len(self._synthetic)):
            raise RuntimeError("update_many needs set_dataset and add_rollouts to be called first.")
        # A Ray Dataset that was read leaves reference cycles, which keep its blocks in the object store for many
        # rounds. Just after `add_rollouts` they are young, and to look at the young takes a millisecond.
        gc.collect(1)
        cfg = self.config
        num_update = cfg.train_batch_size_per_learner
        num_real = int(num_update * cfg.real_ratio)
        num_model = num_update - num_real
        half = num_update if cfg.data_alignment else 0
        seed = np.random.SeedSequence((self._base_seed, self._learner_index, self._num_steps)).generate_state(1)[0]
        self._generator.manual_seed(int(seed))

        # All indices of the call at once
        initial_rows = self._episode_starts if cfg.initial_states == "episode_start" else self._used
        per_step_initial = self._draw(initial_rows, num_steps, num_update)
        per_step_classified = self._draw(self._known, num_steps, half)
        per_step_real = self._draw(self._used, num_steps, num_real)
        per_step_offline = torch.cat((per_step_initial, per_step_classified, per_step_real), dim=1)
        per_step_synthetic = self._randint(len(self._synthetic), num_steps, num_model + half)

        from_offline, from_synthetic = self._rows.split((num_update + half + num_real, num_model + half))
        take_step = (self._recorded or self._update).step
        module = self.module[DEFAULT_MODULE_ID]
        actor, averaged = ([p.data for p in net.parameters()] for net in (module.actor, module.averaged_actor))
        totals, measured = torch.zeros(len(self.metric_names), device=self._device), 0
        for step in range(num_steps):
            self._update.num_steps = self._num_steps + step
            torch.index_select(offline, 0, per_step_offline[step], out=from_offline)
            torch.index_select(self._synthetic.rows, 0, per_step_synthetic[step], out=from_synthetic)
            self._update.measures = (num_steps - 1 - step) % METRICS_INTERVAL == 0  # the last step's among them
            metrics = take_step(self._batch)
            if self._update.measures:
                totals, measured = totals + metrics, measured + 1
            # An ordinary mean at first: nothing of the untrained policy stays in it.
            torch._foreach_lerp_(averaged, actor, max(cfg.policy_tau, 1 / (self._num_steps + step + 1)))
        self._num_steps += num_steps
        self._weights_seq_no += 1
        return self._report(totals / measured, num_steps, timesteps or {})

    @override(TorchLearner)
    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        """Not RLlib's path: losses with separate gradients do not add up to one (see ``update.py``)."""
        raise NotImplementedError(f"{type(self).__name__} is trained by `update_many`, not by `update`.")

    def _draw(self, rows: Tensor, *shape: int) -> Tensor:
        """Random entries of ``rows``."""
        return rows[self._randint(len(rows), *shape)]

    def _randint(self, high: int, *shape: int) -> Tensor:
        if 0 in shape:  # nothing is drawn from an empty store
            return torch.empty(shape, dtype=torch.int64, device=self._device)
        return torch.randint(high, shape, generator=self._generator, device=self._device)

    def _report(self, means: Tensor, num_steps: int, timesteps: dict[str, Any]) -> dict[str, Any]:
        values = dict(zip(self.metric_names, means.tolist(), strict=True))
        if not self.config.data_alignment:
            values = {name: value for name, value in values.items() if name not in CLASSIFIER_METRICS}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise RuntimeError(
                f"Training diverged within the last {num_steps} gradient steps: {', '.join(bad)} not finite. Restore "
                f"the last checkpoint with {self.divergence_hint}."
            )
        for name, value in values.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, name), value, window=1)
        if hasattr(self.module[DEFAULT_MODULE_ID], "critics"):
            self.metrics.log_value((DEFAULT_MODULE_ID, "initial_value_mean"), self.initial_value(), window=1)
        self._log_trainable_parameters()  # RLlib's numbers, which it logs once, and which are NaN after that
        self.after_gradient_based_update(timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self._num_steps} | timesteps)
        return self.metrics.reduce()

    @torch.no_grad()
    def initial_value(self, max_states: int = 1000) -> float:
        """E[min_i Q_i(s0, π(s0))] over the dataset's episode starts (π's mean action): the paper's value estimate."""
        module = self.module[DEFAULT_MODULE_ID]
        obs = self._layout.unpack(self._offline[self._episode_starts[:max_states]]).obs  # type: ignore[index]
        return float(module.critics(obs, module.mean_actions(obs)).min(0).values.mean())

    # -- checkpoints ---------------------------------------------------------------------------------------------

    @override(TorchLearner)
    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> StateDict:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COMPONENT_DAMO, components, not_components):
            state[COMPONENT_DAMO] = {
                "synthetic": self._synthetic.get_state(),
                "num_steps": self._num_steps,
                "base_seed": self._base_seed,
            }
        return state

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
        self._weights_seq_no = 0
        super().set_state(state)
        if COMPONENT_DAMO in state:
            damo = state[COMPONENT_DAMO]
            self._synthetic.set_state(damo["synthetic"])
            self._num_steps, self._base_seed = damo["num_steps"], damo["base_seed"]
        self._schedule_rates()  # the configuration's, not the checkpoint's
        if self._recorded is not None:  # the optimisers' states are new tensors
            self._recorded = RecordedSteps(self._update)

    def _schedule_rates(self) -> None:
        for optimizer, schedule in self._optimizer_lr_schedules.items():
            self._set_optimizer_lr(optimizer, lr=schedule.update(timestep=self._num_steps))
