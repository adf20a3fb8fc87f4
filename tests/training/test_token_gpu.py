"""Token tasks on a GPU (`pytest -m gpu`): one trajectory, kernels for packed documents, Liger, fp16."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from tiny_gpt import make_gpt, make_gpt_data, make_gpt_recipe
from trajectories import ENGINES, Rows, assert_same, train_cases

from lmrecipes.machine import gpus

pytestmark = pytest.mark.gpu

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {}, "adapters": {"model.lora.rank": 4}, "checkpointed": {"model.activation_checkpointing": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose heads are 16 wide, as flex attention needs."""
    folder = tmp_path_factory.mktemp("wide_gpt")
    make_gpt(folder / "model", hidden=64)
    make_gpt_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def reference(run: Run, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """One GPU, plain torch, fp32, texts in one rectangle."""
    cases = {name: make_gpt_recipe(wide, **changes, **{"batch.layout": "padded"}) for name, changes in VARIANTS.items()}
    return train_cases(run, tmp_path_factory.mktemp("reference"), 1, "plain", cases, "cuda")


@pytest.mark.parametrize("engine", ENGINES)
def test_one_trajectory_in_fp32(
    engine: str | int, run: Run, wide: Path, reference: dict[str, Rows], tmp_path: Path
) -> None:
    world = min(2, len(gpus()))
    cases = {
        name: make_gpt_recipe(wide, **changes, **{"batch.micro_examples": 8 // world})
        for name, changes in VARIANTS.items()
    }
    for name, rows in train_cases(run, tmp_path, world, engine, cases, "cuda").items():
        assert_same(rows, reference[name], 1e-4)


@pytest.mark.parametrize("engine", ["plain", 2, 3])
def test_half_precision_and_kernels_follow_fp32(
    engine: str | int, run: Run, wide: Path, reference: dict[str, Rows], tmp_path: Path
) -> None:
    """3% in bf16, with each kernel that the machine has. fp16 may skip its first steps."""
    kernels = {"sdpa": {"model.attention": "sdpa"}, "flex": {"model.attention": "flex_attention"}}
    if find_spec("flash_attn") is not None:
        kernels["flash"] = {"model.attention": "flash_attention_2"}
    if find_spec("liger_kernel") is not None:
        kernels["liger"] = {"model.liger": "on"}
    packed = {"batch.layout": "packed", "precision.compute": "bf16"}
    cases = {name: make_gpt_recipe(wide, **packed, **changes) for name, changes in kernels.items()}
    found = train_cases(run, tmp_path, 1, engine, cases, "cuda")
    expected = [row["loss"] for row in reference["full"]]
    for name, rows in found.items():
        assert [row["loss"] for row in rows] == pytest.approx(expected, rel=0.03), name
    fp16 = {"fp16": make_gpt_recipe(wide, **{"precision.compute": "fp16"})}
    for row in train_cases(run, tmp_path / "fp16", 1, engine, fp16, "cuda")["fp16"]:
        assert math.isfinite(row["loss"])
        assert "loss_scale" in row
