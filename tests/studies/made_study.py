"""Results of cells as if they had been trained, and a recipe file whose variants train in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import change, make_recipe

from lmrecipes.recipe import Recipe
from lmrecipes.studies.cells import Cell
from lmrecipes.studies.record import CellResult

VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {"precision": {"compute": "bf16"}},
    "fp32": {"precision": {"compute": "fp32"}},
    "pure": {"precision": {"compute": "bf16", "master_weights": "none", "rounding": "stochastic"}},
    "broken": {"precision": {"compute": "fp32"}, "optimizer.lr": 1e30, "schedule.warmup_fraction": 0.0},
}


def made_recipe(tiny: Path, variant: str = "recipe", **changes: Any) -> Recipe:
    """One of the variants as a recipe."""
    return Recipe.model_validate(change(make_recipe(tiny, **VARIANTS[variant]), changes))


def write_recipe(tiny: Path, folder: Path) -> Path:
    """`recipe.py` with all variants."""
    folder.mkdir(parents=True)
    functions = [
        f'def {name}() -> Recipe:\n    """Variant {name}."""\n'
        f"    return Recipe.model_validate({change(make_recipe(tiny, **changes), {})!r})\n"
        for name, changes in VARIANTS.items()
    ]
    head = '"""Tiny variants."""\nfrom lmrecipes.recipe import Recipe\n'
    (folder / "recipe.py").write_text("\n\n".join([head, *functions]))
    return folder / "recipe.py"


def made_result(cell: Cell, **metrics: tuple[str, float | None]) -> CellResult:
    """What a cell gave: of each task its headline metric and the value."""
    tasks = {
        task: {"kind": "made", "headline": name, "rows": 10, "loss": 1.0, "metrics": {name: value}}
        for task, (name, value) in metrics.items()
    }
    held = {"weights": 400, "masters": 0, "gradients": 400, "optimizer": 800, "activations": 1000}
    return CellResult(
        cell.variant, dict(cell.overrides), cell.row, cell.recipe.seed, cell.key, tasks=tasks, loss=0.5,
        seconds_per_step=0.25, seconds=1.0, bytes=held, parameters=100, skipped_steps=0,
    )  # fmt: skip


def failed_result(cell: Cell, why: str) -> CellResult:
    """A cell that gave nothing."""
    return CellResult(cell.variant, dict(cell.overrides), cell.row, cell.recipe.seed, cell.key, failed=why)
