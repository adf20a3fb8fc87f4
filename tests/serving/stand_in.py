"""A predictor without a model: it counts letters, stops when it is told to, and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmrecipes.inference.row_predictor import Columns, Row, RowsRefused
from lmrecipes.models.heads import HeadSpec

LABELS = ("short", "middle", "long")


class Letters:
    """`length`: regression, the letters of the text; `size`: its class; `tags`: both of the text's labels;
    `picture`: the bytes of an image. An empty text is a bad row, "crash" makes the model fail."""

    kind = "letters"
    bytes = 4_000_000

    def __init__(self, tasks: Sequence[str] = ("length", "size", "tags", "picture")) -> None:
        kinds = {"length": "regression", "size": "classification", "tags": "multi_label", "picture": "regression"}
        labels = {"size": LABELS, "tags": ("a", "b")}
        self.specs = {
            task: HeadSpec(kinds[task], labels.get(task, ()), (0.0,) * max(1, len(labels.get(task, ()))), 1.0)  # type: ignore[arg-type]
            for task in tasks
        }
        self.batches: list[list[Row]] = []
        self.asked: list[tuple[str, ...]] = []
        self.go, self.busy = threading.Event(), threading.Event()
        self.go.set()

    def columns(self, task: str) -> Columns:
        """See `RowPredictor`."""
        return Columns(image="photo") if task == "picture" else Columns(text="text")

    def predict(self, rows: Sequence[Row], tasks: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See `RowPredictor`."""
        self.batches.append(list(rows))
        self.asked.append(tuple(tasks))
        self.busy.set()
        assert self.go.wait(20)
        column = "photo" if tasks[0] == "picture" else "text"
        if bad := {i: "'text' is empty" for i, row in enumerate(rows) if not row.get(column)}:
            raise RowsRefused(bad)
        if any(row[column] == "crash" for row in rows):
            raise RuntimeError("no such kernel")
        lengths = np.array([len(row[column]) for row in rows], np.float32)
        sizes = np.eye(3, dtype=np.float32)[np.clip(lengths // 5, 0, 2).astype(int)] * 4
        tags = np.array([[5.0 if letter in row[column] else -5.0 for letter in "ab"] for row in rows], np.float32) \
            if column == "text" else np.zeros((len(rows), 2), np.float32)  # fmt: skip
        values = {"length": lengths, "picture": lengths, "size": sizes, "tags": tags}
        return {task: values[task] for task in tasks}
