"""Files of an interrupted selection: tensors and plain values under a key, with a checksum."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rllib_damo.errors import UsageError
from rllib_damo.utils.checksums import seal, unsealed
from rllib_damo.utils.paths import atomic_write


def save(file: Path, form: str, key: str, content: Mapping[str, Any]) -> None:
    """Writes ``content``, whole or not at all.

    Args:
        file: where.
        form: what kind of file it is, with its version.
        key: of all that the content depends on.
        content: tensors, numbers, texts, and lists and dicts of these.
    """
    archive = io.BytesIO()
    torch.save({"format": form, "key": key, **content}, archive)
    with atomic_write(file) as stream:
        stream.write(archive.getbuffer())
        stream.write(seal(archive.getbuffer()))


def load(file: Path | None, form: str, key: str) -> dict[str, Any] | None:
    """What `save` wrote; None where nothing is there.

    Raises:
        UsageError: the file is damaged, of another kind or of another key.
    """
    if file is None or not file.exists():
        return None
    try:
        content = file.read_bytes()
        archive = unsealed(content)
        if archive is None or archive is content:  # without a checksum it is cut off
            raise ValueError("its content does not fit its checksum")
        state = torch.load(io.BytesIO(archive), weights_only=True)
        if state["format"] != form:
            raise ValueError(f"its format is {state['format']!r}")
    except Exception as error:  # a damaged file may raise any
        raise UsageError(
            f"{file} is damaged or of something else ({error}): delete it, or name another --out."
        ) from error
    if state["key"] != key:
        raise UsageError(
            f"{file} is of another selection (other policies, data or settings): name another --out, or empty "
            "that folder."
        )
    return state
