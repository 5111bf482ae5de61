"""What failed, and the first cause, out of the texts of tracebacks."""

from __future__ import annotations

import traceback

import pytest

from rllib_damo.command.causes import what_failed


def step(message: str = "the valve is stuck") -> None:
    raise ValueError(message)


def text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def chained(last: Exception, *, explicit: bool = True) -> str:
    try:
        try:
            step()
        except ValueError as error:
            if explicit:
                raise last from error
            raise last  # noqa: B904
    except type(last) as error:
        return text(error)
    return ""


def test_the_first_cause_is_told_with_its_place() -> None:
    """As RLlib raises it: a RuntimeError without a text."""
    for explicit in (True, False):
        trace = "\x1b[36mray::PPO.train()\x1b[39m (pid=1)\n" + chained(RuntimeError(), explicit=explicit)
        place = f"{__file__}, line {step.__code__.co_firstlineno + 1}, in step"
        assert what_failed(trace) == ("ValueError: the valve is stuck", "", place)


def test_a_later_exception_that_says_more_is_told_as_well() -> None:
    failure = what_failed(chained(OSError("no evaluation works")))
    assert failure[:2] == ("OSError: no evaluation works", "ValueError: the valve is stuck")
    assert failure.place.endswith("in step")


def test_messages_of_several_lines_are_whole() -> None:
    with pytest.raises(ValueError, match="one") as caught:
        step("one\n  two\nthree")
    assert what_failed(text(caught.value))[0] == "ValueError: one\n  two\nthree"


def test_without_a_traceback_the_last_line_is_told() -> None:
    assert what_failed("first\nthe reason") == ("the reason", "", "")
    assert what_failed("") == ("", "", "")
