"""Products of stacks of matrices, shared out evenly among a CPU's threads.

A batched product gives each thread whole matrices: with two threads and seven members, one waits for the other's
fourth. What is left over is multiplied matrix by matrix, each on all threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Precision -> dtype of the products between hidden layers; None: the parameters' own.
PRODUCT_DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


def bmm(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``torch.bmm``; in float32, on a CPU with fewer threads than products, these all end together."""
    num = _num_joint(a)
    torch.bmm(a[:num], b[:num], out=out[:num])
    for i in range(num, len(a)):
        torch.mm(a[i], b[i], out=out[i])
    return out


def baddbmm(bias: Tensor, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``torch.baddbmm``, as `bmm` where autograd is off."""
    num = _num_joint(a)
    if out is None:
        if num == len(a) or torch.is_grad_enabled():
            return torch.baddbmm(bias, a, b)
        out = a.new_empty(len(a), a.shape[1], b.shape[2])
    torch.baddbmm(bias[:num], a[:num], b[:num], out=out[:num])
    for i in range(num, len(a)):
        torch.addmm(bias[i], a[i], b[i], out=out[i])
    return out


def _num_joint(stack: Tensor) -> int:
    """How many products of a stack go into one call: as many as each thread gets the same number of."""
    num, threads = len(stack), torch.get_num_threads()
    is_shared = stack.device.type == "cpu" and stack.dtype == torch.float32 and num > threads
    return num - num % threads if is_shared else num
