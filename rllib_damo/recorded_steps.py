"""Gradient steps as CUDA graphs: a step is some two hundred small operations, and a graph launches them all at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch
from torch import Tensor

from rllib_damo.update import StepBatch, Update

#: Steps taken one operation after the other, before the first is recorded: optimisers and buffers come to be in them.
WARMUP_STEPS = 3

#: Records the operations of a step, which needn't run yet, with the draws of a generator. Returns a function that runs
#: them on the same memory, and the tensor that the step returned, which every run fills.
Recorder: TypeAlias = "Callable[[Callable[[], Tensor], torch.Generator], tuple[Callable[[], None], Tensor]]"


def record_cuda_graph(step: Callable[[], Tensor], generator: torch.Generator) -> tuple[Callable[[], None], Tensor]:
    """A `Recorder` for a GPU."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
        output = step()
    return graph.replay, output


class RecordedSteps:
    """Takes an update's steps by recordings of them.

    A recording reads and writes the memory that its step did, and keeps the Python numbers of its time: the batch must
    lie where it lay, and when `Update.constants` change, steps are recorded anew.

    Args:
        update: whose steps to take.
        record: see `Recorder`.

    Attributes:
        num_recorded: steps that were recorded so far.
    """

    def __init__(self, update: Update, record: Recorder = record_cuda_graph):
        self._update, self._record = update, record
        self._recordings: dict[bool, tuple[Callable[[], None], Tensor]] = {}
        self._constants: Hashable = None
        self._warmup_left = WARMUP_STEPS
        self.num_recorded = 0

    def step(self, batch: StepBatch) -> Tensor:
        """As `Update.step`; the next step may overwrite what is returned.

        Args:
            batch: always the same tensors.
        """
        update = self._update
        if self._warmup_left:
            self._warmup_left -= 1
            return update.step(batch)
        constants = update.constants()
        if constants != self._constants:
            self._recordings, self._constants = {}, constants
        if update.measures not in self._recordings:
            self._recordings[update.measures] = self._record(lambda: update.step(batch), update.generator)
            self.num_recorded += 1
        run, output = self._recordings[update.measures]
        run()
        return output
