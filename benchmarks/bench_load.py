"""Loading a dataset to the tensors that training reads: seconds, and peak memory relative to the data's own size.

    python benchmarks/bench_load.py --rows 1000000

Prints one JSON line a format: a D4RL file in float32, and a local Minari dataset with observations and rewards in
float64, as Minari's public ones have them. Each is read in a process of its own, so that the peak is its alone;
``peak_ratio`` is what the process grew by at most, divided by the size of the transitions in float32.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

from bench_memory import resident, write_dataset


def measure(name: str) -> dict[str, float]:
    """What `DAMO.setup` does with the data, up to the rows on the CPU; runs in a fresh process."""
    import gymnasium as gym

    from rllib_damo.data.formats.reader import Conventions
    from rllib_damo.data.sources import load
    from rllib_damo.utils.batch import Layout, as_constant
    from rllib_damo.utils.spaces import to_unit

    env = gym.make("Hopper-v5")
    before, start = resident(), time.perf_counter()
    transitions = load(name, observation_space=env.observation_space, conventions=Conventions(env.action_space))
    unit_actions = to_unit(transitions.actions, env.action_space)
    layout = Layout(transitions.observations.shape[1], unit_actions.shape[1])
    rows = as_constant(
        layout.pack(
            transitions.observations, unit_actions, transitions.next_observations, transitions.rewards,
            transitions.terminations,
        )
    )  # fmt: skip
    transitions.fingerprint()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"rows": len(rows), "seconds": seconds, "peak": peak, "size": transitions.nbytes}


def write_minari(d4rl: Path, dataset_id: str) -> None:
    import h5py

    from rllib_damo.data.formats.hdf5 import HDF5Reader
    from rllib_damo.data.formats.minari_files import MAIN_FILE
    from rllib_damo.data.formats.minari_files import write_minari as write

    folder = write(HDF5Reader(d4rl).read(), dataset_id, env_spec="Hopper-v5")
    with h5py.File(folder / MAIN_FILE, "r+") as file:
        for episode in file.values():
            for key in ("observations", "rewards"):
                values = episode[key][...].astype("float64")
                del episode[key]
                episode[key] = values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MINARI_DATASETS_PATH": f"{folder}/minari", "RLLIB_DAMO_CACHE": f"{folder}/cache"}
        path = Path(folder) / "data.hdf5"
        write_dataset(path, args.rows)
        write_minari(path, "bench/hopper-v0")
        for name in (str(path), "minari://bench/hopper-v0"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(measure, (name,))
            result = {
                "benchmark": "load",
                "format": "minari" if name.startswith("minari") else "d4rl",
                "rows": found["rows"],
                "seconds": round(found["seconds"], 2),
                "megabytes": round(found["size"] / 1e6),
                "peak_megabytes": round(found["peak"] / 1e6),
                "peak_ratio": round(found["peak"] / found["size"], 2),
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
