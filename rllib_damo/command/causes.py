"""Finds in the text of a traceback what failed, and the first cause: its type, text and place."""

from __future__ import annotations

import re
from typing import NamedTuple

_LINK = re.compile(
    r"^(?:The above exception was the direct cause of the following exception:"
    r"|During handling of the above exception, another exception occurred:)$",
    re.MULTILINE,
)
_FRAME = re.compile(r'^ *File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$')
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Failure(NamedTuple):
    """What failed: "ValueError: message".

    Attributes:
        message: the last exception in the chain that has a text.
        cause: the first exception in the chain, if it is another one; or "".
        place: "file.py, line 3, in step", where the first was raised; "" without a traceback.
    """

    message: str
    cause: str
    place: str


def what_failed(text: str) -> Failure:
    """Reads a traceback, as Python or Ray formats it, or only the message of an exception."""
    blocks = [_read(block) for block in _LINK.split(_COLOUR.sub("", text)) if block.strip()]
    if not blocks:
        return Failure("", "", "")
    with_text = [message for message, _ in blocks if ": " in message]
    message = with_text[-1] if with_text else blocks[-1][0]
    first, place = blocks[0]
    return Failure(message, "" if first == message else first, place)


def _read(block: str) -> tuple[str, str]:
    """The message at the end of a traceback, and the place of its last frame; of other text the last line."""
    lines = block.strip("\n").splitlines()
    frames = [(index, match) for index, line in enumerate(lines) if (match := _FRAME.match(line))]
    if not frames:
        return lines[-1].strip(), ""
    last, match = frames[-1]
    rest = lines[last + 1 :]
    while rest and rest[0].startswith("    "):  # the frame's code
        rest.pop(0)
    message = "\n".join(rest).strip()
    return message, f"{match['file']}, line {match['line']}, in {match['function']}"
