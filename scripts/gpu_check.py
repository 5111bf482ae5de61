"""The parts of `gpu_check.sh`, one after the other, and their results as one JSON file."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

#: Of all parts together, and of one.
SECONDS, PART_SECONDS = 480.0, 240.0


def matmul_tflops(device: str, dtype: torch.dtype, size: int) -> float:
    """The best rate of a square matrix product within a second."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, stop = 0.0, time.perf_counter() + 1
    while time.perf_counter() < stop:
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 5 * 2 * size**3 / (time.perf_counter() - start) / 1e12)
    return round(best, 3)


def run(command: list[str], seconds: float) -> dict[str, Any]:
    """A benchmark's JSON line, or the tests' count; else what went wrong. It is ended after so many seconds."""
    if seconds <= 0:
        return {"error": f"not run: the parts before it took {SECONDS:.0f} s"}
    start = time.perf_counter()
    try:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines() or [""]
    result: dict[str, Any] = json.loads(lines[-1]) if lines[-1].startswith("{") else {"summary": lines[-1]}
    no_tests = done.returncode == 5  # of pytest
    if done.returncode and not no_tests:
        result["error"] = (done.stderr or done.stdout)[-2000:]
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def parts(device: str) -> dict[str, list[str]]:
    """Name -> arguments of Python."""
    on_gpu = device == "cuda"
    small_rounds = {} if on_gpu else {"rollout_freq": 10, "rollout_batch_size": 1000}

    def steps(gpu: str, **options: Any) -> list[str]:
        iterations, given = "3" if on_gpu else "1", json.dumps({**small_rounds, **options})
        place = gpu if on_gpu else "none"
        return ["benchmarks/bench_steps.py", "--iterations", iterations, "--gpu", place, "--options", given]

    small = [] if on_gpu else ["--rows", "2000", "--epochs", "1"]
    starts = [] if on_gpu else ["--starts", "2000", "--rounds", "1"]
    return {
        "tests": ["-m", "pytest", "-q", "-m", "gpu", "tests"],
        "steps": steps("plain"),
        "steps, bf16": steps("plain", precision="bf16"),
        "steps, recorded": steps("graphs"),
        "steps, recorded, bf16": steps("graphs", precision="bf16"),
        "rollouts": ["benchmarks/bench_rollouts.py", "--device", device, *starts],
        "dynamics": ["benchmarks/bench_dynamics.py", "--device", device, *small],
        "dynamics, bf16": ["benchmarks/bench_dynamics.py", "--device", device, "--precision", "bf16", *small],
    }


def main() -> int:
    """Exit code 1 if a part failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cpu", action="store_true", help="run every part on the CPU, in small")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        print("No CUDA device here. `--cpu` tries the script without one.", file=sys.stderr)
        return 2
    device, end = "cpu" if args.cpu else "cuda", time.perf_counter() + SECONDS
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    size = 512 if args.cpu else 8192
    results: dict[str, Any] = {
        "device": "cpu" if args.cpu else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "commit": commit,
        "matmul_tflops": {
            str(dtype).removeprefix("torch."): matmul_tflops(device, dtype, size)
            for dtype in (torch.float32, torch.bfloat16)
        },
    }
    for name, command in parts(device).items():
        print(f"{name} ...", flush=True)
        results[name] = run(command, min(PART_SECONDS, end - time.perf_counter()))
        print(json.dumps(results[name])[:500], flush=True)
        args.out.write_text(json.dumps(results, indent=1))
    print(f"Written: {args.out}")
    return int(any("error" in result for result in results.values() if isinstance(result, dict)))


if __name__ == "__main__":
    sys.exit(main())
