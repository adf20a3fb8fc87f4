"""The optimizer of a run: groups of parameters and the update rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lmrecipes.precision.optimizers import SGD, AdamW, RMSprop
from lmrecipes.recipe import Rates, Recipe
from lmrecipes.training.schedule import owner_of, owners


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Optimizer groups: parts of the model that learn at different rates, matrices with weight decay, vectors without.

    `owner`: the part, one of `schedule.owners`; the first of those whose rates are always the same.
    """
    parts = owners(recipe)
    first: dict[tuple[float, Rates], str] = {}
    kinds: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = owner_of(name)
        owner = first.setdefault(parts[owner], owner)
        shape = getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO-3 a parameter may already be partitioned
        decay = recipe.optimizer.weight_decay if len(shape) > 1 else 0.0
        kinds.setdefault((owner, decay), []).append(parameter)
    return [{"params": ps, "weight_decay": decay, "owner": owner} for (owner, decay), ps in kinds.items()]


def offloads_optimizer(deepspeed: dict[str, Any] | None) -> bool:
    """Whether optimizer states live outside the device. `{"device": "none"}` is DeepSpeed's way to say no."""
    offload = deepspeed["zero_optimization"].get("offload_optimizer") if deepspeed is not None else None
    return isinstance(offload, dict) and offload.get("device") in ("cpu", "nvme")


def make_optimizer(
    groups: list[dict[str, Any]], recipe: Recipe, device: torch.device, offload: bool
) -> torch.optim.Optimizer:
    """The recipe's optimizer: torch's, or of bf16 weights without masters our own, which know how to round.

    Offloaded AdamW is DeepSpeed's (the same update rule); offloaded SGD and RMSprop stay torch's and run on the host.
    """
    optimizer, precision = recipe.optimizer, recipe.precision
    if precision.pure:
        return _low_precision(groups, recipe)
    lr, eps = optimizer.lr, optimizer.eps
    if optimizer.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=optimizer.betas[0])
    if optimizer.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=lr, alpha=optimizer.betas[1], eps=eps)
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=lr, betas=optimizer.betas, eps=eps, adamw_mode=True)
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=lr, betas=optimizer.betas, eps=eps, fused=fused)


def _low_precision(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    optimizer, rounding, seed = recipe.optimizer, recipe.precision.rounding, recipe.seed
    lr, (first, second), eps = optimizer.lr, optimizer.betas, optimizer.eps
    if optimizer.name == "sgd":
        return SGD(groups, lr, first, rounding=rounding, seed=seed)
    if optimizer.name == "rmsprop":
        return RMSprop(groups, lr, second, eps, rounding=rounding, seed=seed)
    return AdamW(groups, lr, (first, second), eps, rounding=rounding, seed=seed)
