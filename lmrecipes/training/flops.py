"""Arithmetic of a training step, and the arithmetic that the device can really do."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from lmrecipes.models.multitask import MultiTaskModel


def training_flops_per_token(model: MultiTaskModel) -> float:
    """6 x the trunk's parameters outside embedding tables: 2 forward, 4 backward per weight (arXiv 2001.08361, 2.1)."""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    tables = sum(_numel(module.weight) for module in embeddings)
    return 6.0 * (sum(_numel(parameter) for parameter in model.trunk.parameters()) - tables)


def _numel(parameter: Tensor) -> int:
    """Elements of the whole parameter, also where ZeRO-3 has partitioned it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def measured_peak(device: torch.device, compute: str) -> float:
    """FLOP/s of a large square matrix product in the compute dtype on this rank, the best of several.

    The denominator of `model_flops_utilization`: what the device delivers here, not what its data sheet says. Small
    products, and the first few, reach half of it.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[compute]
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
