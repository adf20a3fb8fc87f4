"""A `precision:` block from an audit: the lowest safe format of every layer, in as few rules as say exactly that."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from lmrecipes.precision.audit.judge import Budget, lowest_safe
from lmrecipes.precision.audit.numbers import LayerNumbers
from lmrecipes.precision.plan import holders, layer_formats
from lmrecipes.recipe_precision import LayerFormat, Precision

TOLERATED = 0.25
"""Share of updates that may be lost on average. A regression in bf16 weights that lost 21% ended as in fp32; one that
lost 57% ended with a loss 14% higher."""


Surrounding = Literal["fp32", "bf16"]
"""What formats by layer can stand on."""


@dataclass(frozen=True)
class Rule:
    """A rule of `precision.layers`, and the modules that it reaches."""

    pattern: str
    format: LayerFormat
    reached: frozenset[str]


@dataclass(frozen=True)
class PureVerdict:
    """Whether weights could be bf16 without fp32 masters. lost: share of updates that rounding to nearest loses, at the
    peak learning rate; on_average: over the schedule, each step counted by its learning rate."""

    lost: float
    on_average: float
    rounding: Literal["nearest", "stochastic"]

    @property
    def what(self) -> str:
        """In words."""
        shares = f"{self.lost:.0%} of the updates are lost at the peak learning rate, {self.on_average:.0%} on average"
        if self.rounding == "nearest":
            return f"bf16 weights without fp32 masters: {shares}: rounding to nearest will do"
        return f"bf16 weights without fp32 masters: {shares}: round stochastically, or with kahan"


@dataclass(frozen=True)
class Recommendation:
    """formats: of each audited layer; precision: the block that gives exactly these."""

    formats: dict[str, LayerFormat]
    precision: Precision
    pure: PureVerdict | None

    @property
    def block(self) -> dict[str, Any]:
        """The block's fields, without those at their defaults."""
        return {"compute": self.precision.compute, **self.precision.model_dump(exclude_defaults=True)}

    def yaml(self, title: str) -> str:
        """The block, ready to paste into a recipe."""
        text: str = yaml.safe_dump({"precision": self.block}, sort_keys=False)
        lines = [title, *([self.pure.what] if self.pure is not None else [])]
        return "".join(f"# {line}\n" for line in lines) + text


def recommend(
    layers: Sequence[LayerNumbers], names: Sequence[str], candidates: Sequence[LayerFormat], budget: Budget,
    pure: bool = False,
) -> Recommendation:  # fmt: skip
    """names: of all modules of the model. pure: for a run without fp32 master weights, which computes in bf16."""
    compute: Surrounding = "bf16" if "bf16" in candidates or pure else "fp32"
    formats: dict[str, LayerFormat] = {}
    for layer in layers:
        lowest = lowest_safe(layer, candidates, budget)
        formats[layer.name] = lowest if layer.kind == "product" or lowest == "fp32" else compute
    products = {layer.name for layer in layers if layer.kind == "product"}
    verdict = pure_verdict(layers)
    more: dict[str, Any] = {}
    if pure:
        more = {"master_weights": "none", "rounding": verdict.rounding if verdict is not None else "stochastic"}
    precision = Precision(compute=compute, layers=rules_for(formats, products, compute), **more)
    if (given := given_by(precision, names, products)) != {name: formats.get(name, given[name]) for name in given}:
        wrong = [name for name in formats if given[name] != formats[name]]
        raise RuntimeError(f"the recommended rules give other formats than meant to {', '.join(wrong)}")
    return Recommendation(formats, precision, verdict)


def given_by(precision: Precision, names: Sequence[str], products: set[str]) -> dict[str, LayerFormat]:
    """The format that each module computes in: rules for fp8 and fp16 leave what is no product in `compute`."""
    found = layer_formats(precision, names)
    return {name: _effective(format, name in products, precision.compute) for name, format in found.items()}


def rules_for(formats: Mapping[str, LayerFormat], products: set[str], compute: Surrounding) -> dict[str, LayerFormat]:
    """The fewest rules found that give every module its format: with, or without, one for all that is not named."""
    common = Counter(formats[name] for name in formats if name in products).most_common(1)
    clean = _clean_rules(formats, products, compute)
    plans = [_exceptions(formats, products, compute, {}, clean)]
    if common and common[0][0] != compute:
        plans.append(_exceptions(formats, products, compute, {"*": common[0][0]}, clean))
    return min(plans, key=len)


def pure_verdict(layers: Sequence[LayerNumbers]) -> PureVerdict | None:
    """None where nothing was updated."""
    updates = [layer.update for layer in layers if layer.update is not None]
    if not updates:
        return None
    total = sum(update.parameters for update in updates)
    lost = sum(update.parameters * update.lost["bf16"] for update in updates) / total
    average = sum(update.parameters * update.lost_on_average for update in updates) / total
    return PureVerdict(lost, average, "nearest" if average <= TOLERATED else "stochastic")


def _effective(format: LayerFormat, product: bool, compute: LayerFormat) -> LayerFormat:
    return format if product or format in ("fp32", "bf16") else compute


def _exceptions(
    formats: Mapping[str, LayerFormat], products: set[str], compute: Surrounding, base: dict[str, LayerFormat],
    clean: Sequence[Rule],
) -> dict[str, LayerFormat]:  # fmt: skip
    """Rules after `base`: clean ones, those that put most modules right first. A module that holds others may have no
    clean rule: then its own comes before theirs."""
    rules = dict(base)
    left = _wrong(formats, products, compute, rules)
    while left:
        ranked = [((len(fits), -rule.pattern.count("*"), len(rule.pattern), rule.pattern), rule) for rule in clean
                  if (fits := rule.reached & left)]  # fmt: skip
        if ranked:
            _, best = max(ranked, key=lambda pair: pair[0])
            rules.pop(best.pattern, None)  # the last rule decides
            rules[best.pattern] = best.format
            left = left - best.reached
        else:
            name = min(left, key=lambda name: (len(name), name))
            rules[name] = formats[name]
            left = _wrong(formats, products, compute, rules)
    return rules


def _clean_rules(formats: Mapping[str, LayerFormat], products: set[str], compute: Surrounding) -> list[Rule]:
    """All rules that reach only modules that are to have their format."""
    under: dict[str, set[str]] = {}
    for name in formats:
        for holder in holders(name):
            under.setdefault(holder, set()).add(name)
    found = []
    for pattern in dict.fromkeys(pattern for name in formats for pattern in _patterns(name)):
        reached = frozenset().union(*(under[holder] for holder in fnmatch.filter(under, pattern)))
        for format in {formats[name] for name in reached}:
            if all(_effective(format, name in products, compute) == formats[name] for name in reached):
                found.append(Rule(pattern, format, reached))
    return found


def _wrong(
    formats: Mapping[str, LayerFormat], products: set[str], compute: Surrounding, rules: dict[str, LayerFormat]
) -> frozenset[str]:
    """Modules that the rules give another format than they are to have."""
    given = given_by(Precision(compute=compute, layers=rules), list(formats), products)
    return frozenset(name for name, format in formats.items() if given[name] != format)


def _patterns(name: str) -> list[str]:
    """A module's own name, the numbered modules that hold it, all that is in one that holds it, and each of these for
    every number: `a.0.b`, `a.0`, `a.*`, `a.*.b`."""
    found = [name]
    for holder in holders(name)[:-1]:
        found.append(holder if holder.rpartition(".")[2].isdigit() else f"{holder}.*")
    return list(dict.fromkeys(found + [re.sub(r"(?<=\.)\d+(?=\.|$)", "*", pattern) for pattern in found]))
