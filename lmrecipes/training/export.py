"""The exported model: a folder whose trunk plain `transformers` loads, with the heads beside it.

model/  config.json model.safetensors   the trunk: `AutoModel.from_pretrained("model")`
        tokenizer files                 `AutoTokenizer.from_pretrained("model")`
        heads.safetensors heads.json    one linear head per task, label names, pooling
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from lmrecipes.assets import resolve_model
from lmrecipes.data.encode import load_tokenizer
from lmrecipes.files import write_json
from lmrecipes.models.heads import HeadSpec
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.models.trunk import load_trunk
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Model, Recipe
from lmrecipes.run_folder import replace_folder
from lmrecipes.training.engine import Engine

TRUNK, HEADS = "trunk.model.", "heads."


@dataclass(frozen=True)
class ExportedModel:
    """A model read back, in fp32 on the CPU, with what is needed to use it.

    compute, autocast: the arithmetic that it was trained in; autocast: fp32 weights cast at each product.
    """

    model: MultiTaskModel
    specs: dict[str, HeadSpec]
    max_length: int
    compute: str
    autocast: bool


def export_model(engine: Engine, recipe: Recipe, specs: dict[str, HeadSpec], folder: Path) -> None:
    """Write the live model's fp32 weights. Every rank takes part; the folder is complete or absent."""
    weights = {name: tensor for name, tensor in engine.full_parameters() if engine.is_main}
    if not engine.is_main:
        return
    partial = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    trunk = engine.module.trunk
    config = trunk.model.config
    config.architectures = [type(trunk.model).__name__]
    config.save_pretrained(partial)
    save_file({**_under(weights, TRUNK), **_contiguous(trunk.unused)}, partial / "model.safetensors", {"format": "pt"})
    save_file(_under(weights, HEADS), partial / "heads.safetensors", {"format": "pt"})
    write_json(
        partial / "heads.json",
        {
            "pooling": recipe.model.pooling,
            "max_length": recipe.model.max_length,
            "compute": recipe.precision.compute,
            "autocast": not engine.holds_half,
            "tasks": {name: spec.as_dict() for name, spec in specs.items()},
        },
    )
    load_tokenizer(resolve_model(recipe.model.pretrained)).save_pretrained(partial)
    replace_folder(partial, folder)


def load_exported(folder: Path) -> ExportedModel:
    """Read a folder that `export_model` wrote. Raises InputError where it is none."""
    missing = [
        f for f in ("config.json", "model.safetensors", "heads.json", "heads.safetensors") if not (folder / f).is_file()
    ]
    if missing:
        raise InputError(
            Problem(
                str(folder),
                f"not an exported model: no {', '.join(missing)}",
                "name a run that has finished",
                "model-missing",
            )
        )
    saved = json.loads((folder / "heads.json").read_text())
    specs = {name: HeadSpec.from_dict(spec) for name, spec in saved["tasks"].items()}
    model = Model(pretrained=str(folder), pooling=saved["pooling"], max_length=saved["max_length"])
    trunk = load_trunk(model, 0, "auto", saved["compute"] != "fp32")  # the attention of a run in the default layout
    whole = MultiTaskModel(trunk, specs)
    whole.heads.load_state_dict(load_file(folder / "heads.safetensors"))
    return ExportedModel(whole.eval(), specs, saved["max_length"], saved["compute"], saved["autocast"])


def _under(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return _contiguous({name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)})


def _contiguous(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors stores no shared memory: every tensor gets its own."""
    as_stored = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in as_stored.items()}
