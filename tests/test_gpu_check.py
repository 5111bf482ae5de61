"""scripts/gpu_check.py: a part's result, and the ends of parts that take too long."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import gpu_check


def test_the_result_of_a_part_is_its_last_line_and_its_errors() -> None:
    assert gpu_check.run(["-c", "print('...'); print('{\"rate\": 3}')"], 60)["rate"] == 3
    assert gpu_check.run(["-c", "print('2 passed')"], 60)["summary"] == "2 passed"
    assert "no such part" in gpu_check.run(["-c", "raise SystemExit('no such part')"], 60)["error"]
    assert "error" not in gpu_check.run(["-c", "raise SystemExit(5)"], 60)  # pytest found no test


def test_parts_end_in_time() -> None:
    assert gpu_check.run(["-c", "import time; time.sleep(60)"], 0.5)["error"] == "took more than 0 s"
    assert gpu_check.run(["-c", "print(1)"], -1)["error"].startswith("not run: the parts before it took 480 s")
