"""Products that are shared out among threads are those of torch."""

from __future__ import annotations

import pytest
import torch

from rllib_damo.nn import batched_matmul

STACKS = [1, 2, 5, 7]


@pytest.fixture(params=[1, 2, 3], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def matrices(num: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 5), (6, 4), (4, 5)
    return [torch.randn(num, *shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("num", STACKS)
def test_they_are_those_of_torch(num, dtype):
    bias, a, b = matrices(num, dtype)
    out = torch.empty(num, 6, 5, dtype=dtype)
    batched_matmul.bmm(a, b, out=out)
    torch.testing.assert_close(out, torch.bmm(a, b))
    square = torch.empty(num, 4, 4, dtype=dtype)
    batched_matmul.bmm(a.mT, a, out=square)
    torch.testing.assert_close(square, torch.bmm(a.mT, a))
    some_rows = slice(1, 4)
    batched_matmul.bmm(a[:, some_rows].mT, a[:, some_rows], out=square)
    torch.testing.assert_close(square, torch.bmm(a[:, some_rows].mT, a[:, some_rows]))
    assert batched_matmul.baddbmm(bias, a, b, out=out) is out
    torch.testing.assert_close(out, torch.baddbmm(bias, a, b))
    with torch.no_grad():
        torch.testing.assert_close(batched_matmul.baddbmm(bias, a, b), torch.baddbmm(bias, a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [6, 70])
def test_a_result_may_be_transposed_in_memory(rows, dtype):
    a, b = (torch.randn(3, *shape).to(dtype) for shape in ((rows, 4), (4, 5)))
    memory = torch.empty(3, 5, rows, dtype=dtype)
    batched_matmul.bmm(a, b, out=memory.mT)
    torch.testing.assert_close(memory.mT, torch.bmm(a, b))


def test_gradients_go_through_them():
    bias, a, b = (tensor.requires_grad_() for tensor in matrices(7))
    grads = torch.autograd.grad(batched_matmul.baddbmm(bias, a, b).square().sum(), (bias, a, b))
    expected = torch.autograd.grad(torch.baddbmm(bias, a, b).square().sum(), (bias, a, b))
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize(("num", "joint"), [(7, {1: 7, 2: 6, 3: 6}), (5, {1: 5, 2: 4, 3: 3}), (2, {1: 2, 2: 2, 3: 2})])
def test_no_thread_gets_a_matrix_more_than_another(num, joint, threads, monkeypatch):
    calls = []

    def joint_product(bias, a, b, out):
        calls.append(len(a))

    bias, a, b = matrices(num)
    monkeypatch.setattr(torch, "baddbmm", joint_product)
    batched_matmul.baddbmm(bias, a, b, out=torch.empty(num, 6, 5))
    assert calls == [joint[threads]]
