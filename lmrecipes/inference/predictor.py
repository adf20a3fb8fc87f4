"""An exported model that predicts with the arithmetic it was trained in."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from lmrecipes.data.batches import Bucket
from lmrecipes.training.export import ExportedModel, load_exported

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """A finished run's model on this machine's GPU, else its CPU; called with buckets, as the live engine is."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where the folder is no exported model."""
        self.exported: ExportedModel = load_exported(folder)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = _HALF.get(self.exported.compute)
        if dtype is torch.float16 and self.device.type == "cpu":
            dtype = None  # fp16 products are far slower than fp32 on a CPU
        self.autocast = dtype if self.exported.autocast else None
        weights = dtype if dtype is not None and not self.exported.autocast else torch.float32
        self.model = self.exported.model.to(self.device, weights)

    def __call__(self, buckets: list[Bucket]) -> dict[str, Tensor]:
        """Predictions of every head on every row of the buckets."""
        half = torch.autocast(self.device.type, self.autocast) if self.autocast is not None else nullcontext()
        with torch.inference_mode(), half:
            out: dict[str, Tensor] = self.model([bucket.to(self.device) for bucket in buckets])
        return out
