"""What a study has found: the results of its cells, and what they say over seeds. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

CLASSES = ("weights", "masters", "gradients", "optimizer", "average", "activations")
"""Classes of the bytes that a cell holds, on the rank that holds most. masters: fp32 weights beside those that are
computed with. activations: what one micro-batch's forward pass keeps for its backward pass."""


@dataclass(frozen=True)
class CellResult:
    """A cell that has been run. failed: why it gave no result, else None.

    tasks: scores on the test split, as in evaluation.json. loss: mean of the last tenth of the steps.
    seconds_per_step: median without the first steps. seconds: the cell in all. bytes: by class, see `CLASSES`.
    """

    variant: str
    overrides: dict[str, str]
    row: str
    seed: int
    key: str
    failed: str | None = None
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    loss: float | None = None
    seconds_per_step: float | None = None
    seconds: float = 0.0
    bytes: dict[str, int] = field(default_factory=dict)
    parameters: int | None = None
    skipped_steps: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def headline(self, task: str) -> float | None:
        """The task's headline metric; None where it is not a number."""
        scores = self.tasks.get(task) or {}
        value = (scores.get("metrics") or {}).get(scores.get("headline", ""))
        return float(value) if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over so many seeds. deviation: None with one."""

    mean: float
    deviation: float | None
    count: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """Of the values that are there and finite; None where none is."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Row:
    """One variant with one set of overrides: its cells over seeds."""

    label: str
    cells: list[CellResult]

    @property
    def finished(self) -> list[CellResult]:
        """The cells with results."""
        return [cell for cell in self.cells if cell.failed is None]

    @property
    def failed(self) -> list[CellResult]:
        """The cells without."""
        return [cell for cell in self.cells if cell.failed is not None]

    def metric(self, task: str) -> Spread | None:
        """A task's headline metric."""
        return spread([cell.headline(task) for cell in self.finished])

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the cells."""
        known = [cell.seconds_per_step for cell in self.finished if cell.seconds_per_step is not None]
        return statistics.median(known) if known else None

    @property
    def bytes(self) -> dict[str, int]:
        """By class, the most over the cells."""
        found = {name: [cell.bytes[name] for cell in self.finished if name in cell.bytes] for name in CLASSES}
        return {name: max(values) for name, values in found.items() if values}

    @property
    def parameters(self) -> int | None:
        """Of the model."""
        return next((cell.parameters for cell in self.finished if cell.parameters), None)

    @property
    def skipped_steps(self) -> int:
        """Of all cells together."""
        return sum(cell.skipped_steps or 0 for cell in self.finished)

    @property
    def loss(self) -> Spread | None:
        """The training loss at the end."""
        return spread([cell.loss for cell in self.finished])


def rows_of(results: Sequence[CellResult]) -> list[Row]:
    """Results by row, in the order of their first cells."""
    by_row: dict[str, list[CellResult]] = {}
    for result in results:
        by_row.setdefault(result.row, []).append(result)
    return [Row(label, cells) for label, cells in by_row.items()]


def headlines(rows: Sequence[Row]) -> dict[str, str]:
    """Task -> its headline metric, of all tasks that any cell has scores of."""
    found: dict[str, str] = {}
    for row in rows:
        for cell in row.finished:
            found |= {task: str(scores.get("headline", "")) for task, scores in cell.tasks.items()}
    return found


def summary(results: Sequence[CellResult]) -> dict[str, Any]:
    """What results say, JSON-ready: rows over their seeds, then the cells."""
    rows = rows_of(results)
    tasks = headlines(rows)
    first = rows[0].seconds_per_step if rows else None
    return {
        "rows": [
            {
                "row": row.label,
                "seeds": len(row.finished),
                "failed": len(row.failed),
                "metrics": {task: {"metric": metric, **_as_dict(row.metric(task))} for task, metric in tasks.items()},
                "loss": _as_dict(row.loss),
                "seconds_per_step": row.seconds_per_step,
                "against_first": row.seconds_per_step / first if first and row.seconds_per_step else None,
                "bytes": row.bytes,
                "parameters": row.parameters,
                "skipped_steps": row.skipped_steps,
            }
            for row in rows
        ],
        "cells": [result.as_dict() for result in results],
    }


def _as_dict(found: Spread | None) -> dict[str, Any]:
    return {"mean": None, "deviation": None} if found is None else {"mean": found.mean, "deviation": found.deviation}
