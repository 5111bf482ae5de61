"""New HDF5 files, made in memory: HDF5 itself does not survive a full disk, and ends Python with a crash."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from rllib_damo.utils.disk import disk_full, is_full

_BLOCK_BYTES = 1 << 24  # by which the memory grows


@contextmanager
def new_hdf5(path: Path, **options: Any) -> Iterator[h5py.File]:
    """A file to fill, which is written to ``path`` when the block ends.

    Args:
        path: there or not.
        options: of ``h5py.File``.

    Raises:
        DiskFullError: there is no room.
    """
    with h5py.File(str(path), "w", driver="core", backing_store=False, block_size=_BLOCK_BYTES, **options) as file:
        yield file
        file.flush()
        content = file.id.get_file_image()
    try:
        path.write_bytes(content)
    except OSError as error:
        if is_full(error):
            path.unlink(missing_ok=True)
            raise disk_full("The HDF5 file", path, "try again", len(content)) from error
        raise
