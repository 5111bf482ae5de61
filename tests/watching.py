"""Runs code on PyTorch's "meta" device as a GPU would run it, and tells where the CPU would have waited."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
_PACKAGE = str(Path(__file__).parents[1] / "rllib_damo")
_VALUES = ("item", "is_nonzero", "_local_scalar_dense")


class Watch(TorchDispatchMode):
    """Answers whoever wants to see values of a tensor without any: each number is 1, each flag ``flag``.

    Attributes:
        reads: the places, "module.py:function", where values were wanted, for each time.
        moves: those where tensors of two devices met in an operation, or came from another device.
        launches: operations on the device that are no views, about as many as a GPU's kernels.
    """

    def __init__(self, flag: bool = True) -> None:
        super().__init__()
        self._flag = flag
        self.reads: list[str] = []
        self.moves: list[str] = []
        self.launches = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__  # type: ignore[attr-defined]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_ours = any(tensor.device == DEVICE for tensor in inputs)
        if is_ours and name in _VALUES:
            self.reads.append(_place())
            return self._flag if args[0].dtype == torch.bool else 1.0
        if is_ours and name in ("to", "_to_copy") and _target(args, kwargs) == torch.device("cpu"):
            self.reads.append(_place())
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if len({tensor.device for tensor in inputs + outputs}) > 1:
            self.moves.append(_place())
        returns = func._schema.returns  # type: ignore[attr-defined]
        is_view = bool(returns and returns[0].alias_info and not func._schema.is_mutable)  # type: ignore[attr-defined]
        self.launches += (is_ours or any(tensor.device == DEVICE for tensor in outputs)) and not is_view
        return result


def _target(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device | None:
    found = kwargs.get("device") or next((a for a in args[1:] if isinstance(a, (torch.device, str))), None)
    return None if found is None else torch.device(found)


def _place() -> str:
    """The innermost function of the package that is running."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(_PACKAGE) and not frame.name.startswith("<"):
            return f"{Path(frame.filename).name}:{frame.name}"
    return "?"


class _Generator(torch.Generator):
    """There is none for "meta", whose random operations take any."""

    def __new__(cls, device: Any = None) -> Any:
        return _Generator.__base__() if torch.device(device or "cpu") == DEVICE else _Generator.__base__(device)


def pretend(monkeypatch: Any) -> None:
    """Lets RLlib's device be "meta", and generators and fused Adam be there."""
    import torch._dynamo  # reads torch.Generator's type when it is imported, which torch does late

    monkeypatch.setattr(torch, "Generator", _Generator)
    adam = importlib.import_module("torch.optim.adam")  # torch.optim hides its modules
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *args, **kwargs: None)
    for module in ("ray.rllib.core.learner.torch.torch_learner", "rllib_damo.utils.policy_runner"):
        monkeypatch.setattr(f"{module}.get_device", lambda *args: DEVICE)
