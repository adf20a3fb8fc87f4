"""Rows through every member of a combined run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmrecipes.combine.combination import Combination
from lmrecipes.inference.row_predictor import Columns, Row, Wanted, open_predictor
from lmrecipes.run_folder import RunFolder


class CombinedRows:
    """See `RowPredictor`. Members are asked one after the other; each reads the columns that it was trained with."""

    def __init__(
        self, run: RunFolder, precision: Wanted, threads: int | None, batch: int | None, folder: Path | None
    ) -> None:
        self.combination = Combination.load(run.model)
        self.members = [
            open_predictor(member, precision, threads, batch, folder) for member in self.combination.members
        ]
        self.specs = {name: spec for name, spec in self.combination.specs.items() if not spec.of_tokens}
        self.bytes = sum(member.bytes for member in self.members)
        kinds = list(dict.fromkeys(member.kind for member in self.members))
        self.kind = f"{len(self.members)} models: {' and '.join(kinds)}"

    def columns(self, task: str) -> Columns:
        """The first member's."""
        return self.members[0].columns(task)

    def predict(self, rows: Sequence[Row], tasks: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See `RowPredictor`."""
        found = [member.predict(rows, tasks) for member in self.members]
        return {task: self.combination.combined(task, [values[task] for values in found]) for task in tasks}
