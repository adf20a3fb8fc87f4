"""What only a GPU can show (`pytest -m gpu`): NCCL, CUDA kernels, fp16 with loss scaling, all GPUs of the machine."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from conftest import Run
from test_invariant import ENGINES, Rows, assert_same, trajectories

from lmrecipes.machine import gpus

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def reference(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """One GPU, plain torch, fp32."""
    return trajectories(run, tiny, tmp_path_factory.mktemp("reference"), 1, "plain", "cuda")["1"]


@pytest.mark.parametrize("engine", ENGINES)
def test_one_trajectory_in_fp32(engine: str | int, run: Run, tiny: Path, reference: Rows, tmp_path: Path) -> None:
    """1e-4: CUDA sums in another order than a CPU, and the embedding's backward in any order."""
    for rows in trajectories(run, tiny, tmp_path, min(2, len(gpus())), engine, "cuda").values():
        assert_same(rows, reference, 1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("engine", ["plain", 1, 2, 3])
def test_half_precision_follows_fp32(
    engine: str | int, precision: str, run: Run, tiny: Path, reference: Rows, tmp_path: Path
) -> None:
    """3%, as in bf16 on a CPU. fp16 starts with a large loss scale and may skip its first steps."""
    changes = {"precision.compute": precision}
    for rows in trajectories(run, tiny, tmp_path, min(2, len(gpus())), engine, "cuda", **changes).values():
        assert all(math.isfinite(row["loss"]) for row in rows)
        if precision == "bf16":
            losses, expected = ([row["loss"] for row in each] for each in (rows, reference))
            assert losses == pytest.approx(expected, rel=0.03)
        else:
            assert all("loss_scale" in row for row in rows)
            assert any(row["applied"] for row in rows) or rows[-1]["loss_scale"] < rows[0]["loss_scale"]
