"""Products in every format: against the same arithmetic written out, and what they save."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lmrecipes.precision.formats import BACKWARD, COUNTS, FORWARD, NumberFormat
from lmrecipes.precision.linear import FormatConv1D, FormatLinear
from lmrecipes.precision.rounding import round_to, row_scale

FORMATS = ("fp32", "bf16", "fp16", "fp8", "fp8_e4m3", "fp8_e5m2")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def make(format: Any, compute: torch.dtype = torch.float32, conv: bool = False, bias: bool = True) -> Any:
    """A layer 32 -> 48 with rows of different size."""
    torch.manual_seed(1)
    layer: Any = FormatConv1D(48, 32) if conv else FormatLinear(32, 48, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape) * torch.logspace(-3, 1, layer.weight.shape[0])[:, None])
        if layer.bias is not None:
            layer.bias.copy_(torch.randn(48))
    layer.format, layer.compute = format, compute
    return layer


def some(*shape: int) -> Tensor:
    """Numbers of different sizes from row to row."""
    x = torch.randn(shape)
    return x * torch.logspace(-2, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))


def by_rows(x: Tensor, format: NumberFormat) -> Tensor:
    """Rounded to fp8 as contracts say: scaled by row, and back."""
    scale = row_scale(x, format)
    return round_to(x * scale, format) / scale


def written_out(layer: Any, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Output and gradients of input, weight (as [out, in]) and bias in fp32, from operands rounded by hand."""
    weight = (layer.weight.t() if isinstance(layer, Conv1D) else layer.weight).detach()
    format, forward, backward = layer.format, FORWARD[layer.format], BACKWARD[layer.format]
    bias = 0 if layer.bias is None else layer.bias.detach()
    if format.startswith("fp8"):
        kept = by_rows(x, forward)
        out = kept @ by_rows(weight, forward).t() + bias
        into_x = by_rows(gradient, backward) @ by_rows(weight.t(), forward).t()
        into_weight = gradient.t() @ kept
    else:
        kept, w = round_to(x, forward), round_to(weight, forward)
        scale = 2.0**6 if format == "fp16" else 1.0
        rounded = round_to(gradient * scale, backward) / scale
        out, into_x, into_weight = kept @ w.t() + bias, rounded @ w, rounded.t() @ kept
    return [out, into_x, into_weight, gradient.sum(0)]


def run(layer: Any, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """The same of the layer."""
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(gradient.to(out.dtype))
    into_weight = layer.weight.grad.t() if isinstance(layer, Conv1D) else layer.weight.grad
    return [out.detach(), x.grad, into_weight, layer.bias.grad]


def near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """As a whole: relative error of the norm."""
    assert float((found.float() - wanted).norm()) <= tolerance * float(wanted.norm())


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_products_are_of_rounded_operands(format: str, compute: torch.dtype, conv: bool) -> None:
    """Forward and backward, in fp32 and in bf16 surroundings. The tolerance is far below what any format rounds."""
    layer = make(format, compute, conv)
    x, gradient = some(20, 32), some(20, 48).to(compute).float()
    found, wanted = run(layer, x, gradient), written_out(layer, x, gradient)
    assert found[0].dtype is compute
    exact = compute is torch.float32 and format != "bf16"
    for got, expected in zip(found, wanted, strict=True):
        near(got, expected, TOLERANCE[torch.float32 if exact else torch.bfloat16])
        assert got.dtype is torch.float32 or got is found[0]


@pytest.mark.parametrize("format", ["fp8", "fp8_e4m3", "fp8_e5m2"])
def test_native_and_emulated_products_agree(format: str) -> None:
    """Up to the order of sums: torch's scaled product also runs on a CPU."""
    emulated, native = make(format, torch.bfloat16), make(format, torch.bfloat16)
    native.native = True
    x, gradient = some(21, 32), some(21, 48)
    for one, other in zip(run(native, x, gradient), run(emulated, x, gradient), strict=True):
        near(one, other.float(), 2e-3)


def test_sizes_that_the_hardware_does_not_take_are_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """By call, and so are results in fp32 and two operands in E5M2."""
    calls = []
    scaled_mm = torch.nn.functional.scaled_mm

    def counted(*args: Any, **options: Any) -> Tensor:
        calls.append(args[0].dtype)
        return scaled_mm(*args, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_mm", counted)
    for layer, rows, expected in (
        (make("fp8", torch.bfloat16), 5, [torch.float8_e4m3fn, torch.float8_e5m2]),
        (make("fp8", torch.bfloat16), 0, []),
        (make("fp8", torch.float32), 5, []),
        (make("fp8_e5m2", torch.bfloat16), 5, []),
        (FormatLinear(24, 48), 5, []),
    ):
        layer.native = True
        if layer.in_features == 24:
            layer.format, layer.compute = "fp8", torch.bfloat16
        calls.clear()
        layer(torch.randn(rows, layer.in_features, requires_grad=True)).sum().backward()
        assert calls == expected


@pytest.mark.parametrize("format", FORMATS)
def test_any_leading_shape_no_bias_and_no_rows(format: str) -> None:
    """An empty micro-batch gives zero gradients, not none."""
    layer = make(format, bias=False)
    x = some(6, 32)
    assert torch.equal(layer(x.view(2, 3, 32)), layer(x).view(2, 3, 48))
    assert layer(x[0]).shape == (48,)
    empty = torch.zeros(0, 4, 32, requires_grad=True)
    out = layer(empty)
    assert out.shape == (0, 4, 48)
    out.sum().backward()
    assert empty.grad is not None and torch.equal(layer.weight.grad, torch.zeros(48, 32))


@pytest.mark.parametrize("format", ["fp32", "fp8"])
def test_rows_do_not_depend_on_their_micro_batch(format: str) -> None:
    """One huge token changes nothing for the others (in fp16 and above by nature)."""
    layer, x, gradient = make(format), some(8, 32), some(8, 48)
    found = run(layer, x, gradient)
    layer.weight.grad = None
    beside = run(layer, torch.cat([x, 1e6 * x[:8]]), torch.cat([gradient, 1e6 * gradient]))
    for one, other in zip(found[:2], beside[:2], strict=True):
        near(other[:8], one, 1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_finite_stays_so(format: str) -> None:
    """Forward and backward: a run must see it, not train on."""
    layer, x, gradient = make(format), some(4, 32), some(4, 48)
    x[1, 3], gradient[2, 5] = torch.inf, torch.nan
    out, into_x, into_weight, _ = run(layer, x, gradient)
    assert not out[1].isfinite().any() and out[[0, 2, 3]].isfinite().all()
    assert not into_x[2].isfinite().any() and not into_weight.isfinite().all()


def test_fp16_gradients_far_below_its_range_arrive() -> None:
    """The local power of two brings 1e-12 back; 1e-12 of fp16 itself would be zero."""
    layer, x, gradient = make("fp16"), some(5, 32), some(5, 48)
    large, small = run(layer, x, gradient), None
    layer.weight.grad = layer.bias.grad = None
    small = run(layer, x, gradient * 2.0**-40)
    for one, other in zip(large[1:], small[1:], strict=True):
        assert torch.equal(one, other * 2.0**40)


@pytest.mark.parametrize("format", FORMATS)
def test_the_parameter_itself_and_rounded_activations_are_saved(format: str) -> None:
    """ZeRO-3 frees the gathered weight between the passes: no copy of it may be held."""
    layer, saved = make(format), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        layer(some(20, 32).requires_grad_())
    weights = [x for x in saved if x.shape == layer.weight.shape]
    assert [x.data_ptr() for x in weights] == [layer.weight.data_ptr()]
    held = sum(x.nbytes for x in saved) - layer.weight.nbytes
    sizes = {"fp32": 4, "bf16": 2, "fp16": 2}
    assert held == 20 * 32 * sizes.get(format, 1) + (20 * 4 if format.startswith("fp8") else 0)


@pytest.mark.parametrize("format", ["bf16", "fp8"])
def test_frozen_weights_get_no_gradient_and_hold_no_activations(format: str) -> None:
    """And a layer at the start of the graph computes no gradient of its input."""
    layer, saved = make(format), []
    layer.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = layer(some(20, 32).requires_grad_())
    assert [x.shape for x in saved] == [layer.weight.shape]
    out.sum().backward()
    assert layer.weight.grad is None
    layer.requires_grad_(True)
    layer(some(20, 32)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("format", FORMATS)
def test_bf16_leaves_get_bf16_gradients(format: str) -> None:
    """A run without master weights: what comes out is bf16 too."""
    layer = make(format, torch.bfloat16).to(torch.bfloat16)
    x = some(6, 32).to(torch.bfloat16).requires_grad_()
    out = layer(x)
    out.sum().backward()
    assert {out.dtype, x.grad.dtype, layer.weight.grad.dtype, layer.bias.grad.dtype} == {torch.bfloat16}


def test_autocast_around_changes_nothing() -> None:
    """The layer sees to its own arithmetic, forward and backward."""
    x, gradient = some(6, 32), some(6, 48)
    plain = run(make("fp32"), x, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(make("fp32"), x, gradient)
    assert all(torch.equal(one, other) for one, other in zip(plain, inside, strict=True))
    assert torch.equal(plain[0], nn.functional.linear(x, make("fp32").weight, make("fp32").bias))


def test_statistics_count_what_rounding_loses() -> None:
    """Planted: numbers far below a row's largest, below fp16's range and beyond it."""
    assert COUNTS == ("values", "underflown", "overflown")
    layer = make("fp16")
    layer.counts = torch.zeros(3, 3, dtype=torch.float64)
    x, gradient = torch.ones(4, 32), torch.ones(4, 48)
    x[0, :5], x[1, :3], x[2, 0] = 1e-9, 1e6, 0.0
    gradient[0, :7] = 1e-30
    run(layer, x, gradient)
    assert layer.counts[0].tolist() == [128, 5, 3] and layer.counts[2].tolist() == [192, 7, 0]
    layer = make("fp8")
    layer.counts = torch.zeros(3, 3, dtype=torch.float64)
    x[3, 0] = torch.inf  # comes from elsewhere; and beside 1e6 the 29 ones of row 1 are lost
    run(layer, x, gradient)
    assert layer.counts[0].tolist() == [128, 5 + 29, 0] and layer.counts[2].tolist() == [192, 7, 0]
    assert layer.counts[1, 0] == 48 * 32
    before = layer.counts.clone()
    layer.counts = None
    run(layer, x, gradient)
    assert before[0, 0] == 128
