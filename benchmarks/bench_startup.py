"""Seconds from the command to the first gradient step, on a dataset and a dynamics model that are there already.

    python benchmarks/bench_startup.py --example damo_hopper

Runs ``rllib train file`` as a user would, for two iterations of one gradient step each: the first run makes what is
missing, the second is measured. Prints one JSON line; ``ray_init_seconds`` is what a bare ``ray.init()`` takes in the
same minute.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "tuned_examples"


def first_gradient_step(example: Path, folder: Path) -> float:
    """Seconds from the start of the command to the first gradient step."""
    config = folder / "example.py"
    config.write_text(
        f"from runpy import run_path\nconfig = run_path({str(example)!r})['config']\n"
        "config.training(rollout_freq=1).evaluation(evaluation_interval=None)\n"
        "stop = {'num_gradient_steps_lifetime': 2}\n"
    )
    start = time.time()
    command = [
        sys.executable,
        "-m",
        "rllib_damo.command.rllib",
        "train",
        "file",
        str(config),
        "--storage-path",
        str(folder),
    ]
    subprocess.run([*command, "--no-checkpoint-at-end"], check=True, stdout=subprocess.DEVNULL)
    results = sorted(folder.glob("*/*/result.json"), key=lambda path: path.stat().st_mtime)[-1]
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    _, second = [row for row in rows if row["phase"] == "policy"]
    # a result's stamp has whole seconds; that of the last one, less its own time, is as good as that of the first
    return float(second["timestamp"] - second["time_this_iter_s"] - start)


def ray_init() -> float:
    program = "import time, ray; t = time.time(); ray.init(include_dashboard=False); print(time.time() - t)"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return float(out.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--example", default="damo_hopper")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        example = EXAMPLES / f"{args.example}.py"
        first_gradient_step(example, Path(folder))
        seconds = first_gradient_step(example, Path(folder))
    print(
        json.dumps(
            {
                "benchmark": "startup",
                "seconds_to_first_gradient_step": round(seconds, 1),
                "ray_init_seconds": round(ray_init(), 1),
            }
        )
    )


if __name__ == "__main__":
    main()
