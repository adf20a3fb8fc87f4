"""Gradients of plain torch and DDP: their norm, and the dtype in which ranks add them up.

Annotations are evaluated here: DDP compares those of a hook with its own types.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm of all of them, fp32 []. torch sums squares of 16-bit gradients in fp32, but rounds each tensor's norm
    back to 16 bits."""
    if all(gradient.dtype is torch.float32 for gradient in gradients):
        return nn.utils.get_total_norm(gradients)
    return torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]).norm()


def reduce_in(model: Any, dtype: torch.dtype) -> None:
    """Let DDP add gradients up over ranks in this dtype, whatever they have themselves."""
    if reduced_in(model) != {dtype}:
        model.register_comm_hook(dtype, _reduce)


def reduced_in(model: Any) -> set[torch.dtype]:
    """dtypes in which a model adds its gradients up over ranks; none where it is alone."""
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return set()
    hooks: list[Any] = model._comm_hooks
    if hooks:
        return {dtype for _, dtype in hooks}
    return {p.dtype for p in model.parameters() if p.requires_grad}


def _reduce(dtype: torch.dtype, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """Mean over ranks of a bucket, as DDP does it, in another dtype."""
    own = bucket.buffer()
    sent = own.to(dtype).div_(torch.distributed.get_world_size())
    work = torch.distributed.all_reduce(sent, async_op=True)

    def back(done: torch.futures.Future[Any]) -> Tensor:
        return own.copy_(done.value()[0])

    return work.get_future().then(back)
