"""A comparison of precisions for people: on the screen, and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrecipes.tracking.html import section, table
from lmrecipes.tracking.results import number, words

COST = ("precision", "p50 ms", "p95 ms", "CPU ms", "MB", "computed by")
TASKS = ("precision", "task", "metric", "rows", "value", "worse by", "bound", "agreement", "")


def print_precisions(content: Mapping[str, Any]) -> None:
    """Two tables, and the verdict."""
    console = Console(highlight=False)
    for heads, rows in ((COST, _costs(content)), (TASKS, _tasks(content))):
        shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for head in heads:
            left = head in ("precision", "task", "metric", "computed by", "")
            shown.add_column(head, justify="left" if left else "right", no_wrap=head != "computed by")
        for row in rows:
            shown.add_row(*map(Text, row))
        console.print(shown)
    colour, said = ("green", "met") if content["met"] else ("red", "not met")
    console.print(f"[bold {colour}]gate: {said}[/] ({_gate(content)})", soft_wrap=True)


def precisions_section(content: Mapping[str, Any], label: str) -> str:
    """A run's comparison as a part of the report, empty where there is none. label: of the run, beside others."""
    if not content.get("precisions"):
        return ""
    tables = []
    for heads, rows in ((COST, _costs(content)), (TASKS, _tasks(content))):
        numbers = [any(row[at][:1].isdigit() or row[at][:1] == "-" for row in rows) for at in range(len(heads))]
        head = "".join(f"<th{' class=n' if n else ''}>{escape(h)}</th>" for h, n in zip(heads, numbers, strict=True))
        body = "".join(
            "<tr>"
            + "".join(f"<td{' class=n' if n else ''}>{escape(c)}</td>" for c, n in zip(row, numbers, strict=True))
            + "</tr>"
            for row in rows
        )
        tables.append(table(head, body))
    said = f"Measured {content['measured']} on {content['processor']}; {_gate(content)}."
    title = "Precisions" if not label else f"Precisions, {label}"
    return section(title, f'<p class="note">{escape(said)}</p>' + "".join(tables))


def _gate(content: Mapping[str, Any]) -> str:
    first = content["precisions"][0]
    return (
        f"a row at a time on one thread; worse than fp32 by at most {first['margin']:g} with "
        f"{first['confidence']:.0%} confidence meets the gate"
    )


def _costs(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            found["precision"], *(f"{found[key]:.1f}" for key in ("p50_ms", "p95_ms", "cpu_ms")),
            f"{found['megabytes']:.0f}", found["kind"],
        )
        for found in content["precisions"]
    ]  # fmt: skip


def _tasks(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for found in content["precisions"]:
        for name, task in found["tasks"].items():
            start = (found["precision"], name, words(task["metric"]), f"{task['rows']:,}", number(task["value"]))
            if found["precision"] == "fp32":
                rows.append((*start, "", "", "", ""))
                continue
            met = task["bound"] is not None and task["bound"] <= found["margin"]
            apart = [_signed(task[key]) for key in ("drop", "bound")]
            rows.append((*start, *apart, f"{task['agreement']:.1%}", "met" if met else "not met"))
    return rows


def _signed(value: float | None) -> str:
    """Four places, and no -0."""
    return number(None) if value is None else f"{round(value, 4) + 0.0:.4f}"
