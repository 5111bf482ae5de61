"""Train a behaviour policy with SAC and keep a trace of its snapshots as plain arrays.

    pip install sbx-rl "gymnasium[mujoco]"        # a developer's tool, not a dependency of the package
    python scripts/train_behavior.py Hopper-v5 --steps 400000 --out traces/hopper

Every ``--snapshot-every`` environment steps the actor is written as ``NNNNNNN.npz`` (see ``export``), and
``trace.jsonl`` gets a line with the mean and spread of the returns of *stochastic* episodes, since the datasets are
made with sampled actions. ``scripts/ship_behavior.py`` picks the levels from a trace. A run that was
stopped goes on from its last saved model when the command is given again.
"""

import argparse
import json
import pathlib
import time

import numpy as np
from sbx import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


def export(model: SAC) -> dict[str, np.ndarray]:
    """The actor's arrays: ``w0, b0, w1, b1`` (ReLU layers), ``w_mean, b_mean, w_log_std, b_log_std`` (heads)."""
    params = model.policy.actor_state.params["params"]
    dense = sorted((k for k in params if k.startswith("Dense")), key=lambda k: int(k.split("_")[1]))
    named = dict(zip(("0", "1", "mean", "log_std"), dense, strict=True))
    out = {}
    for name, key in named.items():
        sep = "" if name.isdigit() else "_"
        out[f"w{sep}{name}"] = np.asarray(params[key]["kernel"], np.float32)
        out[f"b{sep}{name}"] = np.asarray(params[key]["bias"], np.float32)
    return out


def stochastic_returns(model: SAC, env_id: str, episodes: int) -> tuple[list[float], list[int]]:
    """Returns and lengths of the first episode of each of ``episodes`` parallel environments."""
    envs = make_vec_env(env_id, n_envs=episodes, seed=10_000)
    obs, alive = envs.reset(), np.ones(episodes, bool)
    returns, lengths = np.zeros(episodes), np.zeros(episodes, int)
    while alive.any():
        obs, reward, done, _ = envs.step(model.predict(obs, deterministic=False)[0])
        returns += alive * reward
        lengths += alive
        alive &= ~done
    envs.close()
    return returns.tolist(), lengths.tolist()


class Trace(BaseCallback):
    def __init__(self, out: pathlib.Path, env_id: str, every: int, episodes: int):
        super().__init__()
        self.model: SAC
        self.out, self.env_id, self.every, self.episodes = out, env_id, every, episodes
        self.start = time.time()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            returns, lengths = stochastic_returns(self.model, self.env_id, self.episodes)
            np.savez(self.out / f"{self.num_timesteps:07d}.npz", **export(self.model))  # type: ignore[arg-type]
            row = {
                "steps": self.num_timesteps,
                "updates": self.model._n_updates,
                "return_mean": float(np.mean(returns)),
                "return_std": float(np.std(returns)),
                "length_mean": float(np.mean(lengths)),
                "seconds": time.time() - self.start,
            }
            with (self.out / "trace.jsonl").open("a") as f:
                f.write(json.dumps(row) + "\n")
            print(row, flush=True)
        if self.num_timesteps % (10 * self.every) == 0:
            self.model.save_replay_buffer(self.out / "replay")
            self.model.save(self.out / "model")
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env_id")
    parser.add_argument("--steps", type=int, default=400_000, help="environment steps")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--updates-per-step", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=3e-4, help="the actor's step size")
    parser.add_argument("--qf-lr", type=float, default=1e-3, help="the critics' step size")
    parser.add_argument("--snapshot-every", type=int, default=10_000)
    parser.add_argument("--episodes", type=int, default=10, help="episodes per evaluation")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    envs = make_vec_env(args.env_id, n_envs=args.num_envs, seed=args.seed)
    if (args.out / "model.zip").exists():
        model = SAC.load(args.out / "model", env=envs)
        model.load_replay_buffer(args.out / "replay")
    else:
        model = SAC(
            "MlpPolicy",
            envs,
            learning_rate=args.lr,
            qf_learning_rate=args.qf_lr,
            learning_starts=10_000,
            gradient_steps=round(args.num_envs * args.updates_per_step),
            policy_delay=2,
            # critics with layer normalisation bear larger steps and more updates than plain ones
            policy_kwargs={"net_arch": [256, 256], "layer_norm": True},
            seed=args.seed,
        )
    callback = Trace(args.out, args.env_id, args.snapshot_every, args.episodes)
    model.learn(args.steps - model.num_timesteps, callback=callback, reset_num_timesteps=False)


if __name__ == "__main__":
    main()
