"""The README's Python blocks run, in order and in one namespace; its commands parse, its options exist."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import scores

from rllib_damo import DAMOConfig
from rllib_damo.command import data as data_cli
from rllib_damo.command import rllib
from rllib_damo.command.inputs import parse_json
from rllib_damo.damo.update import METRICS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MARKER = r"(?P<skip><!-- skip-test: .+? -->\n)?"
PYTHON = list(re.finditer(MARKER + r"```python\n(?P<code>.*?)```", README, re.S))
EXAMPLES = sorted(ROOT.glob("tuned_examples/*.py"))
BASH = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S)).replace("\\\n", "")
LINES = [
    *re.split(r"\n| && ", BASH),
    *(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", README, flags=re.S))),
    *(line for example in EXAMPLES for line in (ast.get_docstring(ast.parse(example.read_text())) or "").splitlines()),
]
COMMANDS = [line for line in LINES if re.match(r"(rllib|rllib-damo|python (benchmarks|tuned_examples)/\S+) ", line)]


def test_python_blocks_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With datasets and caches of their own."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    namespace: dict[str, object] = {}
    try:
        for block in PYTHON:
            if not block["skip"]:
                line = README[: block.start("code")].count("\n")
                exec(compile("\n" * line + block["code"], str(ROOT / "README.md"), "exec"), namespace)
    finally:
        ray.shutdown()


def test_skipped_blocks_are_few_and_compile() -> None:
    skipped = [block["code"] for block in PYTHON if block["skip"]]
    assert len(skipped) <= 1
    for code in skipped:
        compile(code, "README.md", "exec")


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_commands_parse_and_name_files_that_exist(command: str) -> None:
    program, *words = shlex.split(command, comments=True)
    for word in words:
        if word.endswith(".py"):
            assert (ROOT / word).is_file()
    if words[0] == "benchmarks/scores.py":
        scores.parse(words[1:])
        return
    if program == "python":
        assert Path(words[0]).parent.name == "tuned_examples"  # takes the options of `rllib train`
        program, words = "rllib", ["train", *words[1:]]
    parsed: Any = typer.main.get_command({"rllib": rllib.app, "rllib-damo": data_cli.app}[program])
    while hasattr(parsed, "commands"):
        parsed = parsed.commands[words.pop(0)]
    if words == ["--help"]:
        return
    given = parsed.make_context(parsed.name, words).params
    for option in ("config", "stop"):
        parse_json(f"--{option}", given.get(option))


def test_every_metric_and_option_of_the_tables_exists() -> None:
    section = README.split("## Metrics")[1].split("Elsewhere")[0]
    named = set(re.findall(r"^\| (.+?) \|", section, re.M)) - {"metric", "---"}
    metrics = {name for cell in named for name in re.findall(r"`(\w+)`", cell)}
    assert metrics == {*METRICS, "initial_value_mean"}
    options = README.split("## Options")[1].split("## Metrics")[0]
    config = DAMOConfig()
    for cell in re.findall(r"^\| (`.+?) \|", options, re.M):
        for name in re.findall(r"`(\w+)`", cell):
            assert hasattr(config, name), name


def test_defaults_of_the_option_table() -> None:
    options = README.split("## Options")[1].split("## Metrics")[0]
    config = DAMOConfig()
    for name, default in re.findall(r"^\| `(\w+)` \| ([\d.,]+) \|", options, re.M):
        assert float(default.replace(",", "")) == getattr(config, name), name
