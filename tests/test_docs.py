"""Pages are true: Python blocks run, commands parse, and files, options, defaults and metrics that they name exist."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks" / "paper"))

import distributions
import figures
import runs
import scores

from rllib_damo import ALGORITHMS, DAMOConfig
from rllib_damo.command import data as data_cli
from rllib_damo.command import rllib
from rllib_damo.command.inputs import parse_json
from rllib_damo.data import sources
from rllib_damo.data.formats import registry

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
}
BLOCK = re.compile(r"(?P<skip><!-- skip-test: .+? -->\n)?```python\n(?P<code>.*?)```", re.S)
BLOCKS = {name: blocks for name, text in PAGES.items() if (blocks := list(BLOCK.finditer(text)))}
EXAMPLES = sorted(ROOT.glob("tuned_examples/*.py"))
BENCHES = {f"benchmarks/paper/{module.__name__}.py": module for module in (distributions, figures, runs)}
BENCHES["benchmarks/scores.py"] = scores
APPS = {"rllib": rllib.app, "rllib-damo": data_cli.app}


def spans(text: str) -> list[str]:
    """The `code` within sentences and tables."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]


def command_lines(text: str) -> list[str]:
    return re.split(r"\n| && ", "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)).replace("\\\n", ""))


SPANS = list(dict.fromkeys(span for text in PAGES.values() for span in spans(text)))
LINES = [
    *(line for text in PAGES.values() for line in command_lines(text)),
    *SPANS,
    *(line for example in EXAMPLES for line in (ast.get_docstring(ast.parse(example.read_text())) or "").splitlines()),
]
COMMANDS = [line for line in LINES if re.match(r"(rllib|rllib-damo|python (benchmarks|tuned_examples)/\S+) ", line)]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all pages, in a folder and with datasets and caches of their own; what they register is forgotten."""
    import ray

    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as monkeypatch, mock.patch.dict(ALGORITHMS), mock.patch.dict(registry._others):
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        monkeypatch.setenv("RLLIB_DAMO_CACHE", str(folder / "cache"))
        monkeypatch.chdir(folder)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@functools.cache
def run_page(page: str) -> dict[str, Any]:
    """The names that a page's blocks leave; they are one session, in order."""
    names: dict[str, Any] = {}
    for block in BLOCKS[page]:
        if not block["skip"]:
            line = PAGES[page][: block.start("code")].count("\n")
            exec(compile("\n" * line + block["code"], str(ROOT / page), "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("page", BLOCKS)
def test_python_blocks_run(page: str, session: None) -> None:
    run_page(page)


def test_skipped_blocks_are_few_and_compile() -> None:
    skipped = [block["code"] for blocks in BLOCKS.values() for block in blocks if block["skip"]]
    assert len(skipped) <= 2
    for code in skipped:
        compile(code, "a skipped block", "exec")


def options_of(command: Any) -> set[str]:
    """The flags of a command and of the commands below it."""
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return found.union(*map(options_of, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_commands_parse_and_name_files_that_exist(command: str) -> None:
    """Within a sentence a command may leave out its arguments."""
    program, *words = shlex.split(command, comments=True)
    for word in words:
        if word.endswith(".py"):
            assert (ROOT / word).is_file()
    if words[0] in BENCHES:
        BENCHES[words[0]].parse(words[1:])
        return
    if program == "python":
        assert Path(words[0]).parent.name == "tuned_examples"  # takes the options of `rllib train`
        program, words = "rllib", ["train", *words[1:]]
    parsed: Any = typer.main.get_command(APPS[program])
    while hasattr(parsed, "commands"):
        parsed = parsed.commands[words.pop(0)]
    if words == ["--help"] or command in SPANS:
        assert {word for word in words if word.startswith("--")} <= options_of(parsed) | {"--help"}
        return
    given = parsed.make_context(parsed.name, words).params
    for option in ("config", "stop"):
        parse_json(f"--{option}", given.get(option))


def test_flags_in_sentences_exist() -> None:
    known = set().union(*(options_of(typer.main.get_command(app)) for app in APPS.values()))
    known |= set(re.findall(r'"(--[a-z-]+)"', Path(scores.__file__).read_text()))
    for span in SPANS:
        if span.startswith("--"):
            assert shlex.split(span)[0] in known, span


def test_settings_in_sentences_are_accepted() -> None:
    """`.training(eta=1)` can be called, and `eta=1` is an option of some algorithm."""
    names = {"DAMOConfig": DAMOConfig, "f": lambda obs, actions, next_obs: None}
    configs = [algorithm.get_default_config() for algorithm in ALGORITHMS.values()]
    for span in SPANS:
        if re.fullmatch(r"\.\w+\(.*\)", span):
            eval(f"DAMOConfig(){span}", dict(names))
        elif setting := re.match(r"([a-z]\w+)=[^=]", span):
            assert any(hasattr(config, setting[1]) for config in configs), span


def test_files_that_pages_name_exist() -> None:
    others = "benchmarks/RESULTS.md", "benchmarks/SPEED.md", "benchmarks/LOG.md"
    pages = PAGES | {name: (ROOT / name).read_text() for name in others}
    for page, text in pages.items():
        for path in re.findall(r"(?:benchmarks|tuned_examples|scripts|tests|rllib_damo)/[\w/]+\.(?:py|md|png)", text):
            assert "NAME" in path or (ROOT / path).is_file(), f"{page} names {path}"


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of a page's first table below a heading, without its head."""
    rows = re.search(r"^\|.*?(?=\n\n|\Z)", f"\n{PAGES[page]}".split(f"\n{heading}\n", 1)[1], re.M | re.S)
    assert rows is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[0].splitlines()[2:]]


def test_metrics_of_the_tables_are_those_of_a_result(session: None) -> None:
    result = run_page("docs/quickstart.md")["result"]
    learner = result["learners"]["default_policy"]
    named = {name for row in table("docs/metrics.md", "## DAMO's learner") for name in re.findall(r"`(\w+)`", row[0])}
    assert named == {name for name in learner if not name.startswith("num_")}
    for row in table("docs/metrics.md", "## Elsewhere"):
        for name in re.findall(r"`([\w/]+)`", row[0]):
            found = result
            for part in name.split("/") if not name.startswith("dynamics/") else ():  # the model was in the cache
                assert part in found, name
                found = found[part]


def test_metrics_of_the_baselines_are_named_by_their_learners() -> None:
    """That their updates return them is a test of each algorithm's run."""
    rows = table("docs/baselines.md", "## Metrics")
    baselines = {n for n, algo in ALGORITHMS.items() if algo.__module__.startswith("rllib_damo.baselines.")}
    assert {row[0] for row in rows} == baselines - {"BehaviorCloning"}  # and none that a page has made
    for name, metrics, *_ in rows:
        learner = ALGORITHMS[name].get_default_config().default_learner_class
        assert set(re.findall(r"`(\w+)`", metrics)) <= set(re.findall(r"``(\w+)``", learner.__doc__ or "")), name


def test_arrays_become_a_file_with_their_episodes(session: None) -> None:
    run_page("docs/data.md")
    data = sources.load("mine.parquet")
    assert (len(data), len(data.episode_bounds())) == (3000, 30)


def test_options_of_the_table_exist_and_have_these_defaults() -> None:
    config = DAMOConfig()
    for names, default, *_ in table("docs/first_options.md", "# Options to know first"):
        values = [value.strip("`\"' ") for value in re.split(r", (?!\d{3})", default)]
        options = re.findall(r"`(\w+)`", names)
        for option, value in zip(options, values * len(options), strict=False):
            found = getattr(config, option)
            assert value.replace(",", "") == str(found) or float(value.replace(",", "")) == found, option


def test_the_readme_is_short() -> None:
    lines = re.sub(r"```bash.*?```", "", PAGES["README.md"], flags=re.S).splitlines()
    assert len(PAGES["README.md"].splitlines()) <= 150
    assert max(map(len, lines)) <= 118
