"""Adam for many small steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class FusedAdam(torch.optim.Adam):
    """``torch.optim.Adam(fused=True)``, bit for bit, without the bookkeeping of its ``step``.

    On networks of a few hundred units that takes longer than the arithmetic. Hooks on its ``step`` are not called.

    Args:
        params: parameters, or groups of them with a ``weight_decay`` of their own.
        lr: learning rate.
    """

    def __init__(self, params: Iterable[Any], lr: float):
        super().__init__(params, lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step with the gradients in ``.grad``. The first, and one with gradients that are missing, is Adam's."""
        params = [param for group in self.param_groups for param in group["params"]]
        if closure is not None or any(param.grad is None or not self.state.get(param) for param in params):
            return super().step(closure)
        for group in self.param_groups:
            states = [self.state[param] for param in group["params"]]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                group["params"], [param.grad for param in group["params"]],
                [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], [], steps,
                lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                eps=group["eps"], amsgrad=False, maximize=False,
            )  # fmt: skip
        return None

    step.hooked = True  # type: ignore[attr-defined]  # says that torch has wrapped it already, for profiler and hooks
