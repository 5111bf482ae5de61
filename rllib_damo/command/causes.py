"""Finds in the text of a traceback what failed, and the first cause: its type, text and place."""

from __future__ import annotations

import re

_LINK = re.compile(
    r"^(?:The above exception was the direct cause of the following exception:"
    r"|During handling of the above exception, another exception occurred:)$",
    re.MULTILINE,
)
_FRAME = re.compile(r'^ *File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$')
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def what_failed(text: str) -> tuple[str, str]:
    """What failed, and the first cause in the chain of exceptions.

    Args:
        text: a traceback, as Python or Ray formats it, or only the message of an exception.

    Returns:
        ("ValueError: message", "KeyError: 'x' (file.py, line 3, in step)"). The first is the last exception that has a
        message. The second is empty if the text has no traceback, and only the place if there is one exception.
    """
    blocks = [_read(block) for block in _LINK.split(_COLOUR.sub("", text)) if block.strip()]
    if not blocks:
        return "", ""
    with_text = [message for message, _ in blocks if ": " in message]
    failure = with_text[-1] if with_text else blocks[-1][0]
    first, place = blocks[0]
    if not place:
        return failure, ""
    return failure, place if first == failure else f"{first} ({place})"


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
