"""`select`: from checkpoints and their data to a choice among them, or to none."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rllib_damo.data.sources import Input
from rllib_damo.errors import UsageError
from rllib_damo.selection import candidates as candidates_
from rllib_damo.selection import rule
from rllib_damo.selection.candidates import Candidate, Place
from rllib_damo.selection.estimates import STATE_FILE, Estimates, Settings
from rllib_damo.selection.problem import Data, make_task, played_env, read
from rllib_damo.selection.result import Selection, make_selection
from rllib_damo.tasks import TerminationFn
from rllib_damo.utils.paths import check_new_file
from rllib_damo.utils.ray_internals import given_connector
from rllib_damo.utils.uris import without_password


def select(
    checkpoints: Sequence[Place] | Mapping[str, Place],
    input_: Input | None = None,
    *,
    env: Any = None,
    termination_fn: TerminationFn | None = None,
    which: str = "last",
    default: str | Path | None = None,
    gamma: float | None = None,
    heads: int = 4,
    steps: int = 30_000,
    judge_model: str = "train",
    seed: int = 0,
    out: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Selection:
    """Chooses among trained policies by their dataset alone; or finds that nothing is credibly better than a clone.

    Loading a checkpoint executes its pickles: give only those that you trust.

    Args:
        checkpoints: folders or addresses of checkpoints or of runs, and functions ``observations (B, obs) -> actions
            (B, act)`` in the environment's units; or these by names.
        input_: the dataset they were trained on; None: that of the first checkpoint's config.
        env: the environment's id, for its spaces and its termination rule; it is never stepped. None: the first
            checkpoint's.
        termination_fn: the termination rule, as in ``.dynamics(termination_fn=...)``.
        which: of each trial's checkpoints: "last", "all", or "every:N".
        default: the checkpoint that would be used otherwise; the choice must be better than it. None: the candidate
            whose options are all defaults, if there is one, else a clone of the data's behaviour.
        gamma: the discount; None: 1 - 3/T for episodes of up to T steps, at least the training's, at most 0.997.
        heads: bootstraps of the episodes, 2 to 16.
        steps: of fitted Q evaluation, at most.
        judge_model: "train", "none", or the path of a dynamics model.
        seed: of all that is random.
        out: a folder for the state, from which an interrupted selection goes on.
        progress: gets lines of text.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or a policy that cannot be judged.
        DataError: data that cannot be used, or other data than a candidate was trained on.
        UsageError: wrong arguments.
    """
    start = time.perf_counter()
    chosen = Settings(gamma, heads, steps, judge_model, seed)
    _check_settings(chosen)
    if out is not None:
        check_new_file(Path(out) / STATE_FILE)
    own = candidates_.load(checkpoints, which)
    if not own:
        raise UsageError("no policy to choose among: give the folder of a run, or checkpoints.")
    reference = _default(own, default)
    config = next((candidate.config for candidate in own if candidate.config is not None), None)
    task = make_task(config, env, termination_fn)
    whole = read(config, input_, task)
    name, fingerprint = whole.name, whole.fingerprint()
    data = Data.of(whole, own, task.action_space)
    del whole  # the parts are copies
    progress(f"{len(own)} candidates; {data.describe()}")
    for warning in data.warnings:
        progress(f"the confidence will be low at most: {warning}")
    work = Estimates(own, data, task, chosen, Path(out) if out is not None else None, progress)
    evidence, fitted, tests, columns = work.evaluate(reference)
    against = rule.vetoes(evidence)
    evidence, notes = rule.sound_reference(evidence, against)
    failed = [f"self-test of the {test.name} failed: {test.text}" for test in tests if test.passed is False]
    warnings = [*data.warnings, *connected(own)]
    warnings += [f"{test.name} {test.text}" for test in tests if test.passed is None]
    if not fitted.settled:
        warnings.append(
            f"the ranking did not settle within {fitted.steps[-1]:,} steps: give more --steps, and another --out"
        )
    if (trend := rule.reference_trend(evidence, fitted.history[..., 0])) is not None:
        warnings.append(f"the value of the reference still moved, by {trend:.4g}")
    if evidence.model is None:
        warnings.append(f"no second opinion: {columns['no_model']}")
    decision = rule.decide(evidence, against, failed=failed, warnings=warnings)
    decision.reasons.extend(notes)
    played, env_config = played_env(config, task)
    facts = {
        "env": played if isinstance(played, str) else None, "env_config": env_config,
        "dataset": name, "inputs": _inputs(getattr(config, "input_", None) if input_ is None else input_, name),
        "fingerprint": fingerprint, "split": data.record,
        "episodes": int(data.rows.num_episodes), "held_out": data.num_held_out, "seconds": time.perf_counter() - start,
        "settings": asdict(chosen) | {"gamma": work.gamma},
    } | columns.pop("facts")  # fmt: skip
    return make_selection(work.names, own, evidence, against, decision, tests, fitted, columns, facts)


def _inputs(given: Any, name: str) -> list[str]:
    """The dataset's names, as an option takes them; the data's own name where they are none."""
    parts = [given] if isinstance(given, (str, os.PathLike)) else given
    if not isinstance(parts, (list, tuple)):
        return [name]
    return [without_password(str(part)) for part in parts]


def connected(own: Sequence[Candidate]) -> list[str]:
    """A sentence on candidates whose observations pass through a connector that is not applied here."""
    names = [one.name for one in own if one.config is not None and given_connector(one.config) is not None]
    text = "`env_to_module_connector` may change the observations that these policies see, and is not applied here: "
    return [text + ", ".join(names)] if names else []


def _check_settings(settings: Settings) -> None:
    if not 2 <= settings.heads <= 16:
        raise UsageError(f"heads (--heads) must be from 2 to 16; found {settings.heads}.")
    if settings.steps < 1:
        raise UsageError(f"steps (--steps) must be at least 1; found {settings.steps}.")
    if not 0 <= settings.seed < 2**32:
        raise UsageError(f"seed (--seed) must be from 0 to 4294967295; found {settings.seed}.")
    if settings.gamma is not None and not 0 < settings.gamma < 1:
        raise UsageError(f"gamma (--gamma) must be in (0, 1); found {settings.gamma}.")


def _default(own: list[Candidate], given: str | Path | None) -> int | None:
    """The candidate that would be used otherwise, added to ``own`` if it is not among them; None: the clone."""
    if given is not None:
        found = candidates_.load({"default": given})
        if len(found) != 1:
            raise UsageError(f"default (--default) {given} holds {len(found)} checkpoints: give one of them.")
        added = found[0]
        paths = [candidate.path for candidate in own]
        if added.path in paths:
            return paths.index(added.path)
        own.append(added)
        return len(own) - 1
    plain = [i for i, candidate in enumerate(own) if candidate.config and candidates_.is_default(candidate.config)]
    return plain[0] if len(plain) == 1 and len(own) > 1 else None
