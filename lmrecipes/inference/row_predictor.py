"""From rows as a person has them to a finished run's answers, in a chosen precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lmrecipes.combine.values import probabilities
from lmrecipes.models.heads import HeadSpec
from lmrecipes.problems import InputError, Problem, listing
from lmrecipes.recipe import Source
from lmrecipes.recipe_inputs import MEDIA, Modality
from lmrecipes.recipe_serving import SERVED, ServedPrecision
from lmrecipes.run_folder import RunFolder

Row = Mapping[str, Any]
"""A row's cells by column, as files and `datasets` give them."""
Wanted = Literal["own"] | ServedPrecision
"""own: the arithmetic that the run was trained in."""


@dataclass(frozen=True)
class Columns:
    """The columns that a task's inputs stand in, None where it has no such input."""

    text: str | None = None
    text_pair: str | None = None
    ids: str | None = None
    image: str | None = None
    audio: str | None = None

    @classmethod
    def of(cls, source: Source) -> Columns:
        """Those of a recipe's source."""
        return cls(source.text_column, source.text_pair, source.ids, source.image, source.audio)

    @property
    def named(self) -> dict[str, str]:
        """Column by role, of those that there are."""
        return {f.name: column for f in fields(self) if (column := getattr(self, f.name)) is not None}

    @property
    def media(self) -> tuple[Modality, ...]:
        """The modalities beside text, in order."""
        return tuple(modality for modality in MEDIA if getattr(self, modality) is not None)


class RowsRefused(InputError):
    """Rows that cannot be read. rows: why, by number among the rows that were given."""

    def __init__(self, rows: Mapping[int, str]) -> None:
        self.rows = dict(rows)
        fix = "repair the rows, or leave them out"
        super().__init__([Problem(f"row {number}", what, fix, "bad-row") for number, what in self.rows.items()])

    def __reduce__(self) -> tuple[Any, ...]:
        return RowsRefused, (self.rows,)


class RowPredictor(Protocol):
    """A finished run's tasks with labels, ready to answer. One thread at a time may call it.

    specs: the tasks' heads. bytes: of the weights held. kind: what computes, for people.
    """

    specs: dict[str, HeadSpec]
    bytes: int
    kind: str

    def columns(self, task: str) -> Columns:
        """What the task reads of a row."""
        ...

    def predict(self, rows: Sequence[Row], tasks: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Values of these tasks in the rows' order, as `Head.predictions` gives them: regression [n] in the target's
        units, else [n, outputs]. Raises RowsRefused, which names every row that cannot be read."""
        ...


def open_predictor(
    run: RunFolder | Path,
    precision: Wanted = "own",
    threads: int | None = None,
    batch: int | None = None,
    folder: Path | None = None,
) -> RowPredictor:
    """A run's predictor on this machine's GPU, else its CPU (int8: on the CPU).

    threads: of each call; None: as torch has it, all cores. torch keeps them for the whole process. batch: most rows
    computed at once; None: as many as the run's own evaluation. folder: where relative paths of images and clips start;
    None: no path is read, only what rows hold themselves. Raises InputError where the run has no model, no task
    with labels, or no such precision.
    """
    from lmrecipes.combine.combination import is_combination

    run = run if isinstance(run, RunFolder) else RunFolder(run)
    if precision not in ("own", *SERVED):
        more = ": 5 bits of exponent overflow without the loss scale of training" if precision == "fp16" else ""
        raise InputError(
            Problem("--precision", f"no {precision!r}{more}", f"use one of {listing(SERVED)}", "precision-unknown")
        )
    if is_combination(run.model):
        from lmrecipes.inference.combined_rows import CombinedRows

        return CombinedRows(run, precision, threads, batch, folder)
    from lmrecipes.inference.torch_rows import TorchRows

    if precision == "int8":
        from lmrecipes.inference.onnx_rows import open_int8

        return open_int8(run, threads, batch, folder)
    return TorchRows(run, precision, threads, batch, folder)


def answers(spec: HeadSpec, values: NDArray[Any], every: bool = False) -> list[dict[str, Any]]:
    """Values as JSON-ready answers, one for each row.

    regression: {value}. classification: {label, probability}, and with `every` {probabilities: by label}. multi_label:
    {labels: those whose probability is above 1/2, probabilities: theirs, with `every` by label}.
    """
    if spec.kind == "regression":
        return [{"value": float(value)} for value in values]
    shares = probabilities(spec, values)
    names = spec.labels
    if spec.kind == "classification":
        found = []
        for row, best in zip(shares, np.argmax(values, axis=-1), strict=True):
            answer: dict[str, Any] = {"label": names[best], "probability": float(row[best])}
            found.append(answer | ({"probabilities": _by_name(names, row)} if every else {}))
        return found
    holds = np.asarray(values) > 0
    return [
        {
            "labels": [names[i] for i in np.flatnonzero(chosen)],
            "probabilities": _by_name(names, row) if every else [float(share) for share in row[chosen]],
        }
        for row, chosen in zip(shares, holds, strict=True)
    ]


def _by_name(names: Sequence[str], shares: NDArray[Any]) -> dict[str, float]:
    return {name: float(share) for name, share in zip(names, shares, strict=True)}
