"""The part of a recipe that says in which number formats a run computes, and in which it keeps its numbers."""

from __future__ import annotations

from math import frexp
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmrecipes.recipe_types import Broken, Config, Count, Fraction, Positive, require

Compute = Literal["fp32", "bf16", "fp16"]
LayerFormat = Literal["fp32", "bf16", "fp16", "fp8", "fp8_e4m3", "fp8_e5m2"]

SKIPS_WHILE_SCALING = 50
"""Steps in a row that dynamic loss scaling may skip: from 2**16 to 1 it needs 17."""
SKIPS_OTHERWISE = 3


class LossScaling(Config):
    """How the loss of an fp16 run is scaled, so that its gradients are not lost as zeros."""

    kind: Literal["dynamic", "static"] = "dynamic"
    """dynamic: halved where gradients overflow, doubled after `growth_interval` steps without. static: always
    `initial`."""
    initial: Positive = 65536.0
    """The scale at the start; a power of two."""
    growth_interval: Count = 1000
    """Steps without overflow before the scale is doubled."""

    @model_validator(mode="after")
    def _power_of_two(self) -> Self:
        if self.initial < 1 or frexp(self.initial)[0] != 0.5:
            what = f"the scale is a power of two of 1 or more, found {self.initial:g}"
            require([Broken("initial", what, "write 65536, 1024 or another power of two")])
        return self


class Change(Config):
    """From some step on, layers compute in other formats."""

    at: Fraction
    """Where in the run, as a share of its steps: 0.8 is after 80% of them."""
    layers: Annotated[dict[str, LayerFormat], Field(min_length=1)]
    """Rules that come after those in force, as `precision.layers`."""


class Raising(Config):
    """Layers whose numbers do not fit their format are raised during training: fp8 to bf16, bf16 and fp16 to fp32. All
    ranks decide alike, from what all of them have seen; a layer is never lowered again."""

    overflows: Annotated[int, Field(ge=0)] = 0
    """Raise a layer after so many measured steps in which its values overflowed. 0: never for that. Rows of fp8 numbers
    are scaled to fit, so that this is for fp16."""
    underflow: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Raise a layer whose share of values that are lost as zeros passes this in `streak` measurements in a row. 1:
    never for that."""
    streak: Count = 3
    """Measurements in a row, so that one odd batch raises nothing."""
    every: Count = 10
    """Steps between two measurements. The step after a skipped one is measured too."""
    to: Literal["next", "fp32"] = "next"
    """next: the next higher format. fp32: at once."""

    @property
    def on(self) -> bool:
        """Whether any layer can be raised."""
        return self.overflows > 0 or self.underflow < 1


class Precision(Config):
    """The only place where precision is said; launch files must agree."""

    compute: Compute = "bf16"
    """dtype of the matrix products, where no rule of `layers` says another."""
    master_weights: Literal["fp32", "none"] = "fp32"
    """fp32: weights and optimizer states are kept in fp32 whatever the products are computed in. none: weights,
    gradients and optimizer states are all in bf16, half of the memory; see `rounding`."""
    rounding: Literal["nearest", "stochastic", "kahan"] = "nearest"
    """How an update enters bf16 weights (only with `master_weights: none`). nearest: updates smaller than half a unit
    of the weight's last place are lost. stochastic: rounded up or down by chance, right on average. kahan: what
    was lost is kept in a second bf16 number and added later (2 bytes more a parameter)."""
    layers: dict[str, LayerFormat] = Field(default_factory=dict)
    """Formats of single layers: shell patterns of modules' names, the last that matches a module or one that holds it
    decides: `{"*": fp8, "encoder.layer.0": bf16, "heads.*": fp32}`. Names are those of the trunk (`encoder.layer.0`),
    `heads.TASK` and `language`. fp32 and bf16 hold for all that a module computes, fp16 and fp8 for its products with
    weights; what a product gives has the dtype of the module that holds it. fp8 is E4M3 forward and E5M2 for
    gradients."""
    changes: tuple[Change, ...] = ()
    """Other formats from some step on."""
    raising: Raising = Raising()
    """Layers that are raised when their numbers do not fit."""
    fp8: Literal["auto", "native", "emulated"] = "auto"
    """Products in fp8: by the hardware, or rounded to fp8 and multiplied in `compute`. auto: native where there is
    hardware for it (compute capability 8.9), else emulated."""
    accumulation: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """dtype in which gradients are summed over micro-batches. auto: fp32 with fp32 master weights, else bf16."""
    reduction: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """dtype in which gradients are summed over ranks. auto: as `accumulation`."""
    loss_scaling: LossScaling = LossScaling()
    """Of a run that computes in fp16."""
    most_skipped: Count | None = None
    """Steps in a row that may be skipped because gradients are not finite; then the run stops and names the cause.
    None: 50 with dynamic loss scaling, else 3."""

    @property
    def by_layer(self) -> bool:
        """Whether layers have formats of their own: then each layer sees to its own arithmetic, on any engine."""
        return bool(self.layers or self.changes)

    @property
    def pure(self) -> bool:
        """Whether there are no fp32 master weights."""
        return self.master_weights == "none"

    @property
    def half(self) -> bool:
        """Whether all of a model computes in 16 bits: some attention kernels know nothing else."""
        return self.compute != "fp32" and (self.pure or not self.by_layer)

    @property
    def section(self) -> Compute:
        """What the DeepSpeed JSON must say: formats by layer stand on fp32 weights, unless there are none."""
        return "fp32" if self.by_layer and not self.pure else self.compute

    @property
    def accumulated(self) -> Compute:
        """dtype in which gradients are summed over micro-batches."""
        if self.accumulation != "auto":
            return self.accumulation
        return self.compute if self.pure else "fp32"

    @property
    def reduced(self) -> Compute:
        """dtype in which gradients are summed over ranks."""
        return self.accumulated if self.reduction == "auto" else self.reduction

    @property
    def scales_loss(self) -> bool:
        """Whether one factor scales the loss."""
        return self.compute == "fp16"

    @property
    def skips(self) -> int:
        """Steps in a row that may be skipped."""
        if self.most_skipped is not None:
            return self.most_skipped
        return SKIPS_WHILE_SCALING if self.scales_loss and self.loss_scaling.kind == "dynamic" else SKIPS_OTHERWISE

    @model_validator(mode="after")
    def _agree(self) -> Self:
        broken = []
        if self.pure and self.compute != "bf16":
            what = f"none is for runs that compute in bf16, found compute = {self.compute}"
            broken.append(Broken("master_weights", what, "set precision.compute to bf16, or master_weights to fp32"))
        if self.rounding != "nearest" and not self.pure:
            what = f"{self.rounding} rounds updates of bf16 weights, but updates go to fp32 master weights"
            broken.append(Broken("rounding", what, "set precision.master_weights to none, or remove it"))
        if self.by_layer and self.compute == "fp16":
            what = "formats by layer stand on compute fp32 or bf16: fp16 layers scale their own gradients"
            broken.append(Broken("compute", what, "set compute to bf16 or fp32, and name fp16 layers under layers"))
        if self.raising.on and not self.by_layer:
            what = "no layer has a format of its own that could be raised"
            broken.append(Broken("raising", what, "name formats under precision.layers, or remove it"))
        places = [change.at for change in self.changes]
        if places != sorted(set(places)):
            broken.append(
                Broken("changes", f"do not follow each other: at {places}", "sort them, each at its own place")
            )
        for field, dtype in (("accumulation", self.accumulated), ("reduction", self.reduced)):
            if dtype not in ("fp32", self.compute) or (dtype != "fp32" and self.by_layer and not self.pure):
                known = "fp32" if self.by_layer and not self.pure else f"fp32 or {self.compute}"
                broken.append(Broken(field, f"{dtype}, but gradients of this run are {known}", f"use {known}, or auto"))
        if not self.scales_loss and self.loss_scaling != LossScaling():
            what = f"only a run in fp16 scales its loss, found compute = {self.compute}"
            broken.append(Broken("loss_scaling", what, "remove it, or set precision.compute to fp16"))
        require(broken)
        return self
