"""What a launch pair says of precision: one word in its name, a few sections in its JSON, and what it cannot say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lmrecipes.recipe import Precision

PairWord = Literal["fp32", "bf16", "fp16", "pure_bf16"]
"""pure_bf16: weights, gradients and optimizer states in bf16, without fp32 master weights."""

WORDS: tuple[PairWord, ...] = get_args(PairWord)


def pair_word(precision: Precision) -> PairWord:
    """The word of the pairs that this precision runs with. Formats by layer stand on fp32 weights."""
    return "pure_bf16" if precision.pure else precision.section


def word_in_name(name: str) -> PairWord | None:
    """The word in a pair's name (`zero2_pure_bf16_offload`), or None (`ddp`)."""
    longest_first = sorted(WORDS, key=len, reverse=True)
    return next((word for word in longest_first if f"_{word}_" in f"_{name}_"), None)


def precision_of(precision: Precision, word: PairWord) -> Precision:
    """What a pair of this word is written for: the recipe's own precision where that is its word, else a plain one."""
    if pair_word(precision) == word:
        return precision
    return Precision(compute="bf16", master_weights="none") if word == "pure_bf16" else Precision(compute=word)


def precision_settings(zero: int, precision: Precision) -> dict[str, Any]:
    """The precision sections of a DeepSpeed JSON, all of them stated: Accelerate adds what it misses.

    fp32 accumulation and communication keep the accumulated gradient within 1e-6 of exact; DeepSpeed's default for bf16
    is 1% off at 64 micro-batches. bf16 at stage 0 is torch's autocast: DeepSpeed's own takes an empty Adam step first.
    """
    section = precision.section
    settings: dict[str, Any] = {"bf16": {"enabled": False}, "fp16": {"enabled": False}}
    if section == "bf16" and zero == 0:
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        return settings | ({"communication_data_type": precision.reduced} if precision.reduced != "fp32" else {})
    if section == "bf16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
    if precision.pure:
        settings["bf16"] |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    if section == "fp16":
        settings["fp16"] = {
            "enabled": True,
            "auto_cast": False,
            **loss_scale_settings(precision),
            "hysteresis": 1,
            "consecutive_hysteresis": False,
            "min_loss_scale": 1,
        }
    accumulation = {"data_types": {"grad_accum_dtype": precision.accumulated}}
    return {**settings, **accumulation, "communication_data_type": precision.reduced}


def loss_scale_settings(precision: Precision) -> dict[str, Any]:
    """The keys of DeepSpeed's fp16 section that the recipe's loss scaling decides; `loss_scale` 0 is dynamic."""
    scaling = precision.loss_scaling
    return {
        "loss_scale": 0 if scaling.kind == "dynamic" else scaling.initial,
        "initial_scale_power": int(math.log2(scaling.initial)),
        "loss_scale_window": scaling.growth_interval,
    }


@dataclass(frozen=True)
class Limit:
    """Why an engine cannot run a precision. field: of the recipe; path: in the JSON."""

    id: str
    field: str
    path: str
    what: str
    fix: str


LIMITS = ("pure-zero0", "pure-offload", "pure-accumulation", "accumulation-dtype")
"""Ids of all limits."""


def limits(precision: Precision, zero: int | None, offload: bool = False) -> Iterator[Limit]:
    """What keeps the precision from running at a ZeRO stage. zero: None without DeepSpeed.

    As DeepSpeed 0.19.8 does it: it refuses bf16 master weights at stage 0; with fp32 accumulation at stage 1 it takes
    `BF16_Optimizer`, which keeps fp32 masters whatever is asked; offloaded, it wants its own DeepSpeedCPUAdam.
    """
    stage, accumulation = "zero_optimization.stage", "data_types.grad_accum_dtype"
    if precision.pure and zero == 0:
        what = "without fp32 master weights DeepSpeed needs stage 1, 2 or 3"
        yield Limit("pure-zero0", "precision.master_weights", stage, what, "use one of them, or run without DeepSpeed")
    if precision.pure and offload:
        what = "bf16 weights are offloaded with DeepSpeed's own Adam alone, which rounds every update to nearest"
        fix = "leave offload out, or set precision.master_weights to fp32"
        offloaded = "zero_optimization.offload_optimizer"
        yield Limit("pure-offload", "precision.master_weights", offloaded, what, fix)
    if precision.pure and zero == 1 and precision.accumulated == "fp32":
        what = "at stage 1 DeepSpeed answers fp32 accumulation with fp32 master weights, which the recipe says are none"
        fix = "use stage 2 or 3, or set precision.accumulation to bf16"
        yield Limit("pure-accumulation", "precision.accumulation", accumulation, what, fix)
    held = "bf16" if precision.pure else "fp32"
    if zero in (None, 0) and not (precision.pure and zero == 0) and precision.accumulated != held:
        engine = "plain torch" if zero is None else "ZeRO stage 0"
        what = f"{engine} sums gradients in the dtype of the weights, {held}, found {precision.accumulated}"
        fix = "set precision.accumulation to auto, or use ZeRO stage 1, 2 or 3"
        yield Limit("accumulation-dtype", "precision.accumulation", accumulation, what, fix)
