"""`FastNetwork` is the network: values and gradients of single calls, and whole steps of the rules that use it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium as gym
import pytest
import torch
from torch import Tensor, nn

from rllib_damo import COMBOConfig, MOBILEConfig, MOPOConfig, OfflineIQLConfig, RAMBOConfig, ReBRACConfig, TD3BCConfig
from rllib_damo.baselines.combo import COMBOUpdate
from rllib_damo.baselines.mobile import MOBILEUpdate
from rllib_damo.baselines.rambo import RAMBOUpdate
from rllib_damo.baselines.rebrac import HAS_NEXT_ACTION, NEXT_ACTIONS, ReBRACUpdate
from rllib_damo.baselines.td3bc import TD3BCUpdate
from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.rl_module import OfflineTorchRLModule, SACTorchRLModule
from rllib_damo.core.sac import SACUpdate
from rllib_damo.core.td3 import TD3TorchRLModule
from rllib_damo.core.update import Metrics, StepBatch, Update
from rllib_damo.nn import stacked_mlp
from rllib_damo.nn.fast_network import FastNetwork
from rllib_damo.nn.stacked_mlp import FastMLP, StackedMLP, is_plain, mlp
from tests.update_parts import ACT, OBS, ROWS, linear_dynamics, make_batch, noise

# -- a network -------------------------------------------------------------------------------------------------------


def fast(net: Any) -> Any:
    """A copy of the network whose calls are fast."""
    other = copy.deepcopy(net)
    other.forward = FastNetwork(other)
    return other


@pytest.fixture(params=["stacked", "normalised", "normalised as on a GPU", "single"])
def net(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(stacked_mlp, "_has_fast_layer_norm", lambda device: "GPU" in request.param)
    torch.manual_seed(0)
    if request.param == "single":
        return mlp((5, 16, 8, 2)).double()
    return StackedMLP(2, (5, 16, 8, 2), layer_norm="normalised" in request.param).double()


def inputs(rows: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_and_gradients_are_the_networks(net: Any) -> None:
    """Of a loss with several calls: two of one size, one of another, and one of inputs that have a gradient."""

    def gradients(network: nn.Module) -> list[Tensor]:
        action = inputs(seed=3).requires_grad_()
        calls = [network(x) for x in (inputs(seed=1), inputs(7, seed=2), action.tanh(), inputs(seed=4))]
        loss = sum((i + 1) * call.pow(3).mean() for i, call in enumerate(calls))
        return [*calls, *torch.autograd.grad(loss, [*network.parameters(), action])]

    other = fast(net)
    for _ in range(2):  # the second time in buffers that were used
        torch.testing.assert_close(gradients(other), gradients(net), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(other(inputs()), net(inputs()), rtol=1e-9, atol=1e-12)


def test_the_gradient_of_inputs_alone_passes_the_parameters_by(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, other = inputs().requires_grad_(), fast(net)
    monkeypatch.delattr(FastMLP, "parameter_gradients")
    actual, expected = (torch.autograd.grad(one(x).square().sum(), x) for one in (other, net))
    torch.testing.assert_close(actual, expected)


def test_calls_that_nobody_differentiates_give_their_buffers_back() -> None:
    net = fast(mlp((5, 8, 2)).double())
    for _ in range(5):
        outputs = net(inputs())
        del outputs
    assert len(net.forward._free) == 1
    pending = [net(inputs()) for _ in range(3)]
    assert len(net.forward._free) == 0
    del pending
    assert len(net.forward._free) == 3


def test_a_second_gradient_of_a_call_and_other_shapes_are_refused() -> None:
    net = fast(mlp((5, 8, 2)).double())
    loss = net(inputs()).sum()
    torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    with pytest.raises(RuntimeError, match="can be taken once: call the network again"):
        torch.autograd.grad(loss, list(net.parameters()))
    with pytest.raises(ValueError, match=r"found shape \(3, 4, 5\)"):
        net(torch.zeros(3, 4, 5, dtype=torch.float64))


def test_a_copy_has_parameters_of_its_own() -> None:
    net = fast(mlp((5, 8, 2)).double())
    before = net(inputs()).detach()
    other = copy.deepcopy(net)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    torch.testing.assert_close(other(inputs()), before)
    assert not net(inputs()).any()


# -- rules -----------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    module_class: type[OfflineTorchRLModule]
    update_class: type[Update]
    config: Any


RULES = {
    "MOPO": Rule(SACTorchRLModule, SACUpdate, MOPOConfig()),
    "MOBILE": Rule(SACTorchRLModule, MOBILEUpdate, MOBILEConfig()),
    "COMBO": Rule(SACTorchRLModule, COMBOUpdate, COMBOConfig()),
    "COMBO, one action": Rule(SACTorchRLModule, COMBOUpdate, COMBOConfig().training(num_actions=1, rho_s="model")),
    "RAMBO": Rule(SACTorchRLModule, RAMBOUpdate, RAMBOConfig()),
    "TD3BC": Rule(TD3TorchRLModule, TD3BCUpdate, TD3BCConfig()),
    "ReBRAC": Rule(TD3TorchRLModule, ReBRACUpdate, ReBRACConfig()),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "single": {"twin_q": False},
    "normalised": {"critic_layer_norm": True},
    "normalised, clipped": {"critic_layer_norm": True, "grad_clip": 1e-2},
    "learners": {"reduce": True},
}


def halve(gradients: Sequence[Tensor]) -> None:
    torch._foreach_div_(list(gradients), 2)


READABLE = object()


def build(
    rule: Rule, fast: Any = READABLE, dtype: torch.dtype = torch.float64, width: int = 16, **options: Any
) -> Update:
    """An update of fresh networks, readable ones or fast ones with products in the dtype ``fast``."""
    torch.manual_seed(0)
    names = ("twin_q", "critic_layer_norm")
    networks = {"twin_q": True, "critic_layer_norm": False} | {n: options[n] for n in names if n in options}
    module = rule.module_class(
        observation_space=gym.spaces.Box(-1, 1, (OBS,)), action_space=gym.spaces.Box(-1, 1, (ACT,)),
        inference_only=False, model_config={"hidden_dims": (width, width // 2), "initial_alpha": 0.3, **networks},
    ).to(dtype)  # fmt: skip
    rows = make_batch()["update"]
    module.fit_standardizers(rows._replace(obs=3 * rows.obs + 0.5))  # or standardising would be the identity
    if fast is not READABLE:
        module.use_fast_networks(fast)
    config = rule.config.copy(copy_frozen=False).training(
        **{name: value for name, value in options.items() if name != "reduce"}
    )
    update = rule.update_class(
        module, config, generator=noise(), reduce_gradients=halve if options.get("reduce") else None,
        optimizers={name: torch.optim.Adam(params, lr=1e-3) for name, params in module.trainable().items()},
    )  # fmt: skip
    if isinstance(update, MOBILEUpdate):
        update.set_dynamics(linear_dynamics(3, -1.0).to(dtype))
    return update


def take(update: Update, num: int, dtype: torch.dtype = torch.float64) -> list[Metrics]:
    results = []
    for step in range(num):
        rows = {name: value.to(dtype) for name, value in make_batch()["update"]._asdict().items()}
        batch = StepBatch({"update": make_batch(**rows)["update"]}, 5)
        known = (torch.arange(ROWS) % 3 > 0)[:, None]
        batch.extra = {NEXT_ACTIONS: rows["actions"].flip(0), HAS_NEXT_ACTION: known.to(dtype)}
        results.append(update.step(batch, step, True))
    return results


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", RULES)
def test_steps_are_those_of_the_readable_networks(name: str, variant: str) -> None:
    """Metrics, networks, targets and random numbers of four steps in float64, where only a mistake can show."""
    plain, other = (build(RULES[name], kind, **VARIANTS[variant]) for kind in (READABLE, None))
    torch.testing.assert_close(take(other, 4), take(plain, 4), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(dict(other.module.state_dict()), dict(plain.module.state_dict()), rtol=1e-6, atol=1e-9)
    assert torch.equal(other.generator.get_state(), plain.generator.get_state())


def test_rambos_cloning_is_that_of_the_readable_networks() -> None:
    plain, other = (build(RULES["RAMBO"], kind) for kind in (READABLE, None))
    for update in (plain, other):
        for _ in range(3):
            update.apply("cloning", update.cloning_loss(make_batch()["update"]))  # type: ignore[attr-defined]
    torch.testing.assert_close(dict(other.module.state_dict()), dict(plain.module.state_dict()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_bfloat16_stays_near_float32(name: str) -> None:
    exact, rounded = (build(RULES[name], kind, torch.float32, width=32) for kind in (READABLE, torch.bfloat16))
    expected, actual = (take(update, 20, torch.float32) for update in (exact, rounded))
    assert any(not torch.equal(a["qf_loss"], b["qf_loss"]) for a, b in zip(expected, actual, strict=True))
    for a, b in zip(expected, actual, strict=True):
        for metric in {"qf_loss", "qf_mean", "inconsistency_mean"} & a.keys():
            assert b[metric].item() == pytest.approx(a[metric].item(), rel=0.02)
    assert {p.dtype for p in rounded.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("config", [MOPOConfig(), TD3BCConfig(), OfflineIQLConfig()], ids=["MOPO", "TD3BC", "IQL"])
def test_learners_use_fast_networks_where_there_is_a_precision(config: Any) -> None:
    module = build(RULES["TD3BC" if isinstance(config, TD3BCConfig) else "MOPO"]).module
    learner: Any = SimpleNamespace(config=config, update_class=lambda module, config, **parts: None)
    OfflineTorchLearner.make_update(learner, module)
    networks = [child.net for name, child in module.named_children() if name != "averaged_actor"]
    has_precision = hasattr(config, "precision")
    assert has_precision == (not isinstance(config, OfflineIQLConfig))
    assert {isinstance(net.forward, FastNetwork) for net in networks} == {has_precision}
    assert not isinstance(module.averaged_actor.net.forward, FastNetwork)


@pytest.mark.parametrize(
    ("net", "is_so"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), True),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1), nn.ReLU()), False),
        (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), False),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)), False),
        (nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3)), nn.ReLU(), nn.Linear(3, 1)), False),
    ],
)
def test_networks_of_another_kind_are_left_as_they_are(net: nn.Module, is_so: bool) -> None:
    assert is_plain(net) == is_so
