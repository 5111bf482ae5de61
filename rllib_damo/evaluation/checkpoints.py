"""RLlib's checkpoint folders: where the parts are, whether they are whole, and reading them with clear errors.

A checkpoint that this package writes has a manifest: the size and SHA-256 of each file. `seal` writes it as the last
file, and `verify` compares. The metadata, which RLlib writes first, announce the manifest (`ANNOUNCEMENT`), so that a
half-written checkpoint is known from one of another algorithm, which has none.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pyarrow import fs
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE

from rllib_damo.errors import CheckpointError

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

CONSTRUCTOR = "class_and_ctor_args.pkl"
METADATA = "rllib_checkpoint.json"
MODULE_STATE = "module_state.pkl"
STATES = ("algorithm_state.pkl", "algorithm_state.msgpack")  # RLlib writes one of them, as its last file
MANIFEST = "manifest.json"
SPLIT_FILE = "selection.json"  # what a policy was trained on, readable without unpickling
#: What an algorithm adds to its metadata (`Algorithm.get_metadata`) if it seals its checkpoints.
ANNOUNCEMENT = {"manifest": MANIFEST}

_NAME = re.compile(r"checkpoint_(\d+)")
_CHUNK = 1 << 20  # bytes


def checkpoint_dir(path: str | Path) -> Path:
    """The absolute path of an Algorithm's checkpoint folder.

    Raises:
        CheckpointError: if there is none at `path`; where checkpoints lie further down, the message lists them.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.exists():
        raise CheckpointError(f"no checkpoint at {folder}: there is no such folder.")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a checkpoint is a folder, such as .../checkpoint_000009.")
    if (folder / COMPONENT_LEARNER_GROUP).is_dir() and (folder / CONSTRUCTOR).is_file():
        return folder
    inner = sorted(found for depth in ("*", "*/*") for found in folder.glob(f"{depth}/{COMPONENT_LEARNER_GROUP}"))
    raise no_checkpoint(folder, [str(found.parent) for found in inner])


def no_checkpoint(place: str | Path, inner: Sequence[str]) -> CheckpointError:
    """The error for a folder or address that is not a checkpoint, but may hold some."""
    if inner:
        shown = "\n  ".join(inner[-10:])
        return CheckpointError(f"{place} is not a checkpoint, but holds some; pass one of them:\n  {shown}")
    return CheckpointError(
        f"{place} holds no RLlib checkpoint (no {COMPONENT_LEARNER_GROUP}/ and {CONSTRUCTOR}). Pass a folder written "
        "by `rllib train` or `algo.save_to_path()`."
    )


def module_dir(checkpoint: str | Path, module_id: str = "default_policy") -> Path:
    """The folder of an RLModule in an Algorithm's checkpoint; a module's own checkpoint folder is returned as it is.

    Raises:
        CheckpointError: no checkpoint, or no module of that name in it.
    """
    given = Path(checkpoint).expanduser().absolute()
    if (given / MODULE_STATE).is_file() and (given / CONSTRUCTOR).is_file():
        return given
    modules = checkpoint_dir(given) / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER / COMPONENT_RL_MODULE
    if not (modules / module_id).is_dir():
        found = sorted(entry.name for entry in modules.glob("*/")) if modules.is_dir() else []
        raise CheckpointError(f"{modules} has no module {module_id!r}; it has {found or 'none'}.")
    return modules / module_id


def load_config(checkpoint: str | Path, algorithm: type[Algorithm] | None = None) -> AlgorithmConfig:
    """The AlgorithmConfig that the checkpoint's algorithm was built from.

    The file is a pickle: load only checkpoints that you trust.

    Args:
        checkpoint: an Algorithm's checkpoint folder.
        algorithm: the Algorithm's class, if it shall replace the checkpoint's.
    """
    file = checkpoint_dir(checkpoint) / CONSTRUCTOR
    stored = read_pickle(file)
    try:
        args, kwargs = stored["ctor_args_and_kwargs"]
        config = args[0] if args else kwargs["config"]
    except (TypeError, ValueError, LookupError) as error:
        raise CheckpointError(f"{file} holds no algorithm's config ({type(error).__name__}: {error}).") from error
    if isinstance(config, dict):
        options = {name: value for name, value in config.items() if name != "class"}  # RLlib's, and no option
        config = (algorithm or stored["class"]).get_default_config().update_from_dict(options)
    return config


def read_pickle(file: str | Path, filesystem: fs.FileSystem | None = None) -> Any:
    """What a file of a checkpoint holds. Pickles are executed: read only checkpoints that you trust.

    Args:
        file: an absolute path on `filesystem`.
        filesystem: of this machine by default.

    Raises:
        CheckpointError: if the file is damaged, or refers to code that this version or this machine does not have.
    """
    try:
        with (filesystem or fs.LocalFileSystem()).open_input_file(str(file)) as stream:
            return pickle.loads(stream.read())
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {Path(file).parent}: there is no {Path(file).name}.") from error
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read: {missing_code(error)}") from error
    except Exception as error:  # a damaged pickle may raise any
        raise CheckpointError(
            f"{file} cannot be read ({type(error).__name__}: {error}). The file is damaged: take another checkpoint."
        ) from error


def missing_code(error: ImportError | AttributeError) -> str:
    """The meaning of an error that unpickling raises where a class or module is missing, and the fix."""
    if "rllib_damo" in str(error):  # the modules of 0.1 have moved
        return "it was written by rllib_damo 0.1. Install that version to use it, or train anew."
    return f"{error}. Install what is missing, or give the file that defines it (--file)."


def seal(
    folder: str | Path,
    filesystem: fs.FileSystem | None = None,
    metrics: Mapping[str, Any] | None = None,
    components: Collection[str] | None = None,
) -> None:
    """Writes the manifest of a checkpoint, as its last file.

    Args:
        folder: the checkpoint, an absolute path on `filesystem`.
        filesystem: of this machine by default.
        metrics: the result that belongs to the checkpoint. Its numbers are kept, so that a run can be resumed from
            here if Tune's own record is lost.
        components: names of the checkpoint's own folders; whatever else lies there is not its own. None: all is.
    """
    filesystem, root = filesystem or fs.LocalFileSystem(), str(folder).rstrip("/")
    files = {
        name: {"size": size, "sha256": _digest(filesystem, f"{root}/{name}")}
        for name, size in _files(filesystem, root)
        if name != MANIFEST and _is_own(name, components)
    }
    manifest = json.loads(json.dumps({"metrics": _numbers(metrics or {}), "files": files}))  # as it will be read
    with filesystem.open_output_stream(f"{root}/{MANIFEST}") as stream:
        stream.write(json.dumps(manifest | {"sha256": _digest_of(manifest)}, indent=1).encode())


def verify(folder: str | Path, filesystem: fs.FileSystem | None = None, *, contents: bool = True) -> dict[str, Any]:
    """Compares a checkpoint with its manifest.

    A checkpoint of another algorithm has no manifest; it only has to have RLlib's last file.

    Args:
        folder: an Algorithm's checkpoint or a folder inside it, an absolute path on `filesystem`.
        filesystem: of this machine by default.
        contents: False compares the sizes only, without reading the files.

    Returns:
        The metrics of the manifest; empty without a manifest.

    Raises:
        CheckpointError: for a missing, truncated or changed file; the message names it.
    """
    filesystem, given = filesystem or fs.LocalFileSystem(), PurePosixPath(str(folder).rstrip("/"))
    marks = (METADATA, COMPONENT_LEARNER_GROUP)  # other programs write files of the manifest's name, too
    places = (given, *given.parents[:4])
    root = next((place for place in places if any(_exists(filesystem, place / mark) for mark in marks)), None)
    if root is None:  # a module's own checkpoint
        return {}
    if not _exists(filesystem, root / MANIFEST):
        if any(_read_json(filesystem, root, METADATA).get(key) == value for key, value in ANNOUNCEMENT.items()):
            raise _damaged(root, f"{MANIFEST} is missing, since writing it was interrupted")
        if not any(filesystem.get_file_info(str(root / state)).size for state in STATES):
            raise _damaged(root, f"{STATES[0]} is missing or empty, since writing it was interrupted")
        return {}
    manifest = _read_json(filesystem, root, MANIFEST)
    if manifest.pop("sha256", None) not in (None, _digest_of(manifest)):  # None: of an earlier version
        raise _damaged(root, f"the content of {MANIFEST} has changed")
    inside = "" if given == root else f"{given.relative_to(root)}/"
    sizes = dict(_files(filesystem, str(root)))
    for name, facts in manifest["files"].items():
        if not name.startswith(inside):
            continue
        if name not in sizes:
            raise _damaged(root, f"{name} is missing")
        if sizes[name] != facts["size"]:
            raise _damaged(root, f"{name} has {sizes[name]} bytes instead of {facts['size']}")
        if contents and _digest(filesystem, str(root / name)) != facts["sha256"]:
            raise _damaged(root, f"the content of {name} has changed")
    return manifest["metrics"]


def newest_whole(trial: str, filesystem: fs.FileSystem) -> tuple[str, dict[str, Any]] | None:
    """The newest checkpoint in a trial's folder that is whole, and the metrics of its manifest; None if there is none.

    On another filesystem than this machine's only the sizes of the files are compared.
    """
    numbered = checkpoint_numbers(trial, filesystem)
    for path in sorted(numbered, key=numbered.__getitem__, reverse=True):
        try:
            return path, verify(path, filesystem, contents=isinstance(filesystem, fs.LocalFileSystem))
        except CheckpointError:
            continue
    return None


def checkpoint_numbers(trial: str, filesystem: fs.FileSystem) -> dict[str, int]:
    """The number of each checkpoint in a trial's folder, by its path."""
    entries = filesystem.get_file_info(fs.FileSelector(trial, allow_not_found=True))
    return {entry.path: int(match[1]) for entry in entries if (match := _NAME.fullmatch(entry.base_name))}


def _damaged(place: PurePosixPath, what: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {place} is damaged: {what}. Take another checkpoint of the run, such as the one before."
    )


def _files(filesystem: fs.FileSystem, root: str) -> Iterator[tuple[str, int]]:
    """Names below `root` and sizes in bytes."""
    for info in sorted(filesystem.get_file_info(fs.FileSelector(root, recursive=True)), key=lambda info: info.path):
        if info.is_file:
            yield str(PurePosixPath(info.path).relative_to(PurePosixPath(root))), info.size


def _is_own(name: str, components: Collection[str] | None) -> bool:
    first, *rest = PurePosixPath(name).parts
    files = METADATA, CONSTRUCTOR, SPLIT_FILE, *STATES
    return components is None or first in (components if rest else files)


def _digest(filesystem: fs.FileSystem, file: str) -> str:
    digest = hashlib.sha256()
    with filesystem.open_input_stream(file) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _exists(filesystem: fs.FileSystem, path: PurePosixPath) -> bool:
    return filesystem.get_file_info(str(path)).type != fs.FileType.NotFound


def _read_json(filesystem: fs.FileSystem, root: PurePosixPath, name: str) -> dict[str, Any]:
    try:
        with filesystem.open_input_stream(str(root / name)) as stream:
            return dict(json.loads(stream.read()))
    except FileNotFoundError as error:
        raise _damaged(root, f"{name} is missing") from error
    except (ValueError, TypeError) as error:
        raise _damaged(root, f"{name} cannot be read ({error})") from error


def _numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a nested result, without the config."""
    kept = {key: _numbers(value) if isinstance(value, Mapping) else value for key, value in result.items()}
    return {
        key: value
        for key, value in kept.items()
        if key != "config" and (type(value) in (int, float) or (isinstance(value, dict) and value))
    }
