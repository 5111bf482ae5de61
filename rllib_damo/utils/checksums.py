"""A checksum at the end of a file, by which a change of any byte is noticed."""

from __future__ import annotations

import hashlib

_MARK = b"\nsha256:"
_SIZE = len(_MARK) + 64  # with the hexadecimal digits


def sealed(content: bytes) -> bytes:
    """``content`` with its checksum behind it."""
    return content + _MARK + hashlib.sha256(content).hexdigest().encode()


def unsealed(content: bytes) -> bytes | None:
    """What was given to `sealed`; ``content`` itself if it has no checksum; None if it was changed since."""
    body, seal = content[:-_SIZE], content[-_SIZE:]
    if not seal.startswith(_MARK):
        return content
    return body if sealed(body)[-_SIZE:] == seal else None
