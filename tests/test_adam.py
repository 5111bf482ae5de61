"""FusedAdam is Adam."""

import copy
import subprocess
import sys

import torch
from torch import nn

from rllib_damo.nn.adam import FusedAdam


def groups(params: list[nn.Parameter]) -> list[dict]:
    return [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "lr": 0.05}]


def test_steps_are_adams_also_after_a_restore_and_with_gradients_missing() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((3, 4), (4,), ())]
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    optimizers = [FusedAdam(groups(ours), lr=0.01), torch.optim.Adam(groups(theirs), lr=0.01, fused=True)]
    for step in range(8):
        if step == 4:
            states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
            optimizers = [FusedAdam(groups(ours), lr=1.0), torch.optim.Adam(groups(theirs), lr=1.0, fused=True)]
            for optimizer, state in zip(optimizers, states, strict=True):
                optimizer.load_state_dict(state)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        if step in (0, 5):
            ours[1].grad = theirs[1].grad = None
        before = [param.detach().clone() for param in ours]
        for optimizer in optimizers:
            optimizer.step()
        for number, (a, b, old) in enumerate(zip(ours, theirs, before, strict=True)):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
            assert torch.equal(a, old) == (number == 1 and step in (0, 5))


def test_its_step_is_not_wrapped() -> None:
    """Torch would wrap the class's ``step`` when one is made: profiler and hooks cost more than the step itself."""
    step = FusedAdam.step
    FusedAdam([nn.Parameter(torch.zeros(2))], lr=0.1)
    assert FusedAdam.step is step


def test_the_learning_rate_may_change() -> None:
    param = nn.Parameter(torch.zeros(2))
    optimizer = FusedAdam([param], lr=0.1)
    moves = []
    for lr in (0.1, 0.1, 0.001):
        optimizer.param_groups[0]["lr"] = lr
        before = param.detach().clone()
        param.grad = torch.ones(2)
        optimizer.step()
        moves.append(float((param.detach() - before).norm()))
    assert moves[2] < 0.02 * moves[1]


def test_it_leaves_torchs_compiler_alone() -> None:
    """Which costs a second and 73 MB to import, and compiles nothing here."""
    program = """
import sys, torch
from rllib_damo.nn.adam import FusedAdam
param = torch.nn.Parameter(torch.ones(2))
optimizer = FusedAdam([param], lr=0.1)
optimizer.zero_grad()
param.grad = torch.ones(2)
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
optimizer.step()
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
