"""The verdicts on a run's gates, as `lmrecipes gate` has stored them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lmrecipes.studies.parity import difference
from lmrecipes.tracking.html import section, table
from lmrecipes.tracking.results import number, words
from lmrecipes.tracking.run_record import RunRecord

HEADS = (
    "<th>Task</th><th>Metric</th><th class=n>This recipe</th><th class=n>Reference</th><th class=n>Worse by</th>"
    "<th class=n>Confidence bound</th><th class=n>Margin</th><th></th>"
)


def gates(runs: Sequence[RunRecord]) -> str:
    """A table for each gate of each run; empty where none has been measured."""
    parts = []
    for run in runs:
        for name, gate in (run.gates.get("gates") or {}).items():
            of = "" if len(runs) == 1 else f"{run.label}, "
            state, colour = ("met", "") if gate["met"] else ("not met", " open")
            rows = "".join(_row(task, found) for task, found in gate["tasks"].items())
            parts.append(
                f'<h3 class="task">{escape(of + name)} <span class="status{colour}">{state}</span></h3>'
                f'<p class="note">{escape(gate["tested"])}. Measured {escape(run.gates.get("measured", ""))}.</p>'
                + table(HEADS, rows)
            )
    return section("Gates", "".join(parts)) if parts else ""


def _row(task: str, found: Mapping[str, Any]) -> str:
    means = "".join(f"<td class=n>{number(found[key])}</td>" for key in ("own", "reference"))
    values = [difference(found["metric"], found[key]) for key in ("worse", "bound", "margin")]
    cells = "".join(f"<td class=n>{value}</td>" for value in values)
    said = '<span class="up">met</span>' if found["met"] else '<span class="down">not met</span>'
    return f"<tr><th>{escape(task)}</th><td>{escape(words(found['metric']))}</td>{means}{cells}<td>{said}</td></tr>"
