"""What DeepSpeed's engines hold, by ZeRO stage: for what their own methods do not tell.

Names of attributes are those of DeepSpeed 0.19 (`runtime/zero/stage_1_and_2.py`, `runtime/zero/stage3.py`; and
`runtime/bf16_optimizer.py`, which is what bf16 with fp32 accumulation gets at stage 1).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def clear_gradients(engine: Any, stage: int) -> None:
    """Drop what was accumulated since the last step, as a step that overflows does."""
    if stage == 0:
        engine.zero_grad()
        return
    optimizer = engine.optimizer
    optimizer.zero_grad(set_to_none=True)
    if _is_bf16(optimizer):
        return
    if stage == 3:
        optimizer.averaged_gradients = {}
        optimizer.inf_or_nan_tracker.zero_()
        if optimizer.offload_optimizer:
            optimizer.reset_cpu_buffers()
        return
    optimizer._release_preflattened_grad_buffers()
    for buffers in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
        buffers.update(dict.fromkeys(buffers))
    if optimizer.cpu_offload:
        optimizer.reset_cpu_buffers()
        optimizer.micro_step_id = -1


def loss_scale(engine: Any) -> float | None:
    """The scale in force, from stage 1 on. `engine.loss_scale()` is that of its settings: 0 where it is dynamic."""
    return float(engine.optimizer.loss_scale) if engine.fp16_enabled() else None


def skip_at_smallest_scale(engine: Any) -> None:
    """Let steps at the smallest loss scale be skipped like others, as without DeepSpeed: the run itself stops a streak
    and names the cause, where DeepSpeed would raise a bare Exception."""
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    if getattr(scaler, "dynamic", False):
        scaler.raise_error_at_min_scale = False


def master_weights(engine: Any, stage: int) -> list[Tensor]:
    """The partitions that the optimizer updates, on this rank, from stage 1 on."""
    optimizer = engine.optimizer
    if _is_bf16(optimizer):
        return list(optimizer.fp32_groups_flat_partition)
    return list(optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups)


def follow_masters(engine: Any, stage: int) -> None:
    """Make the weights that compute those of the masters, which somebody else than the optimizer has changed, as an
    update does at its end. From stage 1 on; every rank must call it."""
    optimizer = engine.optimizer
    if stage < 3:
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for group in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    optimizer.invalidate_secondary_tensor()


def gradient_sums(engine: Any, stage: int) -> list[Tensor]:
    """The buffers in which a step's gradients are summed on this rank, from stage 1 on: between the last backward pass
    and the update. DeepSpeed empties what `.grad` of the parameters holds after every backward pass."""
    optimizer = engine.optimizer
    if _is_bf16(optimizer):
        return list(optimizer.fp32_groups_gradients_flat)
    whole = [p.grad_accum for p in engine.module.parameters() if getattr(p, "grad_accum", None) is not None]
    offloaded = [master.grad for master in master_weights(engine, stage) if master.grad is not None]
    partitions = [part for parts in optimizer.averaged_gradients.values() for part in parts or ()]
    return whole + offloaded + partitions


def reduction_dtypes(engine: Any, stage: int) -> set[torch.dtype]:
    """dtypes in which gradients go from rank to rank."""
    if stage == 0 or _is_bf16(engine.optimizer):
        return {engine.communication_data_type}
    return set(engine.optimizer.ipg_buckets)  # one bucket for each: autocast has several, whatever else is set


def whole(parameter: nn.Parameter, stage: int) -> Tensor:
    """All of a weight, from its master where there is one; from stage 1 on every rank must ask for it."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    full: Tensor | None = safe_get_full_fp32_param(parameter) if stage else None
    if full is not None:
        return full
    with GatheredParameters([parameter]) if stage == 3 else nullcontext():
        return parameter.detach().clone()


def whole_gradient(parameter: nn.Parameter) -> Tensor | None:
    """All of a weight's gradient as it was summed, from stage 1 on: after the last backward pass of a step; every rank
    must ask for it."""
    from deepspeed.utils import safe_get_full_grad

    found: Tensor | None = safe_get_full_grad(parameter)
    return found


def match_partitioned(model: nn.Module) -> None:
    """Give the heads the dtype of the trunk: under ZeRO-3 `transformers` loads it partitioned and in 16 bits already,
    and DeepSpeed asserts one dtype. At the other stages, where nothing is partitioned, DeepSpeed casts the whole model,
    with the same result."""
    partitioned = {parameter.dtype for parameter in model.parameters() if hasattr(parameter, "ds_id")}
    for parameter in model.parameters():
        if len(partitioned) == 1 and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(next(iter(partitioned)))


def partition(parameter: nn.Parameter) -> list[Tensor]:
    """What this rank holds of a weight: under ZeRO-3 its part, and the whole where it is small or in use."""
    part = getattr(parameter, "ds_tensor", None)
    return [parameter.data] if part is None else [part, parameter.data]


def _is_bf16(optimizer: Any) -> bool:
    return hasattr(optimizer, "bf16_groups")
