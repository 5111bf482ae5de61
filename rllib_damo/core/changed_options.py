"""What a configuration changes of its algorithm's defaults, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ray.tune.utils.util import SafeFallbackEncoder

from rllib_damo.utils.uris import without_password

#: Set by the commands and by RLlib itself, or shown elsewhere.
_LEFT_OUT = ("callbacks", "policies", "observation_space", "action_space", "num_cpus_for_main_process")


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's dictionary as Tune writes it into params.json: numbers, text, lists; of objects their texts."""
    return dict(json.loads(json.dumps(dict(config), cls=SafeFallbackEncoder)))


def changed_options(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a `plain` config that differ from the `plain` defaults, by name.

    Left out are private ones, those whose text names an address in memory, and what the commands set themselves.
    """
    return {
        name: without_password(value) if isinstance(value, str) else value
        for name, value in sorted(config.items())
        if value != defaults.get(name)
        and not name.startswith(("_", *_LEFT_OUT))
        and not any(" at 0x" in str(each) for each in (value, defaults.get(name)))
    }
