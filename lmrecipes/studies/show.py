"""A study's rows for people: results and costs, as tables for a terminal and as Markdown for READMEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrecipes.recipe import Recipe
from lmrecipes.studies.record import CLASSES, Row, Spread, headlines
from lmrecipes.tracking.results import hardware, markdown_row, number, words

MISSING = number(None)
NARROW = {
    "x first": "x\nfirst", "gradients": "gradi-\nents", "optimizer": "opti-\nmizer", "activations": "activ-\nations",
}  # fmt: skip
"""Heads as they fit into 80 columns."""
Cells = list[list[str]]


def plus_minus(found: Spread | None) -> str:
    """Mean and standard deviation with as many decimals as the mean is given."""
    if found is None or found.deviation is None:
        return number(found.mean if found else None)
    mean = number(found.mean)
    return f"{mean} ± {found.deviation:.{len(mean.partition('.')[2])}f}"


def results_cells(rows: Sequence[Row]) -> Cells:
    """Header, then for each row the headline metric of each task, the final loss, and what went wrong."""
    tasks = headlines(rows)
    trouble = any(row.failed or row.skipped_steps for row in rows)
    heads = ["", *(f"{task}, {words(metric)}" for task, metric in tasks.items()), "final loss"]
    found = [heads + (["skipped", "failed"] if trouble else [])]
    for row in rows:
        values = [row.label, *(plus_minus(row.metric(task)) for task in tasks), plus_minus(row.loss)]
        failed = f"{len(row.failed)} of {len(row.cells)}" if row.failed else ""
        found.append(values + ([f"{row.skipped_steps or ''}", failed] if trouble else []))
    return found


def costs_cells(rows: Sequence[Row]) -> Cells:
    """Header, then for each row the time of a step, over that of the first row, bytes per parameter and in all."""
    classes = [name for name in CLASSES if any(row.bytes.get(name) for row in rows)]
    first = rows[0].seconds_per_step if rows else None
    found = [["", "ms/step", "x first", *classes, "in all", "MB"]]
    for row in rows:
        seconds, total = row.seconds_per_step, sum(row.bytes.values())
        ratio = f"{seconds / first:.2f}" if seconds and first else MISSING
        times = [f"{1000 * seconds:,.1f}" if seconds else MISSING, ratio]
        parts = [row.bytes.get(name) for name in classes]
        held = [_per_parameter(value, row.parameters) for value in (*parts, total or None)]
        found.append([row.label, *times, *held, f"{total / 1e6:,.1f}" if total else MISSING])
    return found


def notes(rows: Sequence[Row], environment: Mapping[str, Any]) -> list[str]:
    """What the numbers are, where they were measured, and what failed."""
    seeds = sorted({len(row.finished) for row in rows if row.finished}) or [0]
    threads = environment.get("threads")
    said = [
        f"Test split, mean ± standard deviation over {' or '.join(map(str, seeds))} seeds" if seeds[-1] > 1
        else "Test split, one seed",
        "Bytes of state and of the activations of one micro-batch: per parameter, and in all; of the rank that holds "
        "most",
        hardware(environment) + (f", {threads} thread{'s' if threads != 1 else ''} a rank" if threads else ""),
    ]  # fmt: skip
    failed = [f"{row.label}, seed {cell.seed}, failed: {cell.failed}" for row in rows for cell in row.failed]
    without = [
        f"{row.label}, seed {cell.seed}: {task} gave no number, the mean is of the others"
        for row in rows for cell in row.finished for task in cell.tasks if cell.headline(task) is None
    ]  # fmt: skip
    return [note for note in (*said, *failed, *without) if note]


def print_rows(recipe: Recipe, rows: Sequence[Row], environment: Mapping[str, Any], page: Path) -> None:
    """The tables, the notes, and where the page is."""
    console = Console(highlight=False)
    console.print(f"{recipe.name} after {recipe.schedule.steps:,} steps", soft_wrap=True)
    for heads, *lines in (results_cells(rows), costs_cells(rows)):
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for at, head in enumerate(heads):
            below = NARROW.get(head, head).replace(", ", ",\n")
            table.add_column(Text(below), justify="left" if at == 0 else "right", overflow="fold")
        for line in lines:
            table.add_row(*map(Text, line))
        console.print(table)
    for note in notes(rows, environment):
        console.print(Text(f"{note.rstrip('.')}."), style="dim", soft_wrap=True)
    Console(soft_wrap=True).print(f"page: {page.resolve()}", markup=False, highlight=False)


def markdown(recipe: Recipe, rows: Sequence[Row], environment: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    parts = []
    for heads, *lines in (results_cells(rows), costs_cells(rows)):
        table = [heads, ["-", *("-:" for _ in heads[1:])], *lines]
        parts.append("\n".join(map(markdown_row, table)))
    said = [f"{recipe.name}, {recipe.schedule.steps:,} steps", *notes(rows, environment)]
    return "\n\n".join([*parts, " ".join(f"{note.rstrip('.')}." for note in said)]) + "\n"


def _per_parameter(held: int | None, parameters: int | None) -> str:
    return f"{held / parameters:.2f}" if held is not None and parameters else MISSING
