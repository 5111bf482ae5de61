"""benchmarks/paper/: two-sample tests, values of random actions, what variants differ in, tables of made-up rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "paper"))

import distributions
import figures
import runs
import score_tables
import score_trials
from two_sample import Sample, compare, outside, plane

from rllib_damo import DAMOConfig
from rllib_damo.command.inputs import load_file
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.dynamics.known_range import KnownRange
from rllib_damo.evaluation.policy import Policy

DATASET = score_tables.Dataset("hopper-medium", 200_000, 400, "f", 1568.0, 48.8)


def normal(seed: int, *shape: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape) + shift


# -- two samples -----------------------------------------------------------------------------------------------------


def test_mmd_is_the_unbiased_estimate_with_the_median_width() -> None:
    x, y = normal(0, 6, 2), normal(1, 4, 2, shift=0.5)
    both = np.concatenate((x, y))
    squared = [((both[i] - both[j]) ** 2).sum() for i in range(10) for j in range(i)]

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * np.sort(squared)[22])))  # of 45

    within_x = sum(kernel(x[i], x[j]) for i in range(6) for j in range(6) if i != j) / 30
    within_y = sum(kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
    between = sum(kernel(a, b) for a in x for b in y) / 24
    found = compare(Sample.independent(x), Sample.independent(y))["mmd2"]
    assert found.value == pytest.approx(within_x + within_y - 2 * between, abs=1e-9)


def test_p_values_are_uniform_where_samples_are_equal_in_distribution() -> None:
    drawn = [[Sample.independent(normal(seed, 40, 3)) for seed in (2 * i, 2 * i + 1)] for i in range(60)]
    found = [compare(x, y) for x, y in drawn]
    for name in ("mmd2", "accuracy"):
        p = np.array([one[name].p_value for one in found])
        assert 0.4 < p.mean() < 0.6
        assert 0.02 < (p < 0.1).mean() < 0.2
        assert 0.85 < np.mean([one[name].low <= one[name].value <= one[name].high for one in found]) <= 1
    assert abs(np.mean([one["mmd2"].value for one in found])) < 0.003  # unbiased
    assert np.mean([one["accuracy"].value for one in found]) == pytest.approx(0.5, abs=0.03)


def test_a_shift_is_found() -> None:
    x = Sample.independent(normal(0, 200, 3))
    found = compare(x, Sample.independent(normal(1, 200, 3, shift=0.5)))
    for one in found.values():
        assert one.p_value == pytest.approx(1 / 500)
        assert one.value > one.high
    assert 0.58 < found["accuracy"].value < 0.72  # the best classifier has 0.667
    far = compare(x, Sample.independent(normal(1, 200, 3, shift=3.0)))
    assert far["accuracy"].value > 0.97
    assert far["mmd2"].value > 3 * found["mmd2"].value


def test_equal_samples_are_not_told_apart() -> None:
    x, y = (Sample.independent(normal(i, 300, 3)) for i in (0, 1))
    found = compare(x, y)
    assert found["accuracy"].value == pytest.approx(0.5, abs=0.05)
    assert found["accuracy"].low == pytest.approx(0.45, abs=0.03)
    assert found["accuracy"].high == pytest.approx(0.55, abs=0.03)


def test_more_than_means_and_variances_are_seen() -> None:
    x, y = normal(0, 300, 2), normal(1, 300, 2)
    together = np.stack((y[:, 0], y[:, 0] + 0.3 * y[:, 1]), 1) / (1.0, 1.09**0.5)
    found = compare(Sample.independent(x), Sample.independent(together))
    assert found["accuracy"].value > 0.7
    assert found["mmd2"].value > found["mmd2"].high


def test_rows_of_one_episode_are_not_taken_for_independent() -> None:
    """Ten episodes of either sample, each in a place of its own: only the number of rows makes them look unlike."""
    groups = np.repeat(np.arange(10), 30)
    x, y = (Sample(2 * normal(seed, 10, 3)[groups] + 0.1 * normal(seed + 10, 300, 3), groups) for seed in (0, 1))
    alone, found = compare(*(Sample.independent(one.rows) for one in (x, y))), compare(x, y)
    assert max(one.p_value for one in alone.values()) < 0.01
    assert min(one.p_value for one in found.values()) > 0.1
    assert alone["accuracy"].value > 0.8
    assert found["accuracy"].value < 0.75


def test_rows_outside_are_farther_than_nearly_all_of_the_data() -> None:
    reference, own = normal(0, 500, 2), normal(1, 500, 2)
    rows = np.concatenate((normal(2, 70, 2), normal(3, 30, 2, shift=9.0)))
    assert outside(reference, own, rows) == pytest.approx(0.3, abs=0.03)
    assert outside(reference, own, own) == pytest.approx(0.01, abs=1e-9)


def test_the_plane_has_the_directions_of_most_variance() -> None:
    rows = normal(0, 300, 4) * (0.1, 3.0, 0.2, 1.0)
    found = plane(rows)
    assert found.shape == (4, 2)
    np.testing.assert_allclose(found, np.eye(4)[:, [1, 3]], atol=0.15)
    np.testing.assert_allclose(found.T @ found, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(plane(-rows), found, atol=1e-6)


class Counter:
    """A model in which each step adds 1 to the first column."""

    act_dim = 1

    def sampler(self) -> Any:
        return lambda obs, actions, generator: (obs + torch.tensor([1.0, 0.0]), actions[:, 0])


def test_episodes_in_the_model_end_by_the_rule_the_range_or_the_length() -> None:
    known = KnownRange(torch.tensor([-9.0, -9.0]), torch.tensor([9.0, 9.0]), 0.0, 1.0)
    starts = torch.tensor([[0.0, 0.0], [8.0, 0.0], [-9.0, 1.0]])

    def rule(obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        return (next_obs[:, 0] > 2) & (next_obs[:, 0] < 5)

    found = distributions.model_episodes(lambda obs: obs[:, :1], Counter(), rule, known, starts, length=6, seed=0)
    by_group = [found.rows[found.groups == group][:, 0].tolist() for group in range(3)]
    assert by_group == [[0, 1, 2], [8, 9], [-9, -8, -7, -6, -5, -4]]


def test_as_many_rows_are_drawn_of_either_sample() -> None:
    x, y = Sample(normal(0, 30, 2), np.arange(30)), Sample(normal(1, 20, 2), np.arange(20) % 4)
    drawn = distributions.drawn(x, y, np.random.default_rng(0))
    assert [len(one.rows) for one in drawn] == [20, 20]
    np.testing.assert_array_equal(drawn[0].rows, x.rows[drawn[0].groups])


# -- the runs --------------------------------------------------------------------------------------------------------


def test_values_of_random_actions_are_those_of_the_smallest_critic() -> None:
    obs, actions = torch.full((20_000, 2), 3.0), torch.full((20_000, 2), 0.5)

    def critics(obs: Tensor, actions: Tensor) -> Tensor:
        value = obs[:, 0] - actions.square().sum(-1)
        return torch.stack((value, value + 1))

    found = runs.action_values(critics, obs, actions, torch.Generator().manual_seed(0))
    assert found["value_data"] == pytest.approx(2.5)
    assert found["value_random"] == pytest.approx(3 - 2 / 3, abs=0.02)  # E a² = 1/3


@pytest.mark.parametrize("checks", [0, 5])
def test_the_newest_policy_is_played_whatever_is_delivered(checks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    env = gym.make("Pendulum-v1")
    config = DAMOConfig().environment("Pendulum-v1").training(policy_check_freq=checks, hidden_dims=(4,))
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    module = DAMOTorchRLModule(**spaces, model_config=config.model_config)
    for i, name in enumerate(("actor", "averaged_actor", "kept_actor")):
        for parameter in getattr(module, name).parameters() if hasattr(module, name) else ():
            parameter.data.fill_(i)

    def play(policy: Policy, env_id: str, episodes: int, seed: int) -> list[np.ndarray]:
        assert (env_id, episodes, seed) == ("Pendulum-v1", 2, 7)
        return [np.array([sum(float(p.sum()) for p in policy.module.played_actor.parameters()), 1.0])]

    monkeypatch.setattr(runs, "play_episodes", play)
    measure = runs.Measure.__new__(runs.Measure)
    measure._task, measure._episodes, measure._gamma = "pendulum-mixed", 2, 0.5
    measure._starts = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    found = measure._newest(Policy(module), 7)
    assert found["newest_discounted_return"] == 0.5
    values = module.critics(measure._starts, torch.zeros(5, 1)).amin(0).mean()  # the actor's weights are 0
    assert found["newest_value_estimate"] == pytest.approx(values.item())
    assert module.played_actor is not module.actor


def trials(task: str = "hopper-medium", *extra: str) -> dict[str, score_trials.Trial]:
    return {trial.label: trial for trial in runs.trials(runs.parse([task, *extra]), task, DATASET)}


def test_variants_differ_in_what_their_name_says_alone() -> None:
    """And all share one dynamics model."""
    options = {label: score_trials.options(trial.config()) for label, trial in trials().items()}
    before = "zero-terminals", "eta-5-zero-terminals", "average", "mopo-average"
    earlier = trials("hopper-medium", "--variants", *before)
    full = options.pop("full")
    assert (full["eta"], full["actor_eta"], full["bc_weight"], full["data_fraction"]) == (1, 1, 0, 1)
    mopo = options.pop("mopo")
    assert [key for key in full.keys() & mopo.keys() if full[key] != mopo[key]] == []
    options |= {label: score_trials.options(trial.config()) for label, trial in earlier.items()}
    for penalty in (0.5, 1, 2.5, 5, 10, 20):
        assert options.pop(f"mopo-{penalty:g}") == {**mopo, "penalty_coef": penalty}
    average = options.pop("mopo-average")
    assert {key: average[key] for key in mopo if average[key] != mopo[key]} == {"policy_check_freq": 0}
    assert {"rollout_length", "tau", "actor_lr", "dynamics_lr", "dynamics_max_epochs"} <= mopo.keys()
    changes = {label: {key: one[key] for key in full if one[key] != full[key]} for label, one in options.items()}
    assert changes == {
        "no-er": {"data_alignment": False},
        "no-ir": {"behavior_alignment": False},
        "inconsistent": {"policy_improvement": "inconsistent"},
        "zero-terminals": {"terminal_alignment": False},
        "eta-5-zero-terminals": {"terminal_alignment": False, "eta": 5},
        "average": {"terminal_alignment": False, "policy_check_freq": 0},
        **{f"eta-{eta:g}": {"eta": eta} for eta in (0.1, 0.5, 2, 3, 5)},
        **{f"eta-{eta:g}-free": {"eta": eta, "actor_eta": None} for eta in (0.1, 0.5, 2, 3, 5)},
    }


def test_the_example_without_an_anchor_has_the_options_of_full() -> None:
    config, _ = load_file(Path(__file__).parent.parent / "tuned_examples" / "damo_hopper_medium.py")
    assert score_trials.options(config) == score_trials.options(trials()["full"].config())


def test_runs_are_in_the_order_of_seeds_and_named_by_groups() -> None:
    args = runs.parse(["walker2d-medium", "--variants", "mopo", "ablations", "--seeds", "0", "1", "--out", "there"])
    assert args.variants == ["mopo", "full", "no-er", "no-ir", "inconsistent"]
    found = runs.trials(args, "walker2d-medium", DATASET)
    assert [(trial.seed, trial.label) for trial in found] == [
        (seed, label) for seed in (0, 1) for label in args.variants
    ]
    assert found[1].folder == Path("there").absolute() / "walker2d-medium" / "full" / "seed0"
    own = trials("hopper-medium", "--variants", "full", "--options", '{"eta": 0.3}')
    assert own["full"].config()["eta"] == 0.3
    own = trials("hopper-medium", "--variants", "eta-3", "--options", '{"eta": 0.3, "gamma": 0.9}')
    assert (own["eta-3"].config()["eta"], own["eta-3"].config()["gamma"]) == (3, 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hopper-medium", "--variants", "no-ee"], "unknown 'no-ee'. Did you mean 'no-er'"),
        (["hoper-medium"], "Did you mean 'hopper'"),
        (["hopper-medium", "--steps", "12000"], "--steps (12000) must be a multiple of --eval-every (5000)"),
    ],
)
def test_command_line_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runs.parse(arguments)
    assert message in capsys.readouterr().err


# -- tables ----------------------------------------------------------------------------------------------------------


def write_run(folder: Path, label: str, score: float, value: float, steps: int = 30, seed: int = 0) -> None:
    """Evaluations every ten steps, the first one far from the others; the real discounted return is 100."""
    rows = [
        {
            "steps": step, "score": score if step > 10 else -900.0, "value_estimate": value, "discounted_return": 100.0,
            "value_random": value - 10, "value_data": value + 10, "density_ratio_mean": score / 100,
            "path_falls": 0.5, "path_excess": 3.25 if label == "full" else None,
        }
        for step in range(10, steps + 1, 10)
    ]  # fmt: skip
    place = folder / "hopper-medium" / label / f"seed{seed}"
    place.mkdir(parents=True)
    (place / "evaluations.json").write_text(json.dumps(rows))
    (folder / "hopper-medium" / "dataset.json").write_text(json.dumps({"behavior_score": 48.8}))


def drawn(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *extra: str) -> dict[str, Any]:
    """Runs the command, and returns the variants of its JSON file."""
    monkeypatch.setattr(figures, "LAST", 2)
    places = ["--runs", str(folder), "--out", str(folder / "out")]
    monkeypatch.setattr(sys, "argv", ["figures.py", name, "hopper-medium", *places, *extra])
    assert figures.main() == 0
    assert (folder / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((folder / "out" / f"{name}.json").read_text())["hopper-medium"]["variants"]


def test_table_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "full", 60, value=80)
    write_run(tmp_path, "full", 50, value=90, seed=1)
    write_run(tmp_path, "inconsistent", 50, value=120)
    found = drawn("table1", tmp_path, monkeypatch)
    text = capsys.readouterr().out
    assert "| hopper-medium | consistent | evaluated | 85.0 | 100.0 | yes | 4 of 4 |" in text
    assert "| hopper-medium | inconsistent | evaluated | 120.0 | 100.0 | no | 0 of 2 |" in text
    assert found["full"]["by_seed"]["value_estimate"] == [80, 90]
    assert (found["full"]["seeds"], found["full"]["steps"], found["full"]["score"]) == (2, 30, 55)

    (tmp_path / "hopper-medium").rename(tmp_path / "walker2d-medium")  # a later run of another task
    monkeypatch.setattr(sys, "argv", [*(arg.replace("hopper-m", "walker2d-m") for arg in sys.argv), "--add"])
    assert figures.main() == 0
    text = capsys.readouterr().out
    for task in ("hopper-medium", "walker2d-medium"):
        assert f"| {task} | consistent | evaluated | 85.0 | 100.0 | yes | 4 of 4 |" in text


def test_table_1_is_of_the_policy_that_the_critics_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moving average has 100, the policy of the gradient step 70."""
    write_run(tmp_path, "full", 60, value=80)
    file = tmp_path / "hopper-medium" / "full" / "seed0" / "evaluations.json"
    rows = [row | {"newest_discounted_return": 70.0} for row in json.loads(file.read_text())]
    file.write_text(json.dumps(rows))
    found = drawn("table1", tmp_path, monkeypatch)["full"]
    assert (found["value_estimate"], found["discounted_return"], found["policy"]) == (80, 100, "evaluated")
    file.write_text(json.dumps([row | {"newest_value_estimate": 75.0} for row in rows]))
    found = drawn("table1", tmp_path, monkeypatch)["full"]
    assert (found["value_estimate"], found["discounted_return"], found["policy"]) == (75, 70, "gradient step")
    assert (found["is_conservative"], found["conservative_evaluations"]) == (False, 0)
    write_run(tmp_path, "inconsistent", 50, value=120)  # an older one
    assert drawn("table1", tmp_path, monkeypatch)["full"]["value_estimate"] == 80


def test_ablations_are_compared_at_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "full", 60, value=80, steps=40)
    write_run(tmp_path, "no-er", 40, value=200, steps=20)
    found = drawn("ablations", tmp_path, monkeypatch)
    text = capsys.readouterr().out
    assert "| hopper-medium | no-er | 40.0 | 190.0 | 210.0 | 0.50 | - |" in text
    assert "| hopper-medium | full | 60.0 | 70.0 | 90.0 | 0.50 | 3.2 |" in text
    assert "- hopper-medium: 20 steps, means of the last 1 evaluations; seeds: full, no-er: 1." in text
    assert {label: one["steps"] for label, one in found.items()} == {"full": 20, "no-er": 20}
    assert found["full"]["curve"] == {
        "steps": [10, 20], "score": [-900, 60], "value_random": [70, 70], "value_data": [90, 90],
    }  # fmt: skip
    found = drawn("ablations", tmp_path, monkeypatch, "--steps", "40")
    assert {label: one["score"] for label, one in found.items()} == {"full": 60}


def test_eta_fixed_and_free_beside_mopos_penalty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for label, score in (("full", 60.0), ("eta-0.1", 50.0), ("eta-3", 40.0), ("eta-3-free", 30.0)):
        write_run(tmp_path, label, score, value=80)
    for label, score in (("mopo-2.5", 20.0), ("mopo", 25.0)):
        write_run(tmp_path, label, score, value=80)
        file = tmp_path / "hopper-medium" / label / "seed0" / "evaluations.json"
        rows = json.loads(file.read_text())  # MOPO has no weight
        file.write_text(json.dumps([{key: row[key] for key in row if key != "density_ratio_mean"} for row in rows]))
    drawn("eta", tmp_path, monkeypatch)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| hopper")]
    assert lines == [
        "| hopper-medium | η = 0.1 | 50.0 | - | 0.50 | - |",
        "| hopper-medium | η = 1 | 60.0 | 60.0 | 0.60 | 0.60 |",
        "| hopper-medium | η = 3 | 40.0 | 30.0 | 0.40 | 0.30 |",
        "| hopper-medium | MOPO, penalty 2.5 | 20.0 | - | - | - |",
        "| hopper-medium | MOPO, public code's | 25.0 | - | - | - |",
    ]


@pytest.mark.parametrize(("num", "kept"), [(1, 1), (2, 1), (3, 2), (15, 8), (20, 10), (50, 10)])
def test_a_result_is_of_the_last_ten_evaluations_or_of_the_later_half(num: int, kept: int) -> None:
    assert figures.last([{"steps": i} for i in range(num)]) == [{"steps": i} for i in range(num - kept, num)]


def test_checkpoints_of_different_steps_are_not_compared(tmp_path: Path) -> None:
    folders = {label: tmp_path / label for label in ("full", "no-er")}
    for steps, folder in zip((100, 200), folders.values(), strict=True):
        (folder / "checkpoint").mkdir(parents=True)
        (folder / "checkpoint" / "progress.json").write_text(json.dumps({"steps": steps}))
    with pytest.raises(ValueError, match=f"no checkpoint in {folders['full']}, {folders['no-er']}: run runs.py"):
        distributions.same_steps(folders)
    for folder in folders.values():
        (folder / runs.MODEL).touch()
    with pytest.raises(ValueError, match=r"different gradient steps, \{'full': 100, 'no-er': 200\}"):
        distributions.same_steps(folders)
    del folders["full"]
    assert distributions.same_steps(folders) == 200


def test_no_runs_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module, arguments in ((figures, ["eta", "hopper-medium"]), (distributions, ["hopper-medium"])):
        monkeypatch.setattr(sys, "argv", ["x.py", *arguments, "--runs", str(tmp_path)])
        assert module.main() == 2
        assert "runs.py" in capsys.readouterr().err
    write_run(tmp_path, "full", 60, value=80)
    with pytest.raises(FileNotFoundError, match="no run of full of 50 steps"):
        figures.load(tmp_path, "hopper-medium", ["full"], 50)


@pytest.mark.slow
def test_runs_and_figures_from_beginning_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {
        "hidden_dims": [32, 32], "rollout_freq": 50, "rollout_batch_size": 100, "dynamics_max_epochs": 2,
        "num_ensemble": 3, "num_elites": 2, "dynamics_hidden_dims": [32, 32], "dynamics_weight_decay": [0, 0, 0],
        "dynamics_cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip

    def call(module: Any, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
        assert module.main() == 0

    run = ["pendulum-mixed", "--variants", "ablations", "--eval-every", "100", "--episodes", "2"]
    run += ["--out", str(tmp_path / "runs"), "--options", json.dumps(small)]
    call(runs, *run, "--steps", "100")
    call(runs, *run, "--steps", "200")
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    for name in ("table1", "ablations"):
        call(figures, name, "pendulum-mixed", *places)
        found = json.loads((tmp_path / f"{name}.json").read_text())["pendulum-mixed"]["variants"]
        assert found["full"]["curve"]["steps"] == [100, 200]
    call(distributions, "pendulum-mixed", *places)
    found = json.loads((tmp_path / "distributions-pendulum-mixed.json").read_text())
    assert [*found] == ["full", "no-er", "no-ir", "mopo"]
    assert 0.4 < found["full"]["offline_synthetic"]["accuracy"]["value"] <= 1
    assert found["full"]["real_model"]["steps_real"] == 200
