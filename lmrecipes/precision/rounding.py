"""Rounding to the number formats: to the nearest, by chance, and after scaling by powers of two."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lmrecipes.precision.formats import E4M3, NumberFormat

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}

_PAST_E4M3 = 464.0
"""Halfway between 448 and the 480 that the format would have next: from above it on, nothing is near 448."""
_BLOCK = 1 << 31
"""Elements that one key numbers."""


def round_to(x: Tensor, format: NumberFormat) -> Tensor:
    """fp32 or bf16 numbers rounded to the format, ties to even, subnormal numbers included; the dtype stays.

    Beyond the largest number: infinity, as IEEE 754 rounds, and NaN in E4M3, which has no infinity (Micikevicius et al.
    2022, arXiv 2209.05433, section 3.2). Nothing saturates.
    """
    rounded = x.to(DTYPES[format.name]).to(x.dtype)
    if format is E4M3:  # torch saturates
        rounded = rounded.masked_fill(x.abs() > _PAST_E4M3, math.nan)
    return rounded


def row_scale(x: Tensor, format: NumberFormat) -> Tensor:
    """Of each row (last dimension) the largest power of two that leaves its numbers within the format: fp32 [..., 1].

    1 for a row of zeros, NaN for a row with a number that is not finite. At most 2**126, so that its inverse is normal.
    """
    largest = x.detach().abs().amax(-1, keepdim=True).float()
    return power_of_two(largest, format.largest)


def power_of_two(largest: Tensor, limit: float) -> Tensor:
    """The largest powers of two by which numbers >= 0 (fp32) stay within the limit; see `row_scale`."""
    fraction, exponent = torch.frexp(largest)
    of_limit, top = math.frexp(limit)
    places = (top - exponent - (fraction > of_limit).int()).clamp_(-126, 126)
    scale = (places.int() + 127).bitwise_left_shift_(23).view(torch.float32)  # exact, as pow on a GPU need not be
    scale = scale.masked_fill_(largest == 0, 1.0)
    return scale.masked_fill_(~largest.isfinite(), math.nan)


def stochastic_bf16(x: Tensor, key: int, offset: int = 0) -> Tensor:
    """fp32 numbers rounded to bf16, up or down by chance: up with the probability that leaves the mean where it was.

    Element i goes by a hash of (key, offset + i), so that a tensor's parts, each with its own offset, are rounded as
    the whole. What bf16 can hold stays as it is, infinities and NaN too. key: 64 bits.
    """
    if len(blocks := _blocks(x.numel(), offset)) > 1:
        parts = x.reshape(-1).split(blocks)
        starts = [offset + sum(blocks[:i]) for i in range(len(blocks))]
        rounded = [stochastic_bf16(part, key, start) for part, start in zip(parts, starts, strict=True)]
        return torch.cat(rounded).view(x.shape)
    bits = x.contiguous().view(torch.int32)
    chance = _hash16(x.numel(), key, offset, x.device).view(x.shape)
    # The low 16 bits are what bf16 cannot hold, as a share of its last place: the sum carries with that probability.
    up = chance.add_(bits).bitwise_right_shift_(16).to(torch.int16).view(torch.bfloat16)
    if not x.is_cuda and x.sum().isfinite():  # one pass over x; comparing and choosing takes as long as all the rest
        return up
    return torch.where(x.isfinite(), up, x.to(torch.bfloat16))


def _blocks(count: int, offset: int) -> list[int]:
    """Sizes of the parts of a range that lie in one block each."""
    ends = [*range(_BLOCK - offset % _BLOCK, count, _BLOCK), count]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _hash16(count: int, key: int, offset: int, device: torch.device) -> Tensor:
    """Hashed numbers from 0 to 65535 of the counters from `offset` on, int32 [count]. All lie in one block."""
    block, start = divmod(offset, _BLOCK)
    key = _split_mix(key + block)
    # int32 products wrap, and right shifts copy the sign: with three products the upper half is random all the same.
    x = torch.arange(start, start + count, dtype=torch.int32, device=device).mul_(_signed(0x9E3779B1))
    x.add_(_signed(key))
    x.bitwise_xor_(x >> 15).add_(_signed(key >> 32)).mul_(_signed(0x85EBCA6B))
    x.bitwise_xor_(x >> 13).mul_(_signed(0xC2B2AE35))
    return x.bitwise_right_shift_(16).bitwise_and_(0xFFFF)


def _signed(word: int) -> int:
    """The low 32 bits as an int32."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _split_mix(x: int) -> int:
    """SplitMix64's output function: neighbouring keys give words that have nothing in common."""
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ ((x & (1 << 64) - 1) >> shift)) * multiplier) & (1 << 64) - 1
    return x ^ (x >> 31)
