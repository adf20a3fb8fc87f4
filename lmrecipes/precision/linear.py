"""Linear layers that multiply in the format they are told at each call.

Operands are rounded to the format; products are summed in fp32 or by the hardware's own rule for the dtype. fp8
operands are scaled by a power of two for each row across the dimension that is summed over: for each token in
activations and gradients, for each output unit in the weight (each input unit in backward), so that no number depends
on which others share its micro-batch. fp16 has one power of two for the whole incoming gradient, and needs no loss
scaling.

What is saved for backward are the rounded activations (fp8: 1 byte each) and the *parameter itself*: rounded again in
backward, it may have been partitioned in between (ZeRO-3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import ScalingType
from transformers.pytorch_utils import Conv1D

from lmrecipes.precision.formats import BACKWARD, FORWARD, FP16, TENSORS, NumberFormat
from lmrecipes.precision.rounding import DTYPES, power_of_two, row_scale
from lmrecipes.recipe_precision import LayerFormat


@dataclass(frozen=True)
class Arithmetic:
    """How one product is computed. surrounding: dtype of its output, and in which rounded fp8 numbers are multiplied
    where the hardware does not. transposed: the weight is [in, out]. counts: float64 [tensors, counts] that grows with
    what is rounded, or None."""

    format: LayerFormat
    surrounding: torch.dtype
    native: bool
    transposed: bool
    counts: Tensor | None

    @property
    def fp8(self) -> bool:
        """Whether operands are scaled fp8 numbers."""
        return self.format.startswith("fp8")

    def count(self, tensor: str, before: Tensor, after: Tensor) -> None:
        """Add a rounded tensor to the statistics: what became zero, and what has no finite image."""
        if self.counts is not None:
            lost = ((after == 0) & (before != 0)).sum()
            # What comes in not finite is another layer's doing, and takes its fp8 row along. Scaled rows fit.
            beyond = torch.zeros_like(lost) if self.fp8 else (before.isfinite() & ~after.isfinite()).sum()
            row = torch.stack([lost.new_tensor(before.numel()), lost, beyond])
            self.counts[TENSORS.index(tensor)] += row


@dataclass(frozen=True)
class Scaled:
    """Rows of fp8 numbers, [rows, k]; each stands for itself / scale, fp32 [rows, 1]."""

    numbers: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor, format: NumberFormat) -> Scaled:
        """Round the rows of x [rows, k]."""
        scale = row_scale(x, format)
        return cls((x.float() * scale).to(DTYPES[format.name]), scale)

    def wide(self, dtype: torch.dtype) -> Tensor:
        """The numbers that are meant, exactly."""
        return (self.numbers.float() / self.scale).to(dtype)


class FormatLinear(nn.Linear):
    """`nn.Linear` in a format. compute: dtype of its surroundings and of its output; see `Arithmetic`."""

    format: LayerFormat = "fp32"
    compute: torch.dtype = torch.float32
    native: bool = False
    counts: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] of any floating dtype -> [..., out] in `compute`."""
        return multiply(input, self.weight, self.bias, arithmetic_of(self))


class FormatConv1D(Conv1D):
    """The layer of GPT-2, a linear one with its weight transposed, in a format."""

    format: LayerFormat = "fp32"
    compute: torch.dtype = torch.float32
    native: bool = False
    counts: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] of any floating dtype -> [..., out] in `compute`."""
        return multiply(x, self.weight, self.bias, arithmetic_of(self))


FORMATTED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FormatLinear, Conv1D: FormatConv1D}


def arithmetic_of(layer: FormatLinear | FormatConv1D) -> Arithmetic:
    """In force for the next call."""
    return Arithmetic(layer.format, layer.compute, layer.native, isinstance(layer, Conv1D), layer.counts)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, how: Arithmetic) -> Tensor:
    """x [..., in] times the weight, plus the bias. Differentiable once."""
    flat = x.reshape(-1, x.shape[-1])
    out: Tensor = _Product.apply(flat, weight, bias, how)
    return out.view(*x.shape[:-1], out.shape[-1])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: Arithmetic) -> Tensor:
        """x [rows, in] -> [rows, out]."""
        with torch.autocast(x.device.type, enabled=False):
            matrix = weight.t() if how.transposed else weight
            if how.fp8:
                out, kept = _forward_fp8(x, matrix, bias, how)
            else:
                out, kept = _forward(x, matrix, bias, how)
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        ctx.save_for_backward(weight if of_x else None, *(kept if of_weight else ()))
        ctx.how = how
        ctx.dtypes = x.dtype, weight.dtype, bias.dtype if of_bias and bias is not None else None
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """gradient [rows, out]."""
        how: Arithmetic = ctx.how
        weight, *kept = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.dtypes
        with torch.autocast(gradient.device.type, enabled=False):
            matrix = None if weight is None else weight.t() if how.transposed else weight
            backward = _backward_fp8 if how.fp8 else _backward
            into_x, into_weight = backward(gradient, matrix, kept, how)
            into_bias = None if of_bias is None else gradient.sum(0).to(of_bias)
        if into_x is not None:
            into_x = into_x.to(of_x)
        if into_weight is not None:
            into_weight = (into_weight.t() if how.transposed else into_weight).to(of_weight)
        return into_x, into_weight, into_bias, None


def _forward(x: Tensor, matrix: Tensor, bias: Tensor | None, how: Arithmetic) -> tuple[Tensor, list[Tensor]]:
    """In a dtype of torch: the output, and what the weight's gradient needs."""
    dtype = DTYPES[how.format]
    rounded, weight = x.to(dtype), matrix.to(dtype)
    how.count("input", x, rounded)
    how.count("weight", matrix, weight)
    if dtype is torch.float16:
        out = _wide_product(rounded, weight.t())
        out = out if bias is None else out + bias
    else:
        out = F.linear(rounded, weight, bias if bias is None else bias.to(dtype))
    return out.to(how.surrounding), [rounded]


def _backward(
    gradient: Tensor, matrix: Tensor | None, kept: list[Tensor], how: Arithmetic
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x [rows, in] and of the matrix [out, in], where their factors are there."""
    dtype = DTYPES[how.format]
    scale: Tensor | None = None
    if dtype is torch.float16 and gradient.numel():
        scale = power_of_two(gradient.abs().amax().float(), FP16.largest)
        scaled = gradient.float() * scale
    else:
        scaled = gradient
    rounded = scaled.to(dtype)
    how.count("gradient", scaled, rounded)
    into_x = into_weight = None
    if matrix is not None:
        weight = matrix.to(dtype)
        into_x = _wide_product(rounded, weight) if dtype is torch.float16 else rounded @ weight
    if kept:
        into_weight = _wide_product(rounded.t(), kept[0])
    if scale is None:
        return into_x, into_weight
    return tuple(x if x is None else x / scale for x in (into_x, into_weight))  # type: ignore[return-value]


def _forward_fp8(x: Tensor, matrix: Tensor, bias: Tensor | None, how: Arithmetic) -> tuple[Tensor, list[Tensor]]:
    """As `_forward`; activations are kept as fp8 numbers and their scales."""
    left, right = Scaled.of(x, FORWARD[how.format]), Scaled.of(matrix, FORWARD[how.format])
    how.count("input", x, left.numbers.float())
    how.count("weight", matrix, right.numbers.float())
    out = _product_fp8(left, right, how)
    out = out if bias is None else out + bias.to(out.dtype)
    return out, [left.numbers, left.scale]


def _backward_fp8(
    gradient: Tensor, matrix: Tensor | None, kept: list[Tensor], how: Arithmetic
) -> tuple[Tensor | None, Tensor | None]:
    """As `_backward`; the weight's gradient is a product in the surroundings' dtype: a sum over tokens has no rows that
    could be scaled apart from each other."""
    into_x = into_weight = None
    if matrix is not None:
        left, right = Scaled.of(gradient, BACKWARD[how.format]), Scaled.of(matrix.t(), FORWARD[how.format])
        how.count("gradient", gradient, left.numbers.float())
        into_x = _product_fp8(left, right, how)
    if kept:
        activations = Scaled(kept[0], kept[1]).wide(how.surrounding)
        into_weight = _wide_product(gradient.to(how.surrounding).t(), activations)
    return into_x, into_weight


def _product_fp8(left: Scaled, right: Scaled, how: Arithmetic) -> Tensor:
    """left [rows, k] times right [columns, k] transposed, in the surroundings' dtype."""
    if how.native and native_fits(left.numbers, right.numbers, how.surrounding):
        scales = (1 / left.scale, ScalingType.RowWise, (1 / right.scale).t(), ScalingType.RowWise)
        numbers = left.numbers.contiguous(), right.numbers.contiguous().t()
        return F.scaled_mm(*numbers, *scales, output_dtype=how.surrounding)
    return left.wide(how.surrounding) @ right.wide(how.surrounding).t()


def native_fits(left: Tensor, right: Tensor, dtype: torch.dtype) -> bool:
    """Whether the hardware multiplies these fp8 operands, [rows, k] and [columns, k]: sizes in multiples of 16, not
    both E5M2, a result in bf16."""
    both = left.dtype is torch.float8_e5m2 and right.dtype is torch.float8_e5m2
    sizes = right.shape[0] % 16 == 0 and right.shape[1] % 16 == 0
    return sizes and len(left) > 0 and not both and dtype is torch.bfloat16


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """The product with an fp32 result where the device can: gradients of weights are rounded once less then."""
    if left.is_cuda and left.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(left, right, out_dtype=torch.float32)
    if left.dtype is torch.float16:  # a CPU's products in fp16 are slow, and summed up in fp16
        return left.float() @ right.float()
    return left @ right
