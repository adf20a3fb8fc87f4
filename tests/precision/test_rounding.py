"""Rounding against arithmetic that needs no rounding, and chance against its definition."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.precision.formats import BF16, E4M3, E5M2, FORMATS, FP16, NumberFormat
from lmrecipes.precision.rounding import round_to, row_scale, stochastic_bf16

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def exactly(x: float, format: NumberFormat) -> float:
    """The nearest number of the format, ties to even, by fractions."""
    value = Fraction(x)
    if value == 0:
        return 0.0
    exponent = max(math.frexp(x)[1] - 1, round(math.log2(format.smallest_normal)))
    unit = Fraction(2) ** (exponent - format.mantissa)
    rounded = float(round(value / unit) * unit)
    if abs(rounded) <= format.largest:
        return rounded
    return math.nan if format is E4M3 else math.copysign(math.inf, x)


@pytest.mark.parametrize("format", [BF16, FP16, E4M3, E5M2], ids=lambda format: format.name)
@given(x=floats | st.floats(-600, 600, width=32) | st.floats(-(2.0**-5), 2.0**-5, width=32))
def test_rounding_is_to_the_nearest_and_ties_to_even(format: NumberFormat, x: float) -> None:
    """From fp32, subnormal results and overflow included."""
    found = float(round_to(torch.tensor([x]), format))
    wanted = exactly(x, format)
    assert found == wanted or (math.isnan(found) and math.isnan(wanted))


@pytest.mark.parametrize("format", [FP16, E4M3, E5M2], ids=lambda format: format.name)
def test_every_bf16_number_is_rounded_alike_in_both_dtypes(format: NumberFormat) -> None:
    """All 65,536 of them; NaN stays NaN."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    found, wanted = round_to(every, format), round_to(every.float(), format)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found.float(), wanted) or torch.allclose(found.float(), wanted, rtol=0, atol=0, equal_nan=True)


def test_ties_at_the_end_of_e4m3() -> None:
    """464 is as near to 448, whose mantissa is even, as to the 480 that is not there; above it is overflow."""
    x = torch.tensor([464.0, 464.01, -465.0, math.inf, 1e30])
    assert round_to(x, E4M3)[0] == 448 and round_to(x, E4M3)[1:].isnan().all()


@pytest.mark.parametrize("format", [E4M3, E5M2, FP16], ids=lambda format: format.name)
@given(rows=st.lists(floats.filter(bool), min_size=1, max_size=20))
def test_scales_are_the_largest_powers_of_two_that_fit(format: NumberFormat, rows: list[float]) -> None:
    """Row by row, whatever else is in the tensor."""
    scales = row_scale(torch.tensor(rows)[:, None] * torch.tensor([1.0, -0.5, 0.0]), format)[:, 0].tolist()
    for x, scale in zip(rows, scales, strict=True):
        assert math.frexp(scale)[0] == 0.5
        assert abs(Fraction(x)) * Fraction(scale) <= format.largest
        assert abs(Fraction(x)) * Fraction(scale) * 2 > format.largest or scale == 2.0**126


def test_scales_of_odd_rows() -> None:
    """Zeros are as they are; what is not finite makes its own row NaN and no other."""
    x = torch.tensor([[0.0, 0.0], [1.0, math.inf], [math.nan, 1.0], [448.0, 1.0]])
    scales = row_scale(x, E4M3)[:, 0]
    assert scales[0] == 1 and scales[1:3].isnan().all() and scales[3] == 1
    assert row_scale(x[:0], E4M3).shape == (0, 1)


def neighbours(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bf16 numbers around fp32 ones: towards zero, and away from it."""
    below = x.view(torch.int32) & ~0xFFFF
    return below.view(torch.float32), (below + 0x10000).view(torch.float32)


@given(key=st.integers(0, 2**64 - 1), offset=st.integers(0, 2**40), cut=st.integers(0, 200))
def test_parts_are_rounded_as_the_whole(key: int, offset: int, cut: int) -> None:
    """Each with its own offset."""
    x = torch.linspace(-3, 5, 200)
    whole = stochastic_bf16(x, key, offset)
    parts = stochastic_bf16(x[:cut], key, offset), stochastic_bf16(x[cut:], key, offset + cut)
    assert torch.equal(torch.cat(parts), whole)
    shaped = stochastic_bf16(x.view(10, 20), key, offset)
    assert torch.equal(shaped.flatten(), whole) and shaped.shape == (10, 20)


def test_parts_meet_where_counters_leave_31_and_32_bits() -> None:
    """The numbering goes on there, and does not start again."""
    x = torch.full((4000,), 1.0) + 2.0**-9
    for edge in (2**31, 2**32, 5 * 2**31):
        whole = stochastic_bf16(x, 7, edge - 1500)
        assert torch.equal(whole[1500:], stochastic_bf16(x[1500:], 7, edge))
        assert torch.equal(whole[:1500], stochastic_bf16(x[:1500], 7, edge - 1500))
        assert not torch.equal(stochastic_bf16(x, 7, edge), stochastic_bf16(x, 7, 0))


@given(key=st.integers(0, 2**64 - 1))
def test_results_are_neighbours_and_representable_numbers_stay(key: int) -> None:
    """Of both signs and subnormal numbers too; infinities and NaN are no numbers to round."""
    bits = torch.arange(0, 2**31 - 2**23 - 2**16, 999_983, dtype=torch.int64).to(torch.int32)
    x = torch.cat([bits.view(torch.float32), -bits.view(torch.float32)])
    found = stochastic_bf16(x, key).float()
    below, above = neighbours(x)
    assert ((found == below) | (found == above)).all()
    assert torch.equal(stochastic_bf16(below, key).float(), below)
    odd = torch.tensor([math.inf, -math.inf, math.nan, 0.0])
    assert stochastic_bf16(odd, key).float()[:2].tolist() == [math.inf, -math.inf]
    assert stochastic_bf16(odd, key)[2].isnan() and stochastic_bf16(odd, key)[3] == 0
    assert stochastic_bf16(torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32), key).isnan().all()


@pytest.mark.parametrize("share", [1, 2**12, 2**15, 3 * 2**14, 2**16 - 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_chance_of_rounding_up_is_what_is_cut_off(share: int, sign: int) -> None:
    """In units of the last place, over elements and over keys alike: within 5 standard deviations."""
    n, p = 1 << 20, share / 2**16
    x = sign * torch.tensor([0x3F800000 + share], dtype=torch.int32).view(torch.float32)
    over_elements = (stochastic_bf16(x.expand(n), 12345).abs() > 1).double().mean()
    deviation = math.sqrt(p * (1 - p) / n)
    assert abs(float(over_elements) - p) < 5 * deviation + 1e-12
    keys = 300
    over_keys = sum(float((stochastic_bf16(x.expand(64), key).abs() > 1).sum()) for key in range(keys)) / (64 * keys)
    assert abs(over_keys - p) < 5 * math.sqrt(p * (1 - p) / (64 * keys)) + 1e-12


def test_noise_of_neighbours_has_nothing_in_common() -> None:
    """Not between elements at any small distance, nor between keys that are neighbours or differ in the high half."""
    n = 1 << 18
    x = torch.full((n,), 1.0) + 2.0**-8

    def up(key: int) -> torch.Tensor:
        return (stochastic_bf16(x, key).float() > 1).double() * 2 - 1

    base = up(41)
    for lag in (1, 2, 3, 16, 256, 4096, 65536):
        assert abs(float((base[lag:] * base[:-lag]).mean())) < 5 / math.sqrt(n - lag)
    for key in (40, 42, 41 + 2**32, 41 + 2**63):
        assert abs(float((base * up(key)).mean())) < 5 / math.sqrt(n)


def test_formats_all_have_a_rounding() -> None:
    """fp32 is the identity on fp32."""
    x = torch.randn(100)
    assert all(round_to(x, format).dtype is torch.float32 for format in FORMATS.values())
    assert torch.equal(round_to(x, FORMATS["fp32"]), x)
