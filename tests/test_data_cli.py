"""The `rllib-damo data` commands: what they print, and their exit codes."""

import json
import pathlib
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from rllib_damo.command.data import _clipped, invoke
from rllib_damo.data import sources
from rllib_damo.data.formats.hdf5 import write_hdf5 as write_d4rl
from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.data.generate import datasets
from tests.data_helpers import make_transitions


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def made() -> str:
    datasets.make("pendulum-mixed", transitions=400, workers=0, progress=False)
    return "pendulum-mixed"


def test_list_tells_what_is_shipped_and_made(
    made: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.make("pendulum-mixed@500", progress=False, workers=0)
    monkeypatch.setattr(datasets, "load_index", dict)
    assert invoke(["data", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(datasets.NAMES) <= set(lines)
    assert "made: 400 transitions" in lines[made]
    assert "made: 500 transitions" in lines["pendulum-mixed@500"]
    assert "not made" in lines["hopper-random"]
    assert "not shipped" in lines["walker2d-expert"]


def test_a_file_may_have_the_name_of_a_dataset_with_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    write_d4rl(make_transitions(), "hopper-medium@old.hdf5")
    assert invoke(["data", "info", "hopper-medium@old.hdf5"]) == 0
    assert "transitions" in capsys.readouterr().out


def test_make(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["data", "make", "pendulum-random", "--transitions", "250", "--seed", "3", "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "rllib_damo/pendulum/random-v0: 250 transitions, 2 episodes, return -" in out
    assert "only episode" not in out
    assert len(sources.load("pendulum-random")) == 250
    assert invoke(["data", "make", "pendulum-random@20", "--workers", "0"]) == 0
    assert "only episode may be cut" in capsys.readouterr().out


def test_info(made: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["data", "info", made, "--png", "picture.png"]) == 0
    out = capsys.readouterr().out
    assert "transitions   400" in out
    assert "episode returns" in out
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert invoke(["data", "info", made, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_transitions"] == 400


def test_convert_there_and_back(made: str, capsys: pytest.CaptureFixture[str]) -> None:
    for src, dst in ((made, "a.hdf5"), ("a.hdf5", "b.parquet"), ("b.parquet", "minari://back/pendulum-v0")):
        assert invoke(["data", "convert", src, dst]) == 0
    assert sources.load("minari://back/pendulum-v0").fingerprint() == sources.load(made).fingerprint()
    assert invoke(["data", "convert", made, "a.hdf5"]) == 2
    assert "a.hdf5" in capsys.readouterr().err
    assert invoke(["data", "convert", made, "a.hdf5", "--overwrite"]) == 0


def test_check(made: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["data", "check", made]) == 0
    assert "ok    every value is finite" in capsys.readouterr().out
    assert invoke(["data", "check", made, "--env", "Hopper-v5"]) == 1
    assert "FAIL  observations have width 3" in capsys.readouterr().out
    transitions = sources.load(made)
    transitions.rewards[5] = np.nan
    write_d4rl(transitions, pathlib.Path("bad.hdf5"))
    assert invoke(["data", "check", "bad.hdf5"]) == 1
    assert "FAIL  rewards hold values that are not finite" in capsys.readouterr().out


def test_clipped_columns_are_told_in_a_line() -> None:
    limits = [(None, 0.5), (-1.0, None), (-10.0, 10.0), (-10.0, 10.0), (-10.0, 10.0), (-10.0, 10.0)]
    columns = [{"column": i, "low": low, "high": high, "share": i / 100} for i, (low, high) in enumerate(limits)]
    assert _clipped(columns[:3]) == (
        "rows at the limits of observation columns, from 0: 2 (-10 to 10: 2.0%), 1 (at least -1: 1.0%), "
        "0 (at most 0.5: 0.0%)"
    )
    assert _clipped(columns).endswith("1 (at least -1: 1.0%) and 1 more")


def test_other_names_and_normalised_actions(made: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Logs of one's own: said once to `convert`, and usual from there on."""
    expected = sources.load(made)
    write_parquet(replace(expected, actions=expected.actions / 2), pathlib.Path("usual.parquet"))
    table = pq.read_table("usual.parquet").replace_schema_metadata(None)
    pq.write_table(table.rename_columns({"observations": "o_t", "actions": "a_t"}), "logs.parquet")
    assert invoke(["data", "check", "logs.parquet"]) == 1
    assert "say what they are in input_read_schema (--column)" in capsys.readouterr().out
    said = ["--column", "obs=o_t", "--column", "actions=a_t", "--normalized-actions"]
    assert invoke(["data", "check", "logs.parquet", *said]) == 1
    assert "Give the environment (--env)" in capsys.readouterr().out
    said += ["--env", "Pendulum-v1"]
    assert invoke(["data", "check", "logs.parquet", *said]) == 0
    capsys.readouterr()
    assert invoke(["data", "info", "logs.parquet", "--json", *said]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert invoke(["data", "convert", "logs.parquet", "mine.hdf5", *said]) == 0
    written = sources.load("mine.hdf5")
    assert figures["fingerprint"] == written.fingerprint()
    np.testing.assert_allclose(written.actions, expected.actions, atol=1e-6)
    np.testing.assert_array_equal(written.observations, expected.observations)


def test_a_vector_of_several_columns(made: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["data", "convert", made, "a.csv"]) == 0
    text = pathlib.Path("a.csv").read_text()
    header = {"observations_0": "x", "observations_1": "y", "observations_2": "speed"}
    for old, new in header.items():
        text = text.replace(f'"{old}"', new)
    pathlib.Path("b.csv").write_text(text)
    assert invoke(["data", "info", "b.csv"]) == 2
    assert "no column for observations" in capsys.readouterr().err
    assert invoke(["data", "convert", "b.csv", "b.npz", "--column", "obs=x,y,speed"]) == 0
    assert sources.load("b.npz").fingerprint() == sources.load(made).fingerprint()


def test_the_formats_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["data", "formats"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["parquet", ".parquet,", ".pq", "yes"] in [line[:4] for line in lines]
    assert ["rllib_episodes", ".parquet,", ".pq", "no"] in [line[:4] for line in lines]


def test_a_file_that_cannot_be_read_is_the_datas_fault(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bad.hdf5", "bad.parquet"):
        pathlib.Path(name).write_text("nothing")
        assert invoke(["data", "check", name]) == 1
        assert f"FAIL  readable: {name}: not a readable" in capsys.readouterr().out


def test_odd_data_passes_with_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    data = make_transitions((4, 6))
    write_parquet(replace(data, rewards=np.zeros(10, np.float32)), "odd.parquet")
    assert invoke(["data", "check", "odd.parquet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines if line.startswith("warn")] == [
        "warn  there are 10 transitions", "warn  every reward is 0",
    ]  # fmt: skip


def test_rows_that_do_not_follow_each_other_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    data = make_transitions((600, 600))
    write_parquet(replace(data, next_observations=data.observations + np.float32(0.1)), "apart.parquet")
    assert invoke(["data", "check", "apart.parquet"]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warn")]
    assert [line[:52] for line in warnings] == ["warn  1199 of 1200 rows are episodes of one row: the"]
    assert "write the rows in the order of time" in warnings[0]


def test_a_place_that_cannot_be_written_is_told_before_reading(capsys: pytest.CaptureFixture[str]) -> None:
    pathlib.Path("folder.npz").mkdir()
    pathlib.Path("file.npz").touch()
    for place, message in (("folder.npz", "is a folder"), ("file.npz", "--overwrite"), ("file.npz/x.csv", "written")):
        assert invoke(["data", "convert", "nothing.hdf5", place]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["make", "hopper-medum"], "Did you mean hopper-medium"),
        (["make"], "Missing argument"),
        (["make", "pendulum-mixed", "--transitions", "0"], "--transitions"),
        (["info", "hopper-medium"], "`rllib-damo data make hopper-medium` makes it"),
        (["info", "nothing.hdf5"], "nothing.hdf5: no such file"),
        (["check", "pendulum-mixd"], "Did you mean pendulum-mixed"),
        (["check", "nothing.hdf5"], "no such file"),
        (["check", "nothing.hdf5", "--column", "obs"], "--column obs: write obs=NAME, with one of observations, obs,"),
        (["convert", "nothing.hdf5", "a.hdf5", "--column", "o=o_t"], "--column o=o_t: write obs=NAME"),
        (
            ["info", "nothing.hdf5", "--column", "obs=a", "--column", "obs=b"],
            "obs has been given before",
        ),
        (["info", "nothing.hdf5", "--column", "obs="], "--column obs=: write obs=NAME"),
        (["check", "nothing.hdf5", "--env", "Nope-v0"], "env='Nope-v0' (--env)"),
        (["check", "nothing.hdf5", "--env", "nomodule_:Nope-v0"], "env='nomodule_:Nope-v0' (--env)"),
    ],
)
def test_mistakes_are_told_and_exit_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["data", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_interrupted_make_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: object, **kwargs: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "make", stopped)
    assert invoke(["data", "make", "hopper-random"]) == 130
    assert "The same command continues" in capsys.readouterr().err


def test_a_failed_worker_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*args: object, **kwargs: object) -> str:
        raise RuntimeError("a worker stopped with exit code 1:\nout of luck")

    monkeypatch.setattr(datasets, "make", broken)
    assert invoke(["data", "make", "hopper-random"]) == 1
    assert "out of luck" in capsys.readouterr().err
