"""Members and combinations beside each other, of runs that `lmrecipes combine` has made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lmrecipes.combine.show import HEADERS, cells_of, disagreement_of, notes_of, task_title
from lmrecipes.tracking.html import disc, section, table
from lmrecipes.tracking.results import number, words
from lmrecipes.tracking.run_record import RunRecord
from lmrecipes.tracking.scatter import Point, scatter


def combination(runs: Sequence[RunRecord]) -> str:
    """Of each combined run a table and a picture for each task; empty where there is none."""
    parts = []
    for run in runs:
        made = run.combined
        if not made:
            continue
        name = f"<h3>{escape(run.label)}</h3>" if len(runs) > 1 else ""
        parts.append(f'{name}<p class="note">{" ".join(escape(note) for note in notes_of(made))}</p>')
        parts += [_task(made, task, facts) for task, facts in made["tasks"].items()]
        pictures = "".join(_picture(task, facts) for task, facts in made["tasks"].items())
        parts.append(f'<div class="charts">{pictures}</div>')
    return section("Combination", "".join(parts)) if parts else ""


def _task(made: Mapping[str, Any], task: str, facts: Mapping[str, Any]) -> str:
    heads = "".join(f'<th class="n tight">{escape(head)}</th>' for head in (words(facts["metric"]), *HEADERS))
    rows = []
    for at, model in enumerate(facts["models"]):
        name = escape(model["name"])
        name = f"<b>{name}</b>" if model["role"] == made["method"] else name
        best = " <small>best</small>" if model["name"] == facts["best"]["validation"] else ""
        cells = "".join(f"<td class=n>{_above(*cell.partition('['))}</td>" for cell in cells_of(model))
        rows.append(f"<tr><th>{disc(at)}{name}{best}</th>{cells}</tr>")
    said = disagreement_of(facts)
    note = f'<p class="note">{escape(said)}</p>' if said else ""
    return (
        f'<h3 class="task">{escape(task_title(task, facts))}</h3>{table(f"<th>Model</th>{heads}", "".join(rows))}{note}'
    )


def _above(value: str, bracket: str, ends: str) -> str:
    """A number, and below it its interval."""
    return f"{escape(value)}<small>{escape(bracket + ends)}</small>"


def _picture(task: str, facts: Mapping[str, Any]) -> str:
    """The headline metric against latency; intervals as lines."""
    names: dict[tuple[float, float], list[str]] = {}  # of the combinations that are drawn at one place
    for model in facts["models"]:
        if model["role"] != "member":
            names.setdefault((model["p50_ms"], model["value"]), []).append(model["name"])
    points = [
        Point(
            at,
            model["p50_ms"],
            model["value"],
            f"{model['name']}: {number(model['value'])} at {model['p50_ms']:.1f} ms",
            ", ".join(names.pop((model["p50_ms"], model["value"]), ())) if model["role"] != "member" else "",
            interval=(model["interval"][0], model["interval"][1]),
        )
        for at, model in enumerate(facts["models"])
        if None not in (model["value"], *model["interval"])
    ]
    if not points:
        return ""
    better = "lower" if facts["lower_is_better"] else "higher"
    metric = words(facts["metric"])
    about = f"{metric} ({better} is better) against ms of one row, with 95% intervals"
    return (
        f'<figure class="card"><h3>{escape(task)} <small>{escape(about)}</small></h3>'
        f"{scatter(points, 'ms', f'{task}: {about}')}</figure>"
    )
