"""DAMO on Hopper-v5 without an anchor: from data of one medium policy to twice its return.

rllib train file tuned_examples/damo_hopper_medium.py  # 100,000 gradient steps

The data's score is 47, that of a clone of their best fifth 64. This one's was 75 to 99 from 35,000 steps on, with one
seed, and 101 from 60,000 on without `terminal_alignment` and the model's choice (see benchmarks/LOG.md).
"""

from rllib_damo import DAMOConfig
from rllib_damo.command.rllib import run_config

config = (
    DAMOConfig()
    .environment("Hopper-v5")
    .offline_data(input_="hopper-medium")  # made on this machine at the first run
    # The policy follows the objective alone, on all rows, and no row is worth more than its reward.
    .training(bc_weight=0.0, data_fraction=1.0, logit_bonus=False, f_divergence="power", actor_f_divergence="power")
    # What the classifier takes from each step must not make a fall pay.
    .training(terminal_alignment=True)
    # Rollouts come to where the policy falls, and half of them start where the policy itself starts.
    .training(rollout_length=200, rollout_batch_size=500, rollout_margin=0.1, episode_start_ratio=0.5)
    # The policy swings from one thousand steps to the next. The mean of those of the last tens of thousands does not.
    # A newer mean is not taken if it clearly returns less in the model.
    .training(policy_tau=2e-5, policy_check_freq=5000)
    .training(hidden_dims=(128, 128), alpha_lr=3e-4, initial_alpha=0.1, max_alpha=1.0)
    .dynamics(dynamics_max_epochs=20)
    .evaluation(evaluation_interval=10, evaluation_duration=10, evaluation_config={"num_envs_per_env_runner": 10})
    .debugging(seed=0)
)

stop = {"num_gradient_steps_lifetime": 100_000}

if __name__ == "__main__":
    run_config(config, stop)
