"""Accuracy against latency over precisions, as `lmrecipes latency` has measured them, and the budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lmrecipes.serving.latency_text import cells_of, condition, in_words, tested
from lmrecipes.tracking.html import disc, section, table
from lmrecipes.tracking.results import lower_is_better, number, words
from lmrecipes.tracking.run_record import RunRecord

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 14, 40
"""Space of a plot around its axes, in its own units."""

STEPS = [first * 10**power for power in range(-3, 8) for first in (1, 2, 5)]
MOST_TICKS = 6
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
        metric, better = words(first["metric"]), "lower" if lower_is_better(first["metric"]) else "higher"
        figures.append(
            f'<figure class="card"><h3>{escape(task)}, {escape(metric)} <small>{better} is better; against ms of a '
            f"request: disc p50, line to p99</small></h3>{_plot(task, content['precisions'])}</figure>"
        )
    return f'<div class="charts">{"".join(figures)}</div>'


def _plot(task: str, precisions: Mapping[str, Any]) -> str:
    """One plot as SVG. Values of one task lie close together: the axis spans them, and at least 0.01."""
    points = [
        (at, name, found["closed"]["p50"], found["closed"]["p99"], found["tasks"][task]["value"])
        for at, (name, found) in enumerate(precisions.items())
        if found["closed"]["p99"] is not None and found["tasks"][task]["value"] is not None
    ]
    if not points:
        return ""
    right = 1.08 * max(point[3] for point in points)
    tick = next(step for step in STEPS if right / step <= MOST_TICKS)
    values = [point[4] for point in points]
    middle, half = (min(values) + max(values)) / 2, max(0.005, 0.7 * (max(values) - min(values)))

    def x(ms: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ms / right

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (0.5 - (value - middle) / (2 * half))

    parts = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="var(--grid)"/>'
        f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end" fill="var(--muted)">{number(value)}</text>'
        for value in (middle - 0.8 * half, middle, middle + 0.8 * half)
    ]
    parts += [
        f'<text x="{x(ms):.1f}" y="{HEIGHT - 18}" text-anchor="middle" fill="var(--muted)">{ms:g}</text>'
        for ms in (tick * number for number in range(int(right / tick) + 1))
    ]
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end" fill="var(--muted)">ms</text>')
    for at, name, low, high, value in points:
        colour, level = f"var(--s{at % 6})", f"{y(value):.1f}"
        parts.append(
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{level}" y2="{level}" stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{x(low):.1f}" cy="{level}" r="5" fill="{colour}"/>'
            f'<text x="{x(low):.1f}" y="{y(value) - 9:.1f}" fill="var(--text)">{escape(name)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" font-size="12" '
        f'aria-label="{escape(task)} against latency">{"".join(parts)}</svg>'
    )
