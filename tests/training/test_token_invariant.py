"""The promise of a step for language modelling, chat and labels on one causal trunk.

As in test_invariant: losses, per-task losses and gradient norms of the first 10 steps agree in fp32 between one process
and two, accumulation 1 and 4, plain torch, DDP and ZeRO 0-3 and all layouts; with output weights that are the embedding
table and that are not, with adapters, and with activation checkpointing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from tiny_gpt import make_gpt, make_gpt_recipe
from trajectories import ENGINES, Rows, assert_same, train_cases

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "adapters": {"model.lora.rank": 4, "optimizer.lr": 0.01},
    "untied": {"model.pretrained": "untied", "token_loss": "per_task"},
}


@pytest.fixture(scope="module")
def models(tiny_gpt: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the model whose output weights are the embedding table, and of one whose are not."""
    return {"tied": tiny_gpt / "model", "untied": make_gpt(tmp_path_factory.mktemp("untied"), tied=False)}


def recipe_of(tiny_gpt: Path, models: dict[str, Path], variant: str, micro: int, **changes: Any) -> dict[str, Any]:
    fields = {**VARIANTS[variant], **changes}
    if fields.pop("model.pretrained", None):
        fields["model.pretrained"] = str(models["untied"])
    return make_gpt_recipe(tiny_gpt, **{"batch.micro_examples": micro}, **fields)


@pytest.fixture(scope="module")
def reference(
    run: Run, tiny_gpt: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Rows]:
    """One process, plain torch, one micro-batch a step."""
    cases = {variant: recipe_of(tiny_gpt, models, variant, 16) for variant in VARIANTS}
    return train_cases(run, tmp_path_factory.mktemp("reference"), 1, "plain", cases)


def test_the_data_covers_the_hard_cases(reference: dict[str, Rows]) -> None:
    rows = reference["full"]
    assert any(row["examples"]["topic"] == 0 for row in rows), "a task absent from a whole step"
    assert any(row["examples"]["topic"] > 0 for row in rows)
    assert len({round(row["loss"], 3) for row in rows}) == 10, "every step differs"
    first = {variant: reference[variant][0] for variant in VARIANTS}
    assert first["adapters"]["loss"] == pytest.approx(first["full"]["loss"], rel=1e-6), "adapters start at nothing"
    assert first["adapters"]["grad_norm"] != pytest.approx(first["full"]["grad_norm"], rel=0.1)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_one_trajectory(
    world: int, engine: str | int, run: Run, tiny_gpt: Path, models: dict[str, Path], reference: dict[str, Rows],
    tmp_path: Path,
) -> None:  # fmt: skip
    cases = {variant: recipe_of(tiny_gpt, models, variant, 16 // world // 4) for variant in VARIANTS}
    again = {"model.activation_checkpointing": True}
    cases |= {f"{variant} again": recipe_of(tiny_gpt, models, variant, 16 // world, **again) for variant in VARIANTS}
    for name, rows in train_cases(run, tmp_path, world, engine, cases).items():
        assert_same(rows, reference[name.removesuffix(" again")], 1e-5)


@pytest.mark.parametrize(("world", "engine"), [(1, "plain"), (2, 3)])
def test_every_layout(
    world: int, engine: str | int, run: Run, tiny_gpt: Path, models: dict[str, Path], reference: dict[str, Rows],
    tmp_path: Path,
) -> None:  # fmt: skip
    layouts = ("padded", "buckets", "grouped", "packed")
    cases = {layout: recipe_of(tiny_gpt, models, "full", 8 // world, **{"batch.layout": layout}) for layout in layouts}
    for rows in train_cases(run, tmp_path, world, engine, cases).values():
        assert_same(rows, reference["full"], 1e-5)
