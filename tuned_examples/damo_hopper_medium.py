"""DAMO on Hopper-v5 without an anchor: from data of one medium policy to nearly twice its return.

rllib train file tuned_examples/damo_hopper_medium.py  # 100,000 gradient steps

The data's score is 47, that of a clone of their best fifth 64. This one's was 75 to 99 from 35,000 steps on, with one
seed, and 101 from 60,000 on without `terminal_alignment` and the model's choice (see benchmarks/LOG.md).
"""

from rllib_damo import DAMOConfig
from rllib_damo.command.rllib import run_config

config = (
    DAMOConfig.long_rollouts()  # no anchor, all rows
    .environment("Hopper-v5")
    .offline_data(input_="hopper-medium")  # made on this machine at the first run
    .training(hidden_dims=(128, 128))
    .evaluation(evaluation_interval=10, evaluation_duration=10, evaluation_config={"num_envs_per_env_runner": 10})
    .debugging(seed=0)
)

stop = {"num_gradient_steps_lifetime": 100_000}

if __name__ == "__main__":
    run_config(config, stop)
