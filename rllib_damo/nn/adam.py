"""Adam for many small steps, and its state as plain arrays."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import numpy as np
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
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of the parameters that have gradients. There is no ``closure``: gradients are there already."""
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            if not all(self.state.get(param) for param in params):
                self._init_group(group, [], [], [], [], [], [])
            states = [self.state[param] for param in params]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                params, [param.grad for param in params],
                [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], [], steps,
                lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                eps=group["eps"], amsgrad=False, maximize=False,
            )  # fmt: skip

    step.hooked = True  # type: ignore[attr-defined]  # says that torch has wrapped it already, for profiler and hooks

    # Torch's own are wrapped to keep its compiler out, and import that (a second, 73 MB) at their first call.
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)


def optimizer_state(optimizer: torch.optim.Adam) -> list[dict[str, np.ndarray]]:
    """Adam's moments and step counts as plain arrays, one dictionary a parameter (empty before the first step)."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [{k: v.detach().cpu().numpy().copy() for k, v in optimizer.state[p].items()} for p in params]


def load_optimizer_state(optimizer: torch.optim.Adam, state: list[dict[str, np.ndarray]]) -> None:
    """The reverse of `optimizer_state`."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for param, saved in zip(params, state, strict=True):
        optimizer.state[param] = {k: torch.as_tensor(v).to(param.device, copy=True) for k, v in saved.items()}
