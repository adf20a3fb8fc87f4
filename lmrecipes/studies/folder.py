"""The folder of a study: `plan.json`, the cells to run; `results.jsonl`, what came of them; `study.json`, the answer.

Results are kept by what they are of, so that a study can be cut and continued, and made larger or smaller.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmrecipes.files import json_text, write_json, write_text_atomically
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import RunFolder
from lmrecipes.series import held
from lmrecipes.studies.cells import Cell
from lmrecipes.studies.record import CellResult, summary
from lmrecipes.tracking.record import read_metrics


@dataclass(frozen=True)
class StudyFolder:
    """Paths and contents of one study."""

    path: Path

    @property
    def plan(self) -> Path:
        """The cells in their order, and where they run."""
        return self.path / "plan.json"

    @property
    def journal(self) -> Path:
        """Results in the order in which they came, also of cells that are no longer in the plan."""
        return self.path / "results.jsonl"

    @property
    def study(self) -> Path:
        """What the plan's cells say, as far as they have been run."""
        return self.path / "study.json"

    @property
    def environment(self) -> Path:
        """What the cells ran on, as in a run's folder."""
        return RunFolder(self.path).environment

    @property
    def outputs(self) -> Path:
        """What the cells said of their test rows, where it is kept."""
        return self.path / "outputs"

    @property
    def page(self) -> Path:
        """The results as a page, with plots."""
        return self.path / "study.html"

    def alone(self) -> AbstractContextManager[None]:
        """Hold the folder for one command. Raises InputError where another trains cells there now."""
        return held(self.path, "study")

    def cells(self) -> list[Cell]:
        """The cells of the plan."""
        saved = json.loads(self.plan.read_text(encoding="utf-8"))["cells"]
        return [
            Cell(one["variant"], tuple(one["overrides"].items()), Recipe.model_validate(one["recipe"])) for one in saved
        ]

    def results(self) -> list[CellResult]:
        """Results so far, also of cells that are no longer in the plan."""
        return [CellResult(**row) for row in read_metrics(self.journal)]

    def surroundings(self) -> dict[str, Any]:
        """The content of environment.json, without what differs from cell to cell; empty before the first cell."""
        if not self.environment.is_file():
            return {}
        content = json.loads(self.environment.read_text(encoding="utf-8"))
        return {key: value for key, value in content.items() if key not in ("precision", "dtypes", "from_step")}

    def write(self, cells: Sequence[Cell], results: Sequence[CellResult]) -> None:
        """All results so far, and what they say of the plan's cells."""
        write_text_atomically(self.journal, "".join(json_text(result.as_dict()) + "\n" for result in results))
        done = [result for _, result in with_results(cells, results) if result is not None]
        write_json(self.study, {"environment": self.surroundings(), **summary(done)})


def open_study(path: Path, cells: Sequence[Cell], launch: dict[str, Any]) -> StudyFolder:
    """The study of these cells in the folder `path`, which may hold results of some of them already.

    launch: processes and ZeRO stage. Raises InputError where the folder holds something else, or results of another
    launch (times and bytes would not be comparable), and where another command trains cells there now.
    """
    folder = StudyFolder(path)
    if folder.plan.exists():
        before = json.loads(folder.plan.read_text(encoding="utf-8"))["launch"]
        if before != launch and folder.results():
            what = f"the study {path} ran with {_words(before)}, now it is {_words(launch)}"
            fix = "repeat the flags of its start, or begin another with --folder"
            raise InputError(Problem("--processes, --zero", what, fix, "study-mismatch"))
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = f"{path} exists and holds no study"
        raise InputError(Problem("--folder", what, "name a new folder", "study-folder"))
    path.mkdir(parents=True, exist_ok=True)
    planned = [
        {"variant": cell.variant, "overrides": dict(cell.overrides), "recipe": cell.recipe.model_dump(mode="json")}
        for cell in cells
    ]
    with folder.alone():  # the plan of a command that still runs is left as it is
        write_json(folder.plan, {"launch": launch, "cells": planned})
    return folder


def with_results(cells: Sequence[Cell], results: Sequence[CellResult]) -> Iterator[tuple[Cell, CellResult | None]]:
    """Each cell with its result, or None where it has none yet. Equal cells of several rows share one result."""
    by_key = {result.key: result for result in results}
    for cell in cells:
        result = by_key.get(cell.key)
        named = {"variant": cell.variant, "overrides": dict(cell.overrides), "row": cell.row}
        yield cell, replace(result, **named) if result is not None else None  # type: ignore[arg-type]


def _words(launch: dict[str, Any]) -> str:
    zero = launch["zero"]
    return f"{launch['processes']} process(es), " + ("plain torch" if zero is None else f"ZeRO {zero}")
