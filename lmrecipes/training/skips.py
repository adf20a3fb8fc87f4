"""Steps whose numbers are not finite: they are skipped and counted, and a streak of them stops the run with its cause.

A skipped step leaves weights and optimizer as they were, but not what the run counts and decides: that is remembered
as it stood before the first step of a streak, so that a checkpoint can be from before it.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lmrecipes.data.batches import MicroBatch
from lmrecipes.precision.causes import WEIGHTS, find
from lmrecipes.problems import RunFailed
from lmrecipes.training.checkpoint import RunState
from lmrecipes.training.engine import Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a step went, the same on every rank but for its micro-batches, which are this rank's. finite: its losses;
    signal: number of a signal that asked the run to stop, or 0."""

    applied: bool
    finite: bool
    signal: int
    micro_batches: Sequence[MicroBatch]


class NotFinite(RunFailed):
    """Training cannot go on. before: the run as it stood before the first of the skipped steps, as the weights and
    the optimizer still are; None where these are spoilt."""

    def __init__(self, why: str, before: RunState | None) -> None:
        super().__init__(why)
        self.before = before


class Skips:
    """Of one run: `most` in a row may be skipped."""

    def __init__(self, engine: Engine, most: int) -> None:
        self.engine, self.most = engine, most
        self._before: RunState | None = None

    def count(self, state: RunState, applied: bool, current: Callable[[], RunState]) -> None:
        """A step ends, before anything else in `state` is changed. current: gives all of the state as it is saved."""
        if applied:
            state.skips_in_a_row, self._before = 0, None
            return
        if self._before is None:
            self._before = copy.deepcopy(current())
        state.skipped_steps += 1
        state.skips_in_a_row += 1

    def judge(
        self, state: RunState, outcome: Outcome, metrics: Mapping[str, float], prepare: Callable[[int], None]
    ) -> None:
        """Raise NotFinite on every rank where training cannot go on after the step that `state` ends with. prepare:
        see `causes.find`."""
        number, norm = state.step, metrics["grad_norm"]
        if outcome.applied and outcome.finite and math.isfinite(norm):
            return
        if outcome.applied:
            what = f"the gradients' norm is {norm}" if outcome.finite else f"the loss is {metrics['loss']}"
            raise NotFinite(f"step {number}: {what}: {self._cause(outcome, prepare)[0]}", None)
        scale = f" at loss scale {metrics['loss_scale']:g}" if "loss_scale" in metrics else ""
        if self.engine.is_main:
            log.warning(f"step {number} was skipped: its gradients were not finite{scale}")
        if state.skips_in_a_row >= self.most:
            streak = f"{self.most} steps in a row were" if self.most > 1 else "it was"
            why, spoilt = self._cause(outcome, prepare)
            raise NotFinite(f"step {number}: {streak} skipped: {why}", None if spoilt else self._before)

    def _cause(self, outcome: Outcome, prepare: Callable[[int], None]) -> tuple[str, bool]:
        """In words, and whether the weights themselves are spoilt."""
        cause = find(self.engine, outcome.micro_batches, prepare)
        if cause is None:
            return "once more, its numbers were finite in every layer", False
        return str(cause), cause.tensor == WEIGHTS
