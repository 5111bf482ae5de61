"""SIGTERM ends a run as Ctrl-C does."""

from __future__ import annotations

import signal
import threading

import pytest

from rllib_damo.command.signals import sigterm_as_interrupt


def test_sigterm_is_an_interrupt_inside_the_block() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a run of Tune in this process has replaced
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_as_interrupt() as termination:
        assert not termination.received
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert termination.received
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_are_left_alone() -> None:
    seen = []

    def enter() -> None:
        with sigterm_as_interrupt() as termination:
            seen.append(termination.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]
