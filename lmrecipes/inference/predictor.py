"""An exported model that predicts with the arithmetic it was trained in."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lmrecipes.data.batches import MicroBatch
from lmrecipes.inference.arithmetic import Arithmetic
from lmrecipes.inference.exported import ExportedModel, load_exported


class Predictor:
    """A finished run's model on this machine's GPU, else its CPU; called with micro-batches, as the live engine is."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the folder is no exported model."""
        self.exported: ExportedModel = load_exported(folder)
        self.arithmetic = Arithmetic.here(self.exported.compute, self.exported.autocast)
        self.model = self.arithmetic.place(self.exported.model)

    def __call__(self, batch: MicroBatch) -> dict[str, Tensor]:
        """See `MultiTaskModel.predictions`."""
        with torch.inference_mode(), self.arithmetic.products():
            out: dict[str, Tensor] = self.model(batch.to(self.arithmetic.device), "predictions")
        return out
