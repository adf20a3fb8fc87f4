"""A teacher that was never trained: it says the same of every row, whatever the row and its labels are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tiny import make_recipe

from lmrecipes.data.encode import encode_tasks
from lmrecipes.files import write_json
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import RunFolder, recipe_yaml
from lmrecipes.training.losses import head_specs

SAYS = {"short": [2.5], "long": [0.0, 3.0, -1.0], "rare": [2.0, -2.0, 0.5]}
"""By task of `tiny.make_recipe`: what its head puts out (of the regression in deviations from the mean)."""


def plant(folder: Path, tiny: Path, **changes: Any) -> RunFolder:
    """The run folder of a teacher of the tasks of `tiny.make_recipe`."""
    import torch
    from safetensors.torch import save_file

    recipe = Recipe.model_validate(make_recipe(tiny, **changes))
    specs = head_specs(encode_tasks(recipe))
    run = RunFolder(folder)
    shutil.copytree(tiny / "model", run.model)
    run.recipe.write_text(recipe_yaml(recipe))
    weights = {}
    for name, bias in SAYS.items():
        weights |= {f"{name}.linear.weight": torch.zeros(len(bias), 32), f"{name}.linear.bias": torch.tensor(bias)}
    save_file(weights, run.model / "heads.safetensors")
    facts = {"pooling": "mean", "max_length": 48, "compute": "fp32", "autocast": True, "weights": "fp32"}
    write_json(run.model / "heads.json", {**facts, "tasks": {name: spec.as_dict() for name, spec in specs.items()}})
    return run
