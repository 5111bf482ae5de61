"""Work units: which episodes to play for a dataset, playing them in parallel, and joining what was played.

A stream is the endless sequence of episodes of one policy under one seed; a unit is a fixed run of them. Units are
files in a folder, so that work that was stopped goes on where it was, and the result is the same for any number of
workers.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from rllib_damo.data.generate.collect import FIELDS
from rllib_damo.data.generate.worker import ANSWER, run_unit
from rllib_damo.errors import DataError, DiskFullError

logger = logging.getLogger(__name__)

UNIT_TRANSITIONS = 16_000  # about: what a worker plays in one go, some seconds
MAX_UNIT_EPISODES = 256
_PACKAGE = pathlib.Path(__file__).parents[2]
# Runs worker.main without the package's __init__, which would import Ray and torch: seconds and 400 MB a worker.
_START_WORKER = """
import sys, types
package = sys.modules["rllib_damo"] = types.ModuleType("rllib_damo")
package.__path__ = [sys.argv[1]]
from rllib_damo.data.generate.worker import main
main()
"""


@dataclasses.dataclass
class Stream:
    """One policy's part of a dataset.

    Args:
        env_id: Gymnasium id.
        policy: reference, see ``behavior_policy.resolve_policy``.
        name: names the episodes' seeds; the same name, seed and policy give the same episodes in any dataset.
        transitions: how many are wanted at least.
        mean_length: expected episode length, sets the episodes a unit.
    """

    env_id: str
    policy: str
    name: str
    transitions: int
    mean_length: float

    def __post_init__(self) -> None:
        self.episodes = int(np.clip(round(UNIT_TRANSITIONS / self.mean_length), 1, MAX_UNIT_EPISODES))

    def path(self, folder: pathlib.Path, unit: int) -> pathlib.Path:
        slug = re.sub(r"\W+", "-", self.name)
        return folder / f"{slug}-{unit:05d}.npz"

    def request(self, folder: pathlib.Path, unit: int, seed: int) -> dict[str, str | int]:
        return {
            "env_id": self.env_id,
            "policy": self.policy,
            "stream": self.name,
            "seed": seed,
            "start": unit * self.episodes,
            "stop": (unit + 1) * self.episodes,
            "path": str(self.path(folder, unit)),
        }


class _Progress:
    """How much of a stream is played, and which unit comes next."""

    def __init__(self, stream: Stream, folder: pathlib.Path):
        self.stream, self.folder = stream, folder
        self.running: set[int] = set()
        self.done: dict[int, int] = {}  # unit to transitions
        for path in folder.glob(stream.path(folder, 0).name.replace("00000", "?????")):
            try:
                self.done[int(path.stem[-5:])] = int(_read(path)["lengths"].sum())
            except DataError as error:
                logger.warning("%s Its episodes are played again.", error)
                path.unlink()

    def played(self) -> int:
        """Transitions of the units before the first that is missing, at most those wanted."""
        total, unit = 0, 0
        while unit in self.done:
            total += self.done[unit]
            unit += 1
        return min(total, self.stream.transitions)

    def next_unit(self) -> int | None:
        """The next unit to start, None where those done and running are expected to be enough."""
        lengths = self.done.values()
        expected = sum(lengths) / len(lengths) if lengths else self.stream.episodes * self.stream.mean_length
        total, unit = 0.0, 0
        while unit in self.done or unit in self.running:
            total += self.done.get(unit, expected)
            unit += 1
        return unit if total < self.stream.transitions else None


def play_units(
    streams: Sequence[Stream],
    folder: pathlib.Path,
    seed: int,
    workers: int,
    report: Callable[[int], None] = lambda played: None,
) -> None:
    """Plays the missing units of all streams into ``folder``.

    Args:
        streams: what is wanted; a cut of the last unit is left to ``join``.
        folder: of the units' files.
        seed: the dataset's.
        workers: processes to use; 0 plays in this process (its BLAS may then round in other ways).
        report: called with the number of wanted transitions played so far.

    Raises:
        DiskFullError: there is no room for a unit.
        RuntimeError: when a worker stops, with the end of its output.
    """
    progress = [_Progress(stream, folder) for stream in streams]

    def next_request() -> tuple[_Progress, int, dict[str, str | int]] | None:
        for part in progress:
            unit = part.next_unit()
            if unit is not None:
                part.running.add(unit)
                return part, unit, part.stream.request(folder, unit, seed)
        return None

    def finished(part: _Progress, unit: int, transitions: int) -> None:
        part.running.discard(unit)
        part.done[unit] = transitions
        report(sum(p.played() for p in progress))

    report(sum(p.played() for p in progress))
    if workers == 0:
        while (task := next_request()) is not None:
            finished(task[0], task[1], run_unit(**task[2]))  # type: ignore[arg-type]
        return
    first = [task for task in (next_request() for _ in range(workers)) if task is not None]
    if not first:
        return
    with _worker_pool(len(first), folder) as (send, answers):
        tasks = dict(enumerate(first))
        for worker, task in tasks.items():
            send(worker, task[2])
        while tasks:
            worker, transitions = answers()
            part, unit, _ = tasks.pop(worker)
            finished(part, unit, transitions)
            for idle in set(range(len(first))) - set(tasks):
                following = next_request()
                if following is None:
                    break
                tasks[idle] = following
                send(idle, following[2])


Send = Callable[[int, dict[str, str | int]], None]
Answers = Callable[[], tuple[int, int]]


@contextlib.contextmanager
def _worker_pool(num: int, folder: pathlib.Path) -> Iterator[tuple[Send, Answers]]:
    """``num`` worker processes: ``send(worker, request)``, and ``answers()`` waits for (worker, transitions)."""
    inbox: queue.Queue[tuple[int, int | None]] = queue.Queue()
    paths = [os.path.abspath(path) for path in sys.path if path]
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    env |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        env["OPENBLAS_CORETYPE"] = "Haswell"  # the kernels of AVX2, so that both round, and play, alike
    logs = [folder / f"worker-{i}.log" for i in range(num)]
    processes: list[subprocess.Popen[str]] = []

    def listen(worker: int) -> None:
        stream = processes[worker].stdout
        assert stream is not None
        for line in stream:
            if line.startswith(ANSWER):
                inbox.put((worker, json.loads(line[len(ANSWER) :])["transitions"]))
        inbox.put((worker, None))

    def send(worker: int, request: dict[str, str | int]) -> None:
        stdin = processes[worker].stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answers` tells why it stopped
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()

    def answers() -> tuple[int, int]:
        worker, transitions = inbox.get()
        if transitions is None:
            processes[worker].wait()
            tail = logs[worker].read_text(errors="replace")[-2000:].strip()
            if DiskFullError.__name__ in tail:
                raise DiskFullError(tail.rpartition(f"{DiskFullError.__name__}: ")[2])
            raise RuntimeError(f"a worker stopped with exit code {processes[worker].returncode}:\n{tail}")
        return worker, transitions

    try:
        for log in logs:
            with log.open("w") as file:
                command = [sys.executable, "-c", _START_WORKER, str(_PACKAGE)]
                processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=file,
                        text=True,
                        env=env,
                        cwd=folder,
                    )
                )
        for worker in range(num):
            threading.Thread(target=listen, args=(worker,), daemon=True).start()
        yield send, answers
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        for log in logs:
            log.unlink(missing_ok=True)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """A unit's arrays, whose CRCs NumPy compares.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in (*FIELDS, "lengths")}
    except Exception as error:  # a damaged file may raise any
        raise DataError(f"{path} is damaged ({error}).") from error


def join(streams: Sequence[Stream], folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The streams' episodes one after the other, as ``FIELDS``: as many rows as the streams want together.

    Streams end with a whole episode, and the next one is shortened by what that was too long, so that only the last
    episode of all is cut, which ends with a truncation.
    """
    parts: list[dict[str, np.ndarray]] = []
    wanted = taken = 0
    for stream in streams:
        wanted += stream.transitions
        unit = 0
        while taken < wanted:
            rows = _read(stream.path(folder, unit))
            ends = np.cumsum(rows.pop("lengths"))
            whole = int(np.searchsorted(ends, wanted - taken))  # first episode that reaches what is wanted
            stop = int(ends[min(whole, len(ends) - 1)])
            parts.append({field: value[:stop] for field, value in rows.items()})
            taken += stop
            unit += 1
    joined = {field: np.concatenate([part[field] for part in parts])[:wanted] for field in FIELDS}
    joined["truncations"][-1] = not joined["terminations"][-1]
    return joined
