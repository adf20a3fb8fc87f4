"""One self-contained HTML page about one run, or comparing several: results first, then how they came about."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lmrecipes.files import write_text_atomically
from lmrecipes.inference.precisions_text import precisions_section
from lmrecipes.problems import InputError, Problem
from lmrecipes.tracking import sections
from lmrecipes.tracking.charts import Track, groups_of
from lmrecipes.tracking.combination_section import combination
from lmrecipes.tracking.gates_section import gates
from lmrecipes.tracking.heat import HEAT_SCRIPT, HEAT_STYLE
from lmrecipes.tracking.html import document
from lmrecipes.tracking.latency_section import latency
from lmrecipes.tracking.mixture_section import planned_and_realised
from lmrecipes.tracking.page import SCRIPT, STYLE
from lmrecipes.tracking.precision_section import precision
from lmrecipes.tracking.run_record import RunRecord, read_run
from lmrecipes.tracking.text_section import changes, samples
from lmrecipes.tracking.transfer_section import transfer


def write_report(runs: list[Path], to: Path) -> Path:
    """Write the page about these run folders to `to`, and return `to`.

    The page holds all that it shows, plotly.js included (4.8 MB), and needs no network. What a run has not written yet
    is shown as missing. Raises InputError for folders that are no runs, all of them at once.
    """
    if not runs:
        raise InputError(Problem("report", "no run is named", "name one or more folders under runs/", "run-missing"))
    found: list[RunRecord] = []
    problems: list[Problem] = []
    for path in runs:
        try:
            found.append(read_run(path))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    write_text_atomically(to, _page(_labelled(found)))
    return to


def _labelled(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Names made distinct by a number where they repeat, and labels without the words that all names start with."""
    seen: dict[str, int] = {}
    names = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        names.append(run.name if seen[run.name] == 1 else f"{run.name} ({seen[run.name]})")
    words = [name.split("-") for name in names]
    shared = 0
    while len(names) > 1 and all(len(parts) > shared + 1 for parts in words) and len({p[shared] for p in words}) == 1:
        shared += 1
    labels = ["-".join(parts[shared:]) for parts in words]
    return [replace(run, name=name, label=label) for run, name, label in zip(runs, names, labels, strict=True)]


def _page(runs: Sequence[RunRecord]) -> str:
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    headlines = {task: next(name for run in runs if (name := run.headline(task)) is not None) for task in tasks}
    groups = groups_of([Track(run.label, run.metrics, run.unit) for run in runs], tasks, headlines)
    charts = [chart for group in groups for chart in (*group.charts, *group.more)]
    of_transfer, more = transfer(runs, len(charts))
    charts += more
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    body = [
        sections.header(runs, title),
        sections.results(runs, tasks),
        gates(runs),
        *(precisions_section(run.precisions, "" if len(runs) == 1 else run.label) for run in runs),
        combination(runs),
        latency(runs),
        changes(runs, tasks),
        sections.differences(runs),
        sections.curves(groups, tasks if len(runs) == 1 else [run.label for run in runs])
        if groups or not all(run.combined for run in runs)
        else "",  # a combined run took no steps
        samples(runs, tasks),
        planned_and_realised(runs, tasks),
        of_transfer,
        precision(runs),
        sections.time_spent(runs),
        sections.environments(runs),
        sections.recipes(runs),
        f"<footer>Written {time.strftime('%Y-%m-%d %H:%M')} by <code>lmrecipes report</code>. "
        "Drag in a chart to zoom, double-click to reset.</footer>",
    ]
    return document(title, body, [chart.as_dict() for chart in charts], STYLE + HEAT_STYLE, SCRIPT + HEAT_SCRIPT)
