"""The sections of the report as HTML, in the order of the page. Every name and value from a file is escaped."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lmrecipes.tracking.charts import Chart, Group
from lmrecipes.tracking.html import compact, disc, section, table
from lmrecipes.tracking.results import (
    Baseline,
    Result,
    baselines_of,
    duration,
    hardware,
    lower_is_better,
    number,
    results_of,
    words,
)
from lmrecipes.tracking.run_record import RunRecord

SHAPES = ("hollow", "hollow square", "hollow diamond")
"""Marks of the baselines, in their order; the run's own is a filled disc."""


def header(runs: Sequence[RunRecord], title: str) -> str:
    """What this page is about, and for one run its size in a few numbers."""
    if len(runs) > 1:
        rows = "".join(_run_row(at, run) for at, run in enumerate(runs))
        heads = "<th>Run</th><th>Recipe</th><th>State</th><th class=n>Training</th><th class=n>Tokens/s</th><th>On</th>"
        return f'<header><p class="kicker">Run report</p><h1>{escape(title)}</h1></header>\n{table(heads, rows)}'
    (run,) = runs
    description = run.recipe.get("description") or ""
    tokens = sum(values[-1] for task in run.tasks if (values := run.values(f"tokens/{task}")))
    examples = sum(values[-1] for task in run.tasks if (values := run.values(f"examples/{task}")))
    speed = run.values("tokens_per_second")
    tiles = [
        (str(len(run.combined["of"])), f"members, method {run.combined['method']}")
        if run.combined and not run.metrics
        else (f"{run.step:,}" + (f" of {run.steps:,}" if run.steps else ""), "optimizer steps"),
        (compact(examples) if examples else None, "examples seen"),
        (compact(tokens) if tokens else None, "tokens seen"),
        (_training_time(run), "of training"),
        (compact(statistics.median(speed)) if speed else None, "tokens per second, median"),
        (number(run.values("loss")[-1]) if run.values("loss") else None, "loss at the last step"),
    ]
    boxes = "".join(f'<div class="card tile"><b>{escape(b)}</b><span>{escape(s)}</span></div>' for b, s in tiles if b)
    facts = [run.recipe.get("name"), _model(run.recipe.get("model") or {}), hardware(run.environment)]
    return (
        f'<header><p class="kicker">Run report</p><h1>{escape(title)}</h1>'
        + (f'<p class="lead">{escape(description)}</p>' if description else "")
        + f'<p class="muted">{_state(run)} &ensp;{escape(", ".join(str(f) for f in facts if f))}</p></header>\n'
        f'<div class="tiles">{boxes}</div>'
    )


def results(runs: Sequence[RunRecord], tasks: Sequence[str]) -> str:
    """Result per task beside the baselines; all metrics folded below it."""
    evaluated = [run for run in runs if run.evaluation is not None]
    if not evaluated:
        return section(
            "Results", '<p class="note">There is no final evaluation yet; the curves below are what is known.</p>'
        )
    splits = sorted({str((run.evaluation or {}).get("split", "test")) for run in evaluated})
    baselines = next((found for run in evaluated if (found := baselines_of(run.evaluation or {}))), [])
    note = f"On the {' and '.join(splits)} split. "
    if baselines:
        said = "; ".join(f"{b.title}: {b.origin}" for b in baselines)
        note += f"{said[:1].upper()}{said[1:]}. Bold: best of the row. "
    lacking = [run.label for run in runs if run.evaluation is None]
    if lacking:
        note += f"No final evaluation yet: {', '.join(lacking)}."
    short = _results_table(runs, tasks, baselines, headline_only=True)
    full = _results_table(runs, tasks, baselines, headline_only=False)
    more = f"<details><summary>All metrics</summary>{full}</details>"
    return section("Results", f'<p class="note">{escape(note.strip())}</p>{short}{more}')


def differences(runs: Sequence[RunRecord]) -> str:
    """What the recipes and places of several runs do not have in common."""
    if len(runs) < 2:
        return ""
    keys = ("device", "world_size", "zero", "precision", "commit")
    flat = [dict(_flat(run.recipe)) | {f"environment.{k}": run.environment.get(k) for k in keys} for run in runs]
    rows = []
    for key in dict.fromkeys(key for values in flat for key in values):
        values = [one.get(key) for one in flat]
        if any(value != values[0] for value in values):
            cells = "".join(f"<td>{'' if value is None else escape(str(value))}</td>" for value in values)
            rows.append(f"<tr><th>{escape(key)}</th>{cells}</tr>")
    if not rows:
        return section("What differs", '<p class="note">Nothing: same recipe, same kind of machine.</p>')
    heads = "".join(f"<th>{disc(at)}{escape(run.label)}</th>" for at, run in enumerate(runs))
    return section("What differs", table(f"<th></th>{heads}", "".join(rows)))


def curves(groups: Sequence[Group], names: Sequence[str]) -> str:
    """The charts, under a legend that stays in sight and hides and shows a task (or a run) everywhere."""
    if not groups:
        return section("Curves", '<p class="note">No step is on record yet.</p>')
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-series="{at}">{disc(at)}{escape(name)}</button>'
        for at, name in enumerate(names)
    )
    parts = [f'<div class="legend" role="group" aria-label="Show or hide">{buttons}</div>']
    at = 0
    for group in groups:
        note = f'<p class="note">{escape(group.note)}</p>' if group.note else ""
        content = f"{note}{_figures(group.charts, at)}" if group.charts else note
        at += len(group.charts)
        if group.more:
            content += f"<details><summary>{escape(group.more_title)}</summary>{_figures(group.more, at)}</details>"
            at += len(group.more)
        parts.append(section(group.title, content))
    return "\n".join(parts)


def time_spent(runs: Sequence[RunRecord]) -> str:
    """How much of the step time was spent waiting for data."""
    parts = []
    for at, run in enumerate(runs):
        steps, waits = run.values("time/step"), run.values("time/data")
        if not steps or not sum(steps):
            continue
        share = sum(waits) / sum(steps)
        name = f"<h3>{disc(at)}{escape(run.label)}</h3>" if len(runs) > 1 else ""
        slowest = statistics.quantiles(steps, n=20)[-1] if len(steps) > 1 else steps[0]
        total = _training_time(run)
        text = (
            f"A step took {_seconds(statistics.median(steps))} (median), the slowest twentieth more than "
            f"{_seconds(slowest)}." + (f" {total} of training." if total else "")
        )
        shares = [("accent", 1 - share, "computing"), ("wait", share, "waiting for data")]
        keys = " &ensp;".join(
            f'<i class="key square" style="--c:var(--{colour})"></i>{part:.1%} {what}' for colour, part, what in shares
        )
        bars = "".join(
            f'<i style="width:{100 * part:.2f}%;background:var(--{colour})"></i>' for colour, part, _ in shares
        )
        parts.append(
            f'<div class="card run">{name}<p>{keys}</p><div class="bar" aria-hidden="true">{bars}</div>'
            f'<p class="note">{escape(text)}</p></div>'
        )
    return section("Where the time went", "".join(parts)) if parts else ""


def environments(runs: Sequence[RunRecord]) -> str:
    """Where it ran, and the command that started it."""
    parts = []
    for at, run in enumerate(runs):
        name = f"<h3>{disc(at)}{escape(run.label)}</h3>" if len(runs) > 1 else ""
        if not run.environment:
            parts.append(f'<div class="card run">{name}<p class="note">environment.json is not written yet.</p></div>')
            continue
        facts = {key: value for key, value in run.environment.items() if key not in ("command", "versions", "dtypes")}
        facts |= {str(key): value for key, value in (run.environment.get("versions") or {}).items()}
        rows = "".join(
            f"<div><dt>{escape(words(str(key)))}</dt><dd>{escape(_plain(value))}</dd></div>"
            for key, value in facts.items()
            if value not in (None, "")
        )
        parts.append(f'<div class="card run">{name}{_command(run.environment.get("command"))}<dl>{rows}</dl></div>')
    return section("Environment", "".join(parts))


def recipes(runs: Sequence[RunRecord]) -> str:
    """The resolved recipes, folded."""
    parts = [
        f"<details><summary>{escape(run.name) if len(runs) > 1 else 'The resolved recipe'}</summary>"
        f'<div class="card"><pre>{escape(run.recipe_text)}</pre></div></details>'
        for run in runs
    ]
    return section("Recipe" if len(runs) == 1 else "Recipes", "".join(parts))


def _results_table(
    runs: Sequence[RunRecord], tasks: Sequence[str], baselines: Sequence[Baseline], headline_only: bool
) -> str:
    columns = [_by_metric(run, headline_only) for run in runs]
    single = len(runs) == 1
    tracked = headline_only and any(_on_scale((r.ours, *r.baselines)) for column in columns for r in column.values())
    heads = ["<th>Task</th>", "<th>Metric</th>"]
    heads += [
        f"<th class=n>{'<i class=key></i>This run' if single else disc(at) + escape(run.label)}</th>"
        for at, run in enumerate(runs)
    ]
    heads += [
        f'<th class=n><i class="key {_shape(at)}"></i>{escape(b.title)}<small>{escape(b.origin)}</small></th>'
        for at, b in enumerate(baselines)
    ]
    if tracked:
        heads.append('<th class="where">0 to 1</th>')
    heads.append("<th class=n>Rows</th>")
    rows = []
    for at, task in enumerate(tasks):
        metrics = list(dict.fromkeys(metric for column in columns for name, metric in column if name == task))
        for metric in metrics:
            found = [column.get((task, metric)) for column in columns]
            # Baselines may be stored with one run only, and each run may lack some.
            theirs = next((r.baselines for r in found if r is not None and len(r.baselines) == len(baselines)), ())
            theirs = theirs or (None,) * len(baselines)
            ours = [None if result is None else result.ours for result in found]
            first = next(result for result in found if result is not None)
            rows.append(_result_row(at, first, ours, theirs, single, tracked))
    return table("".join(heads), "".join(rows))


def _result_row(
    at: int, result: Result, ours: Sequence[float | None], theirs: Sequence[float | None], single: bool, tracked: bool
) -> str:
    values = [*ours, *theirs]
    known = [value for value in values if value is not None]
    lower = lower_is_better(result.metric)
    best = (min(known) if lower else max(known)) if len(known) > 1 else None
    cells = []
    for place, value in enumerate(values):
        gain = _gain(value, theirs, lower) if single and place == 0 else ""
        mark = " best" if value is not None and value == best else ""
        cells.append(f'<td class="n{mark}">{number(value)}{gain}</td>')
    if tracked:
        cells.append(f'<td class="where">{_track(at, ours, theirs, single)}</td>')
    rows = "" if result.rows is None else f"{result.rows:,}"
    key = disc(at) if single else ""
    metric = f"{escape(words(result.metric))}<small>{'lower is better' if lower else ''}</small>"
    return (
        f"<tr><th>{key}{escape(result.task)}<small>{escape(words(result.kind))}</small></th><td>{metric}</td>"
        f"{''.join(cells)}<td class=n>{rows}</td></tr>"
    )


def _gain(ours: float | None, theirs: Sequence[float | None], lower: bool) -> str:
    known = [value for value in theirs if value is not None]
    if ours is None or not known:
        return ""
    gain = min(known) - ours if lower else ours - max(known)
    arrow, look = ("▲", "up") if gain > 0 else ("▼", "down")
    if f"{abs(gain):.3f}" == "0.000":
        arrow, look = "=", ""
    return f'<small class="{look}" title="against the best baseline">{arrow} {number(abs(gain))}</small>'


def _track(at: int, ours: Sequence[float | None], theirs: Sequence[float | None], single: bool) -> str:
    """The values of a row as marks on a line from 0 to 1; empty where a value is outside."""
    if not _on_scale((*ours, *theirs)):
        return ""
    marks = [(value, f"key {_shape(place)}", "") for place, value in enumerate(theirs)]
    marks += [(value, "key", f"--c:var(--s{(at if single else place) % 6});") for place, value in enumerate(ours)]
    return (
        '<span class="track">'
        + "".join(f'<i class="{c}" style="{s}left:{100 * v:.1f}%"></i>' for v, c, s in marks if v is not None)
        + "</span>"
    )


def _shape(baseline: int) -> str:
    return SHAPES[baseline % len(SHAPES)]


def _on_scale(values: Iterable[float | None]) -> bool:
    """Whether all that were measured, and one at least, lie between 0 and 1."""
    known = [value for value in values if value is not None]
    return bool(known) and min(known) >= 0 and max(known) <= 1


def _by_metric(run: RunRecord, headline_only: bool) -> dict[tuple[str, str], Result]:
    return {(result.task, result.metric): result for result in results_of(run.evaluation or {}, headline_only)}


def _run_row(at: int, run: RunRecord) -> str:
    speed = run.values("tokens_per_second")
    return (
        f"<tr><th>{disc(at)}{escape(run.name)}</th><td>{escape(str(run.recipe.get('name', '')))}</td>"
        f"<td>{_state(run)}</td><td class=n>{escape(_training_time(run) or '')}</td>"
        f"<td class=n>{compact(statistics.median(speed)) if speed else ''}</td>"
        f'<td class="long">{escape(hardware(run.environment))}</td></tr>'
    )


def _model(model: Mapping[str, Any]) -> str:
    """What was trained: `smollm2, LoRA of rank 16`."""
    config, rank = model.get("config") or {}, (model.get("lora") or {}).get("rank")
    if hidden := (model.get("mlp") or {}).get("hidden"):
        return f"multi-layer perceptron {' - '.join(map(str, (model['mlp']['inputs'], *hidden)))}"
    name = str(config.get("model_type") or model.get("pretrained") or "")
    random = bool(config) or model.get("initialization") == "scratch"
    return name + (" from random weights" if random else f", LoRA of rank {rank}" if rank else "")


def _state(run: RunRecord) -> str:
    if run.evaluation is not None:
        return '<span class="status">finished</span>'
    of = f" of {run.steps:,}" if run.steps else ""
    last = f", last line {run.written}" if run.written else ""
    return f'<span class="status open">not finished</span> <small>step {run.step:,}{of}{escape(last)}</small>'


def _training_time(run: RunRecord) -> str | None:
    seconds = (run.evaluation or {}).get("seconds_of_training")
    return None if seconds is None else duration(seconds)


def _figures(charts: Sequence[Chart], first: int) -> str:
    return (
        '<div class="charts">'
        + "".join(
            f'<figure class="card"><h3>{escape(chart.title)} <small>{escape(chart.note)}</small></h3>'
            f'<div class="plot" data-chart="{at}"></div></figure>'
            for at, chart in enumerate(charts, start=first)
        )
        + "</div>"
    )


def _command(command: Any) -> str:
    if not command:
        return ""
    text = command if isinstance(command, str) else shlex.join(map(str, command))
    return f'<div class="command"><pre>{escape(text)}</pre><button type="button" class="copy">Copy</button></div>'


def _seconds(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
