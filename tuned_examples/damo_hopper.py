"""DAMO on Hopper-v5: half medium, half expert data.

rllib train file tuned_examples/damo_hopper.py  # 100,000 gradient steps; score 98, the data's 61
rllib train file tuned_examples/damo_hopper.py --stop '{"num_gradient_steps_lifetime": 3e6}'  # the paper's length

From one medium policy (score 66, the data's 47), and from a fifth of its episodes, since these differ much:
rllib train file tuned_examples/damo_hopper.py --config '{"input_": "hopper-medium", "data_fraction": 0.2}'
"""

from rllib_damo import DAMOConfig
from rllib_damo.command.rllib import run_config

config = (
    DAMOConfig()
    .environment("Hopper-v5")
    .offline_data(input_="hopper-medium-expert")  # made on this machine at the first run
    .training(hidden_dims=(128, 128), rollout_batch_size=20_000)  # less than the paper, for a CPU
    .dynamics(dynamics_max_epochs=8)
    .evaluation(evaluation_interval=10, evaluation_duration=10, evaluation_config={"num_envs_per_env_runner": 10})
    .debugging(seed=0)
)

stop = {"num_gradient_steps_lifetime": 100_000}

if __name__ == "__main__":
    run_config(config, stop)
