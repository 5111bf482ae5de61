"""The table of `scripts/ray_matrix.sh`."""

import json
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "ray_matrix_table.py"


def make_env(folder: Path, command: str) -> Path:
    """A virtual environment whose Python is this command."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{command}\n")
    python.chmod(0o755)
    return folder


def make_table(out: Path, *pairs: Path) -> int:
    command = [sys.executable, SCRIPT, "--out", out, "--arguments=-x tests", *pairs]
    return subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True).returncode


def write_results(file: Path, failures: int, errors: int) -> Path:
    counts = f'tests="12" failures="{failures}" errors="{errors}" skipped="2" time="3.7"'
    file.write_text(f"<testsuites><testsuite {counts}/></testsuites>")
    return file


def test_a_row_for_each_environment(tmp_path):
    env = make_env(tmp_path / "ray-9.1.0", f'exec {sys.executable} "$@"')
    broken = make_env(tmp_path / "ray-9.2.0", "exit 1")
    results = write_results(tmp_path / "results.xml", failures=3, errors=1)
    assert make_table(tmp_path, env, results, broken, tmp_path / "none.xml") == 1
    content = json.loads((tmp_path / "ray_matrix.json").read_text())
    assert content["pytest_arguments"] == "-x tests"
    first, second = content["results"]
    assert first["torch"] == torch.__version__
    assert [first[name] for name in ("passed", "failed", "skipped", "seconds")] == [6, 4, 2, 4]
    assert second == dict.fromkeys(second) | {"ray": "9.2.0"}
    table = (tmp_path / "ray_matrix.md").read_text().splitlines()
    assert table[0] == "| ray | torch | gymnasium | passed | failed | skipped | seconds |"
    assert table[2].endswith("| 6 | 4 | 2 | 4 |")
    assert table[3] == "| 9.2.0 | - | - | - | - | - | - |"


def test_success_only_if_all_tests_of_all_environments_passed(tmp_path):
    env = make_env(tmp_path / "ray-9.1.0", f'exec {sys.executable} "$@"')
    passed = write_results(tmp_path / "passed.xml", failures=0, errors=0)
    failed = write_results(tmp_path / "failed.xml", failures=1, errors=0)
    assert make_table(tmp_path, env, passed) == 0
    assert make_table(tmp_path, env, passed, env, failed) == 1
    assert make_table(tmp_path, env, passed, env, tmp_path / "none.xml") == 1
