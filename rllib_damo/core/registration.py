"""The algorithms' names, for Ray Tune and `rllib train --algo`."""

from __future__ import annotations

import sys
from typing import TypeVar

from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.utils import ray_internals

#: The registered algorithms by name.
ALGORITHMS: dict[str, type[OfflineAlgorithm]] = {}

_Class = TypeVar("_Class", bound=type[OfflineAlgorithm])


def register_algorithm(algorithm: _Class) -> _Class:
    """Makes an algorithm known by its class's name, to Tune and to RLlib; may be used as a decorator."""
    ALGORITHMS[algorithm.__name__] = algorithm
    # Tune pickles the class now. A class that its module does not have yet, as in a decorator, would be pickled with
    # those names of the module that its methods use and that are there by now: without the functions below it.
    if algorithm.__module__ in sys.modules:
        setattr(sys.modules[algorithm.__module__], algorithm.__name__, algorithm)
    ray_internals.register(algorithm.__name__, algorithm)
    return algorithm
