"""A run folder read back: everything that the report knows about a run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import METRICS
from lmrecipes.run_folder import open_run
from lmrecipes.tracking.record import read_metrics
from lmrecipes.tracking.samples import Sample, read_samples


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says. What the run has not written yet is empty, or None for the final evaluation."""

    name: str
    label: str
    """The name, without what all runs of a page have in common."""
    recipe: Mapping[str, Any]
    recipe_text: str
    environment: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    mixture: Mapping[str, Mapping[str, Any]]
    """What was planned for each task."""
    samples: list[Sample]
    evaluation: Mapping[str, Any] | None
    gates: Mapping[str, Any]
    """The verdicts on the recipe's gates, where they have been measured."""
    combined: Mapping[str, Any]
    """Members and combinations, of a run that `lmrecipes combine` has made."""
    latency: Mapping[str, Any]
    """What `lmrecipes latency` measured."""
    cosines: list[dict[str, Any]]
    """Measurements of how far the gradients of tasks agree."""
    alone: Mapping[str, Any]
    """What each task reached alone, where that has been measured."""
    precisions: Mapping[str, Any]
    """What comparing precisions found."""
    audit: Mapping[str, Any] | None
    """What `lmrecipes audit` found."""
    formats: list[dict[str, Any]]
    """Layers that changed their number format, one line each."""
    written: str
    """When the last line of metrics was written, local time."""

    @property
    def step(self) -> int:
        """The last step on record."""
        return int(self.metrics[-1].get("step", 0)) if self.metrics else 0

    @property
    def steps(self) -> int | None:
        """The steps that the recipe asks for."""
        return (self.recipe.get("schedule") or {}).get("steps")

    @property
    def tasks(self) -> dict[str, Mapping[str, Any]]:
        """The recipe's tasks by name."""
        return dict(self.recipe.get("tasks") or {})

    @property
    def unit(self) -> str:
        """What shares of the mixture count."""
        return str((self.recipe.get("mixture") or {}).get("unit") or "examples")

    def headline(self, task: str) -> str | None:
        """The headline metric of a task: as evaluated, else as the recipe says. None: the run has no such task."""
        scores = ((self.evaluation or {}).get("tasks") or {}).get(task) or {}
        if scores.get("headline"):
            return str(scores["headline"])
        if (spec := self.tasks.get(task)) is None:
            return None
        return str((spec.get("metrics") or METRICS.get(spec.get("kind", "")) or ("",))[0])

    def values(self, key: str) -> list[float]:
        """All values of a metric, without the lines that lack it."""
        return [row[key] for row in self.metrics if row.get(key) is not None]


def read_run(path: Path) -> RunRecord:
    """Read a run folder. Raises InputError where it is none, or where one of its files cannot be read."""
    folder = open_run(path)
    recipe_text = folder.recipe.read_text(encoding="utf-8")
    try:
        recipe = yaml.safe_load(recipe_text)
    except yaml.YAMLError as error:
        raise InputError(
            Problem(str(folder.recipe), f"is not YAML ({error})", "restore the file", "run-file")
        ) from error
    if not isinstance(recipe, dict):
        raise InputError(Problem(str(folder.recipe), "holds no recipe", "restore the file", "run-file"))
    written = ""
    if folder.metrics.exists():
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.metrics.stat().st_mtime))
    return RunRecord(
        name=folder.path.resolve().name,
        label=folder.path.resolve().name,
        recipe=recipe,
        recipe_text=recipe_text,
        environment=_read_json(folder.environment) or {},
        metrics=read_metrics(folder.metrics),
        mixture=_read_json(folder.mixture) or {},
        samples=read_samples(folder.samples),
        evaluation=_read_json(folder.evaluation),
        combined=_read_json(folder.combined) or {},
        latency=_read_json(folder.latency) or {},
        cosines=read_metrics(folder.cosines),
        alone=_read_json(folder.alone) or {},
        precisions=_read_json(folder.precisions) or {},
        audit=_read_json(folder.audit),
        formats=read_metrics(folder.precision),
        gates=_read_json(folder.gates) or {},
        written=written,
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise InputError(Problem(str(path), f"cannot be read ({error})", "restore or delete it", "run-file")) from error
    return content
