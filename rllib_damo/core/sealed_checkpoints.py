"""Checkpoints with a manifest: written as their last file, and compared before anything is restored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from ray.tune import Checkpoint
from typing_extensions import Self

from rllib_damo.evaluation.checkpoints import ANNOUNCEMENT, CONSTRUCTOR, read_pickle, seal, verify
from rllib_damo.utils.names import near
from rllib_damo.utils.paths import absolute


class SealedCheckpoints(Checkpointable):
    """What an Algorithm adds to RLlib's checkpoints. Relative paths are taken from the present folder."""

    _last_result: dict[str, Any] | None

    @override(Checkpointable)
    def get_metadata(self) -> dict[str, Any]:
        return super().get_metadata() | ANNOUNCEMENT

    @override(Checkpointable)
    def save_to_path(
        self, path: str | Path | None = None, *, filesystem: pyarrow.fs.FileSystem | None = None, **kwargs: Any
    ) -> str:
        """Saves all components, and then the manifest with their sizes and hashes."""
        if filesystem is None and path is not None:
            filesystem, path = _place(path)
        saved = super().save_to_path(path, filesystem=filesystem, **kwargs)
        seal(saved, filesystem, self._last_result, [name for name, _ in self.get_checkpointable_components()])
        return saved

    @override(Checkpointable)
    def restore_from_path(
        self,
        path: str | Path,
        *,
        component: str | None = None,
        filesystem: pyarrow.fs.FileSystem | None = None,
        **kwargs: Any,
    ) -> None:
        """Restores all components.

        Raises:
            CheckpointError: a file is missing, truncated or changed; nothing has been restored then.
        """
        if filesystem is None:
            filesystem, path = _place(path)
        verify(path, filesystem)
        super().restore_from_path(path, component=component, filesystem=filesystem, **kwargs)

    @classmethod
    @override(Checkpointable)
    def from_checkpoint(cls, path: Any, filesystem: pyarrow.fs.FileSystem | None = None, **kwargs: Any) -> Self:
        """A new algorithm in the state of a checkpoint.

        Args:
            path: the checkpoint's folder or address, or a Checkpoint of Tune.
            filesystem: where `path` is; by default it follows from the address.
            kwargs: options of the config that shall not be as at training: ``num_env_runners=0`` on a smaller machine,
                or the ``input_`` that was given as `Transitions`, which a checkpoint does not hold.

        Raises:
            CheckpointError: a file is missing, truncated or changed, or of version 0.1.
            TypeError: there is no such option.
        """
        if isinstance(path, Checkpoint):
            path = path.to_directory()
        if isinstance(path, (str, Path)):
            if filesystem is None:
                filesystem, path = _place(path)
            verify(path, filesystem, contents=False)  # which `restore_from_path` compares
            stored = read_pickle(f"{path}/{CONSTRUCTOR}", filesystem)  # RLlib only warns, and fails later
            kwargs = _with_options(stored, kwargs)
        return super().from_checkpoint(path, filesystem=filesystem, **kwargs)


def _with_options(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of RLlib's ``from_checkpoint`` for a stored config, of which some options are given anew."""
    if not given or "config" in given:
        return dict(given)
    (state,), _ = stored["ctor_args_and_kwargs"]
    unknown = [name for name in given if name not in state]
    if unknown:
        raise TypeError(f"from_checkpoint(): there is no option {unknown[0]!r}.{near(unknown[0], state)}")
    return {"config": {**state, **given}}


def _place(path: str | Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of a path or an address, and the path on it."""
    return pyarrow.fs.FileSystem.from_uri(str(path) if "://" in str(path) else absolute(path))
