"""Every key that an Accelerate 1.15.0 launch file (YAML) may hold: data only.

Accelerate refuses unknown keys at the top level and ignores them inside sections. The tables were read from
`ClusterConfig` (`accelerate/commands/config/config_args.py`) and from the arguments of `accelerate launch`, which is
where the sections' keys end; `tests/planning/test_keys.py` compares them with the installed package.
"""

from __future__ import annotations

VERSION = "1.15.0"

TOP = ""
"""Path of the top level in `SECTIONS`."""


def _keys(words: str) -> frozenset[str]:
    return frozenset(words.split())


SECTIONS: dict[str, frozenset[str]] = {
    TOP: _keys("""
        command_file commands compute_environment debug deepspeed_config distributed_type downcast_bf16 dynamo_backend
        dynamo_config enable_cpu_affinity fp16 fp8_config fsdp_config gpu_ids machine_rank main_process_ip
        main_process_port main_training_function megatron_lm_config mixed_precision mpirun_config num_machines
        num_processes parallelism_config rdzv_backend same_network tpu_env tpu_name tpu_use_cluster tpu_use_sudo tpu_vm
        tpu_zone use_cpu
    """),
    "deepspeed_config": _keys("""
        deepspeed_config_file deepspeed_exclusion_filter deepspeed_hostfile deepspeed_inclusion_filter
        deepspeed_moe_layer_cls_names deepspeed_multinode_launcher gradient_accumulation_steps gradient_clipping
        offload_optimizer_device offload_optimizer_nvme_path offload_param_device offload_param_nvme_path
        zero3_init_flag zero3_save_16bit_model zero_stage
    """),
    "dynamo_config": _keys("backend mode use_dynamic use_fullgraph use_regional_compilation"),
    "fp8_config": _keys("""
        amax_compute_algo amax_history_len backend enable_fsdp_float8_all_gather format interval margin opt_level
        override_linear_precision pad_inner_dim use_autocast_during_eval
    """),
    "fsdp_config": _keys("""
        activation_checkpointing activation_checkpointing_offload auto_wrap_policy backward_prefetch
        cpu_ram_efficient_loading forward_prefetch min_num_params offload_params reshard_after_forward
        sharding_strategy state_dict_type sync_module_states transformer_layer_cls_to_wrap use_orig_params version
    """),
    "mpirun_config": _keys("mpirun_hostfile"),
    "parallelism_config": _keys("""
        parallelism_config_cp_backend parallelism_config_cp_comm_strategy parallelism_config_cp_size
        parallelism_config_dp_replicate_size parallelism_config_dp_shard_size parallelism_config_sp_attn_implementation
        parallelism_config_sp_backend parallelism_config_sp_seq_length parallelism_config_sp_seq_length_is_variable
        parallelism_config_sp_size parallelism_config_tp_size
    """),
    "megatron_lm_config": _keys("""
        megatron_lm_attention_backend megatron_lm_attention_dropout megatron_lm_attention_softmax_in_fp32
        megatron_lm_calculate_per_token_loss megatron_lm_context_parallel_size
        megatron_lm_decoder_last_pipeline_num_layers megatron_lm_eod_mask_loss megatron_lm_expert_model_parallel_size
        megatron_lm_expert_tensor_parallel_size megatron_lm_gradient_clipping megatron_lm_hidden_dropout
        megatron_lm_no_load_optim megatron_lm_no_save_optim megatron_lm_num_micro_batches
        megatron_lm_optimizer_cpu_offload megatron_lm_overlap_cpu_optimizer_d2h_h2d megatron_lm_pp_degree
        megatron_lm_recompute_activations megatron_lm_recompute_granularity megatron_lm_recompute_method
        megatron_lm_recompute_num_layers megatron_lm_sequence_parallelism megatron_lm_tp_degree
        megatron_lm_use_custom_fsdp megatron_lm_use_distributed_optimizer megatron_lm_use_precision_aware_optimizer
        megatron_lm_use_rotary_position_embeddings
    """),
}
"""Known keys of each section by its name."""

PREFIXES = {"dynamo_config": "dynamo_", "fp8_config": "fp8_", "fsdp_config": "fsdp_"}
"""Sections whose keys may also be written with a prefix, which Accelerate adds where it is missing."""

IGNORED_WITH_CONFIG_FILE = _keys("""
    gradient_accumulation_steps gradient_clipping mixed_precision offload_optimizer_device offload_optimizer_nvme_path
    offload_param_device offload_param_nvme_path zero3_save_16bit_model zero_stage
""")
"""Fields that may not stand beside `deepspeed_config_file`: the script raises when it starts
(`DeepSpeedPlugin._deepspeed_config_checks`). `mixed_precision` is a top-level field, the others are of the section."""

DISTRIBUTED_TYPES = _keys("""
    DEEPSPEED FSDP MEGATRON_LM MULTI_CPU MULTI_GPU MULTI_HPU MULTI_MLU MULTI_MUSA MULTI_NEURON MULTI_NPU MULTI_SDAA
    MULTI_XPU NO XLA
""")
"""Values of `distributed_type`."""

MIXED_PRECISION = {"no": "fp32", "fp16": "fp16", "bf16": "bf16", "fp8": "fp8"}
"""Values of `mixed_precision`, and the recipe's word for each."""
