"""What `lmrecipes combine` prints: a table for each task, every member and every combination in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrecipes.tracking.results import number, words

HEADERS = (
    "less best member", "loss", "calibrated", "less best member", "ECE", "calibrated", "temperature", "ms, 1 row",
    "ms a row of 32", "MB",
)  # fmt: skip
WIDE = 170
"""Columns of a terminal that has room for a whole table."""
PARTS = (slice(0, 2), slice(2, 5), slice(5, None))
"""With fewer it is cut: accuracy, loss, then calibration and cost."""


def print_combination(made: Mapping[str, Any], console: Console) -> None:
    """The tables of a combination's facts, its notes, and where it lies."""
    for task, facts in made["tasks"].items():
        console.print(task_title(task, facts), markup=False, highlight=False)
        for columns in PARTS if console.width < WIDE else (slice(None),):
            console.print(_table(made, facts, columns))
        if said := disagreement_of(facts):
            console.print(said, style="dim", markup=False, highlight=False)
        console.print()
    for note in notes_of(made):
        console.print(note, style="dim", markup=False, highlight=False)
    console.print(f"{made['method']}: {made['path']}", markup=False, highlight=False)


def task_title(task: str, facts: Mapping[str, Any]) -> str:
    """What a table is of."""
    return f"{task}: {words(facts['metric'])}, {facts['rows']:,} rows of the test split"


def disagreement_of(facts: Mapping[str, Any]) -> str:
    """How much members differ, in words; empty where that is not measured."""
    apart = facts["disagreement"]
    if apart is None or len(apart["pairs"]) < 2:
        return ""
    return f"disagreement of two members, on average {number(apart['mean'])}: {apart['measure']}"


def notes_of(made: Mapping[str, Any]) -> list[str]:
    """What the tables do not say by themselves."""
    tasks = list(made["tasks"].values())
    resamples, kinds = tasks[0]["resamples"], {facts["kind"] for facts in tasks}
    said = [
        f"Intervals: 95%, {resamples:,} bootstrap draws of {_drawn(made['tasks'])}, paired. Best member: on the "
        "validation split. Loss: negative log-likelihood in nats"
        + (", of regression with the residuals' deviation on the validation split" if "regression" in kinds else "")
        + ". Temperatures and weights are fitted on the validation split. Times are of forward passes on "
        f"{made['threads']} thread(s); a combination computes its members one after the other."
    ]
    if made["soup_of"]:
        said.append(f"The soup is of {', '.join(made['soup_of'])}.")
    for task, facts in made["tasks"].items():
        weights = next((model["weights"] for model in facts["models"] if model["role"] == "stack"), None)
        if weights is not None:
            said.append(f"Weights of the stack, {task}: {', '.join(f'{weight:.2f}' for weight in weights)}.")
    return said + _kept(made) + list(made["notes"])


def _kept(made: Mapping[str, Any]) -> list[str]:
    """How much of what its teacher has more than the best member a student has, too."""
    if "taught_by" not in made:
        return []
    found = []
    for task, facts in made["tasks"].items():
        by_name = {model["name"]: model["against"]["validation"]["value"] for model in facts["models"]}
        taught, student = by_name[made["taught_by"]], by_name["student"]
        gains = taught < 0 if facts["lower_is_better"] else taught > 0
        found.append(f"{student / taught:.0%} ({task})" if gains else f"it has none ({task})")
    return [f"Share of the teacher's gain over the best member that the student has: {', '.join(found)}."]


def _drawn(tasks: Mapping[str, Any]) -> str:
    grouped = [f"{facts['groups']:,} of {task}" for task, facts in tasks.items() if facts["groups"] is not None]
    if not grouped:
        return "the test rows"
    return f"whole groups ({', '.join(grouped)})" + (" and of other tasks' rows" if len(grouped) < len(tasks) else "")


def _table(made: Mapping[str, Any], facts: Mapping[str, Any], columns: slice) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for header in (words(facts["metric"]), *HEADERS)[columns]:
        table.add_column(header, justify="right", no_wrap=True)
    for model in facts["models"]:
        name = Text(model["name"])
        if model["role"] == made["method"]:
            name.stylize("bold")
        elif model["name"] == facts["best"]["validation"]:
            name.append(" (best)", style="dim")
        table.add_row(name, *cells_of(model)[columns])
    return table


def cells_of(model: Mapping[str, Any]) -> list[str]:
    """A model's numbers in the order of the table's columns."""
    against, loss, error = model["against"]["validation"], model["loss"], model["calibration_error"]
    temperature, alone = model["temperature"], model["role"] == "member"
    return [
        f"{number(model['value'])} {_between(model['interval'])}",
        "" if alone else f"{_signed(against['value'])} {_between(against['interval'], '+')}",
        number(loss["before"]),
        number(loss["after"]),
        "" if alone else f"{_signed(against['loss'])} {_between(against['loss_interval'], '+')}",
        number(error["before"]),
        number(error["after"]),
        "" if temperature is None else f"{temperature:.2f}",
        f"{model['p50_ms']:.1f}",
        f"{model['ms_per_row']:.2f}",
        f"{model['bytes'] / 1e6:.1f}",
    ]


def _signed(value: float | None) -> str:
    return number(None) if value is None else f"{value:+.3f}"


def _between(ends: Sequence[float | None], sign: str = "") -> str:
    """`[0.1, 0.2]`; nothing where the metric has no value in some draw."""
    return "" if None in ends else f"[{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]"
