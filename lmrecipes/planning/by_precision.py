"""`lmrecipes plan --by precision`: one recipe in each precision, side by side, with every term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lmrecipes.planning.batch import plan_batch
from lmrecipes.planning.cost import Cost, Run, cost, total
from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.kept import Size, Term, kinds
from lmrecipes.planning.launch_pair import Stage, own_pair
from lmrecipes.planning.numbers import Numbers
from lmrecipes.planning.preflight import preflight_pair
from lmrecipes.planning.shapes import Shapes
from lmrecipes.problems import InputError
from lmrecipes.recipe import Precision, Recipe

BY_LAYER = {"*": "fp8", "embeddings": "fp32", "language": "bf16", "heads.*": "fp32"}
"""fp8 where it is usually safe: the trunk's products."""

SHORT_TEXT = 256
"""Tokens up to which a CPU holds the scores of attention (`models/attention.py`)."""

COMPARED: Mapping[str, Precision] = {
    "fp32": Precision(compute="fp32"),
    "bf16 mixed": Precision(compute="bf16"),
    "fp16 mixed": Precision(compute="fp16"),
    "pure bf16, nearest": Precision(master_weights="none"),
    "pure bf16, stochastic": Precision(master_weights="none", rounding="stochastic"),
    "pure bf16, kahan": Precision(master_weights="none", rounding="kahan"),
    "fp8 by layer": Precision.model_validate({"layers": BY_LAYER}),
}
"""The precisions of the table, by their names in it."""


@dataclass(frozen=True)
class Row:
    """One precision. own: the recipe's; why_not: why it does not run there, or empty."""

    name: str
    precision: Precision
    own: bool
    why_not: str
    cost: Cost


@dataclass(frozen=True)
class Plan:
    """The table, and what it was made for. fp32 is its first row."""

    rows: tuple[Row, ...]
    run: Run
    hardware: Hardware
    zero: int | None
    kinds: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with every term."""
        return {
            "hardware": str(self.hardware),
            "zero": self.zero,
            "micro_batch": asdict(self.run.size),
            "accumulation": self.run.accumulation,
            "precisions": [_row(row) for row in self.rows],
        }


def compare(recipe: Recipe, shapes: Shapes, hardware: Hardware, zero: Stage | None, length: int | None = None) -> Plan:
    """One row for each of `COMPARED`, and one more for the recipe's own precision where that is none of them.

    length: tokens of a text; None: the most that a text may have. The lengths of the data are not looked at.
    """
    run = _run(recipe, hardware, length, max(recipe.longest_text, shapes.longest))
    compared = dict(COMPARED)
    if not any(_same(recipe.precision, other) for other in compared.values()):
        compared["this recipe's"] = recipe.precision
    rows = []
    for name, precision in compared.items():
        numbers = Numbers(precision, zero, shapes, _native(precision, hardware))
        own = _same(recipe.precision, precision)
        why_not = _why_not(recipe.model_copy(update={"precision": precision}), hardware, zero)
        rows.append(Row(name, precision, own, why_not, cost(numbers, run)))
    return Plan(tuple(rows), run, hardware, zero, kinds(shapes))


def _run(recipe: Recipe, hardware: Hardware, length: int | None, longest: int) -> Run:
    """A GPU's attention keeps no scores; a CPU's short texts lie in rows of the longest, whose tokens all meet."""
    batch = plan_batch(recipe.batch.examples, recipe.batch.micro_examples, hardware.processes)
    time = 1 if recipe.model.mlp.hidden else length or longest  # a perceptron reads a row at once
    fused = hardware.device == "cuda" or recipe.model.attention == "sdpa" or longest > SHORT_TEXT
    packed = recipe.batch.layout in ("auto", "packed") and not fused and not recipe.model.mlp.hidden
    size = Size(batch.micro_examples, time, max(time, longest) if packed else time)
    averaged = recipe.averaging.ema_decay > 0
    return Run(size, recipe.optimizer, hardware.processes, batch.accumulation, fused, averaged)


def _same(one: Precision, other: Precision) -> bool:
    """Whether two precisions cost the same: how the loss is scaled and when a run stops does not count."""
    free = {"loss_scaling", "most_skipped", "raising", "changes", "fp8", "accumulation", "reduction"}
    first, second = (
        (p.model_dump(exclude=free), p.accumulated, p.reduced, p.by_layer, p.fp8 == "emulated") for p in (one, other)
    )
    return first == second


def _native(precision: Precision, hardware: Hardware) -> bool:
    return precision.fp8 != "emulated" and hardware.device == "cuda" and not hardware.why_not("fp8")


def _why_not(recipe: Recipe, hardware: Hardware, zero: Stage | None) -> str:
    """The first thing that `check` would say against the recipe there, or an empty string."""
    try:
        found = preflight_pair(recipe, own_pair(recipe, zero, hardware), hardware)
    except InputError as error:
        found = error.problems
    return next((problem.what for problem in found if problem.severity == "error"), "")


def _row(row: Row) -> dict[str, Any]:
    terms = {"flops": row.cost.flops, "moved": row.cost.moved, "network": row.cost.network, "held": row.cost.held}
    return {
        "name": row.name,
        "own": row.own,
        "why_not": row.why_not,
        "precision": row.precision.model_dump(mode="json", exclude_defaults=True),
        "totals": {name: total(part) for name, part in terms.items()},
        "flops_per_byte": row.cost.intensity,
        "terms": {name: [_term(term) for term in part] for name, part in terms.items()},
    }


def _term(term: Term) -> dict[str, Any]:
    return asdict(term)
