"""On the CPU what a CUDA graph does: operations run again on the memory, and with the Python numbers, of their time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operations(TorchDispatchMode):
    """Keeps the operations that run under it, with all their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **kwargs or {})
        self._calls.append((func, args, kwargs or {}, result))
        return result

    def __len__(self) -> int:
        return len(self._calls)

    @torch.no_grad()
    def run(self) -> None:
        for func, args, kwargs, kept in self._calls:
            result = func(*args, **kwargs)
            for new, old in zip(tree_leaves(result), tree_leaves(kept), strict=True):
                if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def record_on_cpu(step: Callable[[], Tensor], generator: torch.Generator) -> tuple[Callable[[], None], Tensor]:
    """A `Recorder`. To record takes the step, which a GPU does not; so the first run after it does nothing."""
    operations, taken = Operations(), [False]
    with operations:
        output = step()

    def run() -> None:
        if taken[0]:
            operations.run()
        taken[0] = True

    return run, output
