"""A study's rows as one self-contained HTML page: metrics with their spread, memory by class, time of a step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lmrecipes.files import write_text_atomically
from lmrecipes.recipe import Recipe
from lmrecipes.studies.record import CLASSES, Row, headlines
from lmrecipes.studies.show import Cells, costs_cells, notes, results_cells
from lmrecipes.tracking.html import disc, document, section, table
from lmrecipes.tracking.page import STYLE
from lmrecipes.tracking.results import lower_is_better, words

SCRIPT = """
const charts = JSON.parse(document.getElementById("charts").textContent);
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = series => css("--s" + series % 6);

function trace(line) {
  const color = line.series === null ? line.y.map((_, at) => colour(at)) : colour(line.series);
  const error_x = line.error ? { type: "data", array: line.error, color: css("--muted"), thickness: 1.5 } : undefined;
  return { marker: { color, size: 9 }, name: line.name, x: line.x, y: line.y, error_x, orientation: "h",
    type: line.points ? "scatter" : "bar", mode: "markers", hovertemplate: "%{x:.4~g}<extra></extra>",
    showlegend: false };
}

function draw(plot) {
  const chart = charts[plot.dataset.chart];
  const axis = { gridcolor: css("--grid"), zeroline: false, automargin: true, fixedrange: true,
    tickfont: { size: 12, color: css("--muted") } };
  Plotly.react(plot, chart.lines.map(trace), {
    height: 70 + 26 * chart.lines[0].y.length, barmode: "stack", bargap: 0.35,
    margin: { l: 10, r: 16, t: 6, b: 34 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: css("--text"), size: 12 },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text"), size: 12 } },
    xaxis: { ...axis, nticks: 6 },
    yaxis: { ...axis, autorange: "reversed", showgrid: false, ticks: "outside", tickcolor: "transparent" },
  }, { displayModeBar: false, responsive: true });
}

const drawAll = () => document.querySelectorAll(".plot").forEach(draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
"""


def write_page(recipe: Recipe, rows: Sequence[Row], environment: Mapping[str, Any], to: Path) -> None:
    """Write the page, plotly.js included: it needs no network."""
    charts = charts_of(rows)
    figures = "".join(
        f'<figure class="card"><h3>{escape(chart["title"])} <small>{chart["note"]}</small></h3>'
        f'<div class="plot" style="height:auto" data-chart="{at}"></div></figure>'
        for at, chart in enumerate(charts)
    )
    said = "".join(f'<p class="note">{escape(note.rstrip("."))}.</p>' for note in notes(rows, environment))
    title = f"{recipe.name}: {len(rows)} variant{'s' if len(rows) != 1 else ''} compared"
    body = [
        f'<header><p class="kicker">Study</p><h1>{escape(title)}</h1><p class="lead">{escape(recipe.description)}</p>'
        f'<p class="muted">{recipe.schedule.steps:,} optimizer steps each</p></header>',
        section("Results", _table(results_cells(rows))),
        f'<div class="charts">{figures}</div>',
        section("Costs", _table(costs_cells(rows))),
        section("About these numbers", said),
        f"<footer>Written {time.strftime('%Y-%m-%d %H:%M')} by <code>lmrecipes study</code>.</footer>",
    ]
    write_text_atomically(to, document(title, body, charts, STYLE, SCRIPT))


def charts_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One chart a task, with the spread over seeds, then memory and time. JSON-ready, for the page's script."""
    labels, charts = [row.label for row in rows], []
    for task, metric in headlines(rows).items():
        spreads = [row.metric(task) for row in rows]
        line = {
            "name": task, "series": None, "points": True, "y": labels,
            "x": [found.mean if found else None for found in spreads],
            "error": [found.deviation if found else None for found in spreads],
        }  # fmt: skip
        better = "lower is better" if lower_is_better(metric) else "higher is better"
        charts.append({"title": f"{task}, {words(metric)}", "note": f"{better}; bars: deviation", "lines": [line]})
    classes = {name: at for at, name in enumerate(CLASSES) if any(row.bytes.get(name) for row in rows)}
    if classes:
        held = [
            {"name": name, "series": at, "points": False, "y": labels, "error": None,
             "x": [row.bytes.get(name, 0) / (row.parameters or 1) for row in rows]}
            for name, at in classes.items()
        ]  # fmt: skip
        keys = " &ensp;".join(f"{disc(at)}{name}" for name, at in classes.items())
        charts.append({"title": "Bytes per parameter", "note": keys, "lines": held})
    seconds = {"name": "seconds per step", "series": None, "points": False, "y": labels, "error": None,
               "x": [row.seconds_per_step for row in rows]}  # fmt: skip
    charts.append({"title": "Seconds per step", "note": "median", "lines": [seconds]})
    return charts


def _table(cells: Cells) -> str:
    heads, *lines = cells
    head = "".join(f"<th{' class=n' if at else ''}>{escape(cell)}</th>" for at, cell in enumerate(heads))
    rows = [
        f"<tr><th>{escape(line[0])}</th>" + "".join(f"<td class=n>{escape(cell)}</td>" for cell in line[1:]) + "</tr>"
        for line in lines
    ]
    return table(head, "".join(rows))
