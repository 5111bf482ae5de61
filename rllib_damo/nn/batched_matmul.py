"""Products of stacks of matrices: how a CPU's threads share them, and in which dtype they are taken.

A batched product gives each thread whole matrices: with two threads and seven members, one waits for the other's
fourth. What is left over is multiplied matrix by matrix, each on all threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Precision -> dtype of the products between hidden layers; None: the parameters' own.
PRODUCT_DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


def bmm(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``torch.bmm`` into ``out``, which may be transposed in memory."""
    if out.stride(-1) != 1:
        if out.shape[1] < 64:  # torch has no fast path for bfloat16 and for few rows
            out.copy_(torch.bmm(a, b))
            return
        a, b, out = b.mT, a.mT, out.mT
    num = _num_joint(a)
    if num == a.shape[0]:
        torch.bmm(a, b, out=out)
        return
    if num:
        torch.bmm(a[:num], b[:num], out=out[:num])
    for i in range(num, a.shape[0]):
        torch.mm(a[i], b[i], out=out[i])


def baddbmm(bias: Tensor, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``torch.baddbmm``, which is shared out among threads as `bmm` is where autograd is off."""
    num = _num_joint(a)
    if out is None:
        if num == a.shape[0] or torch.is_grad_enabled():
            return torch.baddbmm(bias, a, b)
        out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    if num == a.shape[0]:
        return torch.baddbmm(bias, a, b, out=out)
    if num:
        torch.baddbmm(bias[:num], a[:num], b[:num], out=out[:num])
    for i in range(num, a.shape[0]):
        torch.addmm(bias[i], a[i], b[i], out=out[i])
    return out


def _num_joint(stack: Tensor) -> int:
    """How many products of a stack go into one call; the others are taken one by one.

    In float32, on a CPU with fewer threads than products: as many as each thread gets the same number of. In bfloat16,
    none where the operands are some rows of a larger stack, which a joint product would copy.
    """
    num = stack.shape[0]  # `len` of a tensor takes longer
    if num == 1 or stack.device.type != "cpu":
        return num
    if stack.dtype == torch.float32:
        threads = torch.get_num_threads()
        return num - num % threads if num > threads else num
    is_part = stack.dtype == torch.bfloat16 and stack.stride(0) != stack.shape[1] * stack.shape[2]
    return 0 if is_part else num
