"""Options: the default, the meaning and the check of each stand in one place, a row of a `TypedDict`.

    class MarginTraining(OfflineTraining, total=False):
        margin: Annotated[float, Option(0.1, positive, "m > 0, how far Q stays below the data's.")]

    class MarginConfig(OfflineConfig):
        option_groups = {**OfflineConfig.option_groups, "training": MarginTraining}

`OfflineConfig` sets the defaults, takes the options in ``.training(margin=0.2)``, checks them in ``validate()``, and
`docs/options.md` is made from them. A `TypedDict` lets editors complete them: ``def training(self, **options:
Unpack[MarginTraining])``.
"""

from __future__ import annotations

import inspect
import math
import numbers
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rllib_damo.utils.names import near


@dataclass(frozen=True)
class Check:
    """What a value must be.

    Attributes:
        expected: the end of the sentence "must be ...".
        holds: whether a value is that.
        hint: a further sentence for a value, or "".
    """

    expected: str
    holds: Callable[[Any], bool]
    hint: Callable[[Any], str] = lambda value: ""


@dataclass(frozen=True)
class Option:
    """An option of a config.

    Attributes:
        default: what it is where nothing is set; an algorithm may have its own (`OfflineConfig.defaults`).
        check: what a value must be.
        meaning: what it does, with its unit and source.
    """

    default: Any
    check: Check
    meaning: str

    def __post_init__(self) -> None:
        if not isinstance(self.check, Check):
            raise TypeError(f"An Option needs a Check of its values; found {self.check!r}.")


# -- checks ----------------------------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """A real number, NumPy's included; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """A whole number >= 1."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def number(expected: str, holds: Callable[[float], bool]) -> Check:
    """A number for which a condition holds; NaN fulfils none."""
    return Check(expected, lambda value: is_number(value) and not math.isnan(value) and holds(value))


def optional(check: Check) -> Check:
    """None, or what ``check`` takes."""
    return replace(check, expected=f"None or {check.expected}", holds=lambda v: v is None or check.holds(v))


def one_of(*choices: str, hint: Callable[[Any], str] = lambda value: "") -> Check:
    return Check(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices, hint)


def schedule_of(check: Check) -> Check:
    """A number, or a schedule of RLlib's form, whose first value is > 0: ``[[0, 3e-4], [100_000, 0.0]]``."""

    def holds(value: Any) -> bool:
        if not isinstance(value, (list, tuple)):
            return check.holds(value)
        if len(value) < 2 or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value):
            return False
        if not all(is_number(part) and math.isfinite(part) for pair in value for part in pair):
            return False
        steps = [pair[0] for pair in value]
        return steps[0] == 0 and steps == sorted(set(steps)) and value[0][1] > 0 and all(v >= 0 for _, v in value)

    return Check(
        f"{check.expected}, or a schedule: a list of at least two [gradient step, value], the steps rising from 0, the "
        "values finite and >= 0, the first > 0, such as [[0, 3e-4], [100_000, 0.0]]",
        holds,
    )


def _takes_three(function: Any) -> bool:
    """Whether it can be called with three positional arguments."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # a built-in that tells no signature
        return True
    return True


def _are_columns(schema: Any) -> bool:
    """{"obs": "o_t"}, or a list of columns for a vector, {"obs": ["position", "velocity"]}."""

    def is_name(found: Any) -> bool:
        return isinstance(found, str) or (isinstance(found, (list, tuple)) and all(isinstance(n, str) for n in found))

    return isinstance(schema, Mapping) and all(isinstance(key, str) and is_name(schema[key]) for key in schema)


positive = number("a finite number > 0", lambda v: 0 < v < math.inf)
positive_or_inf = number("a number > 0", lambda v: v > 0)
not_negative = number("a finite number >= 0", lambda v: 0 <= v < math.inf)
rate = number("a number in (0, 1]", lambda v: 0 < v <= 1)
share = number("a number in [0, 1)", lambda v: 0 <= v < 1)
share_or_all = number("a number in [0, 1]", lambda v: 0 <= v <= 1)
count = Check("a whole number >= 1", is_count)
count_or_zero = Check("a whole number >= 0", lambda v: is_count(v) or (is_number(v) and v == 0))
seed = Check(
    f"None or a whole number from 0 to {2**32 - 1}",
    lambda v: v is None or (isinstance(v, numbers.Integral) and not isinstance(v, bool) and 0 <= int(v) < 2**32),
)
flag = Check("True or False", lambda v: isinstance(v, (bool, np.bool_)))
learning_rate = schedule_of(positive)
share_or_count = Check(
    "a share in [0, 1), or a whole number >= 2",
    lambda v: is_number(v) and (0 <= v < 1 or (is_count(v) and v >= 2)),
)
widths = Check(
    "a tuple of layer widths, such as (256, 256)",
    lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and all(map(is_count, v)),
)
decays = Check(
    "a tuple of numbers >= 0",
    lambda v: isinstance(v, (list, tuple)) and all(is_number(d) and 0 <= d < math.inf for d in v),
)
entropy = Check(
    "'auto' or a finite number", lambda v: (isinstance(v, str) and v == "auto") or (is_number(v) and math.isfinite(v))
)
termination_rule = Check("a function of (obs, actions, next_obs) that returns a bool tensor", _takes_three)
existing_file = Check(
    "a file that exists",
    lambda v: isinstance(v, (str, Path)) and Path(v).expanduser().is_file(),
    lambda v: " Leave it None to train the model from the dataset.",
)
path = Check("a path", lambda v: isinstance(v, (str, Path)) and bool(str(v)))
names = Check(
    "a list of names", lambda v: isinstance(v, (list, tuple)) and len(v) > 0 and all(isinstance(n, str) for n in v)
)
columns = Check('a dict of column names, {"obs": "o_t"} or {"obs": ["position", "velocity"]}', _are_columns)


# -- groups of options -----------------------------------------------------------------------------------------------


def options_of(group: type) -> dict[str, Option]:
    """The options of a `TypedDict`, its bases' first.

    Raises:
        TypeError: a key has no `Option`.
    """
    found = {}
    for name, hint in typing.get_type_hints(group, include_extras=True).items():
        option = next((part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Option)), None)
        if option is None:
            raise TypeError(f"{group.__name__}.{name} has no Option: write Annotated[<type>, Option(...)].")
        found[name] = option
    return found


def unknown_option(config: str, method: str, name: str, methods: Mapping[str, Iterable[str]]) -> str:
    """The message for an option that ``method`` does not take.

    Args:
        config: name of the config's class.
        method: the method that got the option.
        name: of the option.
        methods: the options that each method of the config takes.
    """
    others = [other for other, names in methods.items() if other != method and name in names]
    if others:
        return f"`{config}.{method}()` has no option {name!r}: `.{others[0]}({name}=...)` takes it."
    return f"`{config}.{method}()` has no option {name!r}.{near(name, methods[method])}"
