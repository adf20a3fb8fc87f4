"""Optimizers of bf16 weights without fp32 master weights: states in bf16 too, arithmetic in fp32, a chunk at a time.

A bf16 number has 8 significant bits, so that an update below 1/512 of its weight vanishes when it is rounded to the
nearest; at small learning rates nearly all do. Two remedies (Zamirai et al. 2020, Revisiting BFloat16 Training, arXiv
2010.06192, sections 4.1 and 4.2):

- stochastic: rounded up or down by chance, so that the sum of many updates is right on average;
- kahan: the weight is the sum of two bf16 numbers, and the second holds what the first could not (2 bytes more). Its
  own rounding is stochastic, for weight decay alone is often below 2**-17 of the weight, where the sum ends.

In both the moments are rounded stochastically: with decay 0.999 a step changes the second moment by less than half a
unit of its last place, and rounded to the nearest it would stand still. Kept are for each parameter: weight, gradient
and moments 2 bytes each, so 8 for AdamW, 6 for RMSprop and SGD with momentum, and 2 more with kahan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lmrecipes.data.permutation import hash_key
from lmrecipes.precision.rounding import stochastic_bf16

Rounding = Literal["nearest", "stochastic", "kahan"]
Group = dict[str, Any]

CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Elements that are computed at once in fp32. On a CPU the working buffers (512 KiB each) stay in the cores' caches."""
COMPENSATION = "compensation"


@dataclass(frozen=True)
class _Run:
    """Tensors of one group that are at the same step, as one long vector. `number` says which, and is kept in the
    state: DeepSpeed hands over its groups one by one."""

    parameters: list[Tensor]
    step: int
    number: int

    def chunks(self, size: int) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
        """Where each chunk begins, and its pieces: which tensor, from which element to which."""
        begin, pieces, room = 0, list[tuple[int, int, int]](), size
        for index, parameter in enumerate(self.parameters):
            start, length = 0, parameter.numel()
            while start < length:
                stop = min(length, start + room)
                pieces.append((index, start, stop))
                room -= stop - start
                start = stop
                if not room:
                    yield begin, pieces
                    begin, pieces, room = begin + size, [], size
        if pieces:
            yield begin, pieces


class LowPrecision(torch.optim.Optimizer):
    """What the optimizers share: chunks, rounding, state. Parameters must be contiguous.

    Random bits are a hash of (seed, step, group, which tensor, element): equal on all ranks of data parallelism, and
    after a resume. The state dict is that of any `torch.optim.Optimizer`.
    """

    moments: ClassVar[tuple[str, ...]] = ()
    """Names in the state of the tensors that `advance` gets besides weight and gradient."""

    def __init__(self, params: Any, rounding: Rounding, seed: int, **defaults: float) -> None:
        """`defaults`: settings of each group. Raises ValueError for a tensor that is not contiguous."""
        super().__init__(params, {**defaults, "rounding": rounding, "seed": seed})
        if any(not p.is_contiguous() for group in self.param_groups for p in group["params"]):
            raise ValueError("parameters must be contiguous")

    def advance(self, group: Group, step: int, weight: Tensor, gradient: Tensor, *moments: Tensor) -> None:
        """One step of fp32 vectors [n], in place; `gradient` is free for use. `step` counts from 1."""
        raise NotImplementedError

    def moments_of(self, group: Group) -> tuple[str, ...]:
        """Those of `moments` that the group's settings need."""
        return self.moments

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for run in self._runs(group):
                self._update(group, run)
        return loss

    def _runs(self, group: Group) -> Iterable[_Run]:
        """The group's parameters that have a gradient, by device and step; their step is counted."""
        runs: dict[tuple[torch.device, int], _Run] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if not self.state[parameter]:
                self._begin(group, parameter)
            state = self.state[parameter]
            state["step"] += 1
            at = parameter.device, state["step"]
            runs.setdefault(at, _Run([], state["step"], state["number"])).parameters.append(parameter)
        return runs.values()

    def _begin(self, group: Group, parameter: Tensor) -> None:
        names = self.moments_of(group) + ((COMPENSATION,) if group["rounding"] == "kahan" else ())
        number = sum(1 for state in self.state.values() if state)
        self.state[parameter].update(step=0, number=number)
        self.state[parameter].update({name: torch.zeros_like(parameter) for name in names})

    def _update(self, group: Group, run: _Run) -> None:
        names, kahan = self.moments_of(group), group["rounding"] == "kahan"
        weights = [p.view(-1) for p in run.parameters]
        gradients = [p.grad.reshape(-1) for p in run.parameters]  # type: ignore[union-attr]
        kept = {
            name: [self.state[p][name].view(-1) for p in run.parameters]
            for name in (*names, *((COMPENSATION,) if kahan else ()))
        }
        keys = {} if group["rounding"] == "nearest" else {
            name: hash_key(group["seed"], run.step, run.number, name) for name in ("weight", *kept)
        }  # fmt: skip
        device = weights[0].device
        size = min(CHUNK.get(device.type, CHUNK["cuda"]), sum(map(len, weights)))
        spare = torch.empty(3 + len(names), size, device=device)
        for begin, pieces in run.chunks(size):
            length = sum(stop - start for _, start, stop in pieces)
            weight, gradient, rest, *moments = spare[:, :length]
            _gather(weight, weights, pieces)
            _gather(gradient, gradients, pieces)
            for name, moment in zip(names, moments, strict=True):
                _gather(moment, kept[name], pieces)
            if kahan:
                weight += _gather(rest, kept[COMPENSATION], pieces)
            self.advance(group, run.step, weight, gradient, *moments)
            for name, moment in zip(names, moments, strict=True):
                _scatter(moment, kept[name], pieces, keys.get(name), begin)
            _scatter(weight, weights, pieces, None if kahan else keys.get("weight"), begin)
            if kahan:
                torch.sub(weight, _gather(rest, weights, pieces), out=rest)
                _scatter(rest, kept[COMPENSATION], pieces, keys[COMPENSATION], begin)


class AdamW(LowPrecision):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101, algorithm 2)."""

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, rounding: Rounding = "stochastic", seed: int = 0,
    ) -> None:  # fmt: skip
        """Settings as of `torch.optim.AdamW`."""
        super().__init__(params, rounding, seed, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)  # type: ignore[arg-type]

    def advance(self, group: Group, step: int, weight: Tensor, gradient: Tensor, *moments: Tensor) -> None:
        """In place."""
        mean, square = moments
        first, second = group["betas"]
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        scale = (1 - second**step) ** 0.5
        root = torch.sqrt(square, out=gradient).add_(group["eps"] * scale)
        weight.addcdiv_(mean, root, value=-group["lr"] * scale / (1 - first**step))


class RMSprop(LowPrecision):
    """As `torch.optim.RMSprop` without momentum; weight decay is L2 (added to the gradient)."""

    moments = ("square_avg",)

    def __init__(
        self, params: Any, lr: float, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0,
        rounding: Rounding = "stochastic", seed: int = 0,
    ) -> None:  # fmt: skip
        """`alpha`: decay of the second moment."""
        super().__init__(params, rounding, seed, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay)

    def advance(self, group: Group, step: int, weight: Tensor, gradient: Tensor, *moments: Tensor) -> None:
        """In place."""
        (square,) = moments
        if group["weight_decay"]:
            gradient.add_(weight, alpha=group["weight_decay"])
        square.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
        weight.addcdiv_(gradient, square.sqrt().add_(group["eps"]), value=-group["lr"])


class SGD(LowPrecision):
    """As `torch.optim.SGD`; weight decay is L2 (added to the gradient). Without momentum there is no state."""

    moments = ("momentum_buffer",)

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.0, weight_decay: float = 0.0,
        rounding: Rounding = "stochastic", seed: int = 0,
    ) -> None:  # fmt: skip
        """`momentum`: share of the sum of former gradients that is kept."""
        super().__init__(params, rounding, seed, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def moments_of(self, group: Group) -> tuple[str, ...]:
        """None without momentum."""
        return self.moments if group["momentum"] else ()

    def advance(self, group: Group, step: int, weight: Tensor, gradient: Tensor, *moments: Tensor) -> None:
        """In place."""
        if group["weight_decay"]:
            gradient.add_(weight, alpha=group["weight_decay"])
        for buffer in moments:
            gradient = buffer.mul_(group["momentum"]).add_(gradient)
        weight.add_(gradient, alpha=-group["lr"])


def _gather(into: Tensor, tensors: list[Tensor], pieces: list[tuple[int, int, int]]) -> Tensor:
    """Copy the pieces, one after the other, into fp32."""
    sizes = [stop - start for _, start, stop in pieces]
    torch._foreach_copy_(list(into.split(sizes)), [tensors[index][start:stop] for index, start, stop in pieces])
    return into


def _scatter(
    values: Tensor, tensors: list[Tensor], pieces: list[tuple[int, int, int]], key: int | None, begin: int
) -> None:
    """Round fp32 values into the pieces; `key`: stochastically, with the bits of the elements from `begin` on."""
    rounded = values if key is None else stochastic_bf16(values, key, begin)
    sizes = [stop - start for _, start, stop in pieces]
    torch._foreach_copy_([tensors[index][start:stop] for index, start, stop in pieces], list(rounded.split(sizes)))
