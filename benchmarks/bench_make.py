"""How fast a dataset is made: ``python benchmarks/bench_make.py hopper-medium --transitions 1000000 --workers 2``.

Prints one JSON line. ``cpu_seconds`` (this process and its workers) tells more than ``seconds`` on a busy machine:
divided by the workers it is about the time that an idle one needs.
"""

import argparse
import json
import os
import resource
import tempfile
import time


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="hopper-medium")
    parser.add_argument("--transitions", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MINARI_DATASETS_PATH": f"{folder}/minari", "RLLIB_DAMO_CACHE": f"{folder}/cache"}
        from rllib_damo.data.generate import datasets

        start, cpu = time.perf_counter(), cpu_seconds()
        datasets.make(args.name, transitions=args.transitions, workers=args.workers, progress=False)
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    result = {
        "benchmark": "make",
        "name": args.name,
        "transitions": args.transitions,
        "workers": args.workers,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "transitions_per_second": round(args.transitions / seconds),
        "cpu_us_per_transition": round(1e6 * cpu / args.transitions, 1),
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
