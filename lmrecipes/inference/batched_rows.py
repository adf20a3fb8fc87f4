"""What all predictors of one exported model share: rows are read, sorted by length, computed in batches, put back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmrecipes.data.batches import Batcher, MicroBatch
from lmrecipes.data.layout import Arrangement
from lmrecipes.inference.row_predictor import Columns, Row
from lmrecipes.inference.row_reader import ReadRows, RowReader
from lmrecipes.models.heads import HeadSpec


class BatchedRows(ABC):
    """Called with a micro-batch it is a model, as evaluation takes one. batch: most rows computed at once."""

    def __init__(self, specs: dict[str, HeadSpec], reader: RowReader, batch: int) -> None:
        self.specs, self.reader, self.batch = specs, reader, batch

    @abstractmethod
    def __call__(self, batch: MicroBatch) -> dict[str, Tensor]:
        """See `MultiTaskModel.predictions`; of tasks with labels."""

    def columns(self, task: str) -> Columns:
        """See `RowPredictor`."""
        return self.reader.readings[task].columns

    def predict(self, rows: Sequence[Row], tasks: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See `RowPredictor`. Tasks that read the same of a row share its pass through the trunk."""
        found: dict[str, NDArray[np.float32]] = {}
        for reading in dict.fromkeys(self.reader.readings[task] for task in tasks):
            mine = [task for task in tasks if self.reader.readings[task] == reading]
            found |= self._in_batches(self.reader.read(rows, reading), mine)
        return {task: found[task] for task in tasks}

    def _in_batches(self, read: ReadRows, tasks: list[str]) -> dict[str, NDArray[np.float32]]:
        """Batches of similar length, longest first, as evaluation has them."""
        count = len(read.targets)
        order = np.argsort(-read.lengths, kind="stable")
        batcher = Batcher({tasks[0]: read}, self.specs, inputs=self.reader.inputs)
        out = {
            task: np.empty((count,) if spec.kind == "regression" else (count, spec.outputs), np.float32)
            for task in tasks
            for spec in [self.specs[task]]
        }
        for start in range(0, count, self.batch):
            chosen = order[start : start + self.batch]
            parts, owners = [np.arange(len(chosen))], np.zeros(len(chosen), np.int16)
            batch = batcher.micro_batch(parts, owners, chosen, {tasks[0]: 1.0}, Arrangement("padded"))
            batch.tasks = dict.fromkeys(tasks, batch.tasks[tasks[0]])
            for task, values in self(batch).items():
                out[task][chosen] = values.float().cpu().numpy()
        return out
