"""An experiment file, for the tests of the `rllib` command."""

PENDULUM_PPO = """
from ray.rllib.algorithms.ppo import PPOConfig
from rllib_damo.command.rllib import run_config
from rllib_damo.evaluation.scores import ScoreCallbacks

def bonus(algorithm, result, **kwargs):
    result["from_a_function_of_the_file"] = 1.0

config = (
    PPOConfig()
    .environment("Pendulum-v1")
    .env_runners(num_env_runners=0)
    .training(train_batch_size=200, minibatch_size=200, num_epochs=1)
    .evaluation(evaluation_interval=1, evaluation_duration=1)
    .callbacks(ScoreCallbacks, on_train_result=bonus)
)
stop = {"training_iteration": 2}
if __name__ == "__main__":
    run_config(config, stop)
"""
