"""Bytes that a forward pass keeps for its backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class _Kept:
    """A saved tensor; it lives as long as the graph wants it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


def activation_bytes(run: Callable[[], Any], module: nn.Module) -> int:
    """Bytes of activations that autograd keeps after `run`, which computes a loss of `module` and returns it.

    Counted is what operations save for backward, each storage once however many views of it are saved; parameters and
    buffers of `module`, and what the graph has let go of when `run` returns, are not. Weights that autocast has rounded
    are counted: they are kept beside the parameters. Not seen is what a custom `autograd.Function` keeps on its context
    instead of by `save_for_backward`: here the gradients of the chunked cross-entropy (`models/cross_entropy.py`), as
    large as its hidden states and, in fp32, its weight. Of a checkpointed part only the inputs are kept, and counted.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: list[weakref.ref[_Kept]] = []

    def keep(tensor: Tensor) -> _Kept:
        one = _Kept(tensor)
        kept.append(weakref.ref(one))
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one.tensor):
        loss = run()
    storages = [one.tensor.untyped_storage() for one in (reference() for reference in kept) if one is not None]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del loss
    return sum(size for place, size in sizes.items() if place not in own)
