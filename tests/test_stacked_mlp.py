"""Stacked networks: the readable form equals networks of torch's layers, the fast form equals the readable one."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from rllib_damo.nn import stacked_mlp
from rllib_damo.nn.stacked_mlp import FastMLP, Layers, StackedMLP, mlp

SILU = nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, 2))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def separate_networks(stacked: StackedMLP) -> list[nn.Sequential]:
    """The same networks as C ones of ``nn.Linear`` layers."""
    networks = []
    for c in range(stacked.weights[0].shape[0]):
        layers: list[nn.Module] = []
        for i, (weight, bias) in enumerate(zip(stacked.weights, stacked.biases, strict=True)):
            linear = nn.Linear(weight.shape[1], weight.shape[2], dtype=weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(weight[c].T)
                linear.bias.copy_(bias[c, 0])
            layers.append(linear)
            if i < len(stacked.weights) - 1:
                layers += [nn.LayerNorm(weight.shape[2], dtype=weight.dtype)] if stacked.layer_norm else []
                layers.append(nn.ReLU())
        networks.append(nn.Sequential(*layers))
    return networks


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("num", [1, 2, 5])
def test_stacked_mlp_equals_separate_networks(num: int, layer_norm: bool) -> None:
    stacked = StackedMLP(num, (4, 16, 8, 3), layer_norm).double()
    networks = separate_networks(stacked)
    x = torch.randn(10, 4, dtype=torch.float64)
    outputs = stacked(x)
    assert outputs.shape == (num, 10, 3)
    torch.testing.assert_close(outputs, torch.stack([net(x) for net in networks]), atol=1e-12, rtol=0)
    gradients = torch.autograd.grad(outputs.square().sum(), list(stacked.weights))
    for c, net in enumerate(networks):
        linears = [layer.weight for layer in net if isinstance(layer, nn.Linear)]
        expected = torch.autograd.grad(net(x).square().sum(), linears)
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a[c], b.T, atol=1e-10, rtol=0)


def test_stacked_mlp_initialises_like_linear() -> None:
    stacked, linear = StackedMLP(3, (100, 400)), nn.Linear(100, 400)
    for parameter, reference in ((stacked.weights[0], linear.weight), (stacked.biases[0], linear.bias)):
        assert parameter.abs().max() <= 0.1
        assert parameter.std().item() == pytest.approx(reference.std().item(), rel=0.1)
    assert not torch.equal(stacked.weights[0][0], stacked.weights[0][1])


def test_mlp() -> None:
    net = mlp((3, 8, 5, 2))
    assert [type(layer) for layer in net] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    normed = mlp((3, 8, 2), spectral_norm=True)
    for _ in range(30):  # power iterations
        normed(torch.randn(4, 3))
    for i in (0, 2):
        assert torch.linalg.matrix_norm(normed[i].weight, 2).item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("is_fused", [False, True], ids=["CPU", "GPU"])
def test_bfloat16_rounds_no_row_as_a_whole(is_fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A normalised layer whose scale is rounded changes large Q values by as much as what a step can teach them."""
    monkeypatch.setattr(stacked_mlp, "_has_fast_layer_norm", lambda device: is_fused)
    net = StackedMLP(2, (8, 256, 256, 1), layer_norm=True)
    net.weights[-1].data.abs_()
    x = torch.randn(256, 8)
    exact, rounded = (FastMLP(net, dtype).forward(x).clone() for dtype in (None, torch.bfloat16))
    assert (rounded - exact).std() < 5e-4 * exact.mean()  # 2e-3 with a scale in bfloat16


@pytest.mark.parametrize("is_fused", [False, True], ids=["CPU", "GPU"])
@pytest.mark.parametrize("dtype", [None, torch.float32], ids=["own", "other dtype within"])
@pytest.mark.parametrize("rows_innermost", [False, True], ids=["units innermost", "rows innermost"])
@pytest.mark.parametrize("inputs", ["shared", "own"])
@pytest.mark.parametrize(
    "net",
    [
        StackedMLP(3, (5, 8, 6, 2)), StackedMLP(3, (5, 8, 6, 2), layer_norm=True),
        StackedMLP(2, (5, 8, 6, 7, 1), layer_norm=True), mlp((5, 8, 6, 2)), mlp((5, 8, 1)), SILU,
    ],
    ids=str,
)  # fmt: skip
def test_mlp_gradients_equal_autograds(
    net: StackedMLP | nn.Sequential,
    inputs: str,
    rows_innermost: bool,
    dtype: torch.dtype | None,
    is_fused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of some rows, with respect to parameters and to some columns of the inputs."""
    monkeypatch.setattr(stacked_mlp, "_has_fast_layer_norm", lambda device: is_fused)
    rtol, atol = (1e-9, 1e-12) if dtype is None else (1e-5, 1e-6)
    assert_close = functools.partial(torch.testing.assert_close, rtol=rtol, atol=atol)
    net, rows, columns = net.double(), slice(3, 9), slice(1, 4)
    num = len(net.weights[0]) if isinstance(net, StackedMLP) else 1
    x = torch.randn(*((num, 10, 5) if inputs == "own" else (10, 5)), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    if isinstance(net, StackedMLP):
        each = leaf.expand(num, 10, 5)
        expected = torch.stack([net(each[i])[i] for i in range(num)])
    else:
        expected = net(leaf).view(1, 10, -1)
    fast = FastMLP(net, dtype, rows_innermost)
    actual = fast.forward(x)
    assert_close(actual, expected.detach())
    delta = torch.randn(len(actual), 6, actual.shape[2], dtype=torch.float64)
    loss = (expected[:, rows] * delta).sum()
    input_gradient, *parameter_gradients = torch.autograd.grad(loss, [leaf, *net.parameters()])
    fast.backward(delta, rows)
    by_input = fast.input_gradients(rows, columns)
    assert_close(by_input if inputs == "own" else by_input.sum(0), input_gradient[..., rows, columns])
    fast.parameter_gradients(delta, rows)
    assert_close([p.grad for p in net.parameters()], parameter_gradients)


def test_networks_that_the_fast_form_does_not_serve_are_refused() -> None:
    with pytest.raises(ValueError, match="found: Tanh"):
        FastMLP(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    stacked = StackedMLP(2, (3, 4, 1))
    with pytest.raises(ValueError, match="before ReLU only, found 'silu'"):
        FastMLP(Layers(list(stacked.weights), list(stacked.biases), "silu", layer_norm=True))
