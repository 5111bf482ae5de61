"""Makes the table of `ray_matrix.sh` from each environment's versions and pytest's results."""

import argparse
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "torch", "gymnasium")
COLUMNS = (*PACKAGES, "passed", "failed", "skipped", "seconds")


def row(env: Path, results: Path) -> dict[str, Any]:
    """One environment's versions, and its counts of tests: None where they did not run."""
    code = f"import importlib.metadata as m; print(*(m.version(p) for p in {PACKAGES}))"
    found = subprocess.run([env / "bin" / "python", "-c", code], capture_output=True, text=True).stdout.split()
    versions = dict(zip(PACKAGES, found, strict=True)) if found else {"ray": env.name.removeprefix("ray-")}
    counts: dict[str, Any] = dict.fromkeys(COLUMNS)
    if results.is_file():
        suite = ET.parse(results).getroot().find("testsuite")
        assert suite is not None
        total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
        failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
        seconds = round(float(suite.attrib["time"]))
        counts |= {"passed": total - failed - skipped, "failed": failed, "skipped": skipped, "seconds": seconds}
    return counts | versions


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [["-" if row[name] is None else str(row[name]) for name in COLUMNS] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arguments", default="", help="pytest's")
    parser.add_argument("pairs", nargs="+", type=Path, help="environment, its JUnit file, and so on")
    args = parser.parse_args()
    rows = [row(*pair) for pair in zip(args.pairs[::2], args.pairs[1::2], strict=True)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    content = {"commit": commit, "python": sys.version.split()[0], "pytest_arguments": args.arguments, "results": rows}
    (args.out / "ray_matrix.json").write_text(json.dumps(content, indent=2) + "\n")
    table = markdown(rows)
    (args.out / "ray_matrix.md").write_text(table)
    print(table, end="")
    return int(any(row["failed"] or not row["passed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
