"""An exported model read back: the trunk, the language-model head and the heads of the other tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from lmrecipes.data.inputs import Spec
from lmrecipes.models.heads import HeadSpec
from lmrecipes.models.input_files import load_inputs, specs_in
from lmrecipes.models.loading import load_trunk
from lmrecipes.models.mlp import MlpTrunk, is_perceptron, load_perceptron
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.models.trunk import Trunk
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Modality, Model


@dataclass(frozen=True)
class ExportedModel:
    """A model read back, in fp32 on the CPU, with what is needed to use it.

    compute, autocast: the arithmetic that it was trained in; autocast: fp32 weights cast at each product. Of formats by
    layer nothing is kept: such a model predicts in what all its other modules were computed in. inputs: what it reads
    beside texts.
    """

    model: MultiTaskModel
    specs: dict[str, HeadSpec]
    max_length: int
    compute: str
    autocast: bool
    inputs: dict[Modality, Spec]


def load_exported(folder: Path) -> ExportedModel:
    """Read a folder that `export_model` wrote. Raises InputError where it is none."""
    missing = [file for file in ("config.json", "heads.json") if not (folder / file).is_file()]
    if missing:
        raise not_exported(folder, missing)
    saved = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
    specs = {name: HeadSpec.from_dict(spec) for name, spec in saved["tasks"].items()}
    heads, own = folder / "heads.safetensors", [spec for spec in specs.values() if not spec.of_tokens]
    if own and not heads.is_file():
        raise not_exported(folder, [heads.name])
    half, language = saved["compute"] != "fp32", len(own) < len(specs)
    if is_perceptron(folder):
        trunk: Trunk = MlpTrunk(load_perceptron(folder))
    else:
        model = Model(pretrained=str(folder), pooling=saved["pooling"], max_length=saved["max_length"])
        trunk = load_trunk(model, 0, "auto", half, language)  # the attention of a run in the default layout
    inputs = saved.get("inputs", {})
    whole = MultiTaskModel(trunk, specs, load_inputs(inputs, folder, trunk))
    if own:
        whole.heads.load_state_dict(load_file(heads))
    return ExportedModel(
        whole.eval(), specs, saved["max_length"], saved["compute"], saved["autocast"], specs_in(inputs)
    )


def not_exported(folder: Path, missing: list[str]) -> InputError:
    """A folder without a finished run's model."""
    what, fix = f"not an exported model: no {', '.join(missing)}", "name a run that has finished"
    return InputError(Problem(str(folder), what, fix, "model-missing"))
