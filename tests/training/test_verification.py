"""The comparison of a saved model with the live one: a fixed text, a deviation without units, nothing slips through."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lmrecipes.inference.arithmetic import Arithmetic
from lmrecipes.problems import RunFailed
from lmrecipes.training.verification import TOLERANCE, deviation, require, text_of

CPU = torch.device("cpu")


@given(vocabulary=st.integers(2, 300_000), most=st.integers(1, 4096))
def test_the_text_is_fixed_and_within_the_vocabulary(vocabulary: int, most: int) -> None:
    ids = text_of(vocabulary, most)
    assert len(ids) == min(most, 64)
    assert all(0 <= token < vocabulary for token in ids)
    assert ids == text_of(vocabulary, most)
    assert vocabulary < 1000 or most < 64 or len(set(ids)) > 50


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10), noise=st.floats(1e-3, 1.0))
def test_a_deviation_has_no_units(scale: float, shift: float, noise: float) -> None:
    torch.manual_seed(0)
    wanted, error = torch.randn(20, 50, dtype=torch.float64), torch.randn(20, 50, dtype=torch.float64)
    found = deviation((wanted + noise * error) * scale + shift, wanted * scale + shift)
    assert found == pytest.approx(noise, rel=0.1)


def test_a_deviation_of_other_shapes_is_none() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), expected \(3, 2\)"):
        deviation(torch.zeros(2, 3), torch.zeros(3, 2))


@pytest.mark.parametrize("far", [1.1e-4, 1.0, math.inf, math.nan])
def test_more_than_rounding_and_no_number_fail(far: float) -> None:
    require("the model", 1e-4, TOLERANCE[torch.float32])
    with pytest.raises(RunFailed, match=r"the model gives other outputs.*at most 0.0001"):
        require("the model", far, TOLERANCE[torch.float32])


class Rotary(nn.Module):
    """A product and a buffer of angles, as in a rotary position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("angles", torch.rand(16))

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        turned = torch.cos(1000 * self.angles) * nn.functional.one_hot(input_ids, 16)  # type: ignore[operator]
        return (self.linear(turned.to(self.linear.weight.dtype)),)


def test_16_bit_weights_leave_buffers_in_fp32() -> None:
    torch.manual_seed(0)
    model = Rotary()
    kept = copy.deepcopy(model)
    out = Arithmetic(CPU, torch.bfloat16, False).outputs(model, [1, 2, 3])
    assert out.dtype is torch.float32
    assert model.linear.weight.dtype is torch.bfloat16
    assert torch.equal(model.angles, kept.angles)  # type: ignore[arg-type]
    assert 0 < deviation(out, Arithmetic(CPU, torch.float32, False).outputs(kept, [1, 2, 3])) < 0.01


def test_autocast_leaves_weights_in_fp32_and_rounds_products() -> None:
    torch.manual_seed(0)
    model = Rotary()
    own = Arithmetic(CPU, torch.bfloat16, True)
    rounded = own.outputs(model, [1, 2, 3])
    assert model.linear.weight.dtype is torch.float32
    assert 0 < deviation(rounded, own.in_fp32.outputs(model, [1, 2, 3])) < 0.01


HERE = [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float32)]


@pytest.mark.parametrize(("compute", "dtype"), HERE)
def test_the_arithmetic_of_a_run_on_this_machine(compute: str, dtype: torch.dtype) -> None:
    """On a CPU fp16 is computed in fp32."""
    assert Arithmetic.here(compute, False) == Arithmetic(CPU, dtype, False)
    assert Arithmetic.here(compute, True).autocast is (compute == "bf16")
