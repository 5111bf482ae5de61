"""Names of options and metrics: near matches in messages, and those of nested results as "a/b"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def near(name: str, known: Iterable[str], count: int = 5) -> str:
    """The names near to `name` as the end of a message, or "" if there are none."""
    # A name without its folders may be meant: "normalized_score" for "evaluation/env_runners/normalized_score".
    names = sorted(set(known))
    found = difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    tail = name.rsplit("/", 1)[-1]
    tails = difflib.get_close_matches(tail, {other.rsplit("/", 1)[-1] for other in names}, n=count, cutoff=0.75)
    found += [other for close in tails for other in names if other.rsplit("/", 1)[-1] == close and other not in found]
    return f" Did you mean {' or '.join(map(repr, found[:count]))}?" if found else ""


def near_any_case(name: str, known: Iterable[str]) -> str:
    """As `near`, with a match of the same letters in another case first."""
    known = list(known)
    same = [other for other in known if other.lower() == name.lower()]
    return f" Did you mean {same[0]!r}?" if same else near(name, known)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a/b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nested(values: Any, path: Sequence[str]) -> Any:
    """What lies at a path of keys in mappings; None where there is nothing."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
