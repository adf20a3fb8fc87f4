"""Accuracy against latency over precisions, as `lmrecipes latency` has measured them, and the budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lmrecipes.serving.latency_text import cells_of, condition, in_words, tested
from lmrecipes.tracking.html import disc, section, table
from lmrecipes.tracking.results import lower_is_better, number, words
from lmrecipes.tracking.run_record import RunRecord
from lmrecipes.tracking.scatter import Point, scatter

KEPT, NOT_KEPT = '<span class="up">kept</span>', '<span class="down">not kept</span>'


def latency(runs: Sequence[RunRecord]) -> str:
    """Of each run that has been measured a table, a plot for each task, and the conditions of its budgets."""
    parts = []
    for run in runs:
        if not (content := run.latency).get("precisions"):
            continue
        name = f"<h3>{escape(run.label)}</h3>" if len(runs) > 1 else ""
        heads, rows = cells_of(content)
        head = "".join(f"<th{' class=n' if at else ''}>{escape(cell)}</th>" for at, cell in enumerate(heads))
        body = "".join(
            f"<tr><th>{disc(at)}{escape(row[0])}</th>"
            + "".join(f"<td class=n>{escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for at, row in enumerate(rows)
        )
        parts += [name, f'<p class="note">{escape(tested(content))}</p>', table(head, body), _plots(content)]
        parts += [_budget(*budget) for budget in content["budgets"].items()]
    return section("Latency", "".join(parts)) if parts else ""


def _budget(name: str, verdict: Mapping[str, Any]) -> str:
    """A budget's conditions, in each precision."""
    state, colour = ("kept", "") if verdict["met"] else ("not kept", " open")
    rows = "".join(
        f"<tr><th>{escape(precision)}</th><td>{escape(condition(check))}</td>"
        f"<td>{KEPT if check['met'] else NOT_KEPT}</td></tr>"
        for precision, found in verdict["precisions"].items()
        for check in found["checks"]
    )
    return (
        f'<h3 class="task">Budget {escape(name)} <span class="status{colour}">{state}</span></h3>'
        f'<p class="note">{escape(in_words(verdict["budget"]))}.</p>'
        + table("<th>Precision</th><th>Condition</th><th></th>", rows)
    )


def _plots(content: Mapping[str, Any]) -> str:
    """A plot for each task: its metric against latency, p50 (disc) to p99 (line) of each precision."""
    tasks = next(iter(content["precisions"].values()))["tasks"]
    figures = []
    for task, first in tasks.items():
        points = [
            Point(
                at,
                found["closed"]["p50"],
                value,
                f"{name}: {number(value)}, p50 {found['closed']['p50']:.1f} ms, p99 {found['closed']['p99']:.1f} ms",
                name,
                found["closed"]["p99"],
            )
            for at, (name, found) in enumerate(content["precisions"].items())
            if None not in (value := found["tasks"][task]["value"], found["closed"]["p99"])
        ]
        if points:
            better = "lower" if lower_is_better(first["metric"]) else "higher"
            about = f"{better} is better; against ms of a request: disc p50, line to p99"
            plot = scatter(points, "ms", f"{task} against latency")
            title = f"{escape(task)}, {escape(words(first['metric']))} <small>{about}</small>"
            figures.append(f'<figure class="card"><h3>{title}</h3>{plot}</figure>')
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""
