"""The README's Python blocks run, in order and in one namespace; its commands and options exist."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest

from rllib_damo import DAMOConfig, cli
from rllib_damo.update import METRICS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MARKER = r"(?P<skip><!-- skip-test: .+? -->\n)?"
PYTHON = list(re.finditer(MARKER + r"```python\n(?P<code>.*?)```", README, re.S))
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("rllib ")
]


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


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_files_and_options_that_exist(command: str, capfd: pytest.CaptureFixture) -> None:
    words = shlex.split(command, comments=True)
    for word in words:
        if word.endswith(".py"):
            assert (ROOT / word).is_file()
    assert cli.invoke([words[1], "--help"]) == 0
    known = capfd.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in re.sub(r"\x1b\[[0-9;]*m", "", known)


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
    assert inspect.ismethod(DAMOConfig.paper)
