"""A search over η and the rollouts' length on Hopper-v5: twelve trials that share one dataset and one dynamics model.

rllib train file tuned_examples/damo_hopper_search.py  # as many trials at a time as there are CPUs, or quarters of GPUs
rllib train file tuned_examples/damo_hopper_search.py --ray-address auto  # on the machines of a Ray cluster
"""

import torch
from ray import tune

from rllib_damo import DAMOConfig
from rllib_damo.command.rllib import run_config

config = (
    DAMOConfig()
    .environment("Hopper-v5")
    .offline_data(input_="hopper-medium-expert", holdout_episodes=0.1)  # by which `rllib-damo select` can judge
    .training(eta=tune.grid_search([0.5, 1.0, 2.0, 3.0]), rollout_length=tune.grid_search([1, 3, 5]))
    .training(hidden_dims=(128, 128), rollout_batch_size=20_000)
    .dynamics(dynamics_max_epochs=8)
    .learners(num_gpus_per_learner=0.25 if torch.cuda.is_available() else 0)
    .evaluation(evaluation_interval=10, evaluation_duration=10, evaluation_config={"num_envs_per_env_runner": 10})
    .debugging(seed=0)
)

stop = {"num_gradient_steps_lifetime": 100_000}

if __name__ == "__main__":
    run_config(config, stop)
