"""The HTML report of a run: every chart that the results hold, in one file that needs nothing else."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pyarrow import fs

from rllib_damo import DAMOConfig
from rllib_damo.command.data import invoke
from rllib_damo.core.changed_options import plain
from rllib_damo.errors import UsageError
from rllib_damo.report import charts, runs, svg
from rllib_damo.report.page import write_report
from rllib_damo.report.runs import Trial, read_run
from rllib_damo.report.signs import SIGNS

DOCS = Path(__file__).parent.parent / "docs"
CONFIG = plain(DAMOConfig().to_dict()) | {"env": "Pendulum-v1", "input": "pendulum-mixed", "seed": 0}
VOID = {"meta", "br", "line", "path", "circle", "rect", "polygon"}


def epoch(number: int, loss: float) -> dict[str, Any]:
    """A result of the phase in which the model is trained."""
    return {
        "training_iteration": number, "phase": "dynamics", "num_gradient_steps_lifetime": 0, "time_total_s": number,
        "dynamics": {
            "epoch": number, "train_loss": loss - 0.1, "holdout_loss": loss, "holdout_mse": 0.1,
            "holdout_calibration": 1.2,
        },
    }  # fmt: skip


def result(iteration: int, *, score: float | None = None, **learner: float) -> dict[str, Any]:
    """A result after gradient steps, evaluated if there is a score."""
    metrics = {
        "initial_value_mean": -50.0, "qf_mean": -40.0, "qf_initial_mean": -45.0, "td_error_abs": 1.0,
        "classifier_accuracy": 0.7, "logit_offline_mean": 0.5, "logit_synthetic_mean": -0.5, "density_ratio_mean": 1.1,
        "qf_loss": 2.0, "policy_loss": math.nan, "actor_learning_rate": 3e-4,
    } | learner  # fmt: skip
    row: dict[str, Any] = {
        "training_iteration": iteration, "phase": "policy", "num_gradient_steps_lifetime": 1000 * iteration,
        "time_total_s": 10.0 * iteration, "done": False, "config": {"env": "Pendulum-v1"},
        "learners": {"default_policy": metrics},
        "env_runners": {"rollout": {"num_transitions": 500, "reward_mean": -3.0, "terminated_frac": 0.0}},
        "dynamics": {"epoch": math.nan, "holdout_loss": math.nan},
        "dataset": {
            "name": "pendulum/mixed", "fingerprint": "abc123", "num_episodes": 150.0, "episode_return_mean": -800.0,
            "episode_return_std": 400.0, "episode_return_min": -1800.0, "episode_return_max": -1.0,
            "discounted_return_mean": -380.0, "terminated_frac": 0.0,
        },
        "versions": {"rllib_damo": "0.2.0", "ray": "2.60.0"},
        "model_error": {
            str(h): {"error": 0.1 * h, "predicted_std": 0.08 * h, "within_1_std": 0.5, "within_2_std": 0.8}
            for h in (20, 1, 5)
        },
    }  # fmt: skip
    if score is not None:
        evaluation = {
            "episode_return_mean": 10 * score - 1000, "episode_return_std": 50.0, "normalized_score": score,
            "normalized_score_std": 5.0, "discounted_return_mean": 5 * score - 500,
        }  # fmt: skip
        offline = {"fqe_value": -390.0, "fqe_against_clone": 20.0, "implausible": 0.0, "seconds": 5.0}
        row["evaluation"] = {"env_runners": evaluation, "offline_eval_runners": offline}
    return row


def write_trial(folder: Path, rows: list[dict], *, end: str = "", error: str = "", **settings: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(CONFIG | settings))
    (folder / "result.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    if error:
        (folder / "error.txt").write_text(error)
    return folder


def write_search(folder: Path) -> Path:
    """2 values of eta with 3 lengths each; the score grows with both."""
    for eta in (0.5, 2.0):
        for length in (1, 3, 5):
            rows = [result(i, score=10 * eta + length + i) for i in range(1, 5)]
            rows[-1]["done"] = True
            write_trial(folder / f"DAMO_Pendulum_{eta}_{length}", rows, eta=eta, rollout_length=length)
    return folder


class Page(HTMLParser):
    """What a page holds; fails where tags are not closed in order."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.titles: dict[str, list[str]] = {"h2": [], "figcaption": [], "h3": [], "li": []}
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.source = file.read_text()
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in self.titles:
            self.titles[tag].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        for tag in self.titles:
            if tag in self.open:
                self.titles[tag][-1] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def pictures(self) -> list[str | None]:
        return [attrs["aria-label"] for tag, attrs in self.tags if tag == "svg"]


def report(place: Any, folder: Path) -> Page:
    return Page(write_report(place, folder / "report.html"))


@pytest.fixture
def single(tmp_path: Path) -> Path:
    rows = [epoch(i, 3.0 / i) for i in range(1, 4)]
    rows += [result(i, score=20.0 + i if i % 2 else None) for i in range(4, 12)]
    rows[-1] |= {"done": True, "warnings": "pendulum: there are 5 `rows`, which are few."}
    return write_trial(tmp_path / "run" / "DAMO_Pendulum-v1_1", rows, eta=0.25).parent


CHARTS = {
    "Return in the environment", "Normalised score", "Returns", "Value: estimated and real", "Q of the batch",
    "Bellman residual", "Value without a simulator", "Value against a clone", "Implausible value",
    "Error of the model along real episodes", "Errors within the predicted range", "Classifier's accuracy",
    "Classifier's logits", "Density ratio", "Loss of the dynamics model",
    "Calibration of the dynamics model", "Squared error on held-out rows", "Rows of a round", "Mean reward",
    "Share of terminal rows", "Qf loss",
}  # fmt: skip
OF_THE_MODEL = {
    "Loss of the dynamics model", "Calibration of the dynamics model", "Squared error on held-out rows",
}  # fmt: skip


def test_every_chart_is_there(single: Path, tmp_path: Path) -> None:
    page = report(single, tmp_path)
    assert set(page.titles["figcaption"]) == CHARTS
    assert page.pictures() == page.titles["figcaption"]
    lines = [attrs["d"] for tag, attrs in page.tags if tag == "path"]
    assert len(lines) == len(CHARTS) + 6 - 1  # 6 charts have two lines, and the returns none
    assert not any("nan" in str(value) for _, attrs in page.tags for value in attrs.values())
    assert "data −800" in page.text
    assert "data −380" in page.text
    assert "clone 0" in page.text


def test_the_models_error_is_drawn_over_its_steps(single: Path, tmp_path: Path) -> None:
    (trial,) = read_run(single).trials
    assert trial.points("model_error/*/error") == [(1, 0.1), (5, 0.5), (20, 2.0)]
    assert trial.points("model_error/*/none") == []
    page = report(single, tmp_path)
    for text in ("real: 2 at 20", "predicted: 1.6 at 20", "1 std: 0.5 at 5", "right for 2 0.95", "steps in the model"):
        assert text in page.text, text


def test_facts_are_there(single: Path, tmp_path: Path) -> None:
    page = report(single, tmp_path)
    for fact in ("finished", "27", "11k", "1 min 50 s", "abc123", "2.60.0"):
        assert fact in page.text, fact
    assert ["eta", "0.25", "1.0"] in page.tables[1]
    assert ["env", "Pendulum-v1", "None"] in page.tables[1]
    assert page.titles["li"] == ["pendulum: there are 5 rows, which are few."]


def test_the_environment_may_be_the_evaluations_alone(tmp_path: Path) -> None:
    settings = {"env": None, "evaluation_config": {"env": "Hopper-v5"}}
    folder = write_trial(tmp_path / "run" / "DAMO_0", [result(1)], **settings)
    assert "DAMO · Hopper-v5 · pendulum/mixed" in report(folder, tmp_path).source


def test_the_page_needs_nothing_else(single: Path, tmp_path: Path) -> None:
    page = report(single, tmp_path)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "image", "use")
        assert not any(name.startswith("on") or name in ("src", "xlink:href") for name in attrs)
        if "href" in attrs:
            assert str(attrs["href"]).removeprefix("#") in ids
    for word in ("http", "url(", "@import", "//"):
        assert word not in page.source.replace("s3://", ""), word
    assert "prefers-color-scheme: dark" in page.source
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_what_results_do_not_hold_is_left_out(tmp_path: Path) -> None:
    rows = [
        {"training_iteration": i, "num_env_steps_sampled_lifetime": 200 * i, "env_runners": {"episode_return_mean": i}}
        for i in range(1, 4)
    ]
    page = report(write_trial(tmp_path / "PPO_Pendulum-v1_1", rows), tmp_path)
    assert page.titles["figcaption"] == ["Return while training"]
    assert page.titles["h2"] == ["What to look at", "Learning", "Dataset", "Configuration"]
    assert "environment steps" in page.text


def test_a_search_is_sorted_by_its_last_three_evaluations(tmp_path: Path) -> None:
    page = report(write_search(tmp_path / "search"), tmp_path)
    head, *rows = page.tables[0]
    assert head == ["", "eta", "rollout_length", "score", "score, best", "return", "return, best", "steps", "state"]
    assert rows[0] == ["1", "2", "5", "28", "29", "−720", "−710", "4,000", "finished"]
    assert [row[1:3] for row in rows[1:]] == [["2", "3"], ["2", "1"], ["0.5", "5"], ["0.5", "3"], ["0.5", "1"]]
    assert page.titles["figcaption"][:2] == ["Score by eta and rollout_length", "Settings and score"]
    assert set(page.titles["figcaption"][2:]) == CHARTS - OF_THE_MODEL
    for cell in ("24", "26", "28", "9", "11", "13"):
        assert cell in page.words
    assert "1: eta=2, rollout_length=5" in page.text
    one_colour = {
        attrs["class"] for tag, attrs in page.tags if tag == "path" and str(attrs["class"]).startswith("line c")
    }
    assert one_colour == {f"line c{i}" for i in range(1, 7)}


def test_the_page_says_how_many_evaluations_a_score_has(single: Path, tmp_path: Path) -> None:
    assert "Score, last 3 evaluations" in report(single, tmp_path).text
    one = write_trial(tmp_path / "one" / "DAMO_a", [result(1), result(2, score=5.0)], seed=1).parent
    text = report(one, tmp_path).text
    assert "Score, one evaluation" in text
    assert "Policies: one evaluation." in text
    write_trial(one / "DAMO_b", [result(i, score=4.0) for i in (1, 2)], seed=2)
    text = report(one, tmp_path).text
    assert "Score of the best trial, one evaluation" in text
    assert "By the mean of each trial's last 1 to 2 evaluations." in text


def test_the_data_is_what_the_policy_learns_from(tmp_path: Path) -> None:
    page = report(write_trial(tmp_path / "DAMO_a", [result(1, score=1.0)], data_fraction=0.5), tmp_path)
    assert "Mean return of the episodes it learns from" in page.text
    assert "Mean return of the data" not in page.text
    assert ["share of its rows that the policy learns from (data_fraction)", "0.5"] in page.tables[-3]
    assert "the return is −990, and that of the episodes that it learns from −800" in page.text


def test_a_trial_without_a_score_yet_is_in_the_heat_map(tmp_path: Path) -> None:
    for eta, length, score in ((1.0, 1, 5.0), (2.0, 1, None), (2.0, 3, 7.0)):
        write_trial(tmp_path / "s" / f"DAMO_{eta}{length}", [result(1, score=score)], eta=eta, rollout_length=length)
    found = [word for word in report(tmp_path / "s", tmp_path).words if word.startswith("rollout_length ")]
    assert found == [
        "rollout_length 3, eta 1: no trial", "rollout_length 3, eta 2: 7",
        "rollout_length 1, eta 1: 5", "rollout_length 1, eta 2: no score yet",
    ]  # fmt: skip


def test_the_best_single_evaluation_does_not_decide(tmp_path: Path) -> None:
    write_trial(tmp_path / "s" / "DAMO_lucky", [result(i, score=s) for i, s in enumerate((99, 1, 1, 1), 1)], seed=1)
    write_trial(tmp_path / "s" / "DAMO_good", [result(i, score=50) for i in range(1, 5)], seed=2)
    assert [trial.name for trial in read_run(tmp_path / "s").trials] == ["DAMO_good", "DAMO_lucky"]


def test_a_running_and_a_broken_trial(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_trial(
        run / "DAMO_a", [result(i, score=i) for i in range(1, 4)], end='{"training_iteration": 4, "lear', seed=1
    )
    trace = "Traceback (most recent call last):\n  ...\nValueError: <bad> & worse"
    write_trial(run / "DAMO_b", [result(1)], error=trace, seed=2)
    (run / "DAMO_c").mkdir()  # has begun
    (run / "DAMO_c" / "params.json").write_text("{")
    (run / "DAMO_d").mkdir()  # failed at once
    (run / "DAMO_d" / "error.txt").write_text("RuntimeError: Training diverged")
    (run / "other").mkdir()
    page = report(run, tmp_path)
    states = {row[1]: row[-1] for row in page.tables[0][1:]}
    assert sorted(row[-1] for row in page.tables[0][1:]) == ["failed", "failed", "not finished", "not finished"], states
    assert "ValueError: <bad> & worse" in page.text
    assert "training diverged" in page.text
    assert any("DAMO_a have a line that cannot be read" in text for text in page.titles["li"])


def test_a_trial_that_recovered_has_not_failed(tmp_path: Path) -> None:
    """Tune leaves its error.txt."""
    write_trial(tmp_path / "run" / "DAMO_a", [result(1), result(2) | {"done": True}], error="Error: Training diverged")
    text = report(tmp_path / "run", tmp_path).text
    assert "Failures" not in text
    assert "diverged" not in text


@pytest.mark.parametrize("settings", ["[1]", "3", "null", '"x"'])
def test_files_that_hold_something_else(settings: str, tmp_path: Path) -> None:
    rows = [result(1), result(2) | {"training_iteration": "x"}, result(3) | {"training_iteration": None}, result(4)]
    folder = write_trial(tmp_path / "DAMO_a", rows)
    (folder / "params.json").write_text(settings)
    (trial,) = read_run(folder).trials
    assert ([row["training_iteration"] for row in trial.results], trial.num_damaged, trial.config) == ([1, 4], 2, {})
    assert "DAMO_a have a line that cannot be read" in report(folder, tmp_path).text


def test_a_restored_trial_is_drawn_once(tmp_path: Path) -> None:
    rows = [result(i) for i in (1, 2, 3, 4, 3, 4, 5)]
    (trial,) = read_run(write_trial(tmp_path / "DAMO_a", rows)).trials
    assert [row["training_iteration"] for row in trial.results] == [1, 2, 3, 4, 5]


def test_long_trials_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_MAX_RESULTS", 10)
    rows = [result(i) for i in range(1, 101)]
    rows[17] |= {"evaluation": {"env_runners": {"episode_len_mean": 200}}}
    rows[18] |= {"evaluation": {"offline_eval_runners": {"fqe_value": -300.0}}}
    (trial,) = read_run(write_trial(tmp_path / "DAMO_a", rows)).trials
    assert [row["training_iteration"] for row in trial.results] == [1, 11, 18, 19, *range(21, 100, 10), 100]


@pytest.mark.parametrize("at", ["file://", "memory://"])
def test_runs_at_addresses(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_search(tmp_path / "search")
    if at == "memory://":  # as other storages are read: through pyarrow, which has no scheme of this name
        memory = fsspec.filesystem("memory")
        memory.put(str(tmp_path / "search"), "/bucket/search", recursive=True)
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(memory))
        monkeypatch.setattr(runs, "connect", lambda address: (filesystem, address.removeprefix("memory://")))
    place = f"file://{tmp_path}/search" if at == "file://" else "memory:///bucket/search/"
    assert len(report(place, tmp_path).tables[0]) == 7


def test_a_hundred_trials(tmp_path: Path) -> None:
    for i in range(100):
        rows = [result(j, score=math.sin(i) * j) for j in range(1, 13)]
        write_trial(tmp_path / "run" / f"DAMO_{i}", rows, eta=0.1 + 0.01 * i, f_divergence="ab"[i % 2], seed=i % 5)
    page = report(tmp_path / "run", tmp_path)
    assert len(page.tables[0]) == 101
    drawn = [attrs["class"] for tag, attrs in page.tags if tag == "path"]
    of_one_metric = len(CHARTS) - len(OF_THE_MODEL) - 6  # not the returns, and five charts of two metrics
    assert drawn.count("line other") == 92 * (of_one_metric + 1)  # and in the settings
    assert len(page.source) < 5e6


def test_continuous_settings_are_grouped_in_the_heat_map(tmp_path: Path) -> None:
    for i in range(20):
        write_trial(tmp_path / "s" / f"DAMO_{i}", [result(1, score=i)], eta=0.1 * i, rollout_length=1 + i % 2)
    page = report(tmp_path / "s", tmp_path)
    assert page.titles["figcaption"][0] == "Score by eta and rollout_length"
    bounds = [word for word in page.words if "–" in word and " " not in word]
    assert bounds == ["0–0.3", "0.4–0.7", "0.8–1.1", "1.2–1.5", "1.6–1.9"]
    cells = [attrs for tag, attrs in page.tags if tag == "rect" and attrs["class"] == "cell"]
    assert len(cells) == 10
    assert {"1", "5", "9", "13", "17", "2", "6", "10", "14", "18"} <= set(page.words)


def test_the_model_is_drawn_whichever_trial_has_trained_it(tmp_path: Path) -> None:
    for i in range(12):
        first = [epoch(1, 2.0), epoch(2, 1.0)] if i == 0 else []
        write_trial(tmp_path / "s" / f"DAMO_{i}", [*first, result(3, score=i)], eta=0.1 * i)
    assert set(report(tmp_path / "s", tmp_path).titles["figcaption"]) > OF_THE_MODEL


def test_names_are_text(tmp_path: Path) -> None:
    rows = [result(1, score=1.0) | {"warnings": "<b>w</b>"}]
    rows[0]["learners"]["default_policy"]["<i>x</i>"] = 1.0
    for seed in (1, 2):
        write_trial(tmp_path / "<script>r" / f"<u>{seed}", rows, error="<s>", seed=seed, **{"<em>o": f'"<a>{seed}'})
    page = report(tmp_path / "<script>r", tmp_path)
    assert not {"b", "i", "script", "u", "s", "em", "a>"} & {tag for tag, _ in page.tags}
    assert "<b>w</b>" in page.text


def a_trial(rows: list[dict], error: str = "", **config: Any) -> Trial:
    flat = [runs.flatten({"training_iteration": i, **row}) for i, row in enumerate(rows, 1)]
    return Trial("DAMO_x", CONFIG | config, flat, error, 0)


SICK: dict[str, Trial] = {
    "training diverged": a_trial([], "RuntimeError: Training diverged"),
    "initial_value_mean": a_trial([result(i, initial_value_mean=-400.0 + 20 * i) for i in range(1, 13)]),
    "implausible": a_trial([{"evaluation/offline_eval_runners": {"implausible": 1.0, "fqe_value": 900.0}}]),
    "classifier_accuracy": a_trial([result(i, classifier_accuracy=0.99) for i in range(1, 9)]),
    "density_ratio_mean": a_trial([result(i, density_ratio_mean=4.0) for i in range(1, 9)]),
    "holdout_loss": a_trial([epoch(i, 3.0 / i) for i in range(1, 4)], dynamics_max_epochs=3),
    "terminated_frac": a_trial([result(i) | {"env_runners/rollout/terminated_frac": 0.2} for i in range(1, 9)]),
    "return is": a_trial([result(1, score=1.0)]),
}


@pytest.mark.parametrize("name", SICK)
def test_signs_of_trouble(name: str) -> None:
    found = [text for sign in SIGNS if (text := sign.found(SICK[name]))]
    assert any(name in text for text in found), found


def test_a_sound_trial_has_no_signs() -> None:
    rows = [epoch(i, loss) for i, loss in enumerate((3.0, 1.0, 1.1), 1)] + [result(i, score=50.0) for i in range(4, 12)]
    falling = [result(i, initial_value_mean=-300.0 - i) for i in range(1, 13)]
    for trial in (a_trial(rows, dynamics_max_epochs=3), a_trial(falling), a_trial([]), a_trial([result(1)])):
        assert [text for sign in SIGNS if (text := sign.found(trial))] == []


def test_signs_are_those_of_the_documentation() -> None:
    table = (DOCS / "troubleshooting.md").read_text()
    for sign in SIGNS:
        assert f"| {sign.meaning} | {sign.fix} |" in table


def test_metrics_are_those_of_the_documentation() -> None:
    text = (DOCS / "metrics.md").read_text()
    drawn = [*charts.LEARNING[:2], *charts.VALUES, *charts.CLASSIFIER, *charts.MODEL]
    keys = [key for chart in drawn for key, _ in [*chart.metrics, *chart.references] if isinstance(key, str)]
    for key in keys:
        key = key.replace("*", "5")
        assert f"`{key}`" in text or f"`{key.rsplit('/', 1)[-1]}`" in text, key


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (-818.79, "−819"), (12345, "12.3k"), (1500, "1,500"), (2.5e6, "2.5M"), (0.00003, "3e−05"), (1e-17, "0")],
)
def test_numbers_are_short(value: float, expected: str) -> None:
    assert svg.number(value) == expected


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 10], [0, 5, 10]),
        ([-3.2, 7.1], [-10, 0, 10]),
        ([5, 5], [4.5, 5, 5.5]),
        ([0, 0], [0, 0.5, 1]),
        ([0, 1e-3], [0, 5e-4, 1e-3]),
    ],
)
def test_axes_have_round_ticks(values: list[float], ticks: list[float]) -> None:
    axis = svg.axis(values, 0, 100, 2)
    assert list(axis.ticks) == pytest.approx(ticks)
    assert axis(axis.low) == 0
    assert axis(axis.high) == 100


def test_places_without_results(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run at .*nowhere: there is no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds no run: neither it nor a folder in it has a result\.json"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match=r"nosuch://x cannot be read: .*There are s3://"):
        read_run("nosuch://x")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UsageError, match=r"folder\.html is a folder: name a file"):
        write_report(tmp_path / "nowhere", tmp_path / "folder.html")
    with pytest.raises(UsageError, match=r"--out report\.txt: .* ends in \.html"):
        write_report(tmp_path, "report.txt")


def test_the_command(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(["report", str(single)]) == 0
    assert capsys.readouterr().out == "Written: run.html\n"
    assert invoke(["report", str(single), "--out", "run.html"]) == 0
    assert invoke(["report", "nowhere"]) == 2
    assert "no run at" in capsys.readouterr().err
