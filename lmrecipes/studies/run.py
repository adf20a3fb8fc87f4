"""What the ranks of a study do: cell after cell in one group of processes, each a real run without its ending."""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from lmrecipes.launching import guarded
from lmrecipes.problems import InputError, RunFailed
from lmrecipes.run_folder import RunFolder, write_environment
from lmrecipes.series import Stopped, run_rank
from lmrecipes.studies.cells import Cell
from lmrecipes.studies.folder import StudyFolder, with_results
from lmrecipes.studies.record import CellResult
from lmrecipes.tracking.results import number
from lmrecipes.tracking.series_bar import SeriesBar

WARM_UP = 5
"""Steps that are left out of the time of a step: memory is claimed and kernels are chosen in them."""
END = 10
"""The final loss is the mean over 1/END of the steps."""


@dataclass(frozen=True)
class RankOptions:
    """What a rank is told."""

    folder: Path
    """The study's folder, with its plan."""
    row: str | None = None
    """Run the cells of this row only. None: all."""
    keep_outputs: bool = False
    """Keep what each cell says of its test rows."""
    deepspeed: Path | None = None
    """A DeepSpeed JSON. None: plain torch."""


def main() -> int:
    """One rank of a study."""
    options = tyro.cli(RankOptions)
    return run_rank(lambda deepspeed: Cells(options, deepspeed).run(), options.deepspeed)


class Cells:
    """The cells of a study that are still to run."""

    def __init__(self, options: RankOptions, deepspeed: dict[str, Any] | None) -> None:
        from lmrecipes.training.series import Series

        self.folder = folder = StudyFolder(options.folder)
        self.keep_outputs, row = options.keep_outputs, options.row
        self.planned, self.results = folder.cells(), folder.results()
        self.series = Series(deepspeed)
        self.is_main = os.environ.get("RANK", "0") == "0"
        state: dict[str, tuple[Cell, CellResult | None]] = {}
        for cell, result in with_results(self.planned, self.results):
            state.setdefault(cell.key, (cell, result))
        self.total = len(state)
        self.done = sum(result is not None for _, result in state.values())
        pending = [cell for cell, result in state.values() if result is None]
        self.pending = [cell for cell in pending if row in (None, cell.row)]

    def run(self) -> int:
        """Run them; returns the exit code. Ends early after a cell whose start was refused: what is left of its engine
        is in the way of the next one's, and the caller starts new processes for that."""
        try:
            with SeriesBar(("cell", "cells"), self.total, self.done) as bar:
                for cell in self.pending:
                    result = self._one(cell, bar)
                    self.results.append(result)
                    if self.is_main:
                        self.folder.write(self.planned, self.results)
                    bar.finished(f"{cell.row}, seed {result.seed}: {_said(result)}", result.seconds)
                    if self.series.engine is None:
                        break
            return 0
        except Stopped:
            return self.series.stopped()
        finally:
            self.series.close()

    def _one(self, cell: Cell, bar: SeriesBar) -> CellResult:
        """One cell: trained, then evaluated on the test split; or why that could not be."""
        began = time.perf_counter()
        try:
            content = self._trained(cell, bar)
        except (RunFailed, InputError) as error:
            content = {"failed": str(error)}
        seconds = round(time.perf_counter() - began, 3)
        overrides = dict(cell.overrides)
        return CellResult(cell.variant, overrides, cell.row, cell.recipe.seed, cell.key, seconds=seconds, **content)

    def _trained(self, cell: Cell, bar: SeriesBar) -> dict[str, Any]:
        from lmrecipes.studies.outputs import write_outputs

        training = self.series.begin(cell.recipe, self.folder.path)
        engine, steps = training.engine, cell.recipe.schedule.steps
        if engine.is_main and not self.folder.environment.exists():
            write_environment(RunFolder(self.folder.path), training.facts())
        held = {"activations": _activations(training)}
        losses, times, began = [], [], time.perf_counter()
        for metrics in self.series.steps(training):
            times.append(time.perf_counter() - began)
            losses.append(metrics["loss"])
            if len(losses) == 1:
                held |= _held(engine)
            bar.trained(training.state.step / steps)
            began = time.perf_counter()
        outputs = training.review.outputs(engine, "test", bar.evaluated)
        if self.keep_outputs and self.is_main:
            write_outputs(self.folder.outputs, cell.key, outputs)
        return {
            "tasks": training.review.scores_of(outputs),
            "loss": statistics.fmean(losses[-max(1, steps // END) :]),
            "seconds_per_step": statistics.median(times[WARM_UP:] or times),
            "bytes": {name: max(one[name] for one in engine.gather(held)) for name in held},
            "parameters": training.parameters[0],
            "skipped_steps": training.state.skipped_steps,
        }


def _activations(training: Any) -> int:
    """Bytes that the forward pass of the first micro-batch keeps."""
    from lmrecipes.precision.held import activation_bytes

    micro_batch = training.stream.step(0).micro_batches[0]
    return activation_bytes(lambda: training.engine.forward(micro_batch), training.engine.module)


def _held(engine: Any) -> dict[str, int]:
    """Bytes of a rank's state by class, after a step; what is not as declared refuses the cell."""
    from lmrecipes.precision.proof import bytes_by_class, inspect, require

    rows = inspect(engine, after_step=True)
    require(rows)
    return bytes_by_class(rows)


def _said(result: CellResult) -> str:
    if result.failed is not None:
        return f"failed, {result.failed}"
    return ", ".join(f"{task} {number(result.headline(task))}" for task in result.tasks)


if __name__ == "__main__":
    sys.exit(guarded(main))
