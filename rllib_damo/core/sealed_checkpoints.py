"""Checkpoints with a manifest: written as their last file, and compared before anything is restored.

A checkpoint that does not fit on the disk is not begun, or taken away again, so that results can still be written.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from ray.tune import Checkpoint, Trainable
from typing_extensions import Self

from rllib_damo.evaluation.checkpoints import ANNOUNCEMENT, CONSTRUCTOR, read_pickle, seal, verify
from rllib_damo.utils import ray_internals
from rllib_damo.utils.disk import disk_full, folder_size, free_bytes, is_full
from rllib_damo.utils.names import near
from rllib_damo.utils.paths import place_of

#: Room that a checkpoint leaves for results, in bytes.
RESERVED_BYTES = 4_000_000
_THEN = "continue: `rllib train --resume`, `Tuner.restore`, or save again"


class SealedCheckpoints(Checkpointable, Trainable):
    """What an Algorithm adds to RLlib's checkpoints. Relative paths are taken from the present folder."""

    _last_result: dict[str, Any] | None

    @override(Checkpointable)
    def get_metadata(self) -> dict[str, Any]:
        return super().get_metadata() | ANNOUNCEMENT

    @override(Checkpointable)
    def save_to_path(
        self, path: str | Path | None = None, *, filesystem: pyarrow.fs.FileSystem | None = None, **kwargs: Any
    ) -> str:
        """Saves all components, and then the manifest with their sizes and hashes.

        Raises:
            DiskFullError: there is no room. What was written by then is a damaged checkpoint, which nothing reads.
        """
        if filesystem is None and path is not None:
            filesystem, path = place_of(path)
        try:
            saved = super().save_to_path(path, filesystem=filesystem, **kwargs)
            for name, content in self.readable_files().items():
                with (filesystem or pyarrow.fs.LocalFileSystem()).open_output_stream(f"{saved}/{name}") as stream:
                    stream.write(json.dumps(content, indent=1).encode())
            seal(saved, filesystem, self._last_result, [name for name, _ in self.get_checkpointable_components()])
        except OSError as error:
            if is_full(error):
                place = path or tempfile.gettempdir()
                raise disk_full(f"The checkpoint {place}", place, _THEN) from error
            raise
        return saved

    @override(Trainable)
    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Saves a checkpoint for Tune, which copies it to the run's storage.

        Raises:
            DiskFullError: there is no room for it. The trial has no part of it then.
        """
        places = ray_internals.trial_places(self)
        if places is None:
            return super().save(checkpoint_dir)
        with contextlib.ExitStack() as stack:
            if checkpoint_dir is None:
                checkpoint_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="rllib_damo_"))
            try:
                return super().save(checkpoint_dir)
            except OSError as error:
                if not is_full(error):
                    raise
                filesystem, _, written = ray_internals.trial_places(self) or places
                if written != places.checkpoint:  # which is the one before
                    with contextlib.suppress(OSError):  # it is not there, say
                        filesystem.delete_dir(written)
                raise disk_full(f"The checkpoint {written}", written, _THEN, folder_size(checkpoint_dir)) from error

    @override(Trainable)
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the checkpoint that Tune copies then, if that fits.

        Raises:
            DiskFullError: the run's storage has no room for it.
        """
        super().save_checkpoint(checkpoint_dir)
        places = ray_internals.trial_places(self)
        if places is not None:
            check_room(places, checkpoint_dir)

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
            filesystem, path = place_of(path)
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
                filesystem, path = place_of(path)
            config = stored_config(path, filesystem, {} if "config" in kwargs else kwargs)
            if kwargs and "config" not in kwargs:
                kwargs = {"config": config}
        return super().from_checkpoint(path, filesystem=filesystem, **kwargs)


def check_room(places: ray_internals.TrialPlaces, like: str) -> None:
    """Looks for room for a checkpoint in a trial's folder, where that is on a disk of this machine.

    Args:
        places: the trial's.
        like: folder of a checkpoint of that size; one that is not there has none.

    Raises:
        DiskFullError: there is none, or too little for results beside it.
    """
    if not isinstance(places.filesystem, pyarrow.fs.LocalFileSystem):
        return
    needed = folder_size(like) + RESERVED_BYTES
    if free_bytes(places.folder) < needed:
        raise disk_full(f"A checkpoint in {places.folder}", places.folder, _THEN, needed)


def stored_config(path: str, filesystem: pyarrow.fs.FileSystem, options: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint's config, of which some options are given anew.

    Raises:
        CheckpointError: a file is missing or truncated, or of version 0.1.
        TypeError: there is no such option.
    """
    verify(path, filesystem, contents=False)  # which `restore_from_path` compares
    stored = read_pickle(f"{path}/{CONSTRUCTOR}", filesystem)  # RLlib only warns, and fails later
    (state,), _ = stored["ctor_args_and_kwargs"]
    known = {**stored["class"].get_default_config().get_state(), **state}  # there may be newer options
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"from_checkpoint(): there is no option {unknown[0]!r}.{near(unknown[0], known)}")
    return {**state, **options}
