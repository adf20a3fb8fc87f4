"""A finished run of the tiny BERT with three trained-looking heads, made without training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tiny import make_recipe

from lmrecipes.data.encode import encode_tasks
from lmrecipes.files import write_json
from lmrecipes.models.heads import head_spec
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import RunFolder, recipe_yaml


def make_run(tiny: Path, folder: Path, seed: int = 1, **changes: Any) -> RunFolder:
    """The run in `folder`, on the data of `tiny`. Heads fit the data in no way, but answers of all kinds differ by
    row."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel

    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    recipe = Recipe.model_validate(make_recipe(tiny, **{"evaluation.micro_examples": 8, **changes}))
    run.recipe.write_text(recipe_yaml(recipe))
    tasks = encode_tasks(recipe)
    specs = {n: head_spec(t.task.kind, t.labels, t.train.targets, t.task.loss) for n, t in tasks.items()}
    shutil.copytree(tiny / "model", run.model)
    hidden = AutoModel.from_pretrained(tiny / "model").config.hidden_size
    torch.manual_seed(seed)
    weights = {}
    for name, spec in specs.items():
        weights[f"{name}.linear.weight"] = torch.randn(spec.outputs, hidden)
        weights[f"{name}.linear.bias"] = torch.randn(spec.outputs)
    save_file(weights, run.model / "heads.safetensors")
    facts = {"pooling": "mean", "max_length": 48, "compute": "fp32", "autocast": True, "weights": "fp32"}
    write_json(run.model / "heads.json", {**facts, "tasks": {n: s.as_dict() for n, s in specs.items()}})
    return run
