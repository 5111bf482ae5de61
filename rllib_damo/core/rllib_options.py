"""RLlib's options, all of them: who reads each, or what to use instead of those that would change nothing here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Read:
    """The option counts.

    Attributes:
        by: a module, or a function of one, that reads it; of the package, if one does.
    """

    by: str


@dataclass(frozen=True)
class Refused:
    """The option would change nothing, or not what it says: it must keep its default.

    Attributes:
        instead: the end of the message: what to do instead, or why nothing need be done.
    """

    instead: str


@dataclass(frozen=True)
class Renamed:
    """An old name: RLlib says so, and sets the option of the new name or raises."""


Fate = Read | Refused | Renamed


def _each(fate: Fate, names: str) -> dict[str, Fate]:
    return dict.fromkeys(names.split(), fate)


_ALGORITHM = Read("ray.rllib.algorithms.algorithm")
_RESOURCES = Read("ray.rllib.algorithms.utils")
_RUNNERS = Read("ray.rllib.env.env_runner_group")
_EVALUATION_RUNNERS = Read("ray.rllib.env.single_agent_env_runner")  # `EvaluationEnvRunner` extends its runner
_RLLIBS_CONFIG = "ray.rllib.algorithms.algorithm_config.AlgorithmConfig"
_CONFIG = Read("rllib_damo.core.config")
_DATA = Read("rllib_damo.data.offline_data")
_EVALUATION = Read("rllib_damo.core.evaluated_algorithm")

_TENSORFLOW = Refused("the networks are PyTorch's")
_COMPILED = Refused("the gradient step is written out by hand already, and rollouts are batched")
_OLD_STACK = Refused("it is of RLlib's old API stack")
_SINGLE_AGENT = Refused("this is a single-agent algorithm: remove the `.multi_agent()` settings")
_STEPS = Refused("set `rollout_freq`, the gradient steps of an iteration")
_ROWS = Refused("rows go to the learner as they are; change the dataset instead")
_DRAWN = Refused("batches are drawn from the dataset and the model buffer, rows of their own")
_RECOGNISED = Refused("what the files hold is recognised")
_IN_MEMORY = Refused("the dataset is held in memory; set `max_dataset_rows` for a larger one")
_FITTED = Refused("`offline_evaluation_interval` measures by fitted Q evaluation, in the algorithm's process")
_NOT_RECORDED = Refused("nothing is recorded; `rllib evaluate CHECKPOINT --out FILE` plays and records")

#: RLlib's method -> its options. `tests/test_rllib_options.py` compares it with the installed RLlib.
RLLIB_OPTIONS: Mapping[str, Mapping[str, Fate]] = {
    "python_environment": _each(
        Refused("set variables of the environment by `ray.init(runtime_env={'env_vars': ...})`"),
        "extra_python_environs_for_driver extra_python_environs_for_worker",
    ),
    "resources": {
        **_each(_RESOURCES, "num_cpus_for_main_process custom_resources_for_main_process"),
        **_each(_ALGORITHM, "placement_strategy"),
        **_each(
            Refused("set `.learners(num_gpus_per_learner=...)`, and `.env_runners(num_gpus_per_env_runner=...)`"),
            "num_gpus _fake_gpus",
        ),
        **_each(
            Renamed(),
            "num_cpus_per_worker num_gpus_per_worker custom_resources_per_worker num_learner_workers "
            "num_cpus_per_learner_worker num_gpus_per_learner_worker local_gpu_idx num_cpus_for_local_worker",
        ),
    },
    "framework": {
        **_each(_CONFIG, "framework"),
        **_each(_TENSORFLOW, "eager_tracing eager_max_retraces tf_session_args local_tf_session_args"),
        **_each(
            _COMPILED,
            "torch_compile_learner torch_compile_learner_what_to_compile torch_compile_learner_dynamo_mode "
            "torch_compile_learner_dynamo_backend torch_compile_worker torch_compile_worker_dynamo_backend "
            "torch_compile_worker_dynamo_mode",
        ),
        **_each(Refused("learners average their gradients without DistributedDataParallel"), "torch_ddp_kwargs"),
        **_each(Refused("a step that is not finite ends the run with an error"), "torch_skip_nan_gradients"),
    },
    "api_stack": _each(_CONFIG, "enable_rl_module_and_learner enable_env_runner_and_connector_v2"),
    "environment": {
        **_each(_CONFIG, "env env_config observation_space action_space"),
        **_each(Refused("`rllib evaluate CHECKPOINT --render` shows the policy"), "render_env"),
        **_each(Refused("rewards are the dataset's; change the dataset instead"), "clip_rewards"),
        **_each(Refused("the policy's actions lie in [-1, 1]"), "normalize_actions"),
        **_each(Refused("the policy's actions lie within the action space"), "clip_actions"),
        **_each(Refused("RLlib does not check environments"), "disable_env_checking"),
        **_each(Refused("observations are vectors"), "is_atari"),
        **_each(Refused("actions are continuous, without a mask"), "action_mask_key"),
        **_each(Renamed(), "env_task_fn"),
    },
    "env_runners": {
        **_each(_CONFIG, "env_runner_cls num_env_runners"),
        **_each(_RESOURCES, "num_cpus_per_env_runner num_gpus_per_env_runner custom_resources_per_env_runner"),
        **_each(
            _RUNNERS,
            "create_env_on_local_worker validate_env_runners_after_construction "
            "max_requests_in_flight_per_env_runner merge_env_runner_states broadcast_env_runner_states",
        ),
        **_each(
            _EVALUATION_RUNNERS,
            "num_envs_per_env_runner gym_env_vectorize_mode episode_lookback_horizon episodes_to_numpy",
        ),
        **_each(
            Read(f"{_RLLIBS_CONFIG}.build_env_to_module_connector"),
            "env_to_module_connector add_default_connectors_to_env_to_module_pipeline",
        ),
        **_each(
            Read(f"{_RLLIBS_CONFIG}.build_module_to_env_connector"),
            "module_to_env_connector add_default_connectors_to_module_to_env_pipeline",
        ),
        **_each(Refused("the runner of this process holds the policy that acts"), "create_local_env_runner"),
        **_each(Refused("a round of rollouts waits for all runners that are alive"), "sample_timeout_s"),
        **_each(
            Refused("runners get their states with each round"),
            "use_env_runner_state_server env_runner_state_server_max_concurrency",
        ),
        **_each(
            Refused("rollouts have `rollout_length` and `rollout_batch_size`, evaluation `evaluation_duration`"),
            "rollout_fragment_length batch_mode",
        ),
        **_each(
            Refused("evaluation takes the mean action; real steps, `.online(...)`, explore, with `online_noise`"),
            "explore exploration_config",
        ),
        **_each(Refused("no observations are stored"), "compress_observations"),
        **_each(Refused("set `normalize_observations`"), "observation_filter"),
        **_each(
            _OLD_STACK,
            "use_worker_filter_stats update_worker_filter_stats sample_collector remote_worker_envs "
            "remote_env_batch_wait_ms preprocessor_pref enable_tf1_exec_eagerly sampler_perf_stats_ema_coef",
        ),
        **_each(
            Renamed(),
            "num_rollout_workers num_envs_per_worker validate_workers_after_construction ignore_worker_failures "
            "recreate_failed_workers restart_failed_sub_environments num_consecutive_worker_failures_tolerance "
            "worker_health_probe_timeout_s worker_restore_timeout_s synchronize_filter enable_connectors",
        ),
    },
    "learners": {
        **_each(Read("rllib_damo.core.learner"), "num_learners num_gpus_per_learner"),
        **_each(_RESOURCES, "num_cpus_per_learner custom_resources_per_learner"),
        **_each(Read("ray.rllib.core.learner.learner_group"), "max_requests_in_flight_per_learner"),
        **_each(Read("ray.rllib.utils.framework"), "local_gpu_idx"),
        **_each(_CONFIG, "learner_class learner_config_dict"),
        **_each(
            _DRAWN,
            "learner_connector add_default_connectors_to_learner_pipeline num_aggregator_actors_per_learner "
            "max_requests_in_flight_per_aggregator_actor",
        ),
    },
    "training": {
        **_each(_CONFIG, "lr grad_clip_by train_batch_size_per_learner"),
        **_each(Read("rllib_damo.core.algorithm"), "gamma"),
        **_each(Read("rllib_damo.core.update"), "grad_clip"),
        **_each(Read("rllib_damo.core.unused_options"), "model"),
        **_each(Refused("set `train_batch_size_per_learner`"), "train_batch_size"),
        **_each(_STEPS, "num_epochs"),
        **_each(Refused("set `train_batch_size_per_learner`, the rows of a gradient step"), "minibatch_size"),
        **_each(Refused("every batch is drawn at random"), "shuffle_batch_per_epoch"),
        **_each(Refused("each network has an Adam of its own: set `critic_lr`, `actor_lr` and the like"), "optimizer"),
        **_each(
            Renamed(),
            "num_aggregator_actors_per_learner max_requests_in_flight_per_aggregator_actor num_sgd_iter "
            "max_requests_in_flight_per_sampler_worker learner_class learner_connector "
            "add_default_connectors_to_learner_pipeline learner_config_dict",
        ),
    },
    "callbacks": {
        **_each(_CONFIG, "callbacks_class"),
        **_each(
            _ALGORITHM,
            "on_algorithm_init on_train_result on_evaluate_start on_evaluate_end on_env_runners_recreated "
            "on_checkpoint_loaded",
        ),
        **_each(
            _EVALUATION_RUNNERS,
            "on_environment_created on_episode_created on_episode_start on_episode_step on_episode_end on_sample_end",
        ),
        **_each(
            _FITTED,
            "on_evaluate_offline_start on_evaluate_offline_end on_offline_eval_runners_recreated",
        ),
    },
    "evaluation": {
        **_each(_CONFIG, "evaluation_interval evaluation_config custom_evaluation_function"),
        **_each(
            _EVALUATION,
            "evaluation_duration evaluation_duration_unit evaluation_sample_timeout_s "
            "evaluation_error_after_n_consecutive_skips evaluation_force_reset_envs_before_iteration",
        ),
        **_each(
            _ALGORITHM,
            "evaluation_num_env_runners evaluation_auto_duration_min_env_steps_per_sample "
            "evaluation_auto_duration_max_env_steps_per_sample evaluation_parallel_to_training "
            "evaluation_unhealthy_workers_timeout_s",
        ),
        **_each(
            _FITTED,
            "off_policy_estimation_methods ope_split_batch_by_episode "
            "num_offline_eval_runners offline_eval_runner_class offline_loss_for_module_fn "
            "offline_eval_batch_size_per_runner dataset_num_iters_per_offline_eval_runner "
            "offline_eval_rl_module_inference_only num_cpus_per_offline_eval_runner num_gpus_per_offline_eval_runner "
            "custom_resources_per_offline_eval_runner offline_evaluation_timeout_s "
            "max_requests_in_flight_per_offline_eval_runner broadcast_offline_eval_runner_states "
            "validate_offline_eval_runners_after_construction restart_failed_offline_eval_runners "
            "ignore_offline_eval_runner_failures max_num_offline_eval_runner_restarts "
            "offline_eval_runner_health_probe_timeout_s offline_eval_runner_restore_timeout_s",
        ),
        "offline_evaluation_interval": _ALGORITHM,
        "offline_evaluation_type": Refused(
            "offline evaluations are by fitted Q evaluation; RLlib's 'is' and 'pdis' take the density of newly drawn "
            "actions for that of the recorded ones"
        ),
        **_each(Renamed(), "always_attach_evaluation_results evaluation_num_workers"),
    },
    "offline_data": {
        **_each(_CONFIG, "offline_data_class"),
        **_each(
            _DATA,
            "input_ input_read_method input_read_schema input_filesystem input_filesystem_kwargs "
            "actions_in_input_normalized",
        ),
        **_each(
            _RECOGNISED, "input_read_episodes input_read_sample_batches input_read_batch_size input_compress_columns"
        ),
        **_each(
            Refused("`input_` and `input_read_schema` say what is read; `rllib-damo data convert` changes files"),
            "input_read_method_kwargs input_config",
        ),
        **_each(_IN_MEMORY, "materialize_data materialize_mapped_data map_batches_kwargs iter_batches_kwargs"),
        **_each(
            _ROWS,
            "ignore_final_observation prelearner_class prelearner_buffer_class prelearner_buffer_kwargs "
            "prelearner_module_synch_period prelearner_use_recorded_module_states postprocess_inputs",
        ),
        **_each(_STEPS, "dataset_num_iters_per_learner"),
        **_each(Refused("every batch is drawn at random"), "shuffle_buffer_size"),
        **_each(Refused("every batch is drawn from the dataset"), "offline_sampling"),
        **_each(
            _NOT_RECORDED,
            "output output_config output_compress_columns output_max_file_size output_max_rows_per_file "
            "output_write_remaining_data output_write_method output_write_method_kwargs output_filesystem "
            "output_filesystem_kwargs output_write_episodes",
        ),
    },
    "multi_agent": {
        **_each(Read(f"{_RLLIBS_CONFIG}.is_multi_agent"), "policies"),
        **_each(
            _SINGLE_AGENT,
            "policy_map_capacity policy_mapping_fn policies_to_train policy_states_are_swappable observation_fn "
            "count_steps_by",
        ),
        **_each(Renamed(), "algorithm_config_overrides_per_module replay_mode policy_map_cache"),
    },
    "reporting": {
        **_each(_EVALUATION_RUNNERS, "metrics_num_episodes_for_smoothing"),
        **_each(_ALGORITHM, "min_time_s_per_iteration custom_stats_cls_lookup"),
        **_each(_STEPS, "min_train_timesteps_per_iteration min_sample_timesteps_per_iteration"),
        **_each(Refused("`grad_clip` bounds gradients; their norms are not reported"), "log_gradients"),
        **_each(_OLD_STACK, "keep_per_episode_custom_metrics metrics_episode_collection_timeout_s"),
    },
    "checkpointing": _each(
        Refused("checkpoints hold the policy alone, which `rllib_damo.load_policy` reads"),
        "export_native_model_files checkpoint_trainable_policies_only",
    ),
    "debugging": {
        **_each(_CONFIG, "seed"),
        **_each(_ALGORITHM, "log_level"),
        **_each(Read("ray.tune.trainable.trainable"), "log_sys_usage"),
        **_each(_OLD_STACK, "fake_sampler"),
    },
    "fault_tolerance": {
        **_each(
            _RUNNERS,
            "restart_failed_env_runners ignore_env_runner_failures max_num_env_runner_restarts "
            "env_runner_health_probe_timeout_s",
        ),
        **_each(Read("ray.rllib.utils.actor_manager"), "delay_between_env_runner_restarts_s"),
        **_each(Read("ray.rllib.env.env_runner"), "restart_failed_sub_environments"),
        **_each(Read("rllib_damo.dynamics.rollout_rounds"), "num_consecutive_env_runner_failures_tolerance"),
        **_each(_ALGORITHM, "env_runner_restore_timeout_s"),
        **_each(
            Renamed(),
            "recreate_failed_env_runners ignore_worker_failures recreate_failed_workers max_num_worker_restarts "
            "delay_between_worker_restarts_s num_consecutive_worker_failures_tolerance "
            "worker_health_probe_timeout_s worker_restore_timeout_s",
        ),
    },
    "rl_module": {
        **_each(Read("ray.rllib.core.rl_module.rl_module"), "model_config"),
        **_each(_CONFIG, "rl_module_spec"),
        **_each(Refused("there is one module: set its options themselves"), "algorithm_config_overrides_per_module"),
        **_each(Renamed(), "model_config_dict _enable_rl_module_api"),
    },
    "experimental": {
        **_each(Read(f"{_RLLIBS_CONFIG}._value_error"), "_validate_config"),
        **_each(_ALGORITHM, "_use_msgpack_checkpoints"),
        **_each(Refused("set `precision`, where the algorithm has it"), "_torch_grad_scaler_class"),
        **_each(Refused("learning rates take schedules in gradient steps"), "_torch_lr_scheduler_classes"),
        **_each(
            _OLD_STACK,
            "_tf_policy_handles_more_than_one_loss _disable_preprocessor_api _disable_action_flattening "
            "_disable_initialize_loss_from_dummy_batch",
        ),
    },
}
