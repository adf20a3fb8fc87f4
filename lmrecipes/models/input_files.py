"""Front ends as files of an exported model, and read back.

model/  inputs.safetensors     front ends of our own; of pretrained encoders the projections
        image/, audio/         the encoders themselves, as `transformers` loads them, with their preprocessors'
                               configurations
        heads.json             under `inputs`: what each reads, and how it is cut
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmrecipes.data.inputs import Spec
from lmrecipes.models.encoders import Encoder, save_encoder
from lmrecipes.models.front_ends import front_ends
from lmrecipes.models.inputs import saved_spec
from lmrecipes.models.trunk import Trunk
from lmrecipes.recipe import Model
from lmrecipes.recipe_inputs import MEDIA, Modality

FILE = "inputs.safetensors"
CUT = {"height", "width", "channels", "patch", "overlap"}
"""Settings of our own front ends that their weights do not tell."""


def input_facts(model: Model, specs: Mapping[Modality, Spec]) -> dict[str, Any]:
    """What `heads.json` says of the inputs, JSON-ready. encoder: the name that the recipe gives it, or None."""
    return {
        modality: {
            "spec": asdict(spec),
            "encoder": getattr(model, modality).pretrained,
            "front_end": getattr(model, modality).model_dump(include=CUT),
        }
        for modality, spec in specs.items()
    }


def save_inputs(model: Model, inputs: nn.ModuleDict, weights: dict[str, Tensor], folder: Path) -> None:
    """Write trained front ends. weights: by their names in `inputs`; of an encoder those that were not trained may be
    absent."""
    own = dict(weights)
    for modality in MEDIA:
        if modality not in inputs or not isinstance(module := inputs[modality], Encoder):
            continue
        before = f"{modality}.encoder."
        encoder = {name.removeprefix(before): own.pop(name) for name in weights if name.startswith(before)}
        save_encoder(modality, module, encoder, getattr(model, modality).pretrained, folder / modality)
    if own:
        save_file({name: tensor.contiguous() for name, tensor in own.items()}, folder / FILE)


def load_inputs(saved: Mapping[str, Any], folder: Path, trunk: Trunk) -> dict[Modality, nn.Module]:
    """What `save_inputs` wrote, in fp32 on the CPU. saved: what `input_facts` gave."""
    specs = specs_in(saved)
    settings = {
        modality: {**saved[modality]["front_end"], "pretrained": str(folder / modality)}
        if saved[modality]["encoder"]
        else saved[modality]["front_end"]
        for modality in specs
    }
    found = front_ends(Model.model_validate(settings), specs, trunk, 0)
    if found:
        whole = nn.ModuleDict({str(modality): module for modality, module in found.items()})
        missing, unknown = whole.load_state_dict(load_file(folder / FILE), strict=False)
        if unknown or any(".encoder." not in name for name in missing):
            raise ValueError(f"{folder / FILE} holds other weights than its front ends have")
    return found


def specs_in(saved: Mapping[str, Any]) -> dict[Modality, Spec]:
    """What an exported model reads beside texts, by modality. saved: what `input_facts` gave."""
    return {modality: saved_spec(modality, saved[modality]["spec"]) for modality in MEDIA if modality in saved}
