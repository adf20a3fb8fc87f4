"""What `lmrecipes latency` measured: a table for terminals, the same as Markdown, and the budgets' conditions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrecipes.tracking.results import markdown_row, number, words

Content = Mapping[str, Any]
"""The content of `latency.json`."""


def cells_of(content: Content) -> tuple[list[str], list[list[str]]]:
    """Heads, and a row for each precision."""
    tasks = next(iter(content["precisions"].values()))["tasks"]
    heads = ["precision", "p50, ms", "p95", "p99", "requests/s", "MB"]
    heads += [f"{task}, {words(found['metric'])}" for task, found in tasks.items()]
    heads += [f"budget {name}" for name in content["budgets"]]
    return heads, [_row(precision, found, content) for precision, found in content["precisions"].items()]


def _row(precision: str, found: Content, content: Content) -> list[str]:
    closed, most = found["closed"], found["most"]
    row = [precision, *(milliseconds(closed[share]) for share in ("p50", "p95", "p99"))]
    row += [f"{most['rate']:.0f}" if most else "none", f"{found['megabytes']:.0f}"]
    row += [number(task["value"]) for task in found["tasks"].values()]
    verdicts = (verdict["precisions"][precision]["met"] for verdict in content["budgets"].values())
    return row + ["kept" if met else "not kept" for met in verdicts]


def markdown_latency(content: Content) -> str:
    """The table for a README, and a line that says how it was measured."""
    heads, rows = cells_of(content)
    lines = map(markdown_row, (heads, ["-", *["-:"] * (len(heads) - 1)], *rows))
    budgets = "".join(f" Budget `{name}`: {in_words(of['budget'])}." for name, of in content["budgets"].items())
    return "\n".join(lines) + f"\n\n{tested(content)}{budgets}\n"


def tested(content: Content) -> str:
    """How it was measured, in words."""
    many = f"{content['threads']} threads" if content["threads"] > 1 else "one thread"
    return (
        f"{content['run']}, {content['measured']}: rows of the test split, one in a request, over loopback for "
        f"{content['seconds']:g} s each; service and load generator on the same {content['cores']} cores "
        f"({content['cpu']}), {many} of the model. p50 to p99: one request after the other. Requests/s: the most, "
        f"arriving at random, of which 99 of 100 take at most {content['limit_ms']:g} ms."
    )


def in_words(budget: Content) -> str:
    """What a budget asks."""
    return (
        f"in {budget['precision']}, p99 at most {budget['p99_ms']:g} ms one request after the other, and at most "
        f"{budget['loaded_p99_ms']:g} ms at {budget['requests_per_second']:g} requests/s that arrive at random; no "
        f"metric worse than in fp32 by more than {budget['margin']:g}, at {budget['confidence']:.0%} confidence"
    )


def print_latency(content: Content, written: Path) -> None:
    """The table, and the conditions of each budget in its own precision."""
    console = Console(highlight=False)
    heads, rows = cells_of(content)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="left" if head == "precision" else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    for name, verdict in content["budgets"].items():
        console.print(Text(f"budget {name}: {in_words(verdict['budget'])}."), soft_wrap=True)
        for check in verdict["precisions"][verdict["budget"]["precision"]]["checks"]:
            console.print(Text.assemble(f"  {condition(check)}  ", _mark(check["met"], "kept")), soft_wrap=True)
        console.print(Text.assemble(f"budget {name}: ", _mark(verdict["met"], "kept")))
    console.print(f"written to {written}", markup=False, soft_wrap=True)


def condition(check: Content) -> str:
    """A condition with what was found: `p99 at 80 requests/s: 12.3 of 50 ms`."""
    found, limit = check["found"], check["limit"]
    if check["unit"] == "ms":
        said = f"{check['what']}: {milliseconds(found)} of {limit:g} ms"
    else:
        said = f"{check['what']} {limit:g} ({words(check['unit'])}): the bound is {found:+.4f}"
    return said + (f" ({check['note']})" if check["note"] else "")


def milliseconds(value: float | None) -> str:
    """Three digits; a dash where nothing was answered."""
    if value is None or value != value:
        return "–"  # noqa: RUF001 - a dash, as it is set in tables
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _mark(met: bool, word: str) -> tuple[str, str]:
    return (word, "green") if met else (f"not {word}", "bold red")
