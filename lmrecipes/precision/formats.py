"""The number formats, as facts. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NumberFormat:
    """A binary floating-point format. bits of exponent and of stored mantissa; largest: largest finite number."""

    name: str
    exponent: int
    mantissa: int
    largest: float

    @property
    def bytes(self) -> int:
        """Of one number."""
        return (1 + self.exponent + self.mantissa) // 8

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next larger number."""
        return float(2.0**-self.mantissa)

    @property
    def smallest_normal(self) -> float:
        """Smallest number with all bits of its mantissa."""
        return float(2.0 ** (2 - 2 ** (self.exponent - 1)))

    @property
    def smallest(self) -> float:
        """Smallest subnormal number; half of it and less is rounded to zero."""
        return self.smallest_normal * self.epsilon


FP32 = NumberFormat("fp32", 8, 23, (2 - 2.0**-23) * 2.0**127)
BF16 = NumberFormat("bf16", 8, 7, (2 - 2.0**-7) * 2.0**127)
FP16 = NumberFormat("fp16", 5, 10, 65504.0)
E4M3 = NumberFormat("fp8_e4m3", 4, 3, 448.0)
"""The variant without infinities (`float8_e4m3fn`): one value of the top exponent is NaN, the others are numbers."""
E5M2 = NumberFormat("fp8_e5m2", 5, 2, 57344.0)

FORMATS = {known.name: known for known in (FP32, BF16, FP16, E4M3, E5M2)}

FORWARD = FORMATS | {"fp8": E4M3}
"""What a rule of `precision.layers` means for weights and activations."""
BACKWARD = FORMATS | {"fp8": E5M2}
"""And for gradients (Micikevicius et al. 2022, arXiv 2209.05433, section 3.1)."""

TENSORS = ("input", "weight", "gradient")
"""Operands of a product that are rounded, in the order of its statistics."""
COUNTS = ("values", "underflown", "overflown")
"""What is counted of each: numbers seen, lost as zeros, too large for the format."""

HIGHER = {"fp8": "bf16", "fp8_e4m3": "bf16", "fp8_e5m2": "bf16", "fp16": "fp32", "bf16": "fp32"}
"""The next higher format of each."""
