"""Every key that a DeepSpeed 0.19.8 configuration may hold, at every depth: data only.

DeepSpeed ignores unknown keys in about half of its sections without a word, so the tables are closed here. They were
read from the pydantic models and the constants of the package (`deepspeed/runtime/config.py` and what it imports);
`tests/planning/test_keys.py` compares them with the installed package, so an upgrade is noticed.
"""

from __future__ import annotations

from typing import Literal

VERSION = "0.19.8"

TOP = ""
"""Path of the top level in `SECTIONS`."""


def _keys(words: str) -> frozenset[str]:
    return frozenset(words.split())


SECTIONS: dict[str, frozenset[str]] = {
    TOP: _keys("""
        activation_checkpointing aio autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type
        compile csv_monitor data_efficiency data_parallel_size data_types dataloader_drop_last datastates_ckpt
        disable_allgather disable_python_gc dump_state expert_parallel flops_profiler fp16 gradient_accumulation_steps
        gradient_allreduce_op gradient_clipping gradient_predivide_factor hybrid_engine log_level
        managed_gradient_accumulation memory_breakdown optimizer pipeline prescale_gradients scheduler
        seq_parallel_communication_data_type sequence_parallel_size steps_per_print tensor_parallel tensorboard timers
        torch_autocast train_batch_size train_micro_batch_size_per_gpu use_data_before_expert_parallelism
        vocabulary_size wall_clock_breakdown wandb weight_quantization zero_allow_untested_optimizer
        zero_force_ds_cpu_optimizer zero_optimization
    """),
    "zero_optimization": _keys("""
        allgather_bucket_size allgather_partitions allgather_sequential compute_grad_norm contiguous_gradients
        cpu_offload cpu_offload_param cpu_offload_use_pin_memory elastic_checkpoint enable_sanity_checks
        gather_16bit_weights_on_model_save ignore_unused_parameters leaf_module legacy_stage1 load_from_fp32_weights
        log_trace_cache_warnings max_live_parameters max_reuse_distance memory_efficient_linear
        model_persistence_threshold module_granularity_threshold offload_optimizer offload_param overlap_comm
        override_module_apply param_persistence_threshold parameter_alignment pipeline_loading_checkpoint
        prefetch_bucket_size reduce_bucket_size reduce_scatter round_robin_gradients
        save_muon_momentum_buffer_in_memory stage stage3_allgather_sequential
        stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save stage3_max_live_parameters
        stage3_max_reuse_distance stage3_model_persistence_threshold stage3_module_granularity_threshold
        stage3_param_persistence_threshold stage3_prefetch_bucket_size stage3_use_all_reduce_for_fetch_params
        sub_group_size use_all_reduce_for_fetch_params use_multi_rank_bucket_allreduce zenflow zero_hpz_partition_size
        zero_quantized_gradients zero_quantized_nontrainable_weights zero_quantized_weights
    """),
    "zero_optimization.offload_param": _keys("buffer_count buffer_size device max_in_cpu nvme_path pin_memory"),
    "zero_optimization.offload_optimizer": _keys("""
        buffer_count cpuadam_cores_perc device fast_init nvme_path pin_memory pipeline_read pipeline_write ratio
        super_offload
    """),
    "zero_optimization.leaf_module": _keys("classes name_suffixes names"),
    "zero_optimization.zenflow": _keys("""
        auto_ratio full_warm_up_rounds offload overlap_step pt_reserved_cores_perc select_interval select_strategy
        steps_per_epoch topk_ratio update_interval
    """),
    "fp16": _keys("""
        auto_cast consecutive_hysteresis enabled fp16_master_weights_and_grads hysteresis initial_scale_power
        loss_scale loss_scale_window min_loss_scale
    """),
    "bf16": _keys("""
        bf16_master_weights_and_grads bf16_optimizer_states check_grad_overflow enabled immediate_grad_update
    """),
    "torch_autocast": _keys("dtype enabled lower_precision_safe_modules"),
    "data_types": _keys("buffer_dtype grad_accum_dtype keep_in_fp32_modules param_dtype"),
    "optimizer": _keys("legacy_fusion params type"),
    "scheduler": _keys("params type"),
    "activation_checkpointing": _keys("""
        contiguous_memory_optimization cpu_checkpointing number_checkpoints partition_activations profile
        synchronize_checkpoint_boundary
    """),
    "aio": _keys("block_size intra_op_parallelism overlap_events queue_depth single_submit use_gds"),
    "checkpoint": _keys("""
        checkpoint_serialization load_universal parallel_write tag_validation use_node_local_storage writer
    """),
    "checkpoint.parallel_write": _keys("pipeline_stage"),
    "checkpoint.writer": _keys("""
        data_parallel decoupled io_buffer_double io_buffer_size io_multiplier show_statistics type
    """),
    "comms_logger": _keys("debug enabled prof_all prof_ops verbose"),
    "flops_profiler": _keys("""
        detailed enabled module_depth output_file profile_step recompute_fwd_factor top_modules
    """),
    "tensorboard": _keys("enabled job_name output_path"),
    "csv_monitor": _keys("enabled job_name output_path"),
    "wandb": _keys("enabled group project team"),
    "comet": _keys("""
        api_key enabled experiment_key experiment_name mode online project samples_log_interval workspace
    """),
    "timers": _keys("throughput"),
    "timers.throughput": _keys("enabled synchronized"),
    "compile": _keys("""
        autoep_non_moe debug_log deepcompile double_buffer free_activation free_activation_threshold
        keep_all_input_tensors keep_int_input_tensors offload_activation offload_activation_pin_memory
        offload_opt_states offload_parameters passes symmetric_memory sync_after_allgather sync_after_reduce
        sync_before_allgather sync_before_reduce
    """),
    "hybrid_engine": _keys("""
        enable_cuda_graph enabled inference_tp_size max_out_tokens pin_parameters release_inference_cache
        tp_gather_partition_size
    """),
    "weight_quantization": _keys("enabled num_bits post_init_quant q_groups q_type quantized_initialization"),
    "tensor_parallel": _keys("""
        autotp_size dtype injection_policy_tuple keep_module_on_host kernel_inject partition_config preset_model
        replace_with_kernel_inject tensor_parallel tp tp_overlap_comm vocab_parallel_ce_backend vocab_parallel_lm_head
    """),
    "tensor_parallel.tp": _keys("mpu tp_grain_size tp_group tp_size"),
    "tensor_parallel.tensor_parallel": _keys("mpu tp_grain_size tp_group tp_size"),
}
"""Known keys of each section by its dotted path. A mapping anywhere else is unknown, unless `OPEN_SECTIONS` has it."""

OPEN_SECTIONS = _keys("""
    autotuning data_efficiency datastates_ckpt expert_parallel optimizer.params pipeline scheduler.params
    tensor_parallel.partition_config weight_quantization.post_init_quant weight_quantization.quantized_initialization
""")
"""Sections whose content is not checked: rules of their own refuse each of them (see `UNSUPPORTED`)."""

SILENT_SECTIONS = _keys("""
    optimizer scheduler checkpoint checkpoint.parallel_write checkpoint.writer data_types aio activation_checkpointing
    flops_profiler torch_autocast timers
""") | {TOP}
"""Sections in which DeepSpeed ignores an unknown key without a word; in the others it raises."""

REMOVED: dict[str, str] = {
    "amp": "use `fp16`, `bf16` or `torch_autocast`",
    "compression_training": "the compression library is gone; remove it",
    "curriculum_learning": "remove it; the recipe's mixture decides the order of the data",
    "eigenvalue": "remove it",
    "elasticity": "remove it; the recipe's batch is exact for every number of processes",
    "graph_harvesting": "remove it",
    "nebula": "remove it; checkpoints are written by the run itself",
    "progressive_layer_drop": "remove it",
    "quantize_training": "remove it",
    "sparse_attention": "remove it",
    "sparse_gradients": "remove it; embeddings built with sparse=True need no flag",
    "zero_optimization.mics_hierarchical_params_gather": "remove it",
    "zero_optimization.mics_shard_size": "remove it; `zero_hpz_partition_size` shards within a node",
    "zero_optimization.zeropp_loco_param": "remove it",
}
"""Keys that DeepSpeed refuses since their feature was removed, and what to do (DeepSpeed#8489)."""

DEPRECATED: dict[str, tuple[str, str]] = {
    "bfloat16": ("bf16", "`bf16`"),
    "zero_optimization.cpu_offload": (
        "zero_optimization.offload_optimizer",
        '`"offload_optimizer": {"device": "cpu"}`',
    ),
    "zero_optimization.cpu_offload_param": ("zero_optimization.offload_param", '`"offload_param": {"device": "cpu"}`'),
    "zero_optimization.cpu_offload_use_pin_memory": (
        "zero_optimization.offload_optimizer",
        "`pin_memory` inside `offload_optimizer` and `offload_param`",
    ),
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": (
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
        "`stage3_gather_16bit_weights_on_model_save`",
    ),
}
"""Old key -> (path of the new key, how to write it)."""

UNSUPPORTED: dict[str, str] = {
    "autotuning": "it starts runs of its own with other batch sizes",
    "compile": "it rewrites the graph that the precision plan was checked on",
    "data_efficiency": "it reorders and shortens the data that the recipe's mixture has fixed",
    "data_parallel_size": "every process is a data-parallel rank here",
    "datastates_ckpt": "checkpoints are written by the run itself",
    "expert_parallel": "every process is a data-parallel rank here",
    "hybrid_engine": "it is for generation inside training",
    "pipeline": "every process is a data-parallel rank here",
    "sequence_parallel_size": "every process is a data-parallel rank here",
    "tensor_parallel": "every process is a data-parallel rank here",
    "weight_quantization": "it changes the weights; the recipe's precision does not know it",
    "zero_optimization.zenflow": "it updates weights late, so the trajectory is another one",
    "zero_optimization.zero_quantized_gradients": "gradients are reduced in 4 bits, the recipe promises fp32",
    "zero_optimization.zero_quantized_nontrainable_weights": "weights are gathered in 8 bits",
    "zero_optimization.zero_quantized_weights": "weights are gathered in 8 bits",
}
"""Keys that DeepSpeed knows and that would change what a step means; `false`, 0, 1 and empty sections are harmless."""

Kind = Literal["bool", "int", "number", "text", "section"]

KINDS: dict[str, Kind] = {
    "communication_data_type": "text",
    "gradient_clipping": "number",
    "steps_per_print": "number",
    "wall_clock_breakdown": "bool",
    "zero_allow_untested_optimizer": "bool",
    "zero_force_ds_cpu_optimizer": "bool",
    "fp16.enabled": "bool",
    "fp16.auto_cast": "bool",
    "fp16.consecutive_hysteresis": "bool",
    "fp16.fp16_master_weights_and_grads": "bool",
    "fp16.loss_scale": "number",
    "fp16.initial_scale_power": "int",
    "fp16.loss_scale_window": "int",
    "fp16.hysteresis": "int",
    "fp16.min_loss_scale": "int",
    "bf16.enabled": "bool",
    "bf16.bf16_master_weights_and_grads": "bool",
    "bf16.bf16_optimizer_states": "bool",
    "bf16.check_grad_overflow": "bool",
    "bf16.immediate_grad_update": "bool",
    "torch_autocast.enabled": "bool",
    "torch_autocast.dtype": "text",
    "data_types.grad_accum_dtype": "text",
    "zero_optimization.contiguous_gradients": "bool",
    "zero_optimization.reduce_scatter": "bool",
    "zero_optimization.reduce_bucket_size": "int",
    "zero_optimization.allgather_partitions": "bool",
    "zero_optimization.allgather_bucket_size": "int",
    "zero_optimization.overlap_comm": "bool",
    "zero_optimization.round_robin_gradients": "bool",
    "zero_optimization.sub_group_size": "int",
    "zero_optimization.stage3_prefetch_bucket_size": "int",
    "zero_optimization.stage3_param_persistence_threshold": "int",
    "zero_optimization.stage3_max_live_parameters": "int",
    "zero_optimization.stage3_max_reuse_distance": "int",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "bool",
    "zero_optimization.offload_optimizer.device": "text",
    "zero_optimization.offload_optimizer.pin_memory": "bool",
    "zero_optimization.offload_param.device": "text",
    "zero_optimization.offload_param.pin_memory": "bool",
}
"""What a value must be, for the keys that decide a run (floats that are whole, such as 5e8, count as int)."""

CHOICES: dict[str, tuple[str, ...]] = {
    "communication_data_type": ("fp32", "fp16", "bf16"),
    "data_types.grad_accum_dtype": ("fp32", "fp16", "bf16"),
    "torch_autocast.dtype": ("bfloat16", "float16", "bf16", "fp16", "torch.bfloat16", "torch.float16"),
    "zero_optimization.offload_optimizer.device": ("cpu", "nvme", "none"),
    "zero_optimization.offload_param.device": ("cpu", "nvme", "none"),
}
"""The words that a text value may be."""

AUTO_ALLOWED = _keys("data_types.keep_in_fp32_modules")
"""Keys for which "auto" is a value of DeepSpeed itself, not a placeholder that another program fills."""
