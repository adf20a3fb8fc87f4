"""Arithmetic of a training step, and the arithmetic that the device can really do."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from lmrecipes.inference.arithmetic import HALF
from lmrecipes.models.multitask import MultiTaskModel


def training_flops_per_token(model: MultiTaskModel) -> float:
    """2 forward and 4 backward per weight of a product (arXiv 2001.08361, 2.1); 2 backward where the weight is frozen.
    Of every position alike: what front ends multiply for those of images and clips is not counted.

    Embedding tables are looked up, not multiplied, but for one that is a language-model head too. A trunk that reads
    texts as a whole multiplies its weights once a text.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = [weight for weight in model.trunk.parameters() if id(weight) not in tables]
    if model.language is not None:
        weights.append(model.language.weight)
    times = sum((6.0 if weight.requires_grad else 4.0) * _numel(weight) for weight in weights)
    return times / (model.trunk.exactly or 1)


def parameters_of(model: nn.Module) -> tuple[int, int]:
    """How many numbers a model holds, and how many of them are trained."""
    sizes = [(_numel(parameter), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _numel(parameter: Tensor) -> int:
    """Elements of the whole parameter, also where ZeRO-3 has partitioned it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def measured_peak(device: torch.device, compute: str) -> float:
    """FLOP/s of a large square matrix product in the compute dtype on this rank, the best of several.

    The denominator of `model_flops_utilization`: what the device delivers here, not what its data sheet says. Small
    products, and the first few, reach half of it.
    """
    dtype = HALF.get(compute, torch.float32)
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.ones(size, size, dtype=dtype, device=device), torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
