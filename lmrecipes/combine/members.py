"""Runs that are to be combined: whether their tasks agree, what each says of held-out rows, how fast, and how large."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from torch import Tensor

from lmrecipes.combine.combination import Combination, is_combination, specs_of
from lmrecipes.data.batches import MicroBatch
from lmrecipes.inference.own_tasks import outputs_of, tasks_of
from lmrecipes.inference.predictor import Predictor
from lmrecipes.problems import InputError, Problem, listing
from lmrecipes.recipe import Task
from lmrecipes.run_folder import RunFolder
from lmrecipes.training.evaluation import Outputs

SINGLE_CALLS = 40
"""Rows that are computed one at a time, for the latency."""
BATCHES, BATCH = 4, 32
"""Batches, and rows of each, for the throughput."""


@dataclass(frozen=True)
class Speed:
    """Of a forward pass on encoded rows: median milliseconds of one row, and milliseconds a row in batches of 32."""

    p50_ms: float
    ms_per_row: float

    def __add__(self, other: Speed) -> Speed:
        """Of both, one after the other."""
        return Speed(self.p50_ms + other.p50_ms, self.ms_per_row + other.ms_per_row)


@dataclass(frozen=True)
class Said:
    """What one model says of the validation and test split of each task, how fast, and the bytes of its weights."""

    name: str
    validation: dict[str, Outputs]
    test: dict[str, Outputs]
    speeds: dict[str, Speed]
    bytes: int


@dataclass(frozen=True)
class Shared:
    """The tasks that all runs have in common, and what is left out of which, in words."""

    tasks: dict[str, Task]
    left_out: list[str] = field(default_factory=list)


def shared_tasks(runs: Sequence[RunFolder], of_tokens: bool) -> Shared:
    """The tasks to combine, as the first run names their rows. of_tokens: those of language modelling and chat too.

    Raises InputError where there is none, and for each that the runs understand differently.
    """
    names, specs = [run.path.name for run in runs], [specs_of(run.model) for run in runs]
    wanted = [[task for task, spec in own.items() if of_tokens or not spec.of_tokens] for own in specs]
    shared = [task for task in wanted[0] if all(task in own for own in wanted)]
    left_out = [
        f"{name}: {listing(rest)}"
        for name, own in zip(names, specs, strict=True)
        if (rest := [task for task in own if task not in shared])
    ]
    problems = []
    if not shared:
        have = "; ".join(f"{name} has {listing(own) or 'none'}" for name, own in zip(names, wanted, strict=True))
        what = f"no task with labels in common: {have}"
        problems.append(Problem("lmrecipes combine", what, "name runs with a task in common", "combine-tasks"))
    for task in shared:
        for name, own in zip(names[1:], specs[1:], strict=True):
            one, other = specs[0][task], own[task]
            for field_name in ("kind", "labels"):
                if getattr(one, field_name) != getattr(other, field_name):
                    what = (
                        f"{names[0]} has {_shown(getattr(one, field_name))}, "
                        f"{name} {_shown(getattr(other, field_name))}"
                    )
                    fix = "train both on the same task, with the same labels in the same order (tasks.X.labels)"
                    problems.append(Problem(f"tasks.{task}.{field_name}", what, fix, "combine-tasks"))
    if problems:
        raise InputError(problems)
    tasks = tasks_of(runs[0])
    return Shared({task: tasks[task] for task in shared}, left_out)


def ask(run: RunFolder, name: str, tasks: dict[str, Task], most: int | None) -> Said:
    """Let a run's model say what it thinks of (at most `most` rows of) the tasks' validation and test splits."""
    timed = {folder: _Timed(folder) for folder in _weights_of(run)}
    validation = outputs_of(run, tasks, "validation", most, timed.__getitem__)
    test = outputs_of(run, tasks, "test", most, timed.__getitem__)
    speeds = {}
    for model in timed.values():
        model.collect()
    for task in tasks:
        chosen = {task: tasks[task]}
        rows = len(outputs_of(run, chosen, "test", BATCHES * BATCH, timed.__getitem__, BATCH)[task].rows)
        together = sum(sum(model.collect()) for model in timed.values())
        outputs_of(run, chosen, "test", SINGLE_CALLS, timed.__getitem__, 1)
        alone = sum(median(model.collect()) for model in timed.values())
        speeds[task] = Speed(1000 * alone, 1000 * together / rows)
    return Said(name, validation, test, speeds, sum(model.bytes for model in timed.values()))


class _Timed:
    """A model that keeps how long each call took, in seconds."""

    def __init__(self, folder: Path) -> None:
        self.predictor = Predictor(folder)
        self.seconds: list[float] = []

    def __call__(self, batch: MicroBatch) -> dict[str, Tensor]:
        """See `Predictor`; the answers are on the CPU."""
        began = time.perf_counter()
        found = {task: values.cpu() for task, values in self.predictor(batch).items()}
        self.seconds.append(time.perf_counter() - began)
        return found

    def collect(self) -> list[float]:
        """The calls since the last time, which are forgotten."""
        seconds, self.seconds = self.seconds, []
        return seconds

    @property
    def bytes(self) -> int:
        """Of the weights held."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.predictor.model.parameters())


def _weights_of(run: RunFolder) -> list[Path]:
    """The folders of all exported models of a run, those of members of members too."""
    if not is_combination(run.model):
        return [run.model]
    return [folder for member in Combination.load(run.model).members for folder in _weights_of(member)]


def _shown(value: object) -> str:
    return listing(value) if isinstance(value, tuple) else str(value)
