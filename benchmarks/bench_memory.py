"""Resident memory of a training process, beside what its dataset and model buffer hold.

    python benchmarks/bench_memory.py --rows 1000000

Prints one JSON line in MB: ``resident`` after some iterations, ``dataset`` and ``model_buffer`` (float32 rows), and
``rest``, what is left when both are subtracted: interpreter, libraries, networks, scratch space and copies.
"""

import argparse
import json
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import ray
from bench_rollouts import ACT_DIM, OBS_DIM, sgemm_gflops
from bench_steps import ready

from rllib_damo import DAMOConfig
from rllib_damo.utils.batch import Layout


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def write_dataset(path: Path, rows: int) -> None:
    """A Hopper-shaped D4RL file, written here and read as a user's would be."""
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        observations = rng.normal(size=(rows + 1, OBS_DIM)).astype(np.float32)
        file["observations"], file["next_observations"] = observations[:-1], observations[1:]
        file["actions"] = rng.uniform(-1, 1, size=(rows, ACT_DIM)).astype(np.float32)
        file["rewards"] = observations[:-1, 0]
        file["terminals"] = np.zeros(rows, bool)
        file["timeouts"] = np.arange(rows) % 1000 == 999


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument(
        "--seed", type=int, help="with one, RLlib makes torch deterministic, which imports its compiler"
    )
    args = parser.parse_args()
    width = Layout(OBS_DIM, ACT_DIM).width
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.hdf5"
        # In a process of its own: what it leaves behind in the heap is not the training's.
        with ProcessPoolExecutor(1, get_context("spawn")) as other:
            other.submit(write_dataset, path, args.rows).result()
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        config = (
            DAMOConfig()
            .environment("Hopper-v5")
            .offline_data(input_=str(path))
            .training(rollout_length=5, rollout_freq=100)
            .dynamics(dynamics_max_epochs=1, num_ensemble=2, num_elites=1, dynamics_hidden_dims=(16,) * 4)
            .dynamics(dynamics_cache_dir=folder)
            .evaluation(evaluation_interval=None)
            .debugging(seed=args.seed, log_level="ERROR")
        )
        algo = ready(config)
        for _ in range(args.iterations):
            algo.train()
        sizes = {
            "resident": resident(),
            "dataset": args.rows * width * 4,
            "model_buffer": config.rollout_batch_size * config.rollout_length * config.model_retain_epochs * width * 4,
        }
        sizes["rest"] = sizes["resident"] - sizes["dataset"] - sizes["model_buffer"]
        megabytes = {name: round(size / 1e6) for name, size in sizes.items()}
        print(
            json.dumps(
                {
                    "benchmark": "memory",
                    **megabytes,
                    "rows": args.rows,
                    "seed": args.seed,
                    "gflops_peak": round(sgemm_gflops()),
                }
            )
        )
        algo.stop()
        ray.shutdown()


if __name__ == "__main__":
    main()
