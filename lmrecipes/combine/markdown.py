"""Members, combinations and students beside each other, for a README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmrecipes.combine.show import notes_of
from lmrecipes.tracking.results import hardware, markdown_row, number, words


def markdown_combination(made: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Two tables, of each task's metric and of its calibrated loss: a row for each model, with what it gains over the
    best member and the interval of that; then what they mean. made: the content of combination.json; environment: that
    of environment.json."""
    tasks = made["tasks"]
    metrics = {task: words(facts["metric"]) for task, facts in tasks.items()}
    losses = dict.fromkeys(tasks, "loss")
    best = ", ".join(f"{facts['best']['validation']} (`{task}`)" for task, facts in tasks.items())
    notes = [f"Best member: {best}", *notes_of(made), f"Measured on {hardware(environment)}"]
    said = " ".join(f"{note.rstrip('.')}." for note in notes)
    return "\n\n".join([_table(made, metrics, _metric), _table(made, losses, _loss), said])


def _table(made: Mapping[str, Any], heads: Mapping[str, str], cell: Any) -> str:
    tasks = made["tasks"]
    first = next(iter(tasks.values()))["models"]
    headers = ["model", *(f"`{task}` {head}" for task, head in heads.items()), "ms, 1 row", "MB"]
    lines = [markdown_row(headers), "|-|" + "-:|" * (len(headers) - 1)]
    for at, model in enumerate(first):
        found = [facts["models"][at] for facts in tasks.values()]
        milliseconds = sum(one["p50_ms"] for one in found) / len(found)
        name = f"**{model['name']}**" if model["role"] == made["method"] else model["name"]
        lines.append(markdown_row([name, *map(cell, found), f"{milliseconds:.1f}", f"{model['bytes'] / 1e6:.0f}"]))
    return "\n".join(lines)


def _metric(model: Mapping[str, Any]) -> str:
    return number(model["value"]) + _gain(model, "value", "interval")


def _loss(model: Mapping[str, Any]) -> str:
    return number(model["loss"]["after"]) + _gain(model, "loss", "loss_interval")


def _gain(model: Mapping[str, Any], what: str, interval: str) -> str:
    """What a model that is no member has more than the best of them."""
    if model["role"] == "member":
        return ""
    against = model["against"]["validation"]
    low, high = against[interval]
    return f" ({against[what]:+.3f} [{low:+.3f}, {high:+.3f}])"
