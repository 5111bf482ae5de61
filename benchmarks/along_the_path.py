"""Do the critics know where the policy goes? Their values and the real returns along the policy's own path.

    python benchmarks/along_the_path.py CHECKPOINT --episodes 5

Plays the policy of a checkpoint from its environment's start states, and asks the critics at every state of its path
for Q(s, π(s)). The real return-to-go is the discounted sum of the rewards that follow. Of an episode that the time
limit ends, the last states are left out, whose return-to-go is cut by it. Prints one JSON line: the means over all
states, the mean of what the critics say too much, and both values at some steps before a fall.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_damo import load_policy
from rllib_damo.evaluation.checkpoints import checkpoint_dir, load_config
from rllib_damo.evaluation.policy import Policy

#: Of a return-to-go, the part that the time limit may cut.
CUT = 0.05
BEFORE_A_FALL = (1, 5, 20, 50, 100)


@dataclass(frozen=True)
class Episode:
    """One episode: ``observations (T, obs)``, ``rewards (T,)``, and whether it ended by a terminal state."""

    observations: np.ndarray
    rewards: np.ndarray
    fell: bool


def walk(policy: Policy, env_id: str, episodes: int, seed: int) -> list[Episode]:
    """Plays whole episodes, one after another."""
    env = gym.make(env_id)
    paths = []
    for own in np.random.SeedSequence(seed).generate_state(episodes):
        observation, _ = env.reset(seed=int(own))
        observations, rewards, terminated, truncated = [], [], False, False
        while not (terminated or truncated):
            observations.append(observation)
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            rewards.append(float(reward))
        paths.append(Episode(np.stack(observations).astype(np.float32), np.array(rewards), terminated))
    env.close()
    return paths


def returns_to_go(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """Σ_k γ^k r_{t+k} for each t, ``(T,)``."""
    result, value = np.empty(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        value = rewards[t] + gamma * value
        result[t] = value
    return result


def along_the_path(policy: Policy, env_id: str, gamma: float, episodes: int, seed: int) -> dict[str, Any]:
    """What the critics say along the policy's path, beside what it gets.

    Args:
        policy: its module has critics.
        env_id: the real environment.
        gamma: the critics' discount factor.
        episodes: how many.
        seed: of their start states.

    Returns:
        ``path_value`` and ``path_return``, the means over states; ``path_excess``, the mean of (value - return)₊;
        ``path_falls``, the share of episodes that ended by a terminal state; ``before_a_fall``, the mean (value,
        return) at the steps of `BEFORE_A_FALL`. The first three are None where all episodes were too short.
    """
    values, returns, falls = [], [], 0
    before: dict[int, list[tuple[float, float]]] = {step: [] for step in BEFORE_A_FALL}
    for path in walk(policy, env_id, episodes, seed):
        obs = torch.from_numpy(path.observations).to(policy.device)
        with torch.no_grad():
            value = policy.module.critics(obs, policy.module.mean_actions(obs)).amin(0).cpu().numpy()
        real = returns_to_go(path.rewards, gamma)
        falls += path.fell
        if path.fell:
            for step in before:
                if step <= len(value):
                    before[step].append((value[-step], real[-step]))
        kept = len(value) if path.fell else len(value) - int(np.ceil(np.log(CUT) / np.log(gamma)))
        values.append(value[: max(kept, 0)])
        returns.append(real[: max(kept, 0)])
    value, real = np.concatenate(values), np.concatenate(returns)
    has_any = len(value) > 0
    return {
        "path_value": round(float(value.mean()), 2) if has_any else None,
        "path_return": round(float(real.mean()), 2) if has_any else None,
        "path_excess": round(float((value - real).clip(min=0).mean()), 2) if has_any else None,
        "path_falls": falls / episodes,
        "before_a_fall": {
            step: [round(float(mean), 1) for mean in np.mean(pairs, axis=0)] for step, pairs in before.items() if pairs
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = load_config(checkpoint_dir(args.checkpoint))
    policy = load_policy(args.checkpoint)
    if not hasattr(policy.module, "critics"):
        parser.error(f"{args.checkpoint}: {type(policy.module).__name__} has no critics.")
    found = along_the_path(policy, config.env, config.gamma, args.episodes, args.seed)
    print(json.dumps({"benchmark": "along_the_path", "checkpoint": str(args.checkpoint), **found}))


if __name__ == "__main__":
    main()
