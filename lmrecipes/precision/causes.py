"""Where numbers first stop being finite: the micro-batches of a step once more, forward and backward, watched.

Hooks on modules and tensors see weights as a module reads them, what it gives, and gradients in the order in which
backward makes them: under ZeRO-3 too, where no rank holds a whole parameter between the modules that use it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmrecipes.data.batches import MicroBatch
from lmrecipes.precision.layers import canonical
from lmrecipes.training.engine import Engine

WEIGHTS = "weights"
"""What is not finite where training has spoilt the model itself."""


@dataclass(frozen=True)
class Cause:
    """The first numbers of a step that are not finite.

    micro_batch, place: when a rank saw them, so that causes of ranks can be put in order. tensor: what they are.
    layer: the module, by its canonical name. bad: how many of `values` numbers; 0 where all are finite but too large,
    with `largest`, for the gradients' norm.
    """

    micro_batch: int
    place: int
    rank: int
    layer: str
    tensor: str
    bad: int
    values: int
    largest: float = math.inf

    def __str__(self) -> str:
        where = f"rank {self.rank}, micro-batch {self.micro_batch}"
        if not self.bad:
            return f"the norm of the gradients overflows: the largest is {self.largest:.2g}, of {self.layer} ({where})"
        verb = "is" if self.tensor == "loss" else "are"
        return f"the {self.tensor} of {self.layer} {verb} not finite ({self.bad:,} of {self.values:,} values, {where})"


def find(engine: Engine, micro_batches: Sequence[MicroBatch], prepare: Callable[[int], None]) -> Cause | None:
    """Repeat a step's micro-batches, without an update, and name the first numbers that are not finite over all ranks;
    where all are, the largest gradient, if the square of it is not. None: the step cannot be blamed on one place.

    prepare: called with a micro-batch's number before it runs. Every rank must call this, with its own micro-batches.
    """
    watch = _Watch(engine.rank)
    with watch.on(engine.module):
        for number, micro_batch in enumerate(micro_batches):
            prepare(number)
            watch.begin(number)
            engine.micro_step(micro_batch, last=number == len(micro_batches) - 1)
    engine.clear_gradients()
    seen = [cause for cause in engine.gather(watch.first) if cause is not None]
    if seen:
        return min(seen, key=lambda cause: (cause.micro_batch, cause.place, cause.rank))
    large = [cause for cause in engine.gather(watch.largest) if cause is not None]
    worst: Cause | None = max(large, key=lambda cause: cause.largest, default=None)
    overflows = worst is not None and worst.largest * math.sqrt(worst.values) > math.sqrt(
        torch.finfo(torch.float32).max
    )
    return worst if overflows else None


class _Watch:
    """One rank's view. first: what was not finite, largest: the parameter gradient with the largest number."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.first: Cause | None = None
        self.largest: Cause | None = None
        self._micro_batch = self._place = 0

    def begin(self, micro_batch: int) -> None:
        """A micro-batch begins."""
        self._micro_batch, self._place = micro_batch, 0

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Within: the modules of `model` (a `MultiTaskModel`) and their tensors are watched."""
        handles = [model.register_forward_hook(self._losses)]
        for name, module in canonical(model).items():
            if module is model:
                continue
            handles.append(module.register_forward_pre_hook(self._before(name)))
            handles.append(module.register_forward_hook(self._after(name)))
            for parameter in module.parameters(recurse=False):
                if parameter.requires_grad:
                    handles.append(parameter.register_hook(self._of_weight(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            for parameter in module.parameters(recurse=False):
                self._see(name, WEIGHTS, parameter.detach())

        return hook

    def _after(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            for tensor in _floats(outputs):
                self._see(name, "activations", tensor.detach())
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self._see(name, "gradients", gradient))

        return hook

    def _of_weight(self, name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            self._see(name, "weight gradients", gradient)
            largest = float(gradient.abs().max()) if gradient.numel() else 0.0
            if self.largest is None or largest > self.largest.largest:
                self.largest = self._cause(name, "weight gradients", 0, gradient.numel(), largest)

        return hook

    def _losses(self, model: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        tasks: list[str] = model.tasks  # type: ignore[assignment]
        for task, loss in zip(tasks, outputs[1].detach(), strict=True):
            self._see(f"task {task}", "loss", loss)

    def _see(self, layer: str, tensor: str, numbers: Tensor) -> None:
        self._place += 1
        if self.first is None:
            bad = numbers.numel() - int(torch.isfinite(numbers).sum())
            if bad:
                self.first = self._cause(layer, tensor, bad, numbers.numel())

    def _cause(self, layer: str, tensor: str, bad: int, values: int, largest: float = math.inf) -> Cause:
        return Cause(self._micro_batch, self._place, self.rank, layer, tensor, bad, values, largest)


def _floats(outputs: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module gives."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping):
        for part in outputs.values():
            yield from _floats(part)
    elif isinstance(outputs, tuple | list):
        for part in outputs:
            yield from _floats(part)
