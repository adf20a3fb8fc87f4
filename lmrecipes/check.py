"""`lmrecipes check`: its flags, what it finds, and how that is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lmrecipes.problems import Problem
from lmrecipes.recipe import Recipe


@dataclass(frozen=True)
class CheckOptions:
    """Flags of `lmrecipes check`."""

    deepspeed: Path | None = None
    """The DeepSpeed JSON to check. None with no --accelerate: every pair in the recipe's folder."""
    accelerate: Path | None = None
    """The Accelerate YAML to check."""
    hardware: str | None = None
    """For example 2xcpu or 8xA100-80GB. None: this machine."""
    json: bool = False
    """Machine-readable output."""


def problems_of(recipe: Recipe, folder: Path | None, options: CheckOptions) -> list[Problem]:
    """All of a recipe, its data and the launch files that are named, else of those in `folder`. Raises InputError."""
    from lmrecipes.machine import this_machine
    from lmrecipes.planning.check import check_data, check_layers, check_recipe, check_teacher, check_tokens
    from lmrecipes.planning.hardware import Hardware

    explicit = options.hardware is not None
    hardware = Hardware.parse(options.hardware) if options.hardware else this_machine()
    problems = check_recipe(recipe, folder, options.deepspeed, options.accelerate, hardware, explicit)
    return problems + check_data(recipe) + check_tokens(recipe) + check_layers(recipe) + check_teacher(recipe)


def problem_table(problems: Sequence[Problem]) -> Table:
    """A row for each problem."""
    table = Table(box=SIMPLE_HEAD, show_lines=True, padding=(0, 1, 0, 0))
    table.add_column("problem", no_wrap=True)
    table.add_column("where, what and how to fix it", overflow="fold")
    for problem in problems:
        colour = "red" if problem.severity == "error" else "yellow"
        text = Text.assemble((problem.where, "bold"), f"\n{problem.what}\n", (f"fix: {problem.fix}", "green"))
        table.add_row(Text.assemble(problem.id, (f"\n{problem.severity}", colour)), text)
    return table
