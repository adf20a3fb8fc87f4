"""Formats by layer over the steps of a run: the engine is told what holds, measured, and what changed is written down.

`precision.jsonl` holds a line for each layer that changed, oldest first:
    {"step": 40, "layer": "encoder.layer.0.output.dense", "from": "fp8", "to": "bf16", "reason": "..."}
`step` is the number of steps that were done; the format holds from the next one on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lmrecipes.precision.control import Control, Switch
from lmrecipes.problems import listing
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_precision import LayerFormat
from lmrecipes.run_folder import RunFolder
from lmrecipes.tracking.record import RecordFile
from lmrecipes.training.engine import Engine

log = logging.getLogger(__name__)


class FormatsOverTime:
    """Of one run. A run whose layers have no formats of their own passes through it untouched."""

    def __init__(self, engine: Engine, recipe: Recipe) -> None:
        self.engine, self.raises = engine, recipe.precision.raising.on
        self.changes = self.raises or bool(recipe.precision.changes)
        layers = engine.layers
        self.control: Control | None = None
        if layers is not None and self.changes:
            self.control = Control(recipe.precision, recipe.schedule.steps, list(layers.modules), list(layers.products))
            engine.use_formats(self.control.formats_at(0))
        self._measured = False
        self._file: RecordFile | None = None

    def open(self, run: RunFolder, step: int) -> None:
        """Begin to write the changes of a run that stands at a step; on rank 0 alone."""
        if self.control is not None:
            self._file = RecordFile(run.precision, step or None)

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            self._file.close()

    def before_step(self, number: int, after_skip: bool) -> None:
        """The step numbered `number` (from 1) begins; `after_skip`: the one before it was skipped."""
        self._measured = self.control is not None and self.control.measures(number, after_skip)
        if self._measured:
            self._layers.measure(True)

    def after_step(self, step: int) -> dict[str, float]:
        """Change what is due after `step` steps; every rank takes part. Returns metrics of the step."""
        if self.control is None:
            return {}
        statistics = None
        if self._measured:
            statistics = self.engine.sum_over_ranks(self._layers.statistics()).cpu().numpy()
            self._layers.measure(False)
        rules = self.control.rules_from(step)
        switches = self.control.decide(step, statistics)
        if rules or switches:
            self.engine.use_formats(self.control.formats_at(step))
            self._say(step, rules, switches)
        return {"precision/raised": len(self.control.memory.raised)} if self.raises else {}

    def state(self) -> dict[str, Any]:
        """JSON-ready."""
        return self.control.state() if self.control is not None else {}

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Go on after `step` steps from what `state` gave."""
        if self.control is not None:
            self.control.restore(state)
            self.engine.use_formats(self.control.formats_at(step))

    @property
    def _layers(self) -> Any:
        return self.engine.layers

    def _say(self, step: int, rules: Mapping[str, LayerFormat], switches: Sequence[Switch]) -> None:
        if not self.engine.is_main:
            return
        if rules:
            said = listing([f"{pattern} {to}" for pattern, to in rules.items()])
            log.info(f"precision from step {step + 1} on: {said}")
        for switch in switches:
            if switch.raised:
                log.info(f"precision from step {step + 1} on: {switch.layer} {switch.to}, raised from {switch.was}: "
                         f"{switch.reason}")  # fmt: skip
        if self._file is not None:
            self._file.append(switch.as_row() for switch in switches)
