"""The package's version, and those of what it is built on."""

from __future__ import annotations

import functools
import importlib.metadata

__version__ = "0.2.0"


@functools.cache
def versions() -> dict[str, str]:
    """Versions of this package, Ray, torch and NumPy."""
    others = {name: importlib.metadata.version(name) for name in ("ray", "torch", "numpy")}
    return {"rllib_damo": __version__, **others}
