"""Which numbers a run keeps and computes in which dtype: the readings of a precision that the cost formulas share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from lmrecipes.planning.shapes import Product, Shapes
from lmrecipes.precision.formats import FORWARD
from lmrecipes.precision.plan import layer_formats
from lmrecipes.recipe_precision import LayerFormat, Precision

Backend = Literal["alike", "autocast", "by_layer"]
"""alike: one dtype for all; autocast: fp32 weights, 16-bit products; by_layer: each module sees to its own."""

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Numbers:
    """A precision on an engine. zero: ZeRO stage, None without DeepSpeed. native: whether fp8 products are the
    hardware's; else their rounded operands are multiplied in `compute`. At the start of the run."""

    precision: Precision
    zero: int | None
    shapes: Shapes
    native: bool = False

    @property
    def backend(self) -> Backend:
        """Who sees to the arithmetic."""
        if self.precision.by_layer:
            return "by_layer"
        section = self.zero not in (None, 0)
        return "alike" if self.precision.pure or section or self.precision.compute == "fp32" else "autocast"

    @property
    def weights(self) -> int:
        """Bytes of a weight as the model holds it."""
        section = self.zero not in (None, 0) and self.precision.section != "fp32"
        return 2 if self.precision.pure or section else 4

    @property
    def stream(self) -> int:
        """Bytes of a number of the residual stream: it starts with the embeddings, and sums take the wider dtype."""
        return self.weights

    @cached_property
    def _formats(self) -> dict[str, LayerFormat]:
        shapes = self.shapes
        names = [product.name for product in shapes.products] + [part.name for part in shapes.attentions]
        names += [norm.name for norm in shapes.norms] + [function.name for function in shapes.activations]
        return layer_formats(self.precision, [*names, *([shapes.language.name] if shapes.language else [])])

    def format(self, name: str) -> LayerFormat:
        """In which the module's product is computed."""
        return self._formats[name] if self.precision.by_layer else self.precision.compute

    def within(self, name: str) -> int:
        """Bytes of a number that the module computes."""
        if self.precision.pure:
            return 2
        format = self.format(name)
        around = format if format in ("fp32", "bf16") else self.precision.compute
        return self.weights if self.backend == "alike" else BYTES[around]

    def shares(self, product: Product) -> bool:
        """Whether it multiplies the tensor that it reads as it is, and keeps no rounded copy of its own."""
        if self.backend == "alike":
            return True
        wide = self.stream == 4 if product.stream else self.within(product.name) == 4
        return self.format(product.name) == (
            "fp32" if wide else "bf16" if self.precision.pure else self.precision.compute
        )

    def operand(self, product: Product) -> int:
        """Bytes of a number as it enters the product."""
        return FORWARD[self.format(product.name)].bytes

    def multiplied(self, product: Product) -> str:
        """Format in which its forward product and its input's gradient are multiplied."""
        format = self.format(product.name)
        if format.startswith("fp8"):
            return "fp8" if self.native else self.precision.compute
        return format

    def rounds(self, product: Product) -> bool:
        """Whether the weight is rounded anew for the product, because it is held in a wider format."""
        return self.operand(product) < self.weights
