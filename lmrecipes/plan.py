"""`lmrecipes plan`: what a recipe costs before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lmrecipes.planning.by_precision import Plan, compare
from lmrecipes.planning.cost import Cost, total
from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.launch_pair import Stage
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe

HEADINGS = {"gradients": "grads", "optimizer": "states", "activations": "activ."}
NOTE = (
    "* the recipe's own. FLOPs and bytes of one rank: moved through memory in a step; held at the end of a forward "
    "pass. Heads whose labels only the data tells are counted with one output."
)


@dataclass(frozen=True)
class PlanOptions:
    """Flags of `lmrecipes plan`."""

    by: Literal["precision"] = "precision"
    """What is compared: the precisions in which the recipe can compute."""
    hardware: str | None = None
    """For example 2xcpu or 8xA100-80GB. None: this machine."""
    zero: Stage | None = None
    """ZeRO stage under DeepSpeed. None: plain torch (DDP where there are several processes)."""
    length: int | None = None
    """Tokens of a text. None: the most that the recipe lets one have."""
    json: bool = False
    """Machine-readable output, with every term."""


def plan(recipe: Recipe, options: PlanOptions) -> Plan:
    """Builds the model without its weights; nothing is trained, no data is read. Raises InputError."""
    from lmrecipes.machine import this_machine
    from lmrecipes.models.shapes import shapes_of
    from lmrecipes.precision.layer_rules import layer_problems

    if options.length is not None and options.length < 1:
        raise InputError(Problem("--length", f"{options.length} tokens", "give 1 or more", "plan-length"))
    if options.length is not None and options.length > (longest := recipe.longest_text):
        what, fix = f"{options.length} tokens, but texts are cut to {longest}", "give less, or a longer max_length"
        raise InputError(Problem("--length", what, fix, "plan-length"))
    hardware = Hardware.parse(options.hardware) if options.hardware else this_machine()
    if problems := layer_problems(recipe):
        raise InputError(problems)
    return compare(recipe, shapes_of(recipe), hardware, options.zero, options.length)


def print_plan(plan: Plan, console: Console) -> None:
    """The table: one row for each precision."""
    size, run = plan.run.size, plan.run
    engine = "plain torch" if plan.zero is None else f"ZeRO {plan.zero}"
    texts = f"{size.texts} texts" + (f" of {size.time} tokens" if size.time > 1 else "")
    console.print(f"{plan.hardware}, {engine}; each rank: {run.accumulation} x {texts} a step", highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("precision", min_width=12)
    kinds = [kind for kind in plan.kinds if any(total(row.cost.held, kind) for row in plan.rows)]
    for column in ("FLOPs", "moved", *(HEADINGS.get(kind, kind) for kind in kinds), "held", "/fp32"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in plan.rows:
        mark = " *" if row.own else ""
        style = "bold" if row.own else "dim" if row.why_not else None
        table.add_row(f"{row.name}{mark}", *_numbers(row.cost, plan.rows[0].cost, kinds), style=style)
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for row in plan.rows:
        reasons.setdefault(row.why_not, []).append(row.name)
    for why, names in reasons.items():
        if why:
            verb = "does" if len(names) == 1 else "do"
            console.print(f"{'; '.join(names)} {verb} not run there: {why}", style="dim", highlight=False)
    console.print(NOTE, style="dim", highlight=False)


def short(value: float) -> str:
    """Three digits and a power of 1000: 1.82T."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}Z"


def _numbers(cost: Cost, first: Cost, kinds: Sequence[str]) -> list[str]:
    held = total(cost.held)
    shown = [total(cost.flops), total(cost.moved), *(total(cost.held, kind) for kind in kinds), held]
    return [*map(short, shown), f"{held / total(first.held):.0%}"]
