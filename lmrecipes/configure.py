"""`lmrecipes configure`: writes launch pairs for a recipe and a machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.launch_pair import (
    Stage,
    launch_pair,
    pair_name,
    standard_pairs,
    write_ddp_yaml,
    write_pair,
)
from lmrecipes.planning.pair_precision import PairWord, pair_word
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe


@dataclass(frozen=True)
class ConfigureOptions:
    """Flags of `lmrecipes configure`."""

    hardware: str | None = None
    """For example 2xcpu or 8xA100-80GB. None: this machine."""
    zero: Stage = 2
    """ZeRO stage."""
    word: Annotated[PairWord | None, tyro.conf.arg(name="precision")] = None
    """fp32, bf16, fp16 or pure_bf16 (no fp32 master weights). None: the recipe's own."""
    offload: bool = False
    """Optimizer states (and at stage 3 the parameters) in the host's memory."""
    write: Path | None = None
    """The folder. None: the recipe's own."""
    all: bool = False
    """Every standard pair and ddp.yaml, as in the recipes of this repository."""


def configure(recipe: Recipe, own_folder: Path | None, options: ConfigureOptions) -> list[Path]:
    """Write a pair, or all; returns the files. own_folder: the recipe's. Raises InputError where the hardware has no
    such arithmetic."""
    from lmrecipes.machine import this_machine

    hardware = Hardware.parse(options.hardware) if options.hardware else this_machine()
    folder = options.write or own_folder or Path()
    one = options.zero, options.word or pair_word(recipe.precision), options.offload
    pairs = standard_pairs(recipe.precision) if options.all else (one,)
    chosen = [pair for pair in pairs if not hardware.why_not(pair[1])]
    if not chosen:
        why = hardware.why_not(one[1])
        raise InputError(Problem("--precision", why, "name another --precision or --hardware", "precision-hw"))
    processes, device = hardware.processes, hardware.device
    written: list[Path] = []
    for zero, word, offload in chosen:
        json_path = _shown(folder / f"{pair_name(zero, word, offload)}.json")
        written += write_pair(launch_pair(recipe, zero, word, processes, device, offload, json_path=json_path), folder)
    if options.all:
        written.append(write_ddp_yaml(processes, device, folder))
    return written


def _shown(path: Path) -> str:
    """A path as the launch file names it: relative to the working directory where it lies below it."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(resolved)
