"""Rows through torch: in the arithmetic of the run, in fp32, with bf16 weights, or with torch's own int8 products."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmrecipes.data.batches import MicroBatch
from lmrecipes.inference.arithmetic import Arithmetic
from lmrecipes.inference.batched_rows import BatchedRows
from lmrecipes.inference.exported import ExportedModel, load_exported
from lmrecipes.inference.row_reader import RowReader
from lmrecipes.models.heads import HeadSpec
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.run_folder import RunFolder

Precision = Literal["own", "fp32", "bf16", "int8"]
TITLES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class TorchRows(BatchedRows):
    """See `RowPredictor`. own: values are those of `lmrecipes evaluate`, exactly."""

    def __init__(
        self, run: RunFolder, precision: Precision, threads: int | None, batch: int | None, folder: Path | None
    ) -> None:
        exported, recipe = load_exported(run.model), recipe_from_yaml(run.recipe)
        trunk = exported.model.trunk
        vocabulary = int(trunk.whole.config.get_text_config().vocab_size)
        reader = RowReader(recipe, run.model, exported.inputs, vocabulary, trunk.exactly, folder)
        super().__init__(_labelled(exported, run), reader, batch or recipe.evaluation.micro_examples)
        self.arithmetic = _arithmetic(exported, precision)
        self.model = self.arithmetic.place(exported.model)
        if precision != "own":
            trunk.predict_only()
        if precision == "int8":
            _quantize(self.model.trunk)
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(self.model))
        where = "" if self.arithmetic.device.type == "cpu" else " on a GPU"
        weights = "fp32 weights, products in " if self.arithmetic.autocast else ""
        self.kind = f"torch, {weights}{'int8' if precision == 'int8' else TITLES[self.arithmetic.dtype]}{where}"
        if threads is not None:
            torch.set_num_threads(threads)

    def __call__(self, batch: MicroBatch) -> dict[str, Tensor]:
        """See `BatchedRows`."""
        with torch.inference_mode(), self.arithmetic.products():
            found: dict[str, Tensor] = self.model(batch.to(self.arithmetic.device), "predictions")
        return found


def _labelled(exported: ExportedModel, run: RunFolder) -> dict[str, HeadSpec]:
    """The heads of the tasks with labels. Raises InputError where there is none."""
    specs = {name: spec for name, spec in exported.specs.items() if not spec.of_tokens}
    if not specs:
        what = "all its tasks predict tokens, none has labels to predict"
        raise InputError(Problem(str(run.path), what, "load its model/ with `transformers` to generate", "no-labels"))
    return specs


def _arithmetic(exported: ExportedModel, precision: Precision) -> Arithmetic:
    if precision == "own":
        return Arithmetic.here(exported.compute, exported.autocast)
    if precision == "int8":
        return Arithmetic(torch.device("cpu"), torch.float32, autocast=False)
    return Arithmetic.here(precision, autocast=False)


def _quantize(trunk: nn.Module) -> None:
    """int8 products of the trunk's linear layers, in place: weights with a scale for each output, activations rounded
    as they come. A trunk without such layers stays in fp32."""
    from torch.ao import quantization

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated for torchao, which is slower than fp32 on CPUs
        config = quantization.per_channel_dynamic_qconfig
        quantization.quantize_dynamic(trunk, {nn.Linear: config}, inplace=True)


def _tensors(model: nn.Module) -> list[Tensor]:
    """All weights held, those of quantised layers among them."""
    layers: list[Any] = [layer for layer in model.modules() if callable(getattr(layer, "weight", None))]
    packed = [layer.weight() for layer in layers]
    return [*model.parameters(), *model.buffers(), *packed]
