"""RLlib's OfflineData for every format of this package: read in bulk, or streamed through Ray Data under a cap."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray
from ray.data import DataContext, Dataset, Datasource, ReadTask
from ray.exceptions import RayError
from ray.rllib.offline.offline_data import OfflineData

from rllib_damo.data.formats.reader import Conventions, Reader
from rllib_damo.data.in_memory import InMemory
from rllib_damo.data.schema import Transitions, check, concatenate
from rllib_damo.data.sources import load, resolve_all
from rllib_damo.data.splits import split_episodes
from rllib_damo.errors import DataError
from rllib_damo.utils.arrow import from_arrow, to_arrow
from rllib_damo.utils.ray_internals import read_error, read_task
from rllib_damo.utils.uris import without_password

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

_ROWS_PER_BLOCK = 1 << 17


def needs_whole(option: str, max_rows: int | None, instead: str) -> str:
    """What an error says of an option that a dataset in windows does not go with, and what to do."""
    return (
        f"{option} needs the whole dataset in memory, and it is larger than max_dataset_rows={max_rows}: raise "
        f"max_dataset_rows, or {instead}."
    )


class BulkOfflineData(OfflineData):
    """The offline dataset of an algorithm. Nothing is read before one of its properties is used.

    Reads from the config: `input_` (a name, a list of names, or `Transitions`), `observation_space` and `action_space`
    (may be None), `actions_in_input_normalized`, `input_read_schema`, `input_filesystem` with
    `input_filesystem_kwargs`, `input_read_method` (where it is not RLlib's default), and, if there, `observation_keys`,
    `skip_bad_episodes`, `max_dataset_rows` (the cap; None: everything is held in memory), and `holdout_episodes` with
    `holdout_seed`: what is given out is the training part alone.

    Attributes:
        holdout: the split's record (`splits.Split`), once the transitions were read; None where nothing is held out.
        held_out: the episodes themselves, until `release`; likewise.

    Raises:
        DataError: on first use, as `sources.load` does.
    """

    def __init__(self, config: AlgorithmConfig) -> None:  # the base class would read at once, through a pathlib.Path
        self.config = config
        self.is_multi_agent = config.is_multi_agent
        self._input: Any = config.input_.transitions if isinstance(config.input_, InMemory) else config.input_
        self.path: Any = config.input_
        self.max_rows: int | None = getattr(config, "max_dataset_rows", None)
        # Set by Algorithm.setup.
        self.learner_handles: Any = None
        self.module_spec: Any = None
        self.spaces: Any = None
        self.locality_hints: Any = None
        self.holdout: dict[str, Any] | None = None
        self.held_out: Transitions | None = None
        self._transitions: Transitions | None = None
        self._whole_fingerprint: str | None = None
        self._dataset: Dataset | None = None
        self._readers: list[Reader] | None = None
        self._windows: Generator[Transitions] | None = None
        self.window = 0  # number of the present one in its pass, from 1

    @property
    def transitions(self) -> Transitions:
        """All transitions, checked; the first window of them where the data is larger than the cap.

        Without the episodes that are held out.
        """
        if self._transitions is None:
            if self.is_capped:
                self._refuse_holdout()
                return self.skip_to(1)
            self._transitions = self._training_part(self.whole())
        return self._transitions

    def whole(self) -> Transitions:
        """All transitions, checked, with those that are held out; read anew."""
        return load(
            self._input,
            observation_space=self.config.observation_space,
            conventions=self._conventions(),
            filesystem=self._filesystem(),
            read_method=self._read_method(),
        )

    @property
    def fingerprint(self) -> str:
        """Of the whole dataset, or of its first window where it is larger than the cap."""
        transitions = self.transitions
        return self._whole_fingerprint or transitions.fingerprint()

    @property
    def _holdout_episodes(self) -> float:
        return getattr(self.config, "holdout_episodes", 0.0)

    def _training_part(self, transitions: Transitions) -> Transitions:
        if not self._holdout_episodes:
            return transitions
        self._whole_fingerprint = transitions.fingerprint()
        split = split_episodes(transitions, self._holdout_episodes, self.config.holdout_seed)
        self.holdout, self.held_out = split.record, split.holdout
        return split.training

    def _refuse_holdout(self) -> None:
        if self._holdout_episodes:
            raise DataError(
                f"{without_password(str(self.path))}: "
                + needs_whole(
                    f"holdout_episodes={self._holdout_episodes!r}",
                    self.max_rows,
                    "keep files of episodes out of input_ yourself",
                )
            )

    def release(self) -> None:
        """Lets go of the transitions, which are read again when asked for; a window of a larger dataset stays."""
        if not self.is_capped:
            self._transitions = self.held_out = None

    def close(self) -> None:
        """Ends the stream of windows, and with it what Ray Data runs for it."""
        if self._windows is not None:
            self._windows.close()
            self._windows = None
        self.window = 0

    @property
    def is_capped(self) -> bool:
        """Whether the data may be larger than `max_dataset_rows` (of recorded episodes the length is not known)."""
        if self.max_rows is None or isinstance(self._input, Transitions):
            return False
        counts = [reader.num_rows() for reader in self._resolved()]
        return any(count is None for count in counts) or sum(count or 0 for count in counts) > self.max_rows

    @property
    def data(self) -> Dataset:
        """The data as a Ray Dataset of rows in file order, vectors as tensor columns; read lazily, block by block."""
        if self._dataset is None:
            if isinstance(self._input, Transitions) or self._holdout_episodes:
                self._dataset = ray.data.from_arrow(to_arrow(self.transitions.arrays()))
            else:
                rows = min(self.max_rows or _ROWS_PER_BLOCK, _ROWS_PER_BLOCK)
                context = DataContext.get_current().copy()
                context.execution_options.preserve_order = True
                tasks = [(reader, splits) for reader in self._resolved() for splits in reader.tasks(rows)]
                with DataContext.current(context):
                    # without CPUs of their own, and so few at a time: they must run where a trial holds all CPUs
                    self._dataset = ray.data.read_datasource(
                        _TransitionsSource(tasks), override_num_blocks=max(len(tasks), 1), num_cpus=0, concurrency=2
                    )
        return self._dataset

    def refresh(self) -> Transitions | None:
        """The next window of at most `max_dataset_rows` checked transitions, from the start again after the last.

        Windows end at episode ends wherever an episode fits into one. Returns None when the data fits the cap.
        """
        if not self.is_capped:
            return None
        number = self.window + 1
        window = self.skip_to(number)
        if self.window < number:  # the pass is over
            self.close()
            window = self.skip_to(1)
        return window

    def skip_to(self, number: int) -> Transitions:
        """The window of this number, from 1, or the last if there are fewer; in a new pass if this one is past it."""
        if self._windows is None or number < self.window:
            self.close()
            self._windows = self._stream()
        for window in itertools.islice(self._windows, max(1, number) - self.window):
            self.window += 1
            self._transitions = window
        assert self._transitions is not None  # an empty stream raises
        return self._transitions

    def _stream(self) -> Generator[Transitions]:
        """One pass over the data in checked windows, through Ray Data where Ray runs, else in this process."""
        assert self.max_rows is not None
        if ray.is_initialized():
            parts: Iterable[Transitions] = self._through_ray()
        else:
            parts = (
                reader.read(*unit_range)
                for reader in self._resolved()
                for unit_range in reader.splits(min(self.max_rows, _ROWS_PER_BLOCK))
            )
        found = False
        for window in windows(parts, self.max_rows):
            check(window, self.config.observation_space, self.config.action_space)
            found = True
            yield window
        if not found:
            raise DataError(f"{without_password(str(self.path))}: there are no transitions.")

    def _through_ray(self) -> Iterator[Transitions]:
        name = without_password(str(self.path))
        try:
            for batch in self.data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                if len(batch):
                    yield Transitions(**from_arrow(batch), name=name)
        except RayError as error:
            raise DataError(
                f"{name}: reading stopped: {read_error(error)} Once that is fixed, `rllib train --resume` goes on from "
                "the last checkpoint."
            ) from error

    def _resolved(self) -> list[Reader]:
        if self._readers is None:
            self._readers = resolve_all(
                self._input,
                conventions=self._conventions(),
                filesystem=self._filesystem(),
                read_method=self._read_method(),
            )
        return self._readers

    def _conventions(self) -> Conventions:
        c = self.config
        return Conventions(
            c.action_space,
            c.actions_in_input_normalized,
            c.input_read_schema or {},
            getattr(c, "observation_keys", None) or (),
            getattr(c, "skip_bad_episodes", False),
        )

    def _read_method(self) -> str:
        method = self.config.input_read_method
        return "" if method == "read_parquet" else method  # RLlib's default, for whatever the files are

    def _filesystem(self) -> pa.fs.FileSystem | None:
        """RLlib's `input_filesystem`: None, a pyarrow filesystem, or "s3", "gcs" or "abs" with its arguments.

        Raises:
            DataError: for anything else, or where its package is not installed.
        """
        named, kwargs = self.config.input_filesystem, self.config.input_filesystem_kwargs or {}
        if named is None or isinstance(named, pa.fs.FileSystem):
            return named
        try:
            if named == "s3":
                return pa.fs.S3FileSystem(**kwargs)
            if named == "gcs":
                return pa.fs.GcsFileSystem(**kwargs)
            if named == "abs":
                return pa.fs.AzureFileSystem(**kwargs)
        except (TypeError, ValueError, AttributeError, OSError) as error:
            raise DataError(f"input_filesystem={named!r} with {kwargs!r} cannot be set up: {error}") from error
        raise DataError(f"input_filesystem={named!r}: must be None, a pyarrow filesystem, 's3', 'gcs' or 'abs'.")


def windows(parts: Iterable[Transitions], max_rows: int) -> Iterator[Transitions]:
    """Regroup a stream of transitions into windows of at most `max_rows`, ending at episode ends where one fits.

    Parts may cut episodes; a cut is marked only where a window ends.
    """
    held: list[Transitions] = []
    for part in parts:
        if not len(part):
            continue
        held.append(part)
        if sum(map(len, held)) <= max_rows:
            continue
        rest = concatenate(held, part.name)
        while len(rest) > max_rows:
            ends = np.flatnonzero((rest.terminations | rest.truncations)[:max_rows])
            stop = int(ends[-1]) + 1 if len(ends) else max_rows
            yield rest.slice(0, stop)
            rest = rest.slice(stop, len(rest), mark_cut=False)
        held = [rest]
    if held:
        rest = concatenate(held, held[-1].name)
        yield rest.slice(0, len(rest))


class _TransitionsSource(Datasource):
    """Ray Data's view of the readers' tasks: each split gives one block."""

    def __init__(self, tasks: list[tuple[Reader, list[tuple[int, int]]]]) -> None:
        super().__init__()
        self._tasks = tasks

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [read_task(_read(reader, splits), per_task_row_limit) for reader, splits in self._tasks]


def _read(reader: Reader, splits: list[tuple[int, int]]) -> Callable[[], Iterable[pa.Table]]:
    return lambda: (to_arrow(reader.read(start, stop).arrays()) for start, stop in splits)
