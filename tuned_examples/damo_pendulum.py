"""DAMO on Pendulum-v1, from data of mixed quality: solves its task on two cores in a few minutes.

rllib train file tuned_examples/damo_pendulum.py
"""

from rllib_damo import DAMOConfig
from rllib_damo.command.rllib import run_config

config = (
    DAMOConfig()
    .environment("Pendulum-v1")
    .offline_data(input_="pendulum-mixed")  # 30,000 transitions of mean return -840, made here at the first run
    .training(
        eta=0.1,
        rollout_length=3,
        rollout_batch_size=5_000,
        rollout_freq=500,
        hidden_dims=(64, 64),
        critic_lr=1e-3,
        bc_weight=0.0,  # the data is mostly bad: nothing to stay close to
        data_fraction=1.0,
        initial_alpha=0.1,
        max_alpha=1.0,
        policy_tau=0.01,  # a short run, in which the policy of 1,000 steps ago is another one
    )
    .dynamics(dynamics_hidden_dims=(64, 64), dynamics_weight_decay=(2.5e-5, 5e-5, 1e-4), dynamics_max_epochs=10)
    .evaluation(evaluation_interval=5, evaluation_duration=20, evaluation_config={"num_envs_per_env_runner": 20})
    .debugging(seed=0)
)

stop = {"num_gradient_steps_lifetime": 10_000}

if __name__ == "__main__":
    run_config(config, stop)
