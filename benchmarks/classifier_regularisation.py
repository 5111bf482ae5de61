"""Does the classifier saturate? Its metrics under each regularisation, on a tuned example's data and settings.

    python benchmarks/classifier_regularisation.py --example damo_hopper --iterations 10

Prints one JSON line for each variant, with the metrics of the last iteration and the real return after it. A saturated
classifier shows an accuracy near 1 and large mean logits: the modified reward is then little more than a constant.
"""

import argparse
import json
from pathlib import Path
from runpy import run_path

import ray

from rllib_damo import DAMOConfig

NONE = {"label_smoothing": 0.0}
VARIANTS = {
    "none": NONE,
    "label_smoothing 0.1": {"label_smoothing": 0.1},
    "gradient_penalty 10": NONE | {"classifier_gradient_penalty": 10.0},
    "noise 0.3": NONE | {"classifier_noise": 0.3},
    "spectral_norm": NONE | {"classifier_spectral_norm": True},
}
METRICS = ("classifier_loss", "classifier_accuracy", "logit_offline_mean", "logit_synthetic_mean", "qf_mean")


def run(config: DAMOConfig, iterations: int) -> dict[str, float]:
    """Trains for so many rounds and evaluates once."""
    algo = config.build_algo()
    while iterations:
        result = algo.train()
        iterations -= result["phase"] == "policy"
    learner = result["learners"]["default_policy"]
    evaluation = algo.evaluate()["env_runners"]
    algo.stop()
    row = {name: round(float(learner[name]), 3) for name in METRICS}
    return row | {"episode_return_mean": round(float(evaluation["episode_return_mean"]), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--example", default="damo_hopper")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    example = Path(__file__).parent.parent / "tuned_examples" / f"{args.example}.py"
    ray.init("local", include_dashboard=False, log_to_driver=False)
    for name in args.variants:
        config = run_path(str(example))["config"].copy(copy_frozen=False)
        config.training(**VARIANTS[name]).evaluation(evaluation_interval=10**6).debugging(log_level="ERROR")
        print(json.dumps({"variant": name, "iterations": args.iterations} | run(config, args.iterations)), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
