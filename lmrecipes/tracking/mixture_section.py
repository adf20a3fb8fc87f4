"""The section of the report that holds what was drawn of each task against what was planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lmrecipes.tracking.html import compact, disc, section, table
from lmrecipes.tracking.results import words
from lmrecipes.tracking.run_record import RunRecord


def planned_and_realised(runs: Sequence[RunRecord], tasks: Sequence[str]) -> str:
    """A table for each run: share, examples, tokens and epochs of each task. Empty where nothing is on record."""
    parts = []
    for at, run in enumerate(runs):
        last = run.metrics[-1] if run.metrics else {}
        known = [task for task in tasks if last.get(f"examples/{task}") is not None]
        if not known:
            continue
        rows = "".join(_row(at if len(runs) > 1 else tasks.index(task), task, last, run.mixture) for task in known)
        name = f"<h3>{disc(at)}{escape(run.label)}</h3>" if len(runs) > 1 else ""
        note = f'<p class="note">{escape(_note(run, known))}</p>'
        parts.append(f'<div class="run">{name}{note}{table(_HEADS.format(words(run.unit)), rows)}</div>')
    if len(parts) > 1:
        return section(_TITLE, f"<details><summary>Each run</summary>{''.join(parts)}</details>")
    return section(_TITLE, parts[0]) if parts else ""


_TITLE = "Mixture, planned and realised"
_HEADS = (
    "<th>Task</th><th class=n>Share of {}<small>asked for</small></th><th class=n>Examples<small>planned</small></th>"
    "<th class=n>Tokens<small>planned</small></th><th class=n>Epochs<small>planned</small></th>"
    "<th class=n>Rows</th>"
)


def _row(series: int, task: str, last: Mapping[str, Any], planned: Mapping[str, Mapping[str, Any]]) -> str:
    plan, rows = planned.get(task) or {}, (planned.get(task) or {}).get("rows")
    examples = last[f"examples/{task}"]
    cells = [
        (_percent(last.get(f"share/{task}")), _percent(last.get(f"target_share/{task}"))),
        (f"{examples:,.0f}", _count(plan.get("examples"))),
        (_count(last.get(f"tokens/{task}")), _count(plan.get("planned_tokens"))),
        (f"{examples / rows:.2f}" if rows else "", f"{plan['epochs']:.2f}" if "epochs" in plan else ""),
        (_count(rows), ""),
    ]
    values = "".join(f"<td class=n>{value}<small>{below}</small></td>" for value, below in cells)
    return f"<tr><th>{disc(series)}{escape(task)}</th>{values}</tr>"


_UNITS = {
    "tokens": ("token", "tokens"),
    "supervised_tokens": ("token with loss", "tokens with loss"),
}
"""One and many of what a mixture counts."""


def _note(run: RunRecord, tasks: Sequence[str]) -> str:
    """How far the run was from its target at most, and what the plan is a plan of."""
    said = []
    if (worst := _largest_deviation(run, tasks)) is not None:
        off, task, step = worst
        one, many = _UNITS.get(run.unit, ("example", "examples"))
        far = f"more than {off:,.1f} {many}" if off >= 1 else f"as much as one {one}"
        said.append(f"What was drawn was never {far} away from what the weights ask for ({task}, step {step:,}).")
    if run.steps and run.step < run.steps:
        said.append(f"The plan is of all {run.steps:,} steps, of which {run.step:,} are done.")
    mixture = run.recipe.get("mixture") or {}
    method = (mixture.get("adaptive") or {}).get("method", "off")
    if method != "off" and run.mixture:
        said.append(f"Planned with the weights of the start, which {method} then changed.")
    if not run.mixture:
        said.append("The run folder holds no mixture.json, so the plan is not known.")
    return " ".join(said)


def _largest_deviation(run: RunRecord, tasks: Sequence[str]) -> tuple[float, str, int] | None:
    """(in the mixture's unit, task, step) of the largest distance between what was drawn and what was asked for."""
    counted = {"tokens": "tokens", "supervised_tokens": "supervised"}.get(run.unit, "examples")
    worst = None
    for row in run.metrics:
        drawn = sum(row.get(f"{counted}/{task}") or 0 for task in tasks)
        for task in tasks:
            share, target = row.get(f"share/{task}"), row.get(f"target_share/{task}")
            if share is not None and target is not None and (worst is None or abs(share - target) * drawn > worst[0]):
                worst = (abs(share - target) * drawn, task, int(row.get("step", 0)))
    return worst


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _count(value: float | None) -> str:
    return "" if value is None else compact(value)
