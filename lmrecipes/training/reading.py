"""Whether examples that lie beside others are read as if they were alone."""

from __future__ import annotations

import torch
from torch import Tensor

from lmrecipes.problems import Problem

LEAK = 0.01
"""Largest move of a text, as a share of how far the changed text itself moved."""
APART = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Largest distance between a text among others and alone, as a share of the distance between two texts, by the dtype of
the products; on top of it four units of the dtype's resolution (measured on MiniLM in bf16: 0.007 in all)."""


def judge(among: Tensor, alone: Tensor, moved: Tensor, dtype: torch.dtype, layout: str) -> Problem | None:
    """among, alone: the vectors of some texts among others and alone, fp32 [texts, hidden]; moved: how far each text's
    vector went when the first was changed."""
    fix = "set batch.layout: buckets, or padded; or model.attention: sdpa"
    if not all(bool(torch.isfinite(numbers).all()) for numbers in (among, alone, moved)):
        what = f"the layout {layout} gives numbers that are not finite"
        return Problem("batch.layout", what, fix, "layout-finite")
    leak = float(moved[1:].max() / moved[0])
    if not leak < LEAK:
        what = f"in the layout {layout} a changed text moves its neighbours by {leak:.1%} of its own move"
        return Problem("batch.layout", what, fix, "layout-leak")
    between = float((alone - alone.roll(1, 0)).norm(dim=1).mean())
    limit = APART[dtype] * between + 4 * torch.finfo(dtype).eps * float(alone.norm(dim=1).max())
    far = float((among - alone).norm(dim=1).max())
    if not far < limit:
        what = f"in the layout {layout} a text is read {far / between:.1%} of the way to another text from itself alone"
        return Problem("batch.layout", what, fix, "layout-alone")
    return None
