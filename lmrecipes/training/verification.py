"""Whether a saved model is the live one: both read the same tokens, in the same arithmetic."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.problems import RunFailed

MOST_TOKENS = 64
"""Length of the text that both read."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Largest `deviation` on the device that trained: the kernels are the same, so that it is 0 as a rule. A norm weight
that is lost deviates by 0.1 and more, one matrix that is 1% too large by 5e-3 (SmolLM2-135M)."""

TOLERANCE_ELSEWHERE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.3}
"""The same where the saved model had to be computed on the CPU. Of SmolLM2-135M in bf16 two attention kernels alone
deviate by 0.04, and weights rounded to bf16 by 0.09."""


def text_of(vocabulary: int, most: int, exactly: int | None = None) -> list[int]:
    """A fixed text: tokens drawn by hash from the whole vocabulary; `exactly` so many, for a model that reads no other
    number."""
    places = np.arange(exactly or min(MOST_TOKENS, most))
    ids: list[int] = (vocabulary * hash_uniform(hash_key("verification"), places)).astype(int).tolist()
    return ids


def deviation(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the differences, over that of what is wanted about its mean."""
    if found.shape != wanted.shape:
        raise ValueError(f"outputs of shape {tuple(found.shape)}, expected {tuple(wanted.shape)}")
    return float((found - wanted).square().mean().sqrt() / (wanted - wanted.mean()).square().mean().sqrt())


def require(what: str, far: float, most: float) -> None:
    """Raise RunFailed where a deviation is larger than it may be, or not a number."""
    if not far <= most:
        raise RunFailed(
            f"{what} gives other outputs than the trained model: they deviate by {far:.2g} of their spread, at most "
            f"{most:.2g} is rounding"
        )
