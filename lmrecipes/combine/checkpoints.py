"""The weights of a run at its checkpoints, as exported models: what is averaged over the end of a run.

An average of the last checkpoints is stochastic weight averaging (arXiv 1803.05407) under the run's own schedule.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmrecipes.assets import resolve_model
from lmrecipes.combine.soup import NOT_KEPT
from lmrecipes.data.tokenizer import tokenizer_of
from lmrecipes.inference.exported import load_exported
from lmrecipes.models.input_files import save_inputs
from lmrecipes.models.loading import load_trunk
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.models.saving import merged_weights, save_adapter, save_whole
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.run_folder import RunFolder
from lmrecipes.training.checkpoint import complete_checkpoints
from lmrecipes.training.export import ADAPTER, HEADS, INPUTS


def checkpoint_runs(run: RunFolder, most: int, to: Path) -> list[RunFolder]:
    """The run as it stood at each of its last checkpoints, oldest first, in new folders `to`/step-N. Raises InputError
    where there is none."""
    found = complete_checkpoints(run.checkpoints, most)
    if not found:
        fix = "set checkpoint.every and checkpoint.keep, and train again"
        raise InputError(Problem(str(run.checkpoints), "no complete checkpoint to average", fix, "combine-checkpoints"))
    runs = []
    for checkpoint in reversed(found):
        before = RunFolder(to / checkpoint.name)
        before.path.mkdir()
        shutil.copy2(run.recipe, before.recipe)
        export_checkpoint(run, checkpoint, before.model)
        runs.append(before)
    return runs


def weights_in(checkpoint: Path) -> dict[str, Tensor]:
    """The trained weights of a checkpoint by their names in `MultiTaskModel`, in fp32 where it holds fp32 masters.

    Of DeepSpeed's the partitions of all ranks are put together.
    """
    single = checkpoint / "engine.pt"
    if single.is_file():
        weights: dict[str, Tensor] = torch.load(single, map_location="cpu", weights_only=True)["model"]
        return weights
    if json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["fits_to"]["ZeRO stage"] == 0:
        states = checkpoint / "engine" / "mp_rank_00_model_states.pt"  # nothing is partitioned
        weights = torch.load(states, map_location="cpu", weights_only=False)["module"]  # the user's own run
        return weights
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return dict(get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), "engine"))


def export_checkpoint(run: RunFolder, checkpoint: Path, to: Path) -> None:
    """Write what the run would have exported at a checkpoint into the new folder `to`; adapters are merged."""
    recipe = recipe_from_yaml(run.recipe)
    model = _model_of(run, recipe)
    weights = weights_in(checkpoint)
    known, names = dict(model.state_dict()), model.saved_names()
    if unknown := sorted(name for name in weights if name not in known):
        what = f"is of another model: it holds {unknown[0]}"
        raise InputError(Problem(str(checkpoint), what, "combine whole runs", "combine-checkpoints"))
    model.load_state_dict({name: weights.get(name, tensor) for name, tensor in known.items()})
    shutil.copytree(run.model, to, ignore=shutil.ignore_patterns(*NOT_KEPT))
    state = model.state_dict()
    heads = {name.removeprefix(HEADS): tensor for name, tensor in state.items() if name.startswith(HEADS)}
    whole = {names[name]: tensor for name, tensor in state.items() if name in names}
    if model.trunk.adapted is not None:
        trained = {names[name]: state[name] for name in weights if name in names}
        base = resolve_model(recipe.model.pretrained)
        save_adapter(model.trunk.adapted, trained, base, to / ADAPTER)
        whole = merged_weights(base, to / ADAPTER, model.language is not None)
        shutil.rmtree(to / ADAPTER)
    else:
        whole |= model.trunk.unused
    save_whole(model.trunk.whole, whole, to)
    front_ends = {name.removeprefix(INPUTS): tensor for name, tensor in state.items() if name.startswith(INPUTS)}
    if front_ends:
        save_inputs(recipe.model, model.inputs, front_ends, to)
    if heads:
        save_file({name: tensor.contiguous() for name, tensor in heads.items()}, to / "heads.safetensors")


def _model_of(run: RunFolder, recipe: Recipe) -> Any:
    """The run's model with the names that its checkpoints know."""
    exported = load_exported(run.model)
    if not recipe.model.lora.rank:
        return exported.model
    language = any(spec.of_tokens for spec in exported.specs.values())
    half = recipe.precision.half
    trunk = load_trunk(recipe.model, recipe.seed, "padded", half, language, tokenizer_of(recipe))
    return MultiTaskModel(trunk, exported.specs, dict(exported.model.inputs.items()))  # type: ignore[arg-type]
