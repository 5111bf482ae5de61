"""Work units: the same data for any number of workers, resumed where it stopped."""

import pathlib

import numpy as np
import pytest

from rllib_damo.data.generate import units
from rllib_damo.data.generate.collect import FIELDS
from rllib_damo.data.generate.units import Stream, join, play_units


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(units, "UNIT_TRANSITIONS", 400)
    monkeypatch.chdir(tmp_path)


def pendulum(transitions: int, name: str = "a", policy: str = "pendulum-mixed") -> Stream:
    return Stream("Pendulum-v1", policy, name, transitions, 200.0)


def hopper(transitions: int, name: str = "h") -> Stream:
    return Stream("Hopper-v5", "uniform", name, transitions, 22.0)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of the units that this process plays."""
    paths: list[str] = []
    original = units.run_unit

    def run_unit(**request: str | int) -> int:
        paths.append(pathlib.Path(str(request["path"])).name)
        return original(**request)  # type: ignore[arg-type]

    monkeypatch.setattr(units, "run_unit", run_unit)
    return paths


def test_join_cuts_only_the_last_episode(tmp_path: pathlib.Path) -> None:
    streams = [hopper(150, "a"), hopper(150, "b")]
    play_units(streams, tmp_path, seed=0, workers=0)
    rows = join(streams, tmp_path)
    assert {len(rows[field]) for field in FIELDS} == {300}
    ends = np.flatnonzero(rows["terminations"] | rows["truncations"])
    assert ends[-1] == 299
    assert np.flatnonzero(rows["truncations"]).tolist() in ([299], [])
    inside = np.setdiff1d(np.arange(299), ends)
    np.testing.assert_array_equal(rows["next_observations"][inside], rows["observations"][inside + 1])
    # the second stream starts after the whole episode in which the first reached its share
    first_of_b = np.load(tmp_path / "b-00000.npz")["observations"][0]
    start = int(np.flatnonzero((rows["observations"] == first_of_b).all(axis=1))[0])
    assert start - 1 == ends[ends >= 149][0]


def test_number_of_workers_does_not_matter(tmp_path: pathlib.Path) -> None:
    results = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        streams = [pendulum(1000), pendulum(500, "b", "uniform")]
        reports: list[int] = []
        play_units(streams, folder, 5, workers, reports.append)
        assert reports == sorted(reports)
        assert reports[-1] == 1500
        results.append(join(streams, folder))
        assert not list(folder.glob("*.log"))
    for field in FIELDS:
        np.testing.assert_array_equal(results[0][field], results[1][field])


def test_stopped_work_goes_on(tmp_path: pathlib.Path, played: list[str]) -> None:
    def stop_after_two(done: int) -> None:
        if done >= 800:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play_units([pendulum(2000)], tmp_path, 0, 0, stop_after_two)
    assert played == ["a-00000.npz", "a-00001.npz"]
    (tmp_path / "a-00000.npz").unlink()  # as if a slower worker had been at it
    played.clear()
    play_units([pendulum(1200)], tmp_path, 0, 0)
    assert played == ["a-00000.npz", "a-00002.npz"]
    played.clear()
    play_units([pendulum(1200)], tmp_path, 0, 0)
    assert played == []
    play_units([pendulum(2000)], tmp_path, 0, 0)
    assert played == ["a-00003.npz", "a-00004.npz"]


def test_a_stopped_worker_is_reported(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)worker stopped with exit code 1.*no-such-file"):
        play_units([pendulum(400, policy=str(tmp_path / "no-such-file.npz"))], tmp_path, 0, 1)
