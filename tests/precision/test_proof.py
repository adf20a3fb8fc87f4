"""The table of what is declared and what is found, and what it refuses. Real engines: tests/training."""

from __future__ import annotations

import pytest

from lmrecipes.precision.proof import CLASSES, LATER, Row, bytes_by_class, require, table
from lmrecipes.problems import InputError

GOOD = [
    Row("weights", "bf16", "bf16", 2_000_000, "43 parameters"),
    Row("masters", "fp32", "fp32", 4_000_000, "4 tensors of the optimizer"),
    Row("products", "bf16", "bf16", 0, "all modules"),
    Row("optimizer", "fp32", "fp32", 4_000_000, "exp_avg"),
    Row("optimizer", "fp32", "fp32", 4_000_000, "exp_avg_sq"),
]


def test_what_agrees_or_is_not_there_yet_passes() -> None:
    require(GOOD)
    require([*GOOD, Row("gradients", "fp32", LATER, 0, "summed over micro-batches")])


def test_every_row_that_does_not_agree_is_named() -> None:
    bad = [Row("gradients", "fp32", "bf16", 8, "summed"), Row("reduction", "fp32", "bf16, fp32", 0, "2 ranks")]
    with pytest.raises(InputError) as refused:
        require([*GOOD, *bad])
    assert [(p.where, p.id) for p in refused.value.problems] == [
        ("precision.accumulation", "precision-proof"), ("precision.reduction", "precision-proof"),
    ]  # fmt: skip
    assert "declared fp32, found bf16, fp32" in str(refused.value)


def test_bytes_by_class_add_up() -> None:
    held = bytes_by_class(GOOD)
    assert held == {"weights": 2_000_000, "masters": 4_000_000, "gradients": 0, "optimizer": 8_000_000, "average": 0}
    assert tuple(held) == CLASSES


def test_the_table_has_a_line_for_each_row() -> None:
    head, *lines = table(GOOD).splitlines()
    assert head.split() == ["declared", "found", "MB", "of"]
    assert len(lines) == len(GOOD)
    assert lines[0].split() == ["weights", "bf16", "bf16", "2.0", "43", "parameters"]
    assert len({line.index(row.where) for line, row in zip(lines, GOOD, strict=True)}) == 1, "columns are aligned"
