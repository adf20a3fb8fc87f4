"""An audit for people: a line for each layer, what stands out, and the block to paste."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lmrecipes.precision.audit.numbers import LayerNumbers
from lmrecipes.run_folder import RunFolder
from lmrecipes.tracking.progress import terminal

COLOURS = {"fp32": "red", "bf16": "yellow", "fp16": "yellow"}
MOST = 3
"""Layers that are named for one kind of finding."""
NAME = 27
"""Letters of a layer's name in the table."""


@contextmanager
def audit_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar over the steps of an audit; yields `moved(done, total)`."""
    console = terminal()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("auditing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_audit(
    answer: Mapping[str, Any], layers: Sequence[LayerNumbers], written: Path | None, run: RunFolder | None
) -> None:
    """The answer of `lmrecipes audit`."""
    console = Console(highlight=False)

    def say(line: str, style: str = "") -> None:
        console.print(line, markup=False, soft_wrap=True, style=style)

    of = f"the run {answer['run']}" if answer["run"] else answer["recipe"]
    say(f"{of}: {answer['steps']} step(s) from step {answer['from_step']} in fp32; weights: {answer['weights']}; "
        f"optimizer: {answer['optimizer']}")  # fmt: skip
    say(f"Statistics of {answer['rows']} rows of each tensor in a step; largest values are of all numbers.", "dim")
    budget = answer["budget"]
    say(
        f"Budget {budget['name']}: weights and activations {budget['sqnr']:g} dB, gradients {budget['gradient']:g} dB, "
        f"overflow {budget['overflow']:.2%}, underflow {budget['underflow']:.2%}, scales: {budget['scaling']}", "dim",
    )  # fmt: skip
    first = answer["formats"][0]
    say(f"weight, input, gradient: dB of the median channel in {first}; update: over the weight; lost: of updates, by "
        "bf16 weights rounded to nearest; both at the peak learning rate.", "dim")  # fmt: skip
    console.print(_table(answer, layers))
    for line in finding_lines(answer["findings"]):
        say(line, "yellow")
    say("\n" + answer["recommendation"]["yaml"].rstrip())
    counts = Counter(layer["format"] for layer in answer["layers"] if layer["kind"] == "product")
    say("\nproducts: " + ", ".join(f"{count} in {name}" for name, count in counts.most_common()), "bold")
    if written is not None:
        say(f"written to {written}")
    if run is not None:
        say(f"stored in {run.audit}; report: {run.report.resolve()}")


def finding_lines(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each kind: how many layers, and the worst of them."""
    lines = []
    for kind in dict.fromkeys(finding["kind"] for finding in findings):
        found = [finding for finding in findings if finding["kind"] == kind]
        shown = "; ".join(f"{f['layer']}: {f['what']}" for f in found[:MOST])
        more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
        lines.append(f"{kind} ({len({f['layer'] for f in found})} of the layers): {shown}{more}")
    return lines


def _table(answer: Mapping[str, Any], layers: Sequence[LayerNumbers]) -> Table:
    """One line a product, and for what else stands out: of the most wanted format the ratios, then why not, and what it
    gets."""
    first = answer["formats"][0]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer", no_wrap=True)
    for column in ("weight", "input", "gradient", "update", "lost"):
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    table.add_column("format", no_wrap=True, min_width=8)
    whys = [f"{name}: {why[0]}" for of in answer["unsafe"].values() for name, why in of.items() if why]
    if whys:
        table.add_column("why not lower", overflow="fold")
    found = {finding["layer"] for finding in answer["findings"]}
    for layer, judged in zip(layers, answer["layers"], strict=True):
        if layer.kind == "other" and layer.name not in found:
            continue
        format, update = judged["format"], layer.update
        lower = [f"{name}: {why[0]}" for name, why in answer["unsafe"][layer.name].items() if why]
        table.add_row(
            _short(layer.name),
            *(_ratio(layer, tensor, first) for tensor in ("weight", "input", "gradient")),
            f"{update.ratio:.1e}" if update is not None else "-",
            f"{update.lost['bf16']:.0%}" if update is not None else "-",
            f"[{COLOURS.get(format, 'green')}]{format}[/]",
            *(["; ".join(lower)] if whys else []),
        )
    return table


def _short(name: str) -> str:
    """The end of a long name: `encoder.layer.3.attention.self.query` -> `…3.attention.self.query`."""
    parts = name.split(".")
    while len(".".join(parts)) > NAME and len(parts) > 1:
        parts = parts[1:]
    end = ".".join(parts)
    return end if end == name else f"…{end}"


def _ratio(layer: LayerNumbers, tensor: str, format: str) -> str:
    if layer.kind == "other" or tensor not in layer.tensors:
        return "-"
    name = {"fp8": "fp8_e5m2" if tensor == "gradient" else "fp8_e4m3"}.get(format, format)
    return f"{layer.tensors[tensor].formats[name].sqnr:.1f}"
