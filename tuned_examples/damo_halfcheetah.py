"""DAMO on HalfCheetah-v5, from data of one medium policy.

rllib train file tuned_examples/damo_halfcheetah.py  # 100,000 gradient steps; score 50, the data's 45
rllib train file tuned_examples/damo_halfcheetah.py --stop '{"num_gradient_steps_lifetime": 3e6}'  # the paper's length
"""

from rllib_damo import DAMOConfig
from rllib_damo.command.rllib import run_config

config = (
    DAMOConfig()
    .environment("HalfCheetah-v5")
    .offline_data(input_="halfcheetah-medium")  # made on this machine at the first run
    .training(hidden_dims=(128, 128), rollout_batch_size=20_000)  # less than the paper, for a CPU
    # No anchor to the data, as in the paper, with its η and target networks. That takes a good model: many epochs.
    .training(bc_weight=0.0, data_fraction=1.0, eta=0.5, tau=0.005, initial_alpha=0.1, max_alpha=1.0)
    .dynamics(dynamics_max_epochs=40)
    .evaluation(evaluation_interval=10, evaluation_duration=10, evaluation_config={"num_envs_per_env_runner": 10})
    .debugging(seed=0)
)

stop = {"num_gradient_steps_lifetime": 100_000}

if __name__ == "__main__":
    run_config(config, stop)
