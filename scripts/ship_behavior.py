"""Pick the behaviour policies that the package ships from a trace of ``train_behavior.py``, and measure them.

    python scripts/ship_behavior.py Hopper-v5 traces/hopper
    python scripts/ship_behavior.py Hopper-v5 traces/longer --expert    # the expert alone; the others stay
    python scripts/ship_behavior.py --builtin           # random policies and the pendulum's, which need no training

Writes ``rllib_damo/data/generate/weights/<task>-*.npz`` (float16) and the task's part of ``index.json`` anew; other
tasks stay as they are. Everything is measured with the rounded weights and sampled actions.
"""

import argparse
import dataclasses
import json
import pathlib

import gymnasium as gym
import numpy as np

from rllib_damo.data.generate.collect import episode_seeds, play
from rllib_damo.data.generate.controllers import BehaviorPolicy
from rllib_damo.data.generate.datasets import ENVS
from rllib_damo.data.generate.policies import FOLDER, GaussianPolicy, PolicyRecord, load_index, resolve_policy

# mean returns of D4RL's medium policies, and what an expert should reach
MEDIUM = {"hopper": (1400, 1800), "halfcheetah": (4500, 5500), "walker2d": (2500, 3500)}
EXPERT = {"hopper": 3200, "halfcheetah": 9000, "walker2d": 4000}
CHOICE_SEED, RECORD_SEED = 1, 2  # measured again after the choice: the best of several measurements is too good


def measure(env_id: str, policy: BehaviorPolicy, episodes: int, seed: int = RECORD_SEED) -> PolicyRecord:
    rows = play(env_id, policy, episode_seeds(seed, "measure", 0, episodes))
    lengths = rows["lengths"]
    returns = np.add.reduceat(rows["rewards"].astype(np.float64), np.cumsum(lengths) - lengths)
    mean, std, length = (round(float(x), 2) for x in (returns.mean(), returns.std(), lengths.mean()))
    return PolicyRecord(env_id, "", mean, std, length, episodes)


def task_of(env_id: str) -> str:
    return next(task for task, id_ in ENVS.items() if id_ == env_id)


class Trace:
    """The snapshots of one training run, rounded to float16."""

    def __init__(self, folder: pathlib.Path, env_id: str, episodes: int):
        rows = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
        by_steps = {row["steps"]: row for row in rows if (folder / f"{row['steps']:07d}.npz").exists()}
        self.rows = [by_steps[steps] for steps in sorted(by_steps)]
        if not self.rows:
            raise SystemExit(f"{folder}: trace.jsonl names no snapshot that is there")
        self.folder, self.env_id, self.episodes = folder, env_id, episodes
        space = gym.make(env_id).action_space
        assert isinstance(space, gym.spaces.Box)
        self.space = space
        self._measured: dict[int, PolicyRecord] = {}

    def arrays(self, steps: int) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{steps:07d}.npz", allow_pickle=False) as file:
            return {name: file[name].astype(np.float16) for name in file.files}

    def measure(self, steps: int, seed: int, times: int = 1) -> PolicyRecord:
        policy = GaussianPolicy(self.arrays(steps), self.space)
        record = measure(self.env_id, policy, times * self.episodes, seed)
        record = dataclasses.replace(record, source_steps=steps)
        print(f"  {steps:>8} steps: {record.return_mean:8.1f} ± {record.return_std:7.1f}", flush=True)
        return record

    def medium(self, low: float, high: float) -> int:
        """Steps of a snapshot with a mean return in [low, high] and the least spread, else of the nearest one."""
        middle = (low + high) / 2
        near = sorted(self.rows, key=lambda row: max(abs(row["return_mean"] - middle), (high - low) / 2))
        near = sorted(near[:12], key=lambda row: row["return_std"] + 2 * abs(row["return_mean"] - middle))[:8]
        records = [self.measure(row["steps"], CHOICE_SEED) for row in near]
        inside = [r for r in records if low <= r.return_mean <= high]
        if inside:
            return min(inside, key=lambda r: r.return_std).source_steps
        return min(records, key=lambda r: abs(r.return_mean - middle)).source_steps

    def expert(self) -> int:
        best = sorted(self.rows, key=lambda row: -row["return_mean"])[:5]
        records = [self.measure(row["steps"], CHOICE_SEED) for row in best]
        return max(records, key=lambda r: r.return_mean).source_steps

    def replay(self, until: int, snapshots: int) -> dict[int, float]:
        """Evenly spaced snapshots up to ``until``: steps to share of the replay data; 0 stands for random actions.

        A snapshot stands for the steps since the one before it.
        """
        untrained = max((row["steps"] for row in self.rows if row["updates"] == 0), default=0)
        steps = [row["steps"] for row in self.rows if untrained < row["steps"] <= until]
        picked = sorted(
            {steps[i] for i in np.linspace(len(steps) - 1, 0, min(snapshots, len(steps))).round().astype(int)}
        )
        shares = {0: untrained / until} if untrained else {}
        for before, at in zip([untrained, *picked[:-1]], picked, strict=True):
            shares[at] = (at - before) / until
        return shares


def ship_trace(env_id: str, folder: pathlib.Path, snapshots: int, episodes: int) -> dict[str, PolicyRecord]:
    task = task_of(env_id)
    trace = Trace(folder, env_id, episodes)
    print("candidates for medium and expert")
    medium, expert = trace.medium(*MEDIUM[task]), trace.expert()
    shares = trace.replay(medium, snapshots)
    for old in FOLDER.glob(f"{task}-*.npz"):
        old.unlink()
    print("shipped")
    wanted = [("medium", medium, 0.0), ("expert", expert, 0.0)]
    wanted += [(f"replay-{steps:07d}", steps, share) for steps, share in shares.items()]
    records = {f"{task}-random": random_record(env_id, episodes)}
    for level, steps, share in wanted:
        name = f"{task}-{level}"
        if steps == 0:
            record, file = records[f"{task}-random"], None
        else:
            times = 1 if share else 8  # the levels are what datasets are checked against
            record, file = trace.measure(steps, RECORD_SEED, times), f"{name}.npz"
            np.savez_compressed(FOLDER / file, **trace.arrays(steps))  # type: ignore[arg-type]
        records[name] = dataclasses.replace(record, level=level.split("-")[0], share=round(share, 6), file=file)
    low, high = MEDIUM[task]
    found = records[f"{task}-medium"].return_mean, records[f"{task}-expert"].return_mean
    print(f"medium {found[0]:.0f} (wanted {low} to {high}), expert {found[1]:.0f} (wanted at least {EXPERT[task]})")
    return records


def ship_expert(env_id: str, folder: pathlib.Path, episodes: int) -> dict[str, PolicyRecord]:
    """Replaces the expert by the best of another run; returns all records of the task."""
    task = task_of(env_id)
    trace, name = Trace(folder, env_id, episodes), f"{task}-expert"
    steps = trace.expert()
    record = dataclasses.replace(trace.measure(steps, RECORD_SEED, 8), level="expert", file=f"{name}.npz")
    np.savez_compressed(FOLDER / f"{name}.npz", **trace.arrays(steps))  # type: ignore[arg-type]
    print(f"expert {record.return_mean:.0f} (wanted at least {EXPERT[task]})")
    return {n: r for n, r in load_index().items() if r.env_id == env_id} | {name: record}


def random_record(env_id: str, episodes: int) -> PolicyRecord:
    return dataclasses.replace(measure(env_id, resolve_policy(env_id, "uniform"), 10 * episodes), level="random")


def write_index(env_id: str, records: dict[str, PolicyRecord]) -> None:
    """Replaces the records of ``env_id``."""
    path = FOLDER / "index.json"
    policies = json.loads(path.read_text())["policies"] if path.exists() else {}
    policies = {name: record for name, record in policies.items() if record["env_id"] != env_id}
    policies |= {name: dataclasses.asdict(record) for name, record in records.items()}
    path.write_text(json.dumps({"policies": dict(sorted(policies.items()))}, indent=1) + "\n")
    print(f"{path}: {len(records)} policies of {env_id}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env_id", nargs="?", choices=[ENVS[task] for task in MEDIUM])
    parser.add_argument("trace", nargs="?", type=pathlib.Path, help="folder written by train_behavior.py")
    parser.add_argument("--builtin", action="store_true", help="measure the policies that need no training")
    parser.add_argument("--expert", action="store_true", help="ship the trace's expert alone")
    parser.add_argument("--snapshots", type=int, default=12, help="policies of medium-replay")
    parser.add_argument("--episodes", type=int, default=50, help="episodes a measurement")
    args = parser.parse_args()
    if args.builtin == (args.env_id is not None) or (args.env_id is not None and args.trace is None):
        parser.error("give ENV_ID and TRACE, or --builtin")
    FOLDER.mkdir(exist_ok=True)
    if args.builtin:
        mixed = measure("Pendulum-v1", resolve_policy("Pendulum-v1", "pendulum-mixed"), 20 * args.episodes)
        pendulum = {"pendulum-mixed": dataclasses.replace(mixed, level="mixed")}
        pendulum["pendulum-random"] = random_record("Pendulum-v1", args.episodes)
        write_index("Pendulum-v1", pendulum)
        for task in MEDIUM:
            index = FOLDER / "index.json"
            if f"{task}-medium" not in json.loads(index.read_text())["policies"]:
                write_index(ENVS[task], {f"{task}-random": random_record(ENVS[task], args.episodes)})
    elif args.expert:
        write_index(args.env_id, ship_expert(args.env_id, args.trace, args.episodes))
    else:
        write_index(args.env_id, ship_trace(args.env_id, args.trace, args.snapshots, args.episodes))


if __name__ == "__main__":
    main()
