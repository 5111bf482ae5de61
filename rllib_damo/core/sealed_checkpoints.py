"""Checkpoints with a manifest: written as their last file, and compared before anything is restored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.fs
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from typing_extensions import Self

from rllib_damo.evaluation.checkpoints import ANNOUNCEMENT, CONSTRUCTOR, read_pickle, seal, verify
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
        for name, content in self.readable_files().items():
            with (filesystem or pyarrow.fs.LocalFileSystem()).open_output_stream(f"{saved}/{name}") as stream:
                stream.write(json.dumps(content, indent=1).encode())
        seal(saved, filesystem, self._last_result, [name for name, _ in self.get_checkpointable_components()])
        return saved

    def readable_files(self) -> dict[str, dict[str, Any]]:
        """JSON files that a checkpoint has beside RLlib's: their names and contents."""
        return {}

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

        Raises:
            CheckpointError: a file is missing, truncated or changed, or of version 0.1.
        """
        if isinstance(path, (str, Path)):
            if filesystem is None:
                filesystem, path = _place(path)
            verify(path, filesystem, contents=False)  # which `restore_from_path` compares
            read_pickle(f"{path}/{CONSTRUCTOR}", filesystem)  # RLlib only warns, and fails later
        return super().from_checkpoint(path, filesystem=filesystem, **kwargs)


def _place(path: str | Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of a path or an address, and the path on it."""
    return pyarrow.fs.FileSystem.from_uri(str(path) if "://" in str(path) else absolute(path))
