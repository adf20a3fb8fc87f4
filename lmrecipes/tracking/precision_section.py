"""The section of the report about number formats: how a run's numbers were kept, which layers changed their format, and
what an audit found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lmrecipes.tracking.html import disc, section, table
from lmrecipes.tracking.run_record import RunRecord

MOST = 200
"""Changes of formats that are listed."""
TENSORS = {
    "weight": "weights", "input": "inputs", "gradient": "gradients", "output": "outputs",
    "weight_gradient": "weights' gradients",
}  # fmt: skip
FORMATS = ("fp8_e4m3", "fp8_e5m2", "bf16", "fp16")
MEASURES = {
    "sqnr": ("Signal over rounding noise, dB", "of the median channel, as training scales it", 5.0, 32.0),
    "underflow": ("Lost as zeros, % of values", "as training scales it", 0.0, 5.0),
    "plain": ("Lost as zeros or overflown without a scale, % of values", "what a plain cast would do", 0.0, 50.0),
}
"""Measure -> what is drawn, of what, and the ends of the scale of colours."""


def precision(runs: Sequence[RunRecord]) -> str:
    """The whole section; empty where nothing is on record."""
    parts = []
    for at, run in enumerate(runs):
        found = [_dtypes(run), _changes(run), _audit(run)]
        if any(found):
            name = f"<h3>{disc(at)}{escape(run.label)}</h3>" if len(runs) > 1 else ""
            parts.append(f'<div class="run">{name}{"".join(found)}</div>')
    if len(parts) > 1:
        return section("Precision", f"<details><summary>Each run</summary>{''.join(parts)}</details>")
    return section("Precision", parts[0]) if parts else ""


def heat_maps(audit: Mapping[str, Any]) -> dict[str, Any]:
    """Layers x (tensor, format) of every measure, for the page's script: rows from the top, None where not measured."""
    layers = audit["layers"]
    columns = [
        (tensor, name) for tensor in TENSORS for name in FORMATS if any(tensor in layer["tensors"] for layer in layers)
    ]
    return {
        "rows": [layer["name"] for layer in layers],
        "columns": [f"{TENSORS[tensor]}<br>{name}" for tensor, name in columns],
        "groups": [TENSORS[tensor] for tensor in dict.fromkeys(tensor for tensor, _ in columns)],
        "formats": [name.removeprefix("fp8_") for _, name in columns],
        "measures": [
            {
                "name": name,
                "low": low,
                "high": high,
                "good_high": name == "sqnr",
                "values": [[_value(layer, tensor, kept, name) for tensor, kept in columns] for layer in layers],
            }
            for name, (_, _, low, high) in MEASURES.items()
        ],
    }


def _value(layer: Mapping[str, Any], tensor: str, name: str, measure: str) -> float | None:
    numbers = layer["tensors"].get(tensor, {}).get("formats", {}).get(name)
    if numbers is None:
        return None
    if measure == "sqnr":
        return round(numbers["sqnr"], 1)
    losses = numbers["losses" if measure == "underflow" else "plain"]
    share = losses["underflow"] + (losses["overflow"] if measure == "plain" else 0.0)
    return float(f"{100 * share:.4g}")


def _dtypes(run: RunRecord) -> str:
    """How the run's numbers were found to be kept, against what was declared."""
    rows = run.environment.get("dtypes") or []
    if not rows:
        return ""
    cells = "".join(
        f"<tr><th>{escape(str(row['what']))}</th><td>{escape(str(row['declared']))}</td>"
        f"<td>{escape(str(row['found']))}</td><td class=n>{_bytes(row.get('bytes'))}</td>"
        f'<td class="long">{escape(str(row.get("where", "")))}</td></tr>'
        for row in rows
    )
    heads = "<th>What</th><th>Declared</th><th>Found</th><th class=n>Bytes</th><th>Where</th>"
    return f'<p class="note">Read from the real objects after the first step.</p>{table(heads, cells)}'


def _changes(run: RunRecord) -> str:
    """Layers that changed their format, and steps that were skipped."""
    said = ""
    if skipped := max(run.values("skipped_steps"), default=0):
        steps = "step was" if skipped == 1 else "steps were"
        said = f'<p class="note">{skipped:,.0f} {steps} skipped, because gradients were not finite.</p>'
    if not run.formats:
        return said
    cells = "".join(
        f"<tr><td class=n>{row['step']:,}</td><th>{escape(str(row['layer']))}</th><td>{escape(str(row['from']))}</td>"
        f'<td>{escape(str(row["to"]))}</td><td class="long">{escape(str(row["reason"]))}</td></tr>'
        for row in run.formats[:MOST]
    )
    heads = "<th class=n>After step</th><th>Layer</th><th>From</th><th>To</th><th>Why</th>"
    more = f'<p class="note">The first {MOST} of {len(run.formats):,}.</p>' if len(run.formats) > MOST else ""
    title = f"Layers that changed their format ({len(run.formats):,})"
    return f"{said}<details><summary>{title}</summary>{more}{table(heads, cells)}</details>"


def _audit(run: RunRecord) -> str:
    """The heat map of an audit, what stands out, and the recommended block."""
    audit = run.audit
    if audit is None:
        return ""
    maps = json.dumps(heat_maps(audit)).replace("<", "\\u003c")
    buttons = "".join(
        f'<button type="button" aria-pressed="{str(at == 0).lower()}" data-measure="{at}" title="{escape(of)}">'
        f"{escape(title)}</button>"
        for at, (title, of, _, _) in enumerate(MEASURES.values())
    )
    note = (
        f"{audit['steps']} step(s) from step {audit['from_step']:,} in fp32, weights: {audit['weights']}. A row is a "
        "layer, a column one of its tensors in a number format; operands in fp8 are scaled row by row, as in training. "
        "Darker is worse."
    )
    findings = "".join(
        f"<tr><th>{escape(row['layer'])}</th><td>{escape(row['kind'])}</td>"
        f'<td class="long">{escape(row["what"])}</td></tr>'
        for row in audit["findings"]
    )
    listed = ""
    if findings:
        title = f"What stands out ({len(audit['findings'])})"
        heads = "<th>Layer</th><th>What</th><th>Numbers</th>"
        listed = f"<details><summary>{title}</summary>{table(heads, findings)}</details>"
    height = 120 + 19 * len(audit["layers"])
    return (
        f'<h3 class="task">Audit <small>where precision hurts</small></h3><p class="note">{escape(note)}</p>'
        f'<div class="heat card"><div class="pick" role="group" aria-label="What is drawn">{buttons}</div>'
        f'<div class="heatmap" style="height:{height}px"></div>'
        f'<script type="application/json" class="heatdata">{maps}</script></div>{listed}'
        f'<h3 class="task">Recommended <small>the lowest safe format of every layer</small></h3>'
        f'<div class="card command run"><pre>{escape(audit["recommendation"]["yaml"])}</pre>'
        f'<button type="button" class="copy">Copy</button></div>'
    )


def _bytes(count: Any) -> str:
    if not count:
        return ""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
