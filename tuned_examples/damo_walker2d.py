"""DAMO on Walker2d-v5, from data of one medium policy.

rllib train file tuned_examples/damo_walker2d.py  # 100,000 gradient steps; scores 62 to 84, mean 77; the data's 76
rllib train file tuned_examples/damo_walker2d.py --stop '{"num_gradient_steps_lifetime": 3e6}'  # the paper's length

Half medium, half expert data (score 96, the data's 85), and from the better half of the episodes:
rllib train file tuned_examples/damo_walker2d.py --config '{"input_": "walker2d-medium-expert", "data_fraction": 0.5}'
"""

from rllib_damo import DAMOConfig
from rllib_damo.command.rllib import run_config

config = (
    DAMOConfig()
    .environment("Walker2d-v5")
    .offline_data(input_="walker2d-medium")  # made on this machine at the first run
    .training(data_fraction=1.0)  # most episodes are alike; those that end by a fall show how one comes about
    .training(hidden_dims=(128, 128), rollout_batch_size=20_000)  # less than the paper, for a CPU
    .dynamics(dynamics_max_epochs=8)
    .evaluation(evaluation_interval=10, evaluation_duration=10, evaluation_config={"num_envs_per_env_runner": 10})
    .debugging(seed=0)
)

stop = {"num_gradient_steps_lifetime": 100_000}

if __name__ == "__main__":
    run_config(config, stop)
