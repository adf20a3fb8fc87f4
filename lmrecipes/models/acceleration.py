"""What saves memory or time and changes no result: activation checkpointing, compiled layers, Liger's kernels."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from lmrecipes.models.attention import KERNEL, blocks_attention
from lmrecipes.problems import InputError, Problem


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only the input of each layer of a model of `transformers`; the backward pass computes the layer again.

    Raises InputError where the model cannot. Not reentrant: works with frozen embeddings and within DDP and ZeRO 1-3.
    """
    whole: Any = model
    if not whole.supports_gradient_checkpointing:
        what = f"{type(model).__name__} does not support it"
        raise InputError(Problem("model.activation_checkpointing", what, "set it to false", "activation-checkpointing"))
    whole.activation_checkpointing_enable({"use_reentrant": False})
    whole.disable_input_require_grads()  # only reentrant checkpoints need inputs with a gradient


def compile_layers(model: nn.Module) -> None:
    """Compile the parts of each layer (attention, feed-forward, norms), in place: names of parameters stay, equal parts
    share what was compiled.

    Parts and not whole layers, because `torch.utils.checkpoint` switches compilation off for what it runs, but not for
    what is already compiled inside. Our attention stays as it is: its Python differs with every micro-batch's shapes.
    """
    from transformers import AttentionInterface
    from transformers.modeling_layers import GradientCheckpointingLayer

    AttentionInterface.register(KERNEL, torch.compiler.disable(blocks_attention))
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            for part in layer.children():
                part.compile()


def use_liger(whole: nn.Module, setting: Literal["auto", "on", "off"], device: torch.device) -> str:
    """Put Liger's Triton kernels in place of this model's norms and gates; returns a line for the log.

    Liger would also put them into the module of `transformers` that defines the model, for every model that the process
    makes from then on, on CPUs too, where they cannot run: that is taken back, and its rotary positions, which exist
    there alone, stay out. So does its cross-entropy: the chunked one is used. Raises InputError where Liger is asked
    for and cannot be had.
    """
    missing, fix = None, "set it to auto"
    if device.type != "cuda":
        missing = f"its kernels need a CUDA device, and this run computes on {device.type}"
    elif find_spec("liger_kernel") is None:
        missing, fix = "the package is not installed", "pip install liger-kernel, or set it to auto"
    if setting == "on" and missing is not None:
        raise InputError(Problem("model.liger", missing, fix, "liger"))
    if not hasattr(whole, "base_model"):
        return "no Liger kernels (not a model of transformers)"
    if setting == "off" or missing is not None:
        why = "switched off" if setting == "off" else "not installed" if device.type == "cuda" else "no CUDA device"
        return f"no Liger kernels ({why})"
    from transformers.integrations.liger import apply_liger_kernel

    module, before = vars(sys.modules[type(whole).__module__]), _forwards(whole)
    kept = dict(module)
    apply_liger_kernel(whole, {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False})
    module.update(kept)
    changed = sorted({kind for kind, at in _forwards(whole).items() if before.get(kind) != at})
    return f"Liger kernels in {', '.join(changed)}" if changed else f"no Liger kernels for {type(whole).__name__}"


def _forwards(whole: nn.Module) -> dict[str, set[int]]:
    """The functions that modules of each class run."""
    found: dict[str, set[int]] = {}
    for module in whole.modules():
        found.setdefault(type(module).__name__, set()).add(id(getattr(module.forward, "__func__", module.forward)))
    return found
