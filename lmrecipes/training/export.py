"""The exported model: a folder that plain `transformers` loads, verified against the live model before it appears.

model/  config.json model*.safetensors     `AutoModelForCausalLM.from_pretrained("model")` where a task is of tokens,
        generation_config.json             else `AutoModel`; adapters are merged into it
        tokenizer files                    `AutoTokenizer.from_pretrained("model")`
        heads.json heads.safetensors       tasks and labels, pooling; one linear head for each task that has its own
        inputs.safetensors image/ audio/   front ends, where tasks read images or audio (`models/input_files.py`)
        adapter/                           `PeftModel.from_pretrained(base, "model/adapter")` where there are adapters

A multi-layer perceptron (`model.mlp`) is no model of `transformers`: its config.json and model.safetensors are read by
lmrecipes alone, and there is no tokenizer.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmrecipes.assets import hub_name, resolve_model
from lmrecipes.data.inputs import Specs
from lmrecipes.data.tokenizer import load_tokenizer
from lmrecipes.files import write_json
from lmrecipes.inference.exported import load_exported
from lmrecipes.models.acceleration import use_liger
from lmrecipes.models.heads import HeadSpec
from lmrecipes.models.input_files import input_facts, save_inputs
from lmrecipes.models.saving import load_adapted, load_whole, merged_weights, save_adapter, save_whole, turn_end
from lmrecipes.models.trunk import Trunk
from lmrecipes.problems import InputError, RunFailed
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import replace_folder
from lmrecipes.training.engine import Engine
from lmrecipes.training.mixed_examples import MixedOutputs
from lmrecipes.training.verification import TOLERANCE, TOLERANCE_ELSEWHERE, deviation, require, text_of

HEADS, INPUTS = "heads.", "inputs."
ADAPTER = "adapter"
ANYWHERE = "sdpa"
"""Attention that computes on every device and in every dtype."""


def export_model(
    engine: Engine, recipe: Recipe, specs: dict[str, HeadSpec], tokenizer: str | None, folder: Path,
    inputs: Specs | None = None,
) -> None:  # fmt: skip
    """Write the live model's fp32 weights; every rank takes part. The folder is complete and verified, or as before.

    tokenizer: the one that the run was trained with, if any, as `load_tokenizer` takes it. inputs: what it reads beside
    texts. Raises RunFailed, on every rank, where the model cannot be written or where what was written is not the live
    model.
    """
    trunk: Trunk = engine.module.trunk
    names, whole, heads, front_ends = engine.module.saved_names(), {}, {}, {}
    for name, tensor in engine.full_parameters(trained_only=trunk.adapted is not None):
        if not engine.is_main:
            continue
        if name.startswith(HEADS):
            heads[name.removeprefix(HEADS)] = tensor
        elif name.startswith(INPUTS):
            front_ends[name.removeprefix(INPUTS)] = tensor
        else:
            whole[names[name]] = tensor
    ids = text_of(trunk.whole.config.get_text_config().vocab_size, recipe.longest_text, trunk.exactly)
    failure = None
    with engine.uniformly():  # what is saved knows nothing of formats by layer
        with torch.compiler.set_stance("force_eager"):  # nor is it compiled
            live = engine.outputs(ids)
            mixed = MixedOutputs.of(engine, inputs, recipe) if inputs else None
        if engine.is_main:
            try:
                with engine.loading_whole():
                    export = _Export(engine, recipe, specs, tokenizer, trunk, mixed)
                    export.write(whole, heads, front_ends, ids, live, folder)
            except (InputError, OSError, RuntimeError, ValueError, RunFailed) as error:
                failure = f"the model was not exported: {error}"
    failure = engine.broadcast(failure)
    if failure is not None:
        raise RunFailed(failure)


@dataclass(frozen=True)
class _Export:
    """What rank 0 does."""

    engine: Engine
    recipe: Recipe
    specs: dict[str, HeadSpec]
    tokenizer: str | None
    trunk: Trunk
    mixed: MixedOutputs | None

    def write(
        self, whole: dict[str, Tensor], heads: dict[str, Tensor], front_ends: dict[str, Tensor], ids: list[int],
        live: Tensor, folder: Path,
    ) -> None:  # fmt: skip
        """Write, verify, then publish. whole: the trained weights by their names in the model."""
        partial = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            if self.trunk.adapted is not None:
                save_adapter(self.trunk.adapted, whole, self.base, partial / ADAPTER)
                whole = merged_weights(self.base_at, partial / ADAPTER, self.language)
            else:
                whole |= self.trunk.unused
            ends: list[int] = []
            if self.tokenizer is not None:
                tokenizer = load_tokenizer(self.tokenizer, self.recipe.model.chat_template)
                tokenizer.save_pretrained(partial)
                ends = self.ends(tokenizer)
            save_whole(self.trunk.whole, whole, partial, ends)
            whole.clear()
            if heads:
                save_file({name: tensor.contiguous() for name, tensor in heads.items()}, partial / "heads.safetensors")
            if front_ends:
                save_inputs(self.recipe.model, self.engine.module.inputs, front_ends, partial)
            facts = self.facts()
            write_json(partial / "heads.json", facts)
            write_json(partial / "heads.json", {**facts, "verified": self.verify(partial, ids, live)})
            replace_folder(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @property
    def language(self) -> bool:
        """Whether the model has a language-model head."""
        return any(spec.of_tokens for spec in self.specs.values())

    @property
    def base_at(self) -> str:
        """Where the model that the run started from can be loaded here."""
        return resolve_model(self.recipe.model.pretrained)

    @property
    def base(self) -> str:
        """Its name elsewhere."""
        return hub_name(self.recipe.model.pretrained) or self.recipe.model.pretrained

    def ends(self, tokenizer: Any) -> list[int]:
        """Tokens at which generation is to stop: those that ended the texts and the turns that it was trained on."""
        ends = [tokenizer.eos_token_id] if self.language and tokenizer.eos_token_id is not None else []
        if any(spec.kind == "chat" for spec in self.specs.values()):
            ends += turn_end(tokenizer)
        return ends

    def facts(self) -> dict[str, Any]:
        """What is needed to use the model, besides its weights."""
        return {
            "pooling": self.recipe.model.pooling,
            "max_length": self.recipe.longest_text,
            "compute": self.recipe.precision.compute,
            "autocast": not self.engine.holds_half,
            "weights": "fp32",
            **({"average_of_updates": average.updates} if (average := self.engine.average) is not None else {}),
            "tasks": {name: spec.as_dict() for name, spec in self.specs.items()},
            **({"inputs": input_facts(self.recipe.model, self.mixed.specs)} if self.mixed is not None else {}),
        }

    def verify(self, partial: Path, ids: list[int], live: Tensor) -> dict[str, Any]:
        """Compare what `transformers` and `peft` load with the live model: the adapter beside its base, else the whole
        model, in the run's arithmetic (by layer: in that of its weights); the merged model with the adapter in fp32,
        where merging rounds nothing."""
        home, dtype = self.engine.device, self.engine.compute_dtype
        at_home = _has_room(home, self.trunk)
        place = home if at_home else torch.device("cpu")
        most = (TOLERANCE if at_home else TOLERANCE_ELSEWHERE)[dtype]
        own = replace(self.engine.arithmetic, device=place)
        attention = self.trunk.choice.native if at_home else ANYWHERE
        found = {}
        if self.trunk.adapted is not None:
            model = load_adapted(self.base_at, partial / ADAPTER, self.language, ANYWHERE)
            base = model.get_base_model()
            self.accelerate(base, at_home)
            wanted = own.in_fp32.outputs(model, ids)
            base.set_attn_implementation(attention)
            found[ADAPTER] = deviation(own.outputs(model, ids), live)
            require("the saved adapter", found[ADAPTER], most)
            live, own, most, attention = wanted, own.in_fp32, TOLERANCE[torch.float32], ANYWHERE
            del model, base
        model = load_whole(partial, self.language, attention)
        self.accelerate(model, at_home)
        found["model"] = deviation(own.outputs(model, ids), live)
        require("the saved model", found["model"], most)
        if self.mixed is not None:
            del model
            own = replace(self.engine.arithmetic, device=place)
            alike = at_home and self.trunk.adapted is None  # merging rounds in 16 bits
            of_inputs = (TOLERANCE if alike else TOLERANCE_ELSEWHERE)[dtype]
            found["inputs"] = self.mixed.deviation(load_exported(partial).model, own)
            require("the saved model with its front ends", found["inputs"], of_inputs)
        return {"tokens": len(ids), "deviation": found, "tolerance": most}

    def accelerate(self, model: Any, at_home: bool) -> None:
        """Give a model that was read back the kernels of the live one."""
        if at_home:
            use_liger(model, self.recipe.model.liger, self.engine.device)


def _has_room(device: torch.device, trunk: Trunk) -> bool:
    """Whether an fp32 copy of the model fits beside the live one."""
    if device.type == "cpu":
        return True
    torch.cuda.empty_cache()
    count = sum(getattr(p, "ds_numel", p.numel()) for p in trunk.whole.parameters())
    return bool(torch.cuda.mem_get_info(device)[0] > 1.2 * 4 * count)
