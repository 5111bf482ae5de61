"""`select` as a whole: on functions, on checkpoints, and as the command; and real episodes for the last decision."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from ray.tune.registry import register_env

from rllib_damo import BehaviorCloningConfig, DAMOConfig
from rllib_damo.command.data import invoke
from rllib_damo.command.select import _play as play
from rllib_damo.command.select import _told as told
from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.data.generate import datasets
from rllib_damo.data.generate.controllers import PendulumMixed
from rllib_damo.data.in_memory import InMemory
from rllib_damo.data.splits import split_episodes
from rllib_damo.deploy.numpy_policy import NumpyPolicy
from rllib_damo.dynamics import never_terminates
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.errors import CheckpointError, DataError, UsageError, UserError
from rllib_damo.nn.stacked_mlp import FastMLP
from rllib_damo.selection import Selection, estimates, select
from rllib_damo.selection.budget import by_hand, in_environment, posterior, sequential_halving
from rllib_damo.selection.candidates import Candidate, find, load
from rllib_damo.selection.problem import Data, make_task, played_env, read
from rllib_damo.version import versions
from tests.small_runs import make_small, train_policy
from tests.test_evaluation_checkpoints import write

SWING_UP = PendulumMixed().swing_up
DATA = datasets.generate("pendulum-mixed", 3000, seed=0)
HELD_OUT = split_episodes(DATA, 0.2).record
OBS = gym.spaces.Box(-8.0, 8.0, (3,))
SPACE = gym.spaces.Box(-2.0, 2.0, (1,))


def good(obs: np.ndarray) -> np.ndarray:
    return SWING_UP(obs)[:, None].astype(np.float32)


def bad(obs: np.ndarray) -> np.ndarray:
    return -good(obs)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clones and densities of test size."""
    monkeypatch.setattr(estimates, "default_steps", lambda rows: 50)
    own = estimates.BehaviorDensity
    monkeypatch.setattr(estimates, "BehaviorDensity", lambda rows, seed: own(rows, max_steps=20, seed=seed))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """An untrained dynamics model."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    return DynamicsEnsemble(3, 1, hidden_dims=(8, 8), num_ensemble=2, num_elites=2).save(path)


def quick(policies, **options) -> Selection:
    options = {"input_": DATA, "env": "Pendulum-v1", "steps": 12, "judge_model": "none"} | options
    return select(policies, **options)


def test_functions_are_compared(tmp_path):
    lines: list[str] = []
    found = quick({"good": good, "bad": bad}, progress=lines.append)
    assert {one.name for one in found.table} == {"good", "bad", "clone"}
    assert found.answer.name in found.policies
    assert found.policies["clone"](np.zeros((2, 3), np.float32)).shape == (2, 1)
    assert found.steps == list(range(1, 13))
    assert any("steps/s" in line for line in lines)
    text = "\n".join(found.lines())
    assert "against clone" in text
    assert f"{next(one.score for one in found.table if one.name == 'good'):+.4g}" in text  # what the rule goes by
    assert any(line.startswith("the confidence will be low at most: in sample") for line in lines)
    if found.choice is None:
        assert "rllib train --algo BehaviorCloning --env Pendulum-v1 --input" in text
    assert "in sample" in text
    assert "did not settle" in text
    content = json.loads(found.to_json())
    assert content["format"] == "rllib_damo.selection/1"
    assert content["facts"]["fingerprint"] == DATA.fingerprint()
    assert len(content["table"]) == 3
    assert content["versions"] == versions()
    chosen = replace(found, choice=found.table[0], confidence="low")
    assert "train its options anew" not in "\n".join(chosen.lines())
    chosen = replace(chosen, choice=replace(found.table[0], path="a"), facts=found.facts | {"held_out": 3})
    assert "train its options anew without holdout_episodes" in "\n".join(chosen.lines())
    found.plot(tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text().lstrip().startswith("<?xml")


def test_the_same_again_and_the_order_does_not_matter():
    first, second = quick({"good": good, "bad": bad}), quick({"bad": bad, "good": good})
    values = [{one.name: one.value for one in found.table} for found in (first, second)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_the_units_of_actions_do_not_matter():
    """Actions in other units, with a Box of these, are the same selection."""
    scaled = replace(DATA, actions=10 * DATA.actions)
    space = gym.spaces.Box(-20.0, 20.0, (1,))

    class Scaled(gym.ActionWrapper):
        def __init__(self, **options: object) -> None:
            super().__init__(gym.make("Pendulum-v1"))
            self.action_space = space

        def action(self, action: np.ndarray) -> np.ndarray:
            return action / 10

    register_env("pendulum in other units", lambda config: Scaled())
    plain = quick({"good": good, "bad": bad}, termination_fn=never_terminates)
    found = quick(
        {"good": lambda obs: 10 * good(obs), "bad": lambda obs: 10 * bad(obs)}, input_=scaled,
        env="pendulum in other units", termination_fn=never_terminates,
    )  # fmt: skip
    assert [one.name for one in found.table] == [one.name for one in plain.table]
    for one, other in zip(found.table, plain.table, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-4)
        assert one.score == pytest.approx(other.score, rel=1e-3, abs=1e-3)


def test_the_environment_is_never_stepped(monkeypatch, model):
    def step(*args):
        raise AssertionError("stepped")

    monkeypatch.setattr(type(gym.make("Pendulum-v1").unwrapped), "step", step)
    found = quick([good], judge_model=model)
    assert found.facts["rollout_length"] in (0, 5, 10, 20, 50)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": 1}, UsageError, "heads .--heads. must be from 2 to 16"),
        ({"steps": 0}, UsageError, "steps .--steps."),
        ({"seed": 2**32}, UsageError, "seed .--seed."),
        ({"gamma": 1.0}, UsageError, "gamma .--gamma."),
        ({"input_": None}, UsageError, "no dataset"),
        ({"env": None}, UsageError, "the spaces are not known"),
        ({"input_": DATA.slice(0, 1000)}, DataError, "episodes are too few"),
        ({"which": "first"}, UsageError, "write last, all, or every:N"),
    ],
)
def test_wrong_arguments(options, error, message, tmp_path):
    policies = [str(tmp_path)] if "which" in options else [good]
    with pytest.raises(error, match=message):
        quick(policies, **options)


def test_a_judges_model_is_read_before_work(tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "clone", lambda *args, **kwargs: pytest.fail("work began"))
    (tmp_path / "model.pt").write_text("hello")
    other = DynamicsEnsemble(4, 1, hidden_dims=(8,)).save(tmp_path / "other.pt")
    for given, error, message in (
        (str(tmp_path / "model.pt"), UsageError, "neither train nor none nor the file of a model.* is damaged"),
        ("Train", UsageError, "'Train' is neither train nor none.*No dynamics file"),
        (other, CheckpointError, "is a model of other spaces"),
    ):
        with pytest.raises(error, match=message):
            quick([good], judge_model=given)


def test_policies_that_cannot_be_judged():
    with pytest.raises(CheckpointError, match="the policy wide gives actions of shape"):
        quick({"wide": lambda obs: np.zeros((len(obs), 2))})
    with pytest.raises(CheckpointError, match="not finite in row 0"):
        quick({"broken": lambda obs: np.full((len(obs), 1), np.nan)})
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        quick(["tests"])


def test_the_environment_to_play_in_may_be_the_evaluations_alone():
    config = BehaviorCloningConfig().environment(observation_space=OBS, action_space=SPACE, env_config={"g": 5.0})
    assert played_env(config, make_task(config, None, None)) == (None, {"g": 5.0})
    config.evaluation(evaluation_config={"env": "Hopper-v5", "env_config": {"frame_skip": 4}})
    assert played_env(config, make_task(config, None, None)) == ("Hopper-v5", {"g": 5.0, "frame_skip": 4})
    assert played_env(config, make_task(config, "Pendulum-v1", None)) == ("Pendulum-v1", {"g": 5.0})


def test_data_in_memory_are_asked_for():
    config = BehaviorCloningConfig().environment("Pendulum-v1")
    config.offline_data(input_=pickle.loads(pickle.dumps(InMemory(DATA))))
    task = make_task(config, "Pendulum-v1", None)
    with pytest.raises(UsageError, match="of 3,000 rows in memory>, which no checkpoint holds: give it by input_"):
        read(config, None, task)
    assert read(config, DATA, task).fingerprint() == DATA.fingerprint()


def candidate(**record) -> Candidate:
    record = {"dataset": "a", "dataset_fingerprint": DATA.fingerprint(), "holdout": HELD_OUT, **record}
    return Candidate("one", "", good, record, BehaviorCloningConfig().offline_data(max_dataset_rows=1000))


def test_policies_that_saw_the_data_in_windows_are_refused():
    first_window = candidate(dataset_fingerprint=DATA.slice(0, 1000).fingerprint())
    with pytest.raises(DataError, match="below the data's size cannot be judged, since only their first window's"):
        Data.of(DATA, [first_window], SPACE)
    with pytest.raises(DataError, match="is other data"):  # which fits into a window
        Data.of(DATA.slice(0, 1000), [candidate()], SPACE)


@pytest.mark.parametrize(
    ("record", "num_warnings"),
    [
        ({}, 0),
        ({"in_sample": False, "earlier_dataset_fingerprints": []}, 0),
        ({"in_sample": True}, 1),
        ({"earlier_dataset_fingerprints": ["abc"]}, 1),
    ],
)
def test_what_a_policy_went_on_from_limits_the_confidence(record, num_warnings):
    text = "in sample: one went on from a run that may have seen the held-out episodes"
    assert Data.of(DATA, [candidate(), candidate(**record)], SPACE).warnings == (text,) * num_warnings


def test_checkpoints_of_trials_are_found(tmp_path):
    for name in ("b/checkpoint_000000", "b/checkpoint_000002", "b/checkpoint_000010", "a/last", "a/other"):
        (tmp_path / name / "learner_group").mkdir(parents=True)
        for folder in (tmp_path / name, tmp_path / name / "learner_group"):
            (folder / "class_and_ctor_args.pkl").write_bytes(b"")

    def names(which: str) -> list[str]:
        return [str(Path(path).relative_to(tmp_path)) for path in find(str(tmp_path), which)]

    assert names("last") == ["a/last", "a/other", "b/checkpoint_000010"]
    assert names("all")[2:] == ["b/checkpoint_000000", "b/checkpoint_000002", "b/checkpoint_000010"]
    assert names("every:2")[2:] == ["b/checkpoint_000002", "b/checkpoint_000010"]
    assert find(str(tmp_path / "b/checkpoint_000002")) == [str(tmp_path / "b/checkpoint_000002")]


@pytest.mark.usefixtures("ray_cluster")
def test_checkpoints_as_the_command(cache_dir, tmp_path, capsys, model):
    """Two algorithms with one split, and one that saw all episodes; other data is refused."""
    dataset, paths = str(write_parquet(DATA, tmp_path / "pendulum.parquet")), {}
    for name, make, share in (("damo", DAMOConfig, 0.2), ("bc", BehaviorCloningConfig, 0.2), ("all", DAMOConfig, 0)):
        config = make_small(make(), dataset, cache_dir).offline_data(holdout_episodes=share)
        algo = config.training(data_fraction=1.0).evaluation(evaluation_interval=None).build_algo()
        if name != "all":
            train_policy(algo, 1)
        paths[name] = algo.save_to_path(str(tmp_path / "run" / name / "checkpoint_000000"))
        algo.stop()
    out, common = tmp_path / "out", ["--steps", "12", "--judge-model", model]
    policies = load([paths["damo"], paths["bc"]])
    assert [one.name for one in policies] == ["DAMO at 20", "BehaviorCloning at 20"]
    assert policies[0].own_model is not None
    code = invoke(["select", paths["damo"], paths["bc"], *common, "--out", str(out), "--require-choice"])
    text = capsys.readouterr().out
    assert "12 episodes to fit, 3 held out" in text
    content = json.loads((out / "selection.json").read_text())
    assert code == int(content["choice"] is None)
    assert content["facts"]["split"]["episodes"] == 3
    changed = {one["name"]: one["settings"] for one in content["table"]}
    assert changed["DAMO at 20"]["data_fraction"] == 1.0
    assert "gamma" not in changed["DAMO at 20"]
    assert changed["clone"] == {}
    assert (out / "selection.png").stat().st_size > 1000
    assert (out / "fqe.pt").exists()
    clone = NumpyPolicy(str(out / "clone.npz"))
    assert clone.metadata["environment"] == "Pendulum-v1"
    assert clone.metadata["dataset"]["fingerprint"] == content["facts"]["fingerprint"]
    judged = select([paths["damo"], paths["bc"]], steps=12, judge_model=model, out=out).policies["clone"]
    np.testing.assert_allclose(clone(DATA.observations), judged(DATA.observations), atol=2e-6)
    assert invoke(["select", paths["bc"], *common, "--out", str(out)]) == 2
    assert "another selection" in capsys.readouterr().err
    assert invoke(["select", paths["damo"], paths["all"], *common]) == 0
    assert "in sample" in capsys.readouterr().out
    other = datasets.generate("pendulum-mixed", 2400, seed=5)
    with pytest.raises(DataError, match="is other data"):
        select([paths["damo"]], other)
    answers = ["select", paths["damo"], "--budget", "4", *common, "--json", str(tmp_path / "found.json")]
    assert invoke([*answers, "--require-choice"]) == 0
    assert "Best: " in capsys.readouterr().out
    episodes = json.loads((tmp_path / "found.json").read_text())["facts"]["real_episodes"]
    assert sum(len(one["returns"]) for one in episodes["candidates"]) <= 4
    assert episodes["best"] == episodes["candidates"][0]["name"]


def test_real_episodes_are_shown_as_they_were_played():
    """A budget that is too small for all goes to the reference and the first ones of the table."""
    found = quick({"good": good, "bad": bad})
    lines = told(play(found, 2, False, "Pendulum-v1", None))
    assert lines[0].startswith("\nReal episodes: 2.")
    shown = {line.split(":")[0].strip(): float(line.split()[1]) for line in lines[1:3]}
    kept = [one.name for one in found.table if not one.vetoes and one.name != "clone"]
    assert [*shown.keys() - {"clone"}] == kept[:1]
    own = in_environment([found.policies[name] for name in shown], "Pendulum-v1")
    assert [*shown.values()] == pytest.approx([own(i, 0) for i in range(2)], rel=1e-3)
    assert "may be chance" in lines[-1]
    with pytest.raises(UsageError, match="no candidate that is left has a checkpoint"):
        play(found, 2, True, None, None)


def test_what_is_printed_of_an_answer():
    """The clone has a command in which every name is one word; without a choice the table is no ranking."""
    found = quick({"good": good, "bad": bad})
    clone = next(one for one in found.table if one.name == "clone")
    found = replace(found, choice=None, answer=clone, facts=found.facts | {"inputs": ["a b.npz"]})
    text = "\n".join(found.lines())
    assert "No choice; the answer is clone.\n" in text
    assert "--algo BehaviorCloning --env Pendulum-v1 --input 'a b.npz'\n" in text
    assert "Without a choice, the order of the table is no ranking." in text
    found = replace(found, choice=clone, confidence="low", facts=found.facts | {"inputs": ["a", "b"], "held_out": 3})
    text = "\n".join(found.lines())
    assert """--config '{"input_": ["a", "b"]}'\n""" in text
    assert "train its options anew" not in text
    assert "no ranking" not in text


def test_passwords_of_addresses_are_not_shown(monkeypatch):
    monkeypatch.setattr(
        "rllib_damo.selection.run.candidates_.load",
        lambda *_: [Candidate("one", "s3://key:secret@bucket/run", good)],
    )
    found = quick(["s3://key:secret@bucket/run"])
    assert "secret" not in found.to_json()
    assert next(one.path for one in found.table if one.name == "one") == "s3://bucket/run"


def test_without_a_second_opinion_the_confidence_is_low(model):
    reasons = quick({"good": good}).reasons
    assert any("no second opinion: judge_model (--judge-model) is none" in reason for reason in reasons)
    reasons = quick({"good": good}, judge_model=model).reasons
    assert any("the judge's model is too inexact (" in reason for reason in reasons)


def test_clones_are_kept_for_a_selection_that_goes_on(tmp_path, monkeypatch):
    first = quick({"good": good}, out=tmp_path)
    monkeypatch.setattr(FastMLP, "backward", None)  # nothing is trained again
    again = quick({"good": good}, out=tmp_path)
    observations = np.ones((3, 3), np.float32)
    np.testing.assert_array_equal(first.policies["clone"](observations), again.policies["clone"](observations))
    assert replace(first.table[0], verdict="") == replace(again.table[0], verdict="")


def test_wrong_commands(capsys):
    assert invoke(["select", "tests", "--ask"]) == 2
    assert "--ask needs --budget, and --out" in capsys.readouterr().err
    assert invoke(["select", "tests", "--ask", "--budget", "3"]) == 2
    assert "--ask needs --budget, and --out" in capsys.readouterr().err
    assert invoke(["select", "tests", "--termination", "nothing"]) == 2
    assert "write module:function" in capsys.readouterr().err
    for place, found in (("nowhere", "there is no such folder"), (__file__, "it is no folder")):
        assert invoke(["select", place]) == 2
        error = f"Error: no checkpoint at {place}: {found}. Give the folder of a run, or of checkpoints, that "
        assert capsys.readouterr().err.startswith(error)


# -- real episodes -----------------------------------------------------------------------------------------------------


def halve(rng, means, budget, **options):
    count = 0

    def play(i: int, episode: int) -> float:
        nonlocal count
        count += 1
        return float(rng.random() < means[i])

    names = [str(i) for i in range(len(means))]
    none = np.full(len(means), np.nan)
    played = sequential_halving(play, none, none, budget, names, **options)
    assert count <= budget
    return played


def test_halving_finds_the_best_arm():
    means, right = [0.2, 0.3, 0.4, 0.4, 0.5, 0.8], 0
    for seed in range(200):
        right += halve(np.random.default_rng(seed), means, 120).best == 5
    assert right >= 180


def test_a_budget_for_one_episode_each_is_the_least():
    with pytest.raises(UsageError, match="each needs an episode"):
        halve(np.random.default_rng(0), [0.1, 0.2, 0.3], 2)
    assert sum(map(len, halve(np.random.default_rng(0), [0.1, 0.2, 0.3], 3).returns)) == 3


def test_what_was_played_is_not_played_again(tmp_path):
    file = tmp_path / "budget.jsonl"
    first = halve(np.random.default_rng(0), [0.2, 0.9], 10, file=file)
    lines = file.read_text()
    assert len(lines.splitlines()) == 10
    again = halve(None, [0.2, 0.9], 10, file=file)
    assert again.returns == first.returns
    assert file.read_text() == lines
    for line in ("{}", lines.splitlines()[0].replace(str(first.returns[0][0]), "NaN"), "3"):
        file.write_text(line + "\n")
        with pytest.raises(UsageError, match="damaged"):
            halve(None, [0.2, 0.9], 10, file=file)


def test_a_return_that_is_not_finite_is_no_result(tmp_path):
    file = tmp_path / "budget.jsonl"
    with pytest.raises(
        UserError, match="the return of b in episode 0 is nan: the environment's rewards must be finite"
    ):
        sequential_halving(lambda i, _: [1.0, np.nan][i], np.zeros(2), np.zeros(2), 4, ["a", "b"], file)
    assert "NaN" not in file.read_text()


@pytest.mark.parametrize("option", ["--out", "--json", "--plot"])
def test_results_that_cannot_be_written_are_told_before_work(option, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rllib_damo.command.select.select_", lambda *args, **kwargs: pytest.fail("work began"))
    (tmp_path / "file.png").touch()
    (tmp_path / "folder.png").mkdir()
    places = {"file.png/x.png": "cannot be written"}
    places |= {} if option == "--out" else {"folder.png": "is a folder"}
    for place, message in places.items():
        assert invoke(["select", str(tmp_path), option, str(tmp_path / place)]) == 2
        assert message in capsys.readouterr().err
    assert invoke(["select", str(tmp_path), "--plot", "picture.bmp"]) == 2
    assert "must end in .png or .svg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sep", "write module:function"),
        ("os:", "write module:function"),
        ("os:nothing", "no such function"),
        ("os:sep", "is no function"),
        ("nowhere_:x", "no such function"),
    ],
)
def test_a_termination_rule_that_is_none(name, message, tmp_path, capsys):
    assert invoke(["select", str(tmp_path), "--termination", name]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_checkpoint_is_no_candidate(tmp_path):
    folder = write(tmp_path / "checkpoint_000003")
    (folder / "algorithm_state.pkl").write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"the content of algorithm_state\.pkl has changed"):
        load([str(folder)])


def test_values_count_where_they_agree_with_the_episodes():
    values, halves = np.array([1.0, 2, 3, 4]), np.full(4, 0.5)
    rising = [[10.0, 12], [20, 22], [30, 32], []]
    means, errors = posterior(values, halves, rising)
    assert means[3] == pytest.approx(41, abs=1)
    assert np.isfinite(errors).all()
    falling = posterior(values, halves, [*rising[2::-1], []])[0]
    assert falling[3] == -np.inf
    assert falling[0] == 31


def test_a_person_may_play(capsys):
    answers = iter(["what", "nan", "12.5"])
    asked: list[str] = []

    def ask(text: str) -> str:
        asked.append(text)
        return next(answers)

    assert by_hand(["a"], ["/path/a"], ask)(0, 3) == 12.5
    assert asked == ["Play /path/a, episode 3, and enter the return: "] * 3
