"""Parameters in one piece of memory: the same numbers, and still the module's own parameters."""

import copy

import pytest
import torch
from torch import nn

from rllib_damo.nn.flat_parameters import flatten, gradient_of


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def step(net: nn.Sequential, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    params = list(net.parameters())
    for param, gradient in zip(params, torch.autograd.grad(net(x).square().sum(), params), strict=True):
        gradient_of(param).copy_(gradient)
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_steps_on_the_flat_parameter_are_those_on_all(kind: type) -> None:
    plain, flattened = make_net(), make_net()
    flat = flatten(list(flattened.parameters()))
    optimizers = kind(plain.parameters(), lr=0.1), kind([flat], lr=0.1)
    for seed in range(3):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        step(plain, optimizers[0], x)
        step(flattened, optimizers[1], x)
    for a, b in zip(plain.parameters(), flattened.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_parameters_stay_the_modules_own() -> None:
    net = make_net()
    before = copy.deepcopy(net.state_dict())
    flat = flatten(list(net.parameters()))
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    net.load_state_dict({name: value + 1 for name, value in before.items()})
    assert float(flat.detach().sum()) == pytest.approx(sum(float((value + 1).sum()) for value in before.values()))


def test_what_lies_between_parameters_stays_zero() -> None:
    net = make_net()
    params = list(net.parameters())
    flat = flatten(params)
    step(net, torch.optim.Adam([flat], lr=0.1), torch.ones(4, 3))
    assert flat.numel() > sum(p.numel() for p in params)
    torch.testing.assert_close(flat.square().sum(), sum(p.square().sum() for p in params))  # type: ignore[arg-type]
