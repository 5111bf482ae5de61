"""DAMO on HalfCheetah-v5, from data of a medium and an expert policy: an anchor to the data that ends.

rllib train file tuned_examples/damo_halfcheetah_expert.py  # 100,000 gradient steps; score 62, the data's 51
"""

from rllib_damo import DAMOConfig
from rllib_damo.command.rllib import run_config

config = (
    DAMOConfig()
    .environment("HalfCheetah-v5")
    .offline_data(input_="halfcheetah-medium-expert")  # made on this machine at the first run
    .training(hidden_dims=(128, 128), rollout_batch_size=20_000)  # less than the paper, for a CPU
    # The policy leaves the data between 10,000 and 30,000 steps. That takes a good model: many epochs.
    .training(bc_weight=[[0, 2.0], [10_000, 2.0], [30_000, 0.0]], tau=0.005, initial_alpha=0.1, max_alpha=0.1)
    .dynamics(dynamics_max_epochs=40)
    .evaluation(evaluation_interval=10, evaluation_duration=10, evaluation_config={"num_envs_per_env_runner": 10})
    .debugging(seed=0)
)

stop = {"num_gradient_steps_lifetime": 100_000}

if __name__ == "__main__":
    run_config(config, stop)
