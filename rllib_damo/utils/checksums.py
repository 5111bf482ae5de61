"""A checksum at the end of a file, by which a change of any byte is noticed."""

from __future__ import annotations

import hashlib

_MARK = b"\nsha256:"
_SIZE = len(_MARK) + 64  # with the hexadecimal digits


def seal(content: bytes | memoryview) -> bytes:
    """The checksum to be written behind ``content``."""
    return _MARK + hashlib.sha256(content).hexdigest().encode()


def unsealed(content: bytes) -> bytes | None:
    """What stands before the checksum; ``content`` itself if there is none; None if it was changed since."""
    body, found = content[:-_SIZE], content[-_SIZE:]
    if not found.startswith(_MARK):
        return content
    return body if seal(body) == found else None
