"""The benchmark of the loss: all its sides compute one loss, and its table says by how much they differ in memory."""

from __future__ import annotations

import pytest
from test_benchmarks import load

loss_memory = load("training/loss_memory")


@pytest.mark.parametrize("dtype", loss_memory.DTYPES)
def test_all_sides_compute_one_loss(dtype: str) -> None:
    losses = [loss_memory.measure(name, dtype, 64, 300, 16)["loss"] for name in loss_memory.LOSSES]
    exact = 0.02 if dtype == "bf16" else 1e-5  # torch's own returns the loss itself in bf16
    assert losses == pytest.approx([losses[0]] * len(losses), rel=exact)


def test_the_table_compares_with_all_logits() -> None:
    found = {
        (name, dtype): {"bytes": 2.0**20 * (8 if name == loss_memory.NAIVE else 1), "seconds": 0.5, "loss": 1.0}
        for name in loss_memory.LOSSES
        for dtype in loss_memory.DTYPES
    }
    text = loss_memory.report(found, 64, 300, 16, 1)
    assert "| lmrecipes, bf16 | 1 | 0.12 | 500 | 1.00 | 1.0000 |" in text
    assert "bf16 | 4 | 8 | met |" in text
    assert [target.met for target in loss_memory.targets(found)] == [True, True]
