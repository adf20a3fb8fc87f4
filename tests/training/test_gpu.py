"""What only a GPU can show (`pytest -m gpu`): NCCL, CUDA kernels, fp16 with loss scaling, all GPUs of the machine."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import Run
from test_invariant import trajectories
from tiny import make_data, make_model
from trajectories import ENGINES, Rows, assert_same

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


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose heads are 16 wide, as flex attention needs."""
    folder = tmp_path_factory.mktemp("wide")
    make_model(folder / "model", hidden=64)
    make_data(folder / "data")
    return folder


@pytest.mark.parametrize("attention", ["auto", "sdpa", "flex_attention"])
def test_layouts_in_fp32(attention: str, run: Run, wide: Path, tmp_path: Path) -> None:
    """Packed rows with each kernel; the start-up probe has looked at each of them before."""
    changes = {"model.attention": attention}
    padded = trajectories(run, wide, tmp_path / "padded", 1, "plain", "cuda", layouts=("padded",))["padded"]
    layouts = ("packed",) if attention == "flex_attention" else ("auto", "grouped", "packed")
    for rows in trajectories(run, wide, tmp_path, 1, "plain", "cuda", layouts=layouts, **changes).values():
        assert_same(rows, padded, 1e-4)


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs the package flash_attn")
@pytest.mark.parametrize("engine", ["plain", 2, 3])
def test_flash_attention_reads_one_row_without_padding(engine: str | int, run: Run, wide: Path, tmp_path: Path) -> None:
    changes = {"model.attention": "flash_attention_2", "precision.compute": "bf16"}
    found = trajectories(run, wide, tmp_path, 1, engine, "cuda", layouts=("padded", "packed"), **changes)
    losses = {layout: [row["loss"] for row in rows] for layout, rows in found.items()}
    assert losses["packed"] == pytest.approx(losses["padded"], rel=0.03)
