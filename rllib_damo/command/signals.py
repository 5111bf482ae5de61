"""SIGTERM, which schedulers of clusters send, ends a run as Ctrl-C does: with its state saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Termination:
    """Whether SIGTERM was received."""

    received: bool = False


@contextmanager
def sigterm_as_interrupt() -> Iterator[Termination]:
    """Inside the block SIGTERM acts as SIGINT. Enter it after `ray.init`, which has a handler of its own."""
    termination = Termination()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield termination
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        termination.received = True
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield termination
    finally:
        signal.signal(signal.SIGTERM, before)
