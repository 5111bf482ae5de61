"""HDF5 files may point to other files of the machine. A dataset from elsewhere could so show what is not its own."""

from __future__ import annotations

import h5py
from h5py import h5d, h5g, h5l, h5o

from rllib_damo.errors import DataError

_FIX = "Copy the values into the file itself: h5repack, or in Python new[key] = old[key][...]."


def refuse_links_outside(path: str, file: h5py.File) -> None:
    """Raises DataError if any link of the file leads to another one. No link is followed."""

    def is_outside(name: bytes, info: h5l.LinkInfo) -> bytes | None:
        return None if info.type in (h5l.TYPE_HARD, h5l.TYPE_SOFT) else name

    found = file.id.links.visit(is_outside, info=True)
    if found is not None:
        raise DataError(f"{path}: {found.decode()!r} is a link to another file, which is not followed. {_FIX}")


def refuse_storage_outside(name: str, dataset: h5d.DatasetID) -> None:
    """Raises DataError if an array's values lie in other files: a virtual dataset, or external storage."""
    if dataset.get_offset() is not None:  # its values are in one piece of this file
        return
    properties = dataset.get_create_plist()
    if properties.get_layout() == h5d.VIRTUAL or properties.get_external_count():
        raise DataError(f"{name}: its values lie in other files, which are not read. {_FIX}")


def open_own(parent: h5g.GroupID, name: str) -> h5g.GroupID | h5d.DatasetID:
    """What a group calls so, if it is itself in this file.

    Raises:
        KeyError: if there is nothing of this name.
        DataError: if it is a link, or its values lie in other files.
    """
    if parent.links.get_info(name.encode()).type != h5l.TYPE_HARD:
        raise DataError(f"{name!r} is a link, which is not followed")
    item = h5o.open(parent, name.encode())
    if isinstance(item, h5d.DatasetID):
        refuse_storage_outside(repr(name), item)
    return item
