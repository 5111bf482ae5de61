"""benchmarks/scores.py: aggregation of made-up evaluations, the table, and which results a trial may go on from."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import score_settings
import score_tables
import score_trials
import scores

from rllib_damo import ALGORITHMS
from rllib_damo.data.generate.datasets import ENVS
from rllib_damo.errors import UsageError
from rllib_damo.tasks import REFERENCE_RETURNS

DATASET = score_tables.Dataset("hopper-medium", 200_000, 400, "0123456789abcdef", 1568.0, 48.8)


def rows(*values: float, value: float | None = 5.0, every: int = 10) -> list[dict[str, Any]]:
    """Evaluations of these scores; the real discounted return is the score's tenth."""
    return [
        {"steps": every * (i + 1), "score": score, "discounted_return": score / 10, "value_estimate": value}
        for i, score in enumerate(values)
    ]


def test_a_seed_counts_by_its_last_three_evaluations() -> None:
    assert score_tables.last_mean(rows(90, 10, 20, 30)) == 20
    assert score_tables.last_mean(rows(10, 20)) == 15
    assert score_tables.last_mean([]) is None
    assert score_tables.last_mean(rows(1, value=None), "value_estimate") is None
    assert score_tables.best_so_far(rows(90, 10, 20, 30)) == 90


def test_summary_over_seeds() -> None:
    trials = [rows(90, 10, 20, 30), rows(0, 40, 40, 40, value=7.0), rows(50, 60, 70, 80)]
    summary = score_tables.summarise("hopper-medium", "damo", trials, steps=40)
    assert summary == score_tables.Summary(
        task="hopper-medium", method="damo", seeds=3, missing=0, score=pytest.approx(130 / 3),
        score_std=pytest.approx(math.sqrt(((20 - 130 / 3) ** 2 + (40 - 130 / 3) ** 2 + (70 - 130 / 3) ** 2) / 2)),
        worst=20, best=pytest.approx((90 + 40 + 80) / 3), value=pytest.approx(17 / 3),
        discounted_return=pytest.approx(13 / 3), scores=(20, 40, 70),
    )  # fmt: skip


def test_unfinished_seeds_are_missing_and_not_counted() -> None:
    summary = score_tables.summarise("t", "m", [rows(10, 20, 30, 40), rows(90, 90, 90), []], steps=40)
    assert (summary.seeds, summary.missing, summary.score, summary.score_std) == (1, 2, 30, None)
    empty = score_tables.summarise("t", "m", [[], rows(1)], steps=40)
    assert (empty.seeds, empty.missing, empty.score, empty.best) == (0, 2, None, None)


def test_a_method_without_critics_has_no_value() -> None:
    summary = score_tables.summarise("t", "bc", [rows(10, value=None)], steps=10)
    assert summary.value is None
    assert summary.discounted_return == 1


def test_table_names_steps_dataset_and_behaviour() -> None:
    summaries = [
        score_tables.summarise("hopper-medium", "damo", [rows(40, 50, 60), rows(60, 60, 60)], steps=30),
        score_tables.summarise("hopper-medium", "bc", [rows(20, value=None), []], steps=10),
        score_tables.summarise("hopper-medium", "mopo", [rows(20), []], steps=30),
    ]
    table = score_tables.markdown(summaries, {"hopper-medium": DATASET}, 30, 10, "python scores.py")
    assert "after 30 gradient steps" in table
    assert "last 3 evaluations of 10 episodes" in table
    assert "| hopper-medium | 200,000 | 400 | `0123456789ab` | 1568.0 | 48.8 |" in table
    assert "| hopper-medium | damo | 55.0 ± 7.1 | 50.0 | 48.8 | 5.0 | 5.5 | 2 | 60.0 |" in table
    assert "| hopper-medium | bc | 20.0 | 20.0 | 48.8 | - | 2.0 | 1 (1 missing) | 20.0 |" in table
    assert "| mopo |" not in table
    assert "| score | behaviour | damo | bc |" in table
    assert "\n| hopper-medium | 48.8 | 55.0 ± 7.1 | 20.0 |\n\n" in table
    assert "Without a finished seed: mopo on hopper-medium." in table
    assert "less the others" not in table  # no other method has several seeds
    summaries[1] = score_tables.summarise("hopper-medium", "bc", [rows(20), rows(30), []], steps=10)
    table = score_tables.markdown(summaries, {"hopper-medium": DATASET}, 30, 10, "python scores.py")
    assert "| task | bc |\n| --- | --- |\n| hopper-medium | 30.0 (-0.4 to 60.4) |" in table


def test_the_table_goes_between_the_markers() -> None:
    document = f"above\n{score_tables.BEGIN}\nold\n{score_tables.END}\nbelow\n"
    written = score_tables.replace_block(document, "new")
    assert written == f"above\n{score_tables.BEGIN}\nnew\n{score_tables.END}\nbelow\n"
    assert score_tables.replace_block(written, "new") == written
    assert score_tables.replace_block(scores.RESULTS.read_text(), "new").count("new\n") >= 1
    with pytest.raises(ValueError, match="needs one line"):
        score_tables.replace_block("nothing here", "new")


def test_curves_are_over_the_steps_that_all_begun_seeds_reached(tmp_path: Path) -> None:
    trials = [rows(0, 10, 20), rows(20, 30), []]
    assert score_tables.curve(trials) == [
        (10, 10, pytest.approx(math.sqrt(200))), (20, 20, pytest.approx(math.sqrt(200))),
    ]  # fmt: skip
    assert score_tables.curve([[]]) == []
    score_tables.plot({"hopper-medium": {"damo": trials, "bc": [[]]}}, {"hopper-medium": DATASET}, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


# -- command line, settings, resuming --------------------------------------------------------------------------------


def arguments(*extra: str) -> list[str]:
    return ["--tasks", "pendulum-mixed", "--out", "results", "--steps", "1000", "--eval-every", "500", *extra]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--methods", "sac"), "unknown 'sac'"),
        (("--eval-every", "300"), "must be a multiple of --eval-every"),
        (("--episodes", "0"), "--episodes must be at least 1"),
        (("--variant", "x"), "has no '='"),
        (("--variant", "x=damo"), "has no ':'"),
    ],
)
def test_command_line_errors(extra: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scores.parse(arguments(*extra))
    assert message in capsys.readouterr().err


def test_every_setting_of_the_table_is_valid() -> None:
    for task in ENVS:
        for method in score_settings.METHODS:
            score_settings.make_config(f"{task}-medium", method, 0, f"{task}-medium", {}, 10)
    with pytest.raises(UsageError, match="no setting 'etaa'"):
        score_settings.make_config("hopper-medium", "damo", 0, "hopper-medium", {"etaa": 1}, 10)
    with pytest.raises(UsageError, match="Did you mean 'hopper'"):
        score_settings.environment("hoper-medium")


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("MOBILE", "penalty_coef"),
        ("MOPO", "penalty_coef"),
        ("COMBO", "conservative_weight"),
        ("RAMBO", "adversarial_weight"),
    ],
)
def test_published_settings_of_a_task_are_those_of_the_docstring(name: str, weight: str) -> None:
    table = inspect.getdoc(type(ALGORITHMS[name].get_default_config()).paper)
    levels = re.search(r"^task +(.+)$", table, re.M)[1].split()
    rows = re.findall(r"^(halfcheetah|hopper|walker2d) +(\[.+)$", table, re.M)
    assert len(rows) == 3
    for environment, cells in rows:
        for level, pair in zip(levels, re.findall(r"\[(.+?), (.+?)\]", cells), strict=True):
            found = score_settings.settings(f"{environment}-{level}", f"{name.lower()}-paper")
            assert (found["rollout_length"], found[weight]) == tuple(map(float, pair)), (environment, level)


def test_settings_of_long_rollouts() -> None:
    """Each method's own weight; HalfCheetah's and Pendulum's rollouts are short."""
    weights = {
        "mopo": ("penalty_coef", 5.0, 0.5), "mobile": ("penalty_coef", 1.5, 0.5),
        "combo": ("conservative_weight", 5.0, 0.5), "rambo": ("adversarial_weight", 3e-4, 3e-4),
    }  # fmt: skip
    short = {"rollout_margin": None, "episode_start_ratio": 0.0, "policy_check_freq": 0, "tau": 0.005}
    for name in ("damo", *weights):
        option, hopper, cheetah = weights.get(name, ("eta", 1.0, 1.0))
        expected = {
            "hopper-medium": {"rollout_length": 200, "rollout_margin": 0.1, "policy_check_freq": 5000, option: hopper},
            "halfcheetah-medium": {"rollout_length": 5, "rollout_batch_size": 20_000, option: cheetah, **short},
            "pendulum-mixed": {"rollout_length": 3, "rollout_batch_size": 5_000, "hidden_dims": [64, 64], **short},
        }
        for task, options in expected.items():
            config = score_settings.make_config(task, f"{name}-long", 0, task, {}, 10)
            assert score_trials.options(config).items() >= options.items(), (name, task)


def test_hopper_random_has_settings_of_its_own() -> None:
    expected = {
        "damo-paper": {"eta": 2.0, "rollout_length": 5},
        "mopo": {"penalty_coef": 5.0, "rollout_length": 5},
        "mobile": {"penalty_coef": 5.0, "rollout_length": 5},
        "combo": {"conservative_weight": 0.5, "rollout_length": 5},
        "rambo": {"adversarial_weight": 3e-4, "rollout_length": 2},
        "rebrac": {"actor_bc_coef": 0.001, "critic_bc_coef": 0.01},
    }
    for method, options in expected.items():
        assert score_settings.settings("hopper-random@1M", method).items() >= options.items(), method


def test_alpha_is_fixed_in_published_mobile_on_hopper_medium_alone() -> None:
    def alpha(task: str, method: str) -> tuple[Any, ...]:
        config = score_settings.make_config(task, method, 0, task, {}, 10)
        return config.initial_alpha, config.max_alpha, config.target_entropy

    assert alpha("hopper-medium@1M", "mobile-paper") == (0.2, 0.2, 100)
    assert alpha("hopper-medium", "mobile") == (0.1, 1.0, "auto")
    for task in ("hopper-random", "hopper-medium-replay", "hopper-medium-expert", "walker2d-medium"):
        assert alpha(task, "mobile-paper") == (1.0, 1.0, "auto"), task


def test_rllibs_algorithms_count_their_steps_by_iterations() -> None:
    config = score_settings.make_config("pendulum-mixed", "rllib-bc", 0, "pendulum-mixed", {}, 10)
    assert score_settings.steps_per_iteration(config) == config.dataset_num_iters_per_learner == 1000
    assert score_trials.gradient_steps(argparse.Namespace(config=config, iteration=3), {}) == 3000


def test_trials_are_named_by_task_label_and_seed(tmp_path: Path) -> None:
    extra = ("--variant", 'x=damo:{"eta": 2.0}', "--methods", "damo", "x", "--seeds", "0", "1", "--input")
    args = scores.parse([*arguments(*extra, "pendulum-mixed=/data/p.hdf5"), "--out", str(tmp_path)])
    trials = scores.make_trials(args, {"pendulum-mixed": DATASET})
    assert [(t.label, t.method, t.seed) for t in trials] == [
        ("damo", "damo", 0), ("damo", "damo", 1), ("x", "damo", 0), ("x", "damo", 1),
    ]  # fmt: skip
    assert trials[2].config()["eta"] == 2.0
    assert trials[0].input_ == "/data/p.hdf5"
    assert trials[2].folder == tmp_path / "pendulum-mixed" / "x" / "seed0"
    args.eval_every = 250
    with pytest.raises(UsageError, match="multiple of an iteration's gradient steps"):
        scores.make_trials(args, {"pendulum-mixed": DATASET})


@pytest.fixture
def trial(tmp_path: Path) -> score_trials.Trial:
    return score_trials.Trial(
        task="pendulum-mixed", label="td3bc", method="td3bc", seed=0, input_="pendulum-mixed", fingerprint="f",
        overrides={}, eval_every=10, episodes=2, steps=30, out=str(tmp_path),
    )  # fmt: skip


def write_results(trial: score_trials.Trial, evaluations: list[dict[str, Any]]) -> None:
    trial.folder.mkdir(parents=True, exist_ok=True)
    (trial.folder / "trial.json").write_text(json.dumps(trial.identity()))
    (trial.folder / "evaluations.json").write_text(json.dumps(evaluations))


def test_a_trial_is_finished_by_the_evaluation_at_its_last_step(trial: score_trials.Trial) -> None:
    assert not score_trials.is_finished(trial)
    write_results(trial, rows(1, 2))
    assert not score_trials.is_finished(trial)
    write_results(trial, rows(1, 2, 3, 4))
    assert score_trials.is_finished(trial)
    assert [row["steps"] for row in score_trials.read_rows(trial)] == [10, 20, 30]
    assert not score_trials.is_finished(dataclasses.replace(trial, steps=50))
    checkpoint = trial.folder / "checkpoint"
    checkpoint.mkdir()
    for steps, is_finished in ((20, False), (30, True)):  # killed before the last checkpoint was written, or not
        (checkpoint / "progress.json").write_text(json.dumps({"steps": steps}))
        assert score_trials.is_finished(trial) == is_finished


@pytest.mark.parametrize(
    ("method", "change", "named"),
    [
        ("td3bc", {"overrides": {"bc_alpha": 1.0}}, "bc_alpha"),
        ("td3bc", {"fingerprint": "g"}, "fingerprint"),
        ("rllib-cql", {"overrides": {"critic_lr": 1e-3}}, "overrides"),
    ],
)
def test_results_of_other_settings_are_not_mixed(
    trial: score_trials.Trial, method: str, change: dict[str, Any], named: str
) -> None:
    trial = dataclasses.replace(trial, method=method)
    write_results(trial, rows(1, 2))
    assert len(score_trials.read_rows(trial)) == 2
    assert ("overrides" in trial.identity()) == (named == "overrides")
    with pytest.raises(ValueError, match=f"other {named}: give another --out"):
        score_trials.read_rows(dataclasses.replace(trial, **change))


def remove_option(trial: score_trials.Trial, option: str) -> None:
    """As if the results were of before it."""
    identity = json.loads((trial.folder / "trial.json").read_text())
    del identity[option]
    (trial.folder / "trial.json").write_text(json.dumps(identity))


def test_a_newer_option_at_its_default_does_not_part_results(trial: score_trials.Trial) -> None:
    write_results(trial, rows(1, 2))
    remove_option(trial, "policy_noise")
    assert len(score_trials.read_rows(trial)) == 2
    with pytest.raises(ValueError, match="other policy_noise"):
        score_trials.read_rows(dataclasses.replace(trial, overrides={"policy_noise": 0.3}))


def test_the_settings_of_a_method_part_results_of_before_the_option(trial: score_trials.Trial) -> None:
    """Without the option a run was as the algorithm's default is, whatever the method has today."""
    before = dataclasses.replace(trial, label="before", method="damo-long", overrides={"terminal_alignment": False})
    write_results(before, rows(1, 2))
    remove_option(before, "terminal_alignment")
    assert len(score_trials.read_rows(before)) == 2
    with pytest.raises(ValueError, match="other terminal_alignment"):
        score_trials.read_rows(dataclasses.replace(before, overrides={}))


def test_an_option_that_is_gone_or_not_read_does_not_part_results(trial: score_trials.Trial) -> None:
    """Cloning has no targets: another default of `tau` changes nothing."""
    cloning = dataclasses.replace(trial, label="bc", method="bc")
    assert not {"tau", "real_ratio", "num_ensemble"} & cloning.identity().keys()
    assert {"hidden_dims", "data_fraction", "gamma"} <= cloning.identity().keys()
    write_results(cloning, rows(1, 2))
    identity = json.loads((cloning.folder / "trial.json").read_text())
    (cloning.folder / "trial.json").write_text(json.dumps({**identity, "tau": 0.7, "an_option_of_the_past": False}))
    assert len(score_trials.read_rows(cloning)) == 2
    with pytest.raises(ValueError, match="other data_fraction:"):
        score_trials.read_rows(dataclasses.replace(cloning, overrides={"data_fraction": 0.2}))
    assert {"tau", "num_ensemble"} <= dataclasses.replace(trial, label="mopo", method="mopo").identity().keys()


def test_report_only_runs_nothing(
    trial: score_trials.Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of what is there, with what is missing counted; exit code 1 for the latter."""
    monkeypatch.setattr(scores, "describe", lambda task, input_: dataclasses.replace(DATASET, fingerprint="f"))
    monkeypatch.setattr(scores, "run", lambda *args: pytest.fail("something ran"))
    extra = ["--methods", "td3bc", "--seeds", "0", "1", "--steps", "30", "--eval-every", "10", "--episodes", "2"]
    small = ["--variant", 'td3bc=td3bc:{"rollout_freq": 10}', "--report-only"]
    monkeypatch.setattr(sys, "argv", ["scores.py", "--tasks", "pendulum-mixed", "--out", str(tmp_path), *extra, *small])
    write_results(dataclasses.replace(trial, overrides={"rollout_freq": 10}), rows(1, 2, 3))
    assert scores.main() == 1
    assert "1 (1 missing)" in capsys.readouterr().out


def test_episodes_are_played_each_to_its_own_end() -> None:
    """With another number of episodes beside it, an episode is the same; a fall starts no second one."""

    class Still:
        def __call__(self, observations: np.ndarray) -> np.ndarray:
            return np.zeros((len(observations), 3))

    policy: Any = Still()
    played = score_trials.play_episodes(policy, "Hopper-v5", 4, seed=7)
    lengths = [len(rewards) for rewards in played]
    assert len(played) == 4
    assert len(set(lengths)) > 1
    start = int(np.random.SeedSequence(7).generate_state(4)[2])
    env = gym.make("Hopper-v5")
    env.reset(seed=start)
    alone, terminated = [], False
    while not terminated:
        _, reward, terminated, _, _ = env.step(np.zeros(3))
        alone.append(reward)
    np.testing.assert_array_equal(played[2], alone)


@pytest.mark.parametrize("method", ["rllib-cql", "rllib-iql"])
def test_rllibs_own_train_and_go_on(
    method: str, ray_cluster: None, dataset: str, trial: score_trials.Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an iteration is one round of updates, however short
    overrides = {"dataset_num_iters_per_learner": 3, "min_time_s_per_iteration": None}
    first = dataclasses.replace(
        trial, method=method, input_=dataset, overrides=overrides, eval_every=3, episodes=1, steps=3
    )
    counts, updates, gradient_steps = [], [], score_trials.gradient_steps

    def count(*args: Any) -> int:
        counts.append(gradient_steps(*args))
        return counts[-1]

    def measure(algo: Any, *args: Any) -> dict[str, Any]:
        (_, optimizer), *_ = algo.learner_group._learner.get_optimizers_for_module("default_policy")
        updates.append({int(state["step"]) for state in optimizer.state.values()})
        return {}

    monkeypatch.setattr(score_trials, "gradient_steps", count)
    for one in (first, dataclasses.replace(first, steps=6)):
        score_trials.train(one, lambda row: None, measure)
        assert score_trials.is_finished(one)
    assert counts == [3, 6]
    assert updates == [{3}, {6}]
    assert [row["steps"] for row in score_trials.read_rows(one)] == [3, 6]


def test_a_row_of_an_evaluation() -> None:
    row = score_trials._row("hopper-medium", 10, [np.array([1.0, 2.0]), np.array([4.0])], 0.5, 3.0, 1.26)
    low, high = REFERENCE_RETURNS["hopper"]
    assert row == {
        "steps": 10, "return": 3.5, "return_std": 0.5, "score": pytest.approx(100 * (3.5 - low) / (high - low)),
        "discounted_return": 3.0, "value_estimate": 3.0, "seconds": 1.3,
    }  # fmt: skip


def test_options_are_a_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    score_settings.add_options(parser)
    assert parser.parse_args([]).options == {}
    assert parser.parse_args(["--options", '{"tau": 0.005}']).options == {"tau": 0.005}
    for wrong, message in (("[1]", "must be a JSON object"), ("{tau: 1}", "not valid JSON")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--options", wrong])
        assert message in capsys.readouterr().err
