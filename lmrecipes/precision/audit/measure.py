"""A few real steps, instrumented: hooks on every module with weights of its own.

Largest values are those of all numbers; the other statistics stand on rows that an integer hash chooses (of activations
and gradients `Sampling.rows` a step, of those rows that have a gradient; of weights as many), so that an audited step
costs at most three plain ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.models.language import LanguageHead
from lmrecipes.precision.audit.numbers import Kind, LayerNumbers, decibels
from lmrecipes.precision.audit.tally import RowErrors, Scaling, Tally
from lmrecipes.precision.audit.updates import Moved
from lmrecipes.precision.formats import FORWARD
from lmrecipes.precision.layers import canonical
from lmrecipes.precision.linear import FORMATTED

LAYER_FORMATS = ("fp8", "fp8_e4m3", "fp8_e5m2", "bf16", "fp16")
"""What a rule of `precision.layers` may say below fp32."""
NONE: dict[str, Scaling] = dict.fromkeys(("fp8_e4m3", "fp8_e5m2", "bf16", "fp16"), "none")
ROWS: dict[str, Scaling] = NONE | {"fp8_e4m3": "row", "fp8_e5m2": "row"}
GRADIENTS: dict[str, Scaling] = ROWS | {"fp16": "tensor"}
"""How training scales operands of products: fp8 row by row; of fp16 only gradients, as a whole."""
LOGITS = 1 << 21
"""Most numbers of the language head's logits that are computed a second time."""


@dataclass(frozen=True)
class Sampling:
    """rows: of each activation and gradient in a step, and of each weight; elements: of each parameter's update."""

    rows: int = 64
    elements: int = 8192
    seed: int = 0


class Layer:
    """The accumulators of one module."""

    def __init__(self, name: str, module: nn.Module, sampling: Sampling) -> None:
        self.name, self.module = name, module
        self.kind: Kind = "product" if is_product(module) else "other"
        self.parameters = {
            key: p for key, p in module.named_parameters(recurse=False, remove_duplicate=False) if p.requires_grad
        }
        scaling = {"weight": ROWS, "input": ROWS, "gradient": GRADIENTS} if self.kind == "product" else {}
        scaling |= {key: NONE for key in ("weight", "output", "weight_gradient") if key not in scaling}
        self.tallies = {key: Tally(scales) for key, scales in scaling.items()}
        self.noise = dict.fromkeys(LAYER_FORMATS, 0.0)
        self.signal = 0.0
        sizes = {key: p.numel() for key, p in self.parameters.items()}
        places = {key: _places(size, sampling.elements, sampling.seed, name, key) for key, size in sizes.items()}
        self.moved = Moved(self.parameters, places)

    @property
    def weight(self) -> nn.Parameter | None:
        """Of a product: the matrix; else the first parameter."""
        return next(self.module.parameters(recurse=False), None)

    def pair(self, inputs: Tensor, gradients: Tensor, factor: float) -> None:
        """Rows of a product's input and of its output's gradient that belong together [rows, in], [rows, out]; they
        stand for `factor` times as many."""
        x, g = self.tallies["input"].add(inputs), self.tallies["gradient"].add(gradients)
        for name in LAYER_FORMATS:
            # Beside fp8 operands, the product that is the weight's gradient reads the output's gradient in 16 bits.
            backward = "bf16" if name.startswith("fp8") else name
            self.noise[name] += factor * _noise(x, FORWARD[name].name, g, backward)

    def numbers(self, factors: Sequence[float]) -> LayerNumbers:
        """What was found."""
        weight = self.weight
        heard = {key: tally.numbers() for key, tally in self.tallies.items() if tally.sampled and tally.values}
        compared = self.kind == "product" and self.signal > 0 and "gradient" in heard
        return LayerNumbers(
            name=self.name,
            kind=self.kind,
            type=type(self.module).__name__,
            shape=tuple(weight.shape) if weight is not None else (),
            tensors=heard,
            gradient_snr={f: decibels(self.signal, n) for f, n in self.noise.items()} if compared else {},
            update=self.moved.update(factors),
        )


class Audit:
    """Measures steps of a model (a `MultiTaskModel` in fp32 on one process)."""

    def __init__(self, model: nn.Module, sampling: Sampling) -> None:
        self.sampling = sampling
        own = {name: m for name, m in canonical(model).items() if next(m.parameters(recurse=False), None) is not None}
        self.layers = [Layer(name, m, sampling) for name, m in own.items()]
        self._rows, self._call = sampling.rows, 0

    def weights(self) -> None:
        """Look at the weights as they are."""
        for layer in self.layers:
            if (weight := layer.weight) is not None:
                rows = _as_rows(layer.module, weight.detach())
                layer.tallies["weight"].see(rows)
                layer.tallies["weight"].add(
                    rows[self._chosen(len(rows), self.sampling.rows, layer.name).to(rows.device)]
                )

    @contextmanager
    def watching(self, micro_batches: int) -> Iterator[None]:
        """Within: forward and backward of the micro-batches of one step are measured."""
        self._rows = max(16, self.sampling.rows // micro_batches)
        handles = []
        for layer in self.layers:
            hook = self._language(layer) if isinstance(layer.module, LanguageHead) else self._after(layer)
            handles.append(layer.module.register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def gradients(self) -> None:
        """Look at the gradients of the weights, all micro-batches summed, and remember the weights."""
        for layer in self.layers:
            layer.moved.remember()
            weight = layer.weight
            if weight is None or weight.grad is None:
                continue
            rows = _as_rows(layer.module, weight.grad)
            layer.signal += float(rows.double().square().sum())
            alive = _alive(rows)
            layer.tallies["weight_gradient"].see(rows)
            at = alive[self._chosen(len(alive), self.sampling.rows, layer.name).to(alive.device)]
            layer.tallies["weight_gradient"].add(rows[at])

    def updates(self, factor: float) -> None:
        """Look at what the optimizer has done. factor: the peak learning rate over that of the step."""
        for layer in self.layers:
            layer.moved.see(factor)

    def numbers(self, factors: Sequence[float]) -> list[LayerNumbers]:
        """Of every module that took part, in the order of the model. factors: each learning rate of the schedule over
        the peak."""
        return [layer.numbers(factors) for layer in self.layers if layer.tallies["weight"].sampled]

    def _chosen(self, count: int, most: int, *purpose: str | int) -> Tensor:
        return _places(count, most, self.sampling.seed, self._call, *purpose)

    def _after(self, layer: Layer) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or not output.is_floating_point() or not output.numel():
                return
            self._call += 1
            out = output.detach().flatten(0, -2)
            layer.tallies["output"].see(out)
            layer.tallies["output"].add(out[self._chosen(len(out), self._rows).to(out.device)])
            if layer.kind == "other":
                return
            x = inputs[0].detach().flatten(0, -2)
            layer.tallies["input"].see(x)
            if not output.requires_grad:
                layer.tallies["input"].add(x[self._chosen(len(x), self._rows).to(x.device)])
                return
            output.register_hook(lambda gradient: self._backward(layer, x, gradient.detach().flatten(0, -2)))

        return hook

    def _backward(self, layer: Layer, x: Tensor, gradient: Tensor) -> None:
        """Rows without a gradient (padding, or tokens that nothing is read from) are left out."""
        self._call += 1
        layer.tallies["gradient"].see(gradient)
        alive = _alive(gradient)
        at = alive[self._chosen(len(alive), self._rows).to(alive.device)]
        if len(at):
            layer.pair(x[at], gradient[at], len(alive) / len(at))

    def _language(self, layer: Layer) -> Callable[[nn.Module, Any, Any], None]:
        """The language head never holds all its logits: those of a few tokens are computed again."""

        def hook(head: nn.Module, inputs: Any, output: Any) -> None:
            assert isinstance(head, LanguageHead)
            hidden, targets, weights = inputs
            if weights is None:
                return
            self._call += 1
            layer.tallies["input"].see(hidden)
            alive = weights.nonzero().flatten()
            most = min(self._rows, max(4, LOGITS // head.weight.shape[0]))
            at = alive[self._chosen(len(alive), most).to(alive.device)]
            if not len(at):
                return
            x = hidden.detach()[at].float()
            with torch.no_grad():
                logits = F.linear(x, head.weight.float(), None if head.bias is None else head.bias.float())
            layer.tallies["output"].see(logits)
            layer.tallies["output"].add(logits)
            gradient = _of_logits(head, logits, targets[at], weights[at].float())
            layer.tallies["gradient"].see(gradient)
            layer.pair(x, gradient, len(alive) / len(at))

        return hook


def is_product(module: nn.Module) -> bool:
    """Whether a module multiplies with a weight, in a format that a rule can give it."""
    return type(module) in (*FORMATTED, *FORMATTED.values(), LanguageHead)


def _as_rows(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight, or its gradient, with one row for each output [outputs, ...]; a vector as a column."""
    if isinstance(module, Conv1D):
        return weight.T
    return weight.flatten(1) if weight.dim() > 1 else weight[:, None]


def _places(count: int, most: int, seed: int, *purpose: str | int) -> Tensor:
    """At most `most` of `count` places, one in each of as many equal stretches, int64 in order."""
    if count <= most:
        return torch.arange(count)
    stretches = np.arange(most)
    at = (stretches + hash_uniform(hash_key(seed, "audit", *purpose), stretches)) * (count / most)
    return torch.from_numpy(np.minimum(at.astype(np.int64), count - 1))


def _alive(rows: Tensor) -> Tensor:
    """Numbers of the rows that are not all zeros."""
    return (rows != 0).any(1).nonzero().flatten()


def _of_logits(head: LanguageHead, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the weighted loss in raw logits [rows, vocabulary]."""
    with torch.enable_grad():
        raw = logits.requires_grad_()
        final = raw * head.scale
        if head.softcap is not None:
            final = head.softcap * torch.tanh(final / head.softcap)
        loss = (F.cross_entropy(final, targets, reduction="none") * weights).sum()
        (gradient,) = torch.autograd.grad(loss, raw)
    return gradient


def _noise(x: RowErrors, forward: str, g: RowErrors, backward: str) -> float:
    """Squared norm of what the formats add to a weight's gradient, the sum over rows of g x^T.

    Of one row it is |dg|^2 |x'|^2 + |g|^2 |dx|^2 + 2 (g dg)(x' dx) with x' = x + dx; errors of different rows are taken
    as independent.
    """
    dx, xdx = x.errors[forward], x.together[forward]
    dg, gdg = g.errors[backward], g.together[backward]
    noisy = x.squared + 2 * xdx + dx
    total = float((dg * noisy + g.squared * dx + 2 * gdg * (xdx + dx)).sum())
    return max(0.0, total) if math.isfinite(total) else math.inf
