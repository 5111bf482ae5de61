"""What a configuration changes of its algorithm's defaults, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray.tune.utils.util import SafeFallbackEncoder

from rllib_damo.utils.uris import without_password

#: Set by the commands and by RLlib itself, or shown elsewhere.
_LEFT_OUT = {"observation_space", "action_space", "num_cpus_for_main_process", "class", "simple_optimizer"}
_PREFIXES = ("_", "callbacks", "policies")


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's dictionary as Tune writes it into params.json: numbers, text, lists; of objects their texts."""
    return dict(json.loads(json.dumps(dict(config), cls=SafeFallbackEncoder)))


def is_shown(name: str, value: Any) -> bool:
    """False for private options, for those that the commands set, and where the text names an address in memory."""
    return name not in _LEFT_OUT and not name.startswith(_PREFIXES) and " at 0x" not in str(value)


def changed_options(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a `plain` config that differ from the `plain` defaults, by name; only those that `is_shown`."""
    return {
        name: without_password(value) if isinstance(value, str) else value
        for name, value in sorted(config.items())
        if value != defaults.get(name) and is_shown(name, value) and is_shown(name, defaults.get(name))
    }
