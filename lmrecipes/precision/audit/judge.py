"""What the numbers of an audit mean: which formats are safe for a layer, and what is wrong with it in any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lmrecipes.precision.audit.numbers import LayerNumbers, TensorNumbers
from lmrecipes.precision.formats import BACKWARD, FORWARD, FP16
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe_precision import LayerFormat

SQRT3 = 20 * math.log10(math.sqrt(3))
"""dB. Where a gradient is weaker than sqrt(3) times its quantisation noise, quantised training gains nothing more
(Chmiel et al. 2025, arXiv 2505.19115)."""
LARGEST_UPDATE = 1.0
"""rms of an update over that of the weight; a healthy one is about 1e-3."""
OUTLIER = 64.0
"""rms of a channel over the median channel's, from which it is named."""
NEEDS_SCALE = 0.1
"""Share of a gradient that would keep no bit in fp16 without a scale, from which it is named."""

Kind = Literal["not finite", "range", "update", "outlier channel", "small gradient"]


@dataclass(frozen=True)
class Budget:
    """What a format may cost a tensor. sqnr: least signal-to-noise ratio of the median channel of weights and
    activations, dB; gradient: of gradients; overflow, underflow: largest shares of values. scaling: own, with the
    scales that training uses; none, as if no number were scaled: then values that keep no bit count as underflow."""

    sqnr: float = 25.0
    gradient: float = 20.0
    overflow: float = 0.0
    underflow: float = 0.01
    scaling: Literal["own", "none"] = "own"

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`normal`, `strict`, `loose`, or numbers on top of one: `strict,underflow=0.02,scaling=none`."""
        name, *parts = text.split(",") if "=" not in text.partition(",")[0] else ["normal", *text.split(",")]
        if name not in BUDGETS:
            raise _budget_problem(f"no budget {name!r}.{did_you_mean(name, BUDGETS)}")
        values: dict[str, float | str] = dict(vars(BUDGETS[name]))
        for part in parts:
            key, _, value = part.strip().partition("=")
            if key not in values:
                raise _budget_problem(f"{key!r} is no part of it.{did_you_mean(key, values)}")
            if key == "scaling":
                if value not in ("own", "none"):
                    raise _budget_problem(f"scaling must be own or none, found {value!r}")
                values[key] = value
                continue
            try:
                values[key] = float(value)
            except ValueError:
                raise _budget_problem(f"{key} must be a number, found {value!r}") from None
            if not math.isfinite(float(value)) or float(value) < 0:
                raise _budget_problem(f"{key} must be 0 or more, found {value!r}")
        return cls(**values)  # type: ignore[arg-type]


BUDGETS = {
    "strict": Budget(sqnr=30.0, gradient=25.0, underflow=0.0001),
    "normal": Budget(),
    "loose": Budget(sqnr=18.0, gradient=15.0, underflow=0.05),
}
"""Healthy tensors reach 31.5 dB in E4M3, 25.6 dB in E5M2, 55 dB in bf16: strict asks for nearly all of it."""


@dataclass(frozen=True)
class Finding:
    """Something that a reader should know of a layer, whatever its format."""

    kind: Kind
    layer: str
    tensor: str
    value: float
    what: str


def unsafe(layer: LayerNumbers, format: LayerFormat, budget: Budget) -> list[str]:
    """Why a layer should not compute in a format; empty where it may."""
    if format == "fp32":
        return []
    found = [finding.what for finding in findings_of(layer) if _forbids(finding, format)]
    for tensor, name in _operands(layer, format).items():
        numbers = layer.tensors[tensor].formats[name]
        own = budget.scaling == "own"
        losses = numbers.losses if own else numbers.plain
        lost = losses.underflow if own else losses.no_bits  # the ratio in dB is with the scale
        least = budget.gradient if tensor == "gradient" else budget.sqnr
        if losses.overflow > budget.overflow:
            found.append(f"{tensor}: {losses.overflow:.2%} overflow")
        if lost > budget.underflow:
            found.append(f"{tensor}: {lost:.2%} {'underflow' if own else 'keep no bit'}")
        if numbers.sqnr < least:
            found.append(f"{tensor}: {numbers.sqnr:.1f} dB")
    if layer.gradient_snr.get(format, math.inf) < SQRT3:
        found.append(f"weight's gradient: {layer.gradient_snr[format]:.1f} dB, below sqrt(3) times its noise")
    return found


def lowest_safe(layer: LayerNumbers, candidates: Sequence[LayerFormat], budget: Budget) -> LayerFormat:
    """The first of the candidates that may be used for a layer; fp32 where none may."""
    for format in candidates:
        if format in possible(layer) and not unsafe(layer, format, budget):
            return format
    return "fp32"


def possible(layer: LayerNumbers) -> tuple[LayerFormat, ...]:
    """The formats that a rule can give a layer: fp8 and fp16 are for products, and the language head has no fp8."""
    if layer.kind == "other":
        return ("bf16", "fp32")
    if layer.name == "language":
        return ("bf16", "fp16", "fp32")
    return ("fp8", "fp8_e4m3", "fp8_e5m2", "bf16", "fp16", "fp32")


def findings(layers: Sequence[LayerNumbers]) -> list[Finding]:
    """Of all layers, by kind, the worst first."""
    order = {"not finite": 0, "range": 1, "update": 2, "outlier channel": 3, "small gradient": 4}
    found = [finding for layer in layers for finding in findings_of(layer)]
    return sorted(found, key=lambda finding: (order[finding.kind], -finding.value))


def findings_of(layer: LayerNumbers) -> list[Finding]:
    """What stands out in a layer."""
    found = []
    for tensor, numbers in layer.tensors.items():
        if not numbers.finite:
            found.append(Finding("not finite", layer.name, tensor, math.inf, f"{tensor}: not finite"))
        elif numbers.largest > FP16.largest:
            what = f"{tensor}: up to {numbers.largest:.2g}, beyond fp16's largest number"
            found.append(Finding("range", layer.name, tensor, numbers.largest, what))
        if tensor == "input" and numbers.outlier >= OUTLIER:
            what = f"{tensor}: one channel is {numbers.outlier:,.0f} times as large as the median one"
            found.append(Finding("outlier channel", layer.name, tensor, numbers.outlier, what))
    if layer.update is not None and layer.update.ratio >= LARGEST_UPDATE:
        what = f"update: {layer.update.ratio:.2g} times as large as the weight, at the peak learning rate"
        found.append(Finding("update", layer.name, "weight", layer.update.ratio, what))
    lost = _lost_plain(layer.tensors.get("gradient"))
    if lost >= NEEDS_SCALE:
        what = f"gradient: {lost:.0%} would keep no bit in fp16 without a scale"
        found.append(Finding("small gradient", layer.name, "gradient", lost, what))
    return found


def _forbids(finding: Finding, format: LayerFormat) -> bool:
    """Whether a finding keeps a layer from a format. Numbers beyond fp16's range keep 8 bits of exponent: scaled they
    would fit, for now, by a scale that no other layer needs."""
    if finding.kind == "range":
        return format != "bf16"
    return finding.kind in ("not finite", "update")


def _operands(layer: LayerNumbers, format: LayerFormat) -> dict[str, str]:
    """The tensors that a layer format rounds, and to what."""
    rounded = ("weight", "input", "gradient") if layer.kind == "product" else ("weight", "output")
    numbers = {tensor: (BACKWARD if tensor == "gradient" else FORWARD)[format].name for tensor in rounded}
    return {tensor: name for tensor, name in numbers.items() if tensor in layer.tensors}


def _lost_plain(gradient: TensorNumbers | None) -> float:
    return gradient.formats["fp16"].plain.no_bits if gradient is not None and "fp16" in gradient.formats else 0.0


def _budget_problem(what: str) -> InputError:
    parts = "sqnr, gradient (dB), overflow, underflow (shares), scaling (own, none)"
    fix = f"name one of {listing(list(BUDGETS))}, and numbers as in `normal,sqnr=28,underflow=0.005`: {parts}"
    return InputError(Problem("--budget", what, fix, "audit-budget"))


def verdicts(
    layers: Sequence[LayerNumbers], candidates: Sequence[LayerFormat], budget: Budget
) -> Mapping[str, dict[str, list[str]]]:
    """Of each layer and each candidate that a rule can give it, why not."""
    return {layer.name: {f: unsafe(layer, f, budget) for f in candidates if f in possible(layer)} for layer in layers}
