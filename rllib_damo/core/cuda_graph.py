"""Gradient steps as CUDA graphs: a step is some two hundred small operations, and a graph launches them all at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch
from torch import Tensor

from rllib_damo.damo.update import StepBatch, Update

#: Steps taken one operation after the other before each that is recorded, in which optimisers, buffers and cuBLAS's
#: handles come to be, and kernels are loaded: what a recording doesn't allow.
WARMUP_STEPS = 1

#: Records the operations of a step, which needn't run yet, with the draws of a generator. Returns a function that runs
#: them on the same memory, and the tensor that the step returned, which every run fills.
Recorder: TypeAlias = "Callable[[Callable[[], Tensor], torch.Generator], tuple[Callable[[], None], Tensor]]"


def record_cuda_graph(step: Callable[[], Tensor], generator: torch.Generator) -> tuple[Callable[[], None], Tensor]:
    """A `Recorder` for a GPU."""
    with torch.cuda.device(generator.device):  # whose stream is recorded; RLlib sets no current device
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        torch.cuda.current_blas_handle()  # each thread has its own, which can't be made within a recording
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
        self._warmup_left: dict[bool, int] = {}
        self.num_recorded = 0

    def step(self, batch: StepBatch) -> Tensor:
        """As `Update.step`; the next step may overwrite what is returned.

        Args:
            batch: always the same tensors.

        Raises:
            RuntimeError: the step can't be recorded.
        """
        update = self._update
        constants = update.constants()
        if constants != self._constants:
            self._recordings, self._constants, self._warmup_left = {}, constants, {}
        left = self._warmup_left.setdefault(update.measures, WARMUP_STEPS)
        if left:
            self._warmup_left[update.measures] = left - 1
            return update.step(batch)
        if update.measures not in self._recordings:
            try:
                self._recordings[update.measures] = self._record(lambda: update.step(batch), update.generator)
            except RuntimeError as error:
                raise RuntimeError(
                    "The gradient step could not be recorded as a CUDA graph: restore the last checkpoint, in a new "
                    "process, with cuda_graphs=False."
                ) from error
            self.num_recorded += 1
        run, output = self._recordings[update.measures]
        run()
        return output
