"""Convert datasets between the formats without loss: what is read back equals what was read."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from minari.serialization import deserialize_space, serialize_space

from rllib_damo.data.formats.minari_files import SCHEME
from rllib_damo.data.formats.reader import DEFAULT_CONVENTIONS, Conventions
from rllib_damo.data.formats.registry import find_writer
from rllib_damo.data.schema import check
from rllib_damo.data.sources import resolve
from rllib_damo.utils.environments import make_env
from rllib_damo.utils.paths import check_new_file

# Facts that every format carries along (the rest of Minari's metadata describes its own files).
_CARRIED = (
    "env_spec", "observation_space", "action_space", "ref_min_score", "ref_max_score", "num_episodes_average_score",
    "algorithm_name", "author", "author_email", "code_permalink", "description", "requirements",
)  # fmt: skip


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    env_id: str | None = None,
    overwrite: bool = False,
    conventions: Conventions = DEFAULT_CONVENTIONS,
) -> str:
    """Convert one dataset. Values are kept as the schema has them (float32); columns it does not know are left behind.

    Args:
        src: any name that `sources.resolve` knows.
        dst: a path whose suffix a format with a writer has, or a Minari id (`minari://<id>`, or `name-vN`).
        env_id: the environment, whose spaces Minari needs where the source does not carry them.
        overwrite: replace what is at `dst`.
        conventions: what the source does not say of itself; the action space of `env_id` goes before its own.

    Returns:
        The path or the Minari id written.

    Raises:
        DataError: for unsound data, a destination that exists or whose kind is not known, or missing spaces.
        UsageError: for a destination that cannot be written.
    """
    target = os.fspath(dst)
    if "://" not in target and not Path(target).suffix and not target.startswith(("/", ".", "~")):
        target = SCHEME + target  # a Minari id
    form = find_writer(target)
    assert form.write is not None
    if "://" not in target:
        check_new_file(target, overwrite)
    facts = _spaces_of_env(env_id) if env_id else {}
    if env_id:
        conventions = replace(conventions, action_space=deserialize_space(facts["action_space"]))
    reader = resolve(src, conventions=conventions)
    transitions = reader.read()
    facts = {key: value for key, value in reader.metadata().items() if key in _CARRIED} | facts
    observation_space, action_space = (
        deserialize_space(facts[key]) if key in facts else None for key in ("observation_space", "action_space")
    )
    check(transitions, observation_space, action_space)
    target = target if "://" in target else os.path.expanduser(target)
    return str(form.write(transitions, target, metadata=facts, overwrite=overwrite))


def _spaces_of_env(env_id: str) -> dict[str, Any]:
    env = make_env(env_id)
    spec = env.spec
    facts = {
        "env_spec": spec.to_json() if spec is not None else None,
        "observation_space": serialize_space(env.observation_space),
        "action_space": serialize_space(env.action_space),
    }
    env.close()
    return {key: value for key, value in facts.items() if value is not None}
