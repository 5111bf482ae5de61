"""Writes a checkpoint's policy as a file that is played without Ray and this package: ONNX, TorchScript or NumPy."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_damo.core.algorithm import ALGORITHM, COMPONENT_TRAINING, FINGERPRINT, NUM_GRADIENT_STEPS
from rllib_damo.core.changed_options import changed_options, plain
from rllib_damo.data.schema import Transitions
from rllib_damo.deploy import numpy_policy
from rllib_damo.deploy.layers import Layer, layers_of, layers_of_clone
from rllib_damo.deploy.onnx_file import OPSET, to_onnx
from rllib_damo.deploy.torchscript_file import to_torchscript
from rllib_damo.errors import UsageError
from rllib_damo.evaluation.checkpoints import STATES, load_config, read_pickle, verify
from rllib_damo.evaluation.play import evaluated_env
from rllib_damo.evaluation.policy import Policy, load_policy
from rllib_damo.evaluation.storage import local_copy
from rllib_damo.selection import Selection
from rllib_damo.utils.names import near
from rllib_damo.utils.paths import check_new_file, new_file
from rllib_damo.utils.uris import without_password
from rllib_damo.version import versions

SUFFIXES = {".onnx": "onnx", ".pt": "torchscript", ".npz": "npz"}


def export_policy(
    checkpoint: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    overwrite: bool = False,
    module_id: str = "default_policy",
) -> Path:
    """Writes the deterministic policy of a checkpoint, as `load_policy` plays it, into one file.

    The file takes raw observations (B, obs) float32 and gives actions (B, act) in the environment's units. Its metadata
    name the environment, the spaces, the dataset, the changed options and the versions. The checkpoint's pickles are
    executed: export only those that you trust.

    Args:
        checkpoint: as for `load_policy`.
        out: the file to write.
        format: "onnx", "torchscript" or "npz"; None: by the suffix of `out`, .onnx, .pt or .npz.
        overwrite: replace `out` if it exists.
        module_id: name of the module.

    Returns:
        The file's path.

    Raises:
        UsageError: an unknown format, a missing package, or a place that cannot be written.
        DataError: `out` exists.
        CheckpointError: no readable checkpoint, or a policy that is no plain network.
        UserError: spaces other than one-dimensional Boxes.
    """
    write = _writer(out, format)
    check_new_file(out, overwrite)
    path = Path(out).expanduser()
    with new_file(path, overwrite) as scratch:
        with local_copy(checkpoint) as place:
            verify(place.absolute())
            policy = load_policy(place, module_id=module_id)
            layers = layers_of(policy)
            metadata = _metadata(policy, place)
        scratch.write_bytes(write(layers, metadata))
    return path


def write_clone(found: Selection, out: Path) -> None:
    """Writes the clone that a selection has judged as an .npz file for `NumpyPolicy`; an older file is replaced."""
    space = found.action_space
    layers = layers_of_clone(found.clone, space)
    metadata = _spaces(len(found.clone.mean), space) | {
        "algorithm": "clone of `rllib-damo select`",
        "environment": found.facts["env"],
        "dataset": {"name": found.facts["dataset"], "fingerprint": found.facts["fingerprint"]},
        "versions": versions(),
    }
    with new_file(out, overwrite=True) as scratch:
        scratch.write_bytes(_to_npz(layers, metadata))


def _writer(out: str | Path, format: str | None) -> Callable[[list[Layer], Mapping[str, Any]], bytes]:
    writers = {"onnx": to_onnx, "torchscript": to_torchscript, "npz": _to_npz}
    name = format or SUFFIXES.get(Path(out).suffix)
    if name is None:
        raise UsageError(f"{out}: no known format; end the name in {', '.join(SUFFIXES)}, or give --format.")
    if name not in writers:
        raise UsageError(f"--format {name}: unknown.{near(name, writers)} There are {', '.join(writers)}.")
    return writers[name]


def _to_npz(layers: list[Layer], metadata: Mapping[str, Any]) -> bytes:
    arrays = {f"layer{i}.{name}": array for i, layer in enumerate(layers) for name, array in layer.arrays.items()}
    file = io.BytesIO()
    np.savez(
        file,
        metadata=json.dumps(metadata, indent=1),
        loader=Path(numpy_policy.__file__).read_text(),
        layers=[layer.kind for layer in layers],
        **arrays,  # type: ignore[arg-type]
    )
    return file.getvalue()


def _metadata(policy: Policy, place: Path) -> dict[str, Any]:
    return {
        **_spaces(policy.observation_space.shape[0], policy.action_space),
        "onnx_opset": OPSET,
        "observation_space": _space(policy.observation_space),
        **_origin(place),
        "versions": versions(),
    }


def _spaces(obs_dim: int, actions: gym.spaces.Box) -> dict[str, Any]:
    return {
        "format": "rllib_damo policy 1",
        "input": {"name": "observations", "shape": ["batch", obs_dim], "dtype": "float32"},
        "output": {"name": "actions", "shape": ["batch", *actions.shape], "dtype": str(actions.dtype)},
        "action_space": _space(actions),
    }


def _origin(place: Path) -> dict[str, Any]:
    """What an Algorithm's checkpoint tells of the policy's training; a module's own tells nothing."""
    if not any((place / name).is_file() for name in STATES):
        return {}
    config = load_config(place)
    training = _training_state(place)
    data = config.input_
    name = data.name if isinstance(data, Transitions) else data
    defaults = config.algo_class.get_default_config()
    return {
        "algorithm": training.get(ALGORITHM, config.algo_class.__name__),
        "environment": str(evaluated_env(config) if config.env is None else config.env),
        "dataset": {"name": without_password(str(name)), "fingerprint": training.get(FINGERPRINT)},
        "gradient_steps": training.get(NUM_GRADIENT_STEPS),
        "config": changed_options(plain(config.to_dict()), plain(defaults.to_dict())),
    }


def _training_state(place: Path) -> dict[str, Any]:
    """What this package's algorithms add to their state; empty for others."""
    file = place / STATES[0]
    return read_pickle(file).get(COMPONENT_TRAINING, {}) if file.is_file() else {}


def _space(space: gym.spaces.Box) -> dict[str, Any]:
    """A Box in JSON, which has no infinity: None stands for it."""
    bounds = {
        name: [float(value) if np.isfinite(value) else None for value in bound]
        for name, bound in (("low", space.low), ("high", space.high))
    }
    return {"shape": list(space.shape), "dtype": str(space.dtype), **bounds}
