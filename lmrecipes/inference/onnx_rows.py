"""Rows through ONNX Runtime with int8 products; through torch's own where a model has no graph."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lmrecipes.data.batches import MicroBatch
from lmrecipes.inference.batched_rows import BatchedRows
from lmrecipes.inference.int8_graph import Int8Graph, NoGraph, int8_graph, open_session
from lmrecipes.inference.row_predictor import RowPredictor
from lmrecipes.inference.row_reader import RowReader
from lmrecipes.inference.torch_rows import TorchRows
from lmrecipes.models.heads import HeadSpec
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.run_folder import RunFolder

log = logging.getLogger(__name__)


def open_int8(run: RunFolder, threads: int | None, batch: int | None, folder: Path | None) -> RowPredictor:
    """A run's int8 predictor; says why where it is not ONNX Runtime's."""
    try:
        return OnnxRows(run, int8_graph(run), threads, batch, folder)
    except NoGraph as why:
        log.warning("int8 by torch, slower than by ONNX Runtime: %s", why)
        return TorchRows(run, "int8", threads, batch, folder)


class OnnxRows(BatchedRows):
    """See `RowPredictor`. The model's own weights are not loaded."""

    kind = "ONNX Runtime, int8"

    def __init__(
        self, run: RunFolder, graph: Int8Graph, threads: int | None, batch: int | None, folder: Path | None
    ) -> None:
        recipe = recipe_from_yaml(run.recipe)
        saved = json.loads((run.model / "heads.json").read_text(encoding="utf-8"))["tasks"]
        specs = {name: HeadSpec.from_dict(saved[name]) for name in graph.tasks}
        reader = RowReader(recipe, run.model, {}, graph.vocabulary, None, folder)
        super().__init__(specs, reader, batch or recipe.evaluation.micro_examples)
        ends = np.cumsum([spec.outputs for spec in specs.values()])
        self.outputs_of = {
            name: slice(int(end) - spec.outputs, int(end))
            for end, (name, spec) in zip(ends, specs.items(), strict=True)
        }
        self.types = graph.types
        self.session = open_session(graph.file, threads)
        self.bytes = graph.file.stat().st_size

    def __call__(self, batch: MicroBatch) -> dict[str, Tensor]:
        """See `BatchedRows`."""
        assert isinstance(batch.texts, list), "evaluation and `BatchedRows` make rectangles"
        (texts,) = batch.texts
        ids = texts.input_ids
        feed = {"input_ids": ids, "mask": torch.ones_like(ids) if texts.mask is None else texts.mask}
        if self.types:
            feed["types"] = torch.zeros_like(ids) if texts.types is None else texts.types
        found = self.session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})[0]
        outputs = torch.from_numpy(found)
        return {task: self._values(task, outputs)[rows.rows] for task, rows in batch.tasks.items()}

    def _values(self, task: str, outputs: Tensor) -> Tensor:
        """See `Head.predictions`."""
        spec, mine = self.specs[task], outputs[:, self.outputs_of[task]]
        return mine[:, 0] * spec.std + spec.mean if spec.kind == "regression" else mine
