"""Does `rllib-damo select` find good policies? On policies whose real returns are known, with simple rules beside it.

    python benchmarks/selection.py pendulum --steps 10000 --out selection.json
    python benchmarks/selection.py snapshots --input hopper-medium --env Hopper-v5 --out selection.json
    python benchmarks/selection.py checkpoints RUN_DIR --input hopper-medium --env Hopper-v5 --out selection.json

`pendulum` has 14 hand-made controllers on `pendulum-mixed`; `snapshots` has the behaviour policies of the
environment that the package ships, as they act in the mean; `checkpoints` takes those below a folder. Each is played
for ``--episodes`` real episodes of the environment's length.

Adds one JSON object to the file. ``spearman`` is the rank correlation of the rule's order (those ruled out below the
others) with the real returns, ``regret_1`` the real return of the best candidate less that of the answer, ``regret_3``
less that of the best on the short list, for ``select`` and for simple rules; ``range`` is the best less the worst.
``coverage`` is the share of the 90 % intervals that hold the real discounted value (of a long episode), and of those of
differences to the clone that hold the real one.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch
from playing import play

from rllib_damo.data.generate import datasets
from rllib_damo.data.generate.controllers import PendulumMixed
from rllib_damo.data.generate.policies import FOLDER, GaussianPolicy, load_index
from rllib_damo.selection import Selection, select
from rllib_damo.selection.candidates import Act, load

LONG = 5  # a long episode has so many times 1/(1-γ) steps
DRAWS = 1000


def controllers() -> dict[str, Act]:
    """Swing-up controllers of all qualities, in the torque of Pendulum-v1."""
    swing_up = PendulumMixed().swing_up

    def weak(share: float) -> Act:
        return lambda obs: np.clip(share * swing_up(obs), -2, 2)[:, None].astype(np.float32)

    def wobbling(size: float) -> Act:
        return lambda obs: np.clip(swing_up(obs) + size * np.sin(9 * obs[:, 2]), -2, 2)[:, None].astype(np.float32)

    def constant(torque: float) -> Act:
        return lambda obs: np.full((len(obs), 1), torque, np.float32)

    def braking(obs: np.ndarray) -> np.ndarray:
        return np.clip(-obs[:, 2:], -2, 2).astype(np.float32)

    found = {f"share {share}": weak(share) for share in (1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.0, -0.5, -1.0)}
    found |= {f"wobbling {size}": wobbling(size) for size in (0.5, 1.0, 2.0)}
    return found | {"constant": constant(2.0), "braking": braking}


def snapshots(env_id: str) -> dict[str, Act]:
    """The mean actions of the shipped behaviour policies of an environment, and no action."""
    space = gym.make(env_id).action_space
    assert isinstance(space, gym.spaces.Box)

    def mean(policy: GaussianPolicy) -> Act:
        return lambda obs: policy.actions(obs, np.zeros((len(obs), space.shape[0]), np.float32))

    found = {
        name: mean(GaussianPolicy.load(FOLDER / record.file, space))
        for name, record in load_index().items()
        if record.env_id == env_id and record.file
    }
    return found | {"nothing": lambda obs: np.zeros((len(obs), *space.shape), np.float32)}


def played(act: Act, env_id: str, episodes: int, gamma: float | None = None, steps: int | None = None) -> np.ndarray:
    """Returns ``(episodes,)`` from the same starts for all policies; discounted ones of ``steps`` without a limit."""
    envs = [gym.make(env_id, max_episode_steps=steps) for _ in range(episodes)]
    starts = [env.reset(seed=1_000_000 + i)[0] for i, env in enumerate(envs)]
    rewards = play(envs, starts, lambda obs: act(obs.astype(np.float32)))
    return np.array([(own * (gamma or 1.0) ** np.arange(len(own))).sum() for own in rewards])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; ties by their mean rank."""

    def ranks(x: np.ndarray) -> np.ndarray:
        return (x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) - 1) / 2

    if min(np.ptp(a), np.ptp(b)) == 0:
        return 0.0
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def measures(order: np.ndarray, real: np.ndarray, answer: float | None = None) -> dict[str, float]:
    """Of a rule that ranks by ``order``, higher first; ``answer``: the real return of what it says."""
    best = np.argsort(-order, kind="stable")
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(real), size=len(real)) for _ in range(DRAWS)]
    error = np.std([spearman(order[one], real[one]) for one in drawn])
    first = real[best[0]] if answer is None else answer
    return {
        "spearman": round(spearman(order, real), 3), "standard_error": round(float(error), 3),
        "regret_1": round(float(real.max() - first), 1),
        "regret_3": round(float(real.max() - real[best[:3]].max()), 1),
    }  # fmt: skip


def rules(found: Selection, names: Sequence[str], real: np.ndarray, clone: float) -> dict[str, Any]:
    """The measures of `select` and of simple rules."""
    rows = {one.name: one for one in found.table}
    own = [rows[name] for name in names]
    value = np.array([one.value for one in own])
    score = np.array([one.score for one in own])
    kept = np.array([not one.vetoes for one in own])
    ranked = np.where(kept, score + 1e6 * (1 + np.ptp(score)), value - value.max())
    answer = clone if found.answer.name == "clone" else real[list(names).index(found.answer.name)]
    short = [clone if one.name == "clone" else real[list(names).index(one.name)] for one in found.short_list]
    result: dict[str, Any] = {"select": measures(ranked, real, answer)}
    result["select"]["regret_3"] = round(float(real.max() - max(short)), 1)
    result["value"] = measures(value, real)
    result["lower bound"] = measures(score, real)
    if own[0].value_model is not None:
        result["model"] = measures(np.array([one.value_model for one in own], float), real)
    if own[0].off_data is not None:
        result["closest"] = measures(-np.array([one.off_data for one in own], float), real)
    result["random"] = {"regret_1": round(float(real.max() - real.mean()), 1)}
    result["clone"] = {"regret_1": round(float(real.max() - clone), 1)}
    return result


def coverage(found: Selection, names: Sequence[str], discounted: np.ndarray, clone: float) -> dict[str, float]:
    """Shares of the kept candidates' intervals, and the bias and error of the values."""
    rows = {one.name: one for one in found.table}
    own = [rows[name] for name in names]
    kept = [i for i, one in enumerate(own) if not one.vetoes]
    value = np.array([one.value for one in own])
    inside = [own[i].low <= discounted[i] <= own[i].high for i in kept]
    pairs = [own[i].difference_low <= discounted[i] - clone <= own[i].difference_high for i in kept]
    return {
        "values": round(float(np.mean(inside)), 3) if inside else float("nan"),
        "differences_to_the_clone": round(float(np.mean(pairs)), 3) if pairs else float("nan"),
        "bias": round(float((value - discounted).mean()), 2),
        "absolute_error": round(float(np.abs(value - discounted).mean()), 2),
    }


def curve(found: Selection, names: Sequence[str], real: np.ndarray) -> dict[int, float]:
    """Spearman of the plain values at each check of the training."""
    rows = {one.name: one for one in found.table}
    values = np.array([rows[name].values for name in names])
    return {step: round(spearman(values[:, i], real), 3) for i, step in enumerate(found.steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("pendulum", "snapshots", "checkpoints"))
    parser.add_argument("places", nargs="*", help="folders of checkpoints")
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--input", default=None)
    parser.add_argument("--transitions", type=int, default=30_000, help="of the dataset that is made")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--gamma", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge-model", default="train")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="of the selection")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    say: Callable[[str], None] = lambda text: print(text, flush=True)  # noqa: E731
    policies: dict[str, Any]
    if args.what != "checkpoints":
        policies = controllers() if args.what == "pendulum" else snapshots(args.env)
        data = datasets.generate(args.input or "pendulum-mixed", args.transitions, seed=0)
        acts = policies
    else:
        loaded = [one for place in args.places for one in load([place])]
        names = ["/".join(Path(one.path).parts[-3:]) for one in loaded]
        policies = {name: one.path for name, one in zip(names, loaded, strict=True)}
        acts, data = {name: one.act for name, one in zip(names, loaded, strict=True)}, args.input
    found = select(
        policies, data, env=args.env, steps=args.steps, heads=args.heads, gamma=args.gamma, seed=args.seed,
        judge_model=args.judge_model, progress=say,
    )  # fmt: skip
    say("\n".join(found.lines()))
    clone = played(found.policies["clone"], args.env, args.episodes)
    returns = {name: played(act, args.env, args.episodes) for name, act in acts.items()}
    real = np.array([own.mean() for own in returns.values()])
    gamma = found.facts["settings"]["gamma"]
    steps = round(LONG / (1 - gamma))
    discounted = np.array([played(act, args.env, args.episodes, gamma, steps).mean() for act in acts.values()])
    discounted_clone = float(played(found.policies["clone"], args.env, args.episodes, gamma, steps).mean())
    row = {
        "benchmark": "selection", "what": args.what, "env": args.env, "input": args.input or f"{args.transitions} rows",
        "candidates": len(real), "gamma": gamma, "steps": found.steps[-1], "heads": args.heads,
        "seed": args.seed, "threads": args.threads,
        "choice": found.choice.name if found.choice else None, "answer": found.answer.name,
        "confidence": found.confidence, "reasons": found.reasons, "range": round(float(np.ptp(real)), 1),
        "best": round(float(real.max()), 1), "clone": round(float(clone.mean()), 1),
        "rules": rules(found, list(returns), real, float(clone.mean()))
        | {"oracle at the discount": measures(discounted, real)},
        "coverage": coverage(found, list(returns), discounted, discounted_clone),
        "spearman_by_step": curve(found, list(returns), real),
        "seconds": round(found.facts["seconds"]),
        "real": {name: round(float(own.mean()), 1) for name, own in returns.items()},
        "discounted": dict(zip(returns, discounted.round(2).tolist(), strict=True)),
        "table": json.loads(found.to_json())["table"],
    }  # fmt: skip
    done = json.loads(args.out.read_text()) if args.out.exists() else []
    args.out.write_text(json.dumps([*done, row], indent=1) + "\n")
    say(json.dumps({key: row[key] for key in ("rules", "coverage", "spearman_by_step", "answer", "confidence")}))


if __name__ == "__main__":
    main()
