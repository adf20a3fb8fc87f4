"""What an engine really holds on this rank: the tensors themselves, whatever was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmrecipes.training import zero
from lmrecipes.training.reduction import reduced_in

if TYPE_CHECKING:
    from lmrecipes.training.engine import Engine


def weights(engine: Engine) -> dict[str, list[Tensor]]:
    """Of each parameter what this rank holds: the whole, under ZeRO-3 a part."""
    return {name: zero.partition(parameter) for name, parameter in engine.module.named_parameters()}


def whole_weights(engine: Engine, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
    """Each parameter, from the master weights, fp32 on the CPU. Every rank must iterate to the end."""
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad or not trained_only:
            yield name, zero.whole(parameter, engine.zero_stage or 0).detach().float().cpu()


def masters(engine: Engine) -> list[Tensor]:
    """What the optimizer updates, where that is not the weights themselves."""
    if engine.zero_stage:
        return zero.master_weights(engine.model, engine.zero_stage)
    own = {id(parameter) for parameter in engine.module.parameters()}
    return [parameter for parameter in updated(engine) if id(parameter) not in own]


def updated(engine: Engine) -> list[Tensor]:
    """What the optimizer updates on this rank: masters, or the weights themselves; in the same order at every call."""
    if engine.zero_stage:
        return zero.master_weights(engine.model, engine.zero_stage)
    return [parameter for group in _optimizer(engine).param_groups for parameter in group["params"]]


@dataclass(frozen=True)
class Gradients:
    """dtypes in which a step's gradients are summed, and the bytes of all that holds gradients."""

    dtypes: frozenset[torch.dtype]
    bytes: int


def gradients(engine: Engine) -> Gradients:
    """Of a whole step, between its last backward pass and the update."""
    own = [p.grad for p in engine.module.parameters() if p.grad is not None]
    sums = zero.gradient_sums(engine.model, engine.zero_stage) if engine.zero_stage else own
    return Gradients(frozenset(g.dtype for g in sums), sum(by_dtype([*own, *sums]).values()))


def gradient_of(engine: Engine, parameter: nn.Parameter) -> Tensor:
    """All of a weight's summed gradient, without the loss scale, fp32: between a step's last backward pass and its
    update. Every rank must ask for it."""
    found = zero.whole_gradient(parameter) if engine.zero_stage else parameter.grad
    if found is None:
        return torch.zeros(parameter.numel(), device=engine.device)
    scale = engine.scale.value if engine.scale else zero.loss_scale(engine.model) if engine.zero_stage else None
    return found.detach().float() / scale if scale else found.detach().float()


def reduction(engine: Engine) -> set[torch.dtype]:
    """dtypes in which gradients are summed over ranks; none where DDP or plain torch has one rank."""
    if engine.zero_stage is not None:
        return zero.reduction_dtypes(engine.model, engine.zero_stage)
    return reduced_in(engine.model)


def states(engine: Engine) -> dict[str, list[Tensor]]:
    """The optimizer's tensors by name, those as large as what they belong to; empty before the first update."""
    found: dict[str, list[Tensor]] = {}
    for parameter, state in _optimizer(engine).state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and name != "step" and value.shape == parameter.shape:
                found.setdefault(name, []).append(value)
    return found


def updates(engine: Engine) -> int:
    """Updates that the optimizer says it has made."""
    return max((int(state.get("step", 0)) for state in _optimizer(engine).state.values()), default=0)


def products(engine: Engine) -> torch.dtype:
    """dtype of products that have no format of their own."""
    if engine.deepspeed is None:
        return engine.arithmetic.dtype if engine.arithmetic.autocast else next(engine.module.parameters()).dtype
    if engine.model.torch_autocast_enabled():
        return torch.bfloat16 if engine.model.torch_autocast_dtype() is None else engine.model.torch_autocast_dtype()
    return next(engine.module.parameters()).dtype


def by_dtype(tensors: Iterable[Tensor]) -> dict[torch.dtype, int]:
    """Bytes of the tensors' storages, each storage once, by dtype."""
    storages = {t.untyped_storage().data_ptr(): (t.dtype, t.untyped_storage().nbytes()) for t in tensors}
    found: dict[torch.dtype, int] = {}
    for dtype, size in storages.values():
        found[dtype] = found.get(dtype, 0) + size
    return found


def _optimizer(engine: Engine) -> torch.optim.Optimizer:
    """The one that updates, below the wrappers."""
    optimizer: Any = engine.model.optimizer if engine.deepspeed is not None else engine.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer
