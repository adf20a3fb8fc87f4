"""The section of the report about negative transfer: how gradients of tasks agree, and what each task reaches alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any

from lmrecipes.studies.gains import HELPS, HURTS, interval_words, signed
from lmrecipes.tracking.charts import Chart, Line, thin
from lmrecipes.tracking.html import disc, section, table
from lmrecipes.tracking.results import duration, number, words
from lmrecipes.tracking.run_record import RunRecord
from lmrecipes.training.agreement import Measurement, measured, standard_error, sums_of

WINDOW = 10
"""A point of the curves averages over 1/WINDOW of the measurements, five at least: single ones are noise."""
HOW_TO_READ = (
    "Above 0 two tasks pull the shared weights the same way, near 0 they do not touch each other, and below 0 a step "
    "for one undoes what the other learns."
)
ALONE_HEADS = (
    "<th>Task</th><th>Metric</th><th class=n>Among the others</th><th class=n>Alone</th><th class=n>Gain</th>"
    "<th class=n>95% interval</th><th></th><th class=n>Examples<small>among others / alone</small></th>"
    "<th class=n>Seconds alone</th>"
)


def transfer(runs: Sequence[RunRecord], first: int) -> tuple[str, list[Chart]]:
    """The whole section, empty where nothing is on record, and its charts, which the page numbers from `first` on."""
    parts, charts = [], list[Chart]()
    for at, run in enumerate(runs):
        name = f"<h3>{disc(at)}{escape(run.label)}</h3>" if len(runs) > 1 else ""
        found = _cosines(run, first + len(charts), charts) + _alone(run.alone)
        if found:
            parts.append(f'<div class="run">{name}{found}</div>')
    content = "".join(parts)
    if len(parts) > 1:
        content = f"<details><summary>Each run</summary>{content}</details>"
    return (section("Negative transfer", content) if parts else ""), charts


def heat_map(tasks: Sequence[str], found: Sequence[Measurement]) -> dict[str, Any]:
    """Tasks x tasks, for the page's script: cosines without noise, then plain ones with the halves' on the diagonal."""
    sums = sums_of(found)
    errors = {pair: standard_error(found, *pair) for pair in combinations(tasks, 2)}
    corrected = [[None if a == b else sums.corrected(a, b) for b in tasks] for a in tasks]
    plain = [[sums.plain(a, b) for b in tasks] for a in tasks]
    said = [
        [
            "" if value is None else _said(value, errors.get((a, b), errors.get((b, a))))
            for b, value in zip(tasks, row, strict=True)
        ]
        for a, row in zip(tasks, corrected, strict=True)
    ]
    plainly = [["" if value is None else f"{value:+.2f}" for value in row] for row in plain]
    signed_scale = {"low": -1.0, "high": 1.0, "diverging": True, "unit": ""}
    return {
        "rows": list(tasks), "columns": list(tasks), "groups": [], "formats": list(tasks),
        "measures": [
            {"name": "corrected", "values": corrected, "text": said, **signed_scale},
            {"name": "plain", "values": plain, "text": plainly, **signed_scale},
        ],
    }  # fmt: skip


def curves(tasks: Sequence[str], found: Sequence[Measurement], colours: int) -> Chart | None:
    """The noise-corrected cosine of each pair over the steps, over a window of measurements up to each. colours: the
    page's tasks have so many, and pairs the next."""
    window = max(5, len(found) // WINDOW)
    lines = []
    for at, (a, b) in enumerate(combinations(tasks, 2)):
        x, y = [], []
        for end in range(window, len(found) + 1):
            value = sums_of(found[end - window : end]).corrected(a, b)
            if value is not None:
                x.append(found[end - 1].step)
                y.append(max(-1.5, min(1.5, value)))
        if x:
            lines.append(Line(f"{a}, {b}", colours + at, *thin(x, y), "points" if len(x) < 30 else "line"))
    return Chart("Cosines over the steps", lines, f"each over {window} measurements up to the step") if lines else None


def _cosines(run: RunRecord, number: int, charts: list[Chart]) -> str:
    found = measured(run.cosines)
    if not found:
        return ""
    tasks = [task for task in run.tasks if any(task in one.norms for one in found)]
    sums, total = sums_of(found), (run.evaluation or {}).get("seconds_of_training")
    cost = f"{duration(sums.seconds)} in all" + (
        f", {sums.seconds / total:.0%} of the training's time" if total else ""
    )
    note = f"{len(found)} measurement{'s' if len(found) != 1 else ''}, {cost}. {HOW_TO_READ}"
    buttons = "".join(
        f'<button type="button" aria-pressed="{str(at == 0).lower()}" data-measure="{at}" title="{escape(about)}">'
        f"{escape(title)}</button>"
        for at, (title, about) in enumerate(
            [
                ("Without the noise", "sum of dot products over the tasks' own signal; ± standard error (jackknife)"),
                ("As measured", "mean cosine; on the diagonal that of two halves of one task's examples"),
            ]
        )
    )
    maps = json.dumps(heat_map(tasks, found)).replace("<", "\\u003c")
    height = 110 + 44 * len(tasks)
    heat = (
        f'<div class="heat card"><div class="pick" role="group" aria-label="What is drawn">{buttons}</div>'
        f'<div class="heatmap" style="height:{height}px;max-width:{280 + 110 * len(tasks)}px"></div>'
        f'<script type="application/json" class="heatdata">{maps}</script></div>'
    )
    explained = (
        "The gradient of one batch is mostly noise: as measured, two halves of the <em>same</em> task's examples have "
        "the cosine on the diagonal, and no pair can be expected to show much more. Without the noise, 1 is the same "
        "direction. A pair is left out while a task's own signal is not above its noise."
    )
    drawn, chart = "", curves(tasks, found, len(run.tasks))
    if chart is not None:
        keys = " &ensp;".join(f"{disc(line.series)}{escape(line.name)}" for line in chart.lines)
        charts.append(chart)
        named = f"<h3>{escape(chart.title)} <small>{escape(chart.note)}</small></h3>"
        drawn = (
            f'<div class="charts"><figure class="card">{named}<p class="note">{keys}</p>'
            f'<div class="plot" data-chart="{number}"></div></figure></div>'
        )
    title = '<h3 class="task">Gradient cosines <small>of the shared weights, between tasks</small></h3>'
    return f'{title}<p class="note">{escape(note)}</p>{heat}<p class="note">{explained}</p>{drawn}'


def _alone(alone: Mapping[str, Any]) -> str:
    tasks = alone.get("tasks") or {}
    if not tasks:
        return ""
    seconds = alone["seconds"]
    times = f"{duration(seconds['joint'])} of training jointly, {duration(seconds['alone'])} alone"
    rows = "".join(_row(task, one) for task, one in tasks.items())
    return (
        '<h3 class="task">Each task alone <small>on as many examples</small></h3>'
        f'<p class="note">{escape(alone["method"])}. {times}. Measured {escape(alone["measured"])}.</p>'
        + table(ALONE_HEADS, rows)
    )


def _row(task: str, one: Mapping[str, Any]) -> str:
    look = {HELPS: "up", HURTS: "down"}.get(one["verdict"], "")
    said = f"failed: {one['failed']}" if one["failed"] else one["verdict"]
    return (
        f"<tr><th>{escape(task)}</th><td>{escape(words(one['metric']))}</td><td class=n>{number(one['joint'])}</td>"
        f"<td class=n>{number(one['alone'])}</td><td class=n>{signed(one['gain'])}</td>"
        f'<td class=n>{interval_words(one["interval"])}</td><td><span class="{look}">{escape(said)}</span></td>'
        f"<td class=n>{one['examples_joint']:,} / {one['examples_alone']:,}</td>"
        f"<td class=n>{one['seconds']:,.1f}</td></tr>"
    )


def _said(value: float, error: float | None) -> str:
    return f"{value:+.2f}" + (f" ± {error:.2f}" if error is not None else "")
