"""Gradient steps as CUDA graphs: a step is some two hundred small operations, and a graph launches them all at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch

from rllib_damo.core.update import Metrics, StepBatch, Update

#: Steps taken one operation after the other before each that is recorded: optimisers, buffers and cuBLAS's handles are
#: made in them, and kernels are loaded, which a recording doesn't allow.
WARMUP_STEPS = 1

#: Records the operations of a step, which needn't run yet, with the draws of a generator. Returns a function that runs
#: them on the same memory, and the tensors that the step returned, which every run fills.
Recorder: TypeAlias = "Callable[[Callable[[], Metrics], torch.Generator], tuple[Callable[[], None], Metrics]]"


def record_cuda_graph(step: Callable[[], Metrics], generator: torch.Generator) -> tuple[Callable[[], None], Metrics]:
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
    stay where it was, and when `Update.constants` change, steps are recorded anew.

    Args:
        update: whose steps to take.
        record: see `Recorder`.

    Attributes:
        num_recorded: steps that were recorded so far.
    """

    def __init__(self, update: Update, record: Recorder = record_cuda_graph):
        self._update, self._record = update, record
        self._recordings: dict[bool, tuple[Callable[[], None], Metrics]] = {}
        self._constants: Hashable = None
        self._warmup_left: dict[bool, int] = {}
        self.num_recorded = 0

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        """As `Update.step`; the next step may overwrite what is returned.

        Args:
            batch: always the same tensors.
            step: gradient steps taken before this one.
            measure: whether metrics are wanted.

        Raises:
            RuntimeError: the step can't be recorded.
        """
        update = self._update
        constants = update.constants(step)
        if constants != self._constants:
            self._recordings, self._constants, self._warmup_left = {}, constants, {}
        left = self._warmup_left.setdefault(measure, WARMUP_STEPS)
        if left:
            self._warmup_left[measure] = left - 1
            return update.step(batch, step, measure)
        if measure not in self._recordings:
            try:
                self._recordings[measure] = self._record(lambda: update.step(batch, step, measure), update.generator)
            except RuntimeError as error:
                raise RuntimeError(
                    "The gradient step could not be recorded as a CUDA graph: restore the last checkpoint, in a new "
                    "process, with cuda_graphs=False."
                ) from error
            self.num_recorded += 1
        run, output = self._recordings[measure]
        run()
        return output
