"""Adam's state as plain arrays: what has to be kept, and nothing that the constructor's arguments already say."""

from __future__ import annotations

import numpy as np
import torch


def optimizer_state(optimizer: torch.optim.Adam) -> list[dict[str, np.ndarray]]:
    """Adam's moments and step counts, one dictionary a parameter (empty before the first step)."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [{k: v.detach().cpu().numpy().copy() for k, v in optimizer.state[p].items()} for p in params]


def load_optimizer_state(optimizer: torch.optim.Adam, state: list[dict[str, np.ndarray]]) -> None:
    """The reverse of `optimizer_state`."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for param, saved in zip(params, state, strict=True):
        optimizer.state[param] = {k: torch.as_tensor(v).to(param.device, copy=True) for k, v in saved.items()}
