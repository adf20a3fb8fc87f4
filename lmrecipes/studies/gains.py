"""What each task gains or loses among the others: the numbers of `alone.json`, and how people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrecipes.tracking.results import duration, markdown_row, number, words

HELPS, HURTS, OPEN = "gains", "loses", "undecided"
"""What the others do for a task: its interval is above 0, below, or holds it."""
METHOD = (
    "Gain: joint less alone, with its sign such that positive is better; interval: 95%, paired bootstrap over the test "
    "rows or their groups, of one seed each: what another seed would change is not in it"
)


HEADS = ("task", "metric", "joint", "alone", "gain", "95% interval", "")


@dataclass(frozen=True)
class Comparison:
    """One task, in the run with the others (joint) and alone. gain: how much better its headline metric is in the run;
    interval: of the gain, None where it is not known. seconds: of training. failed: why there is nothing to compare."""

    metric: str
    rows: int
    joint: float | None
    alone: float | None
    gain: float | None
    interval: tuple[float, float] | None
    examples_joint: int
    examples_alone: int
    steps: int
    seconds: float
    failed: str | None = None

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.interval is None:
            return ""
        return HELPS if self.interval[0] > 0 else HURTS if self.interval[1] < 0 else OPEN


def print_alone(content: Mapping[str, Any], written: Path) -> None:
    """The comparison for people."""
    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in HEADS:
        table.add_column(head, justify="left" if head in ("task", "metric", "") else "right", no_wrap=head != "task")
    for task, one in content["tasks"].items():
        colour = {HELPS: "green", HURTS: "red"}.get(one["verdict"], "dim")
        *cells, said = _cells(one)
        table.add_row(Text(task), *cells, Text(said, style="red" if one["failed"] else colour))
    console.print("each task among the others (joint) and alone, test split")
    console.print(table)
    seconds = content["seconds"]
    times = f"Trained for {duration(seconds['joint'])} jointly, {duration(seconds['alone'])} alone"
    console.print(
        Text(f"{times}. {content['method'][:1].upper()}{content['method'][1:]}."), style="dim", soft_wrap=True
    )
    for task, one in content["tasks"].items():
        if one["failed"]:
            console.print(Text(f"{task} alone failed: {one['failed']}"), style="red", soft_wrap=True)
    Console(soft_wrap=True).print(f"written to {written}", markup=False, highlight=False)


def markdown_alone(content: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table, and what it means. content: that of `alone.json`."""
    lines = [
        markdown_row([*HEADS]),
        "|" + "-|" * 2 + "-:|" * 4 + "-|",
        *(markdown_row([f"`{task}`", *_cells(one)]) for task, one in content["tasks"].items()),
    ]
    seconds = content["seconds"]
    times = f"Trained for {duration(seconds['joint'])} jointly, {duration(seconds['alone'])} alone, each task on as "
    return "\n".join(lines) + f"\n\n{times}many examples as it saw among the others. {content['method']}.\n"


def _cells(one: Mapping[str, Any]) -> list[str]:
    """A task's row below `HEADS`, without its name."""
    numbers = [number(one["joint"]), number(one["alone"]), signed(one["gain"]), interval_words(one["interval"])]
    return [words(one["metric"]), *numbers, "failed" if one["failed"] else one["verdict"]]


def signed(value: float | None) -> str:
    """`+0.013`; a dash where it is not known."""
    return number(None) if value is None else f"{'+' if value >= 0 else '-'}{number(abs(value))}"


def interval_words(interval: Sequence[float] | None) -> str:
    """`-0.004 to +0.030`."""
    return number(None) if interval is None else " to ".join(map(signed, interval))
