"""Low-rank adapters (LoRA, DoRA, rsLoRA) by `peft`: which layers get one, and where they start."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lmrecipes.data.permutation import hash_key
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Lora

Layers = dict[str, nn.Module]


def adapt(whole: nn.Module, lora: Lora, seed: int) -> Any:
    """Freeze a model of `transformers` and put adapters beside its linear layers, in place; returns peft's `PeftModel`.

    At the start the model computes what it did before. Raises InputError where the recipe's targets or rank do not fit.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    layers = adapted_layers(whole, lora)
    flipped = [not isinstance(layer, nn.Linear) for layer in layers.values()]
    generates = whole.base_model is not whole
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if generates else TaskType.FEATURE_EXTRACTION,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=_shortest(layers, whole),
        fan_in_fan_out=all(flipped),
        use_dora=lora.dora,
        use_rslora=lora.rslora,
    )
    torch.manual_seed(hash_key(seed, "lora"))
    return get_peft_model(whole, config)


def adapted_layers(whole: nn.Module, lora: Lora) -> Layers:
    """The linear layers that get an adapter, by their names in the whole model.

    All lie in the base model and outside its pooler: the output layer and the heads on pooled texts get none.
    """
    known, problems = _linear_layers(whole), []
    for target in lora.targets:
        if not any(_ends(name, target) for name in known):
            kinds = sorted({name.rpartition(".")[2] for name in known})
            what = f"{target!r} names no linear layer of the trunk.{did_you_mean(target, kinds)}"
            fix = f"name layers by the end of their name: {listing(kinds)}; or leave it empty for all"
            problems.append(Problem("model.lora.targets", what, fix, "lora-targets"))
    chosen = {name: layer for name, layer in known.items() if not lora.targets or _any_ends(name, lora.targets)}
    if not known:
        what = f"{type(whole).__name__} has no linear layers that an adapter could stand beside"
        problems.append(Problem("model.lora.rank", what, "set it to 0, or choose another model", "lora-targets"))
    if small := {name: min(shape_of(layer)) for name, layer in chosen.items() if min(shape_of(layer)) < lora.rank}:
        sizes = listing([f"{name} {size}" for name, size in small.items()], 3)
        what = f"{lora.rank} is above the size of {len(small)} of the layers it adapts ({sizes})"
        fix = f"set it to {min(small.values())} or less, or name larger layers in model.lora.targets"
        problems.append(Problem("model.lora.rank", what, fix, "lora-rank"))
    if problems:
        raise InputError(problems)
    return chosen


def shape_of(layer: nn.Module) -> tuple[int, ...]:
    """Shape of a layer's whole weight, also where ZeRO-3 has partitioned it."""
    weight: Any = layer.weight
    return tuple(getattr(weight, "ds_shape", weight.shape))


def _linear_layers(whole: nn.Module) -> Layers:
    from transformers.pytorch_utils import Conv1D

    base: Any = whole.base_model
    outside = {id(module) for part in (getattr(base, "pooler", None),) if part is not None for module in part.modules()}
    inside = {id(module) for module in base.modules()} - outside
    return {
        name: module
        for name, module in whole.named_modules()
        if id(module) in inside and isinstance(module, (nn.Linear, Conv1D))
    }


def _shortest(layers: Layers, whole: nn.Module) -> list[str]:
    """What `peft` finds exactly these layers by: the last words of their names, or where others end so, the names."""
    words = tuple(sorted({name.rpartition(".")[2] for name in layers}))
    found = {name for name, _ in whole.named_modules() if _any_ends(name, words)}
    return list(words) if found == set(layers) else sorted(layers)


def _ends(name: str, words: str) -> bool:
    return name == words or name.endswith(f".{words}")


def _any_ends(name: str, endings: tuple[str, ...]) -> bool:
    return any(_ends(name, words) for words in endings)
