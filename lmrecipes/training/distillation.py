"""What the teacher of a recipe says of the rows that its student will see: asked once, then read from a cache.

Rows that a run draws are known before its first step (weights that adapt apart: then all rows are asked about), so that
the teacher reads no others; what an earlier student has asked about is not asked again. The teacher reads each row by
its own tokenizer and columns; that both mean the same rows is checked by their number and by every label.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lmrecipes.assets import cache_root
from lmrecipes.combine.combination import specs_of
from lmrecipes.combine.values import probabilities, values_of
from lmrecipes.data.encoded import EncodedTask
from lmrecipes.data.mixture import Mixture
from lmrecipes.data.soft_targets import SoftTargets
from lmrecipes.data.sources import source_state
from lmrecipes.files import written_at_once
from lmrecipes.inference.own_tasks import outputs_of
from lmrecipes.models.heads import HeadSpec
from lmrecipes.problems import InputError, Problem, listing
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import RunFolder, open_run
from lmrecipes.training.evaluation import Chosen, Outputs

log = logging.getLogger(__name__)

FIELD = "distillation.teacher"
VERSION = 1
"""Part of the name of what is cached: raise it when another teacher's answer comes of the same files."""
DRAWN_AT_ONCE = 2**18
"""Samples of the stream that are looked at together."""


def has_teacher(recipe: Recipe) -> bool:
    """Whether a teacher takes part in the loss."""
    return recipe.distillation.teacher is not None and recipe.distillation.weight > 0


def teacher_problems(recipe: Recipe) -> list[Problem]:
    """What keeps the recipe's teacher from teaching its tasks, as far as that is known before they are encoded."""
    if not has_teacher(recipe):
        return []
    try:
        known = specs_of(_teacher(recipe).model)
    except InputError as error:
        return [replace(problem, where=FIELD, what=f"{problem.where}: {problem.what}") for problem in error.problems]
    problems = []
    for name in _labelled(recipe):
        task, spec = recipe.tasks[name], known.get(name)
        if spec is None:
            what = f"{recipe.distillation.teacher} has no task {name!r}: it has {listing(list(known))}"
            problems.append(Problem(FIELD, what, f"train a teacher with it, or remove tasks.{name}", "teacher-tasks"))
        elif spec.kind != task.kind:
            what = f"its task {name!r} is of kind {spec.kind}, here it is of kind {task.kind}"
            problems.append(Problem(FIELD, what, f"set tasks.{name}.kind to {spec.kind}", "teacher-tasks"))
        elif task.labels is not None:
            problems += _other_labels(name, task.labels, spec)
    return problems


def soft_targets(
    recipe: Recipe, tasks: Mapping[str, EncodedTask], specs: Mapping[str, HeadSpec], mixture: Mixture
) -> dict[str, SoftTargets]:
    """What the teacher says of the rows that the mixture draws, by task with labels; empty without a teacher.

    specs: the student's heads. Raises InputError where the teacher cannot teach. Safe for processes that race: the
    first asks the teacher under a file lock, the others wait and read.
    """
    if not has_teacher(recipe):
        return {}
    problems = teacher_problems(recipe)
    if not problems:
        teacher = _teacher(recipe)
        known = specs_of(teacher.model)
        problems += [p for name in _labelled(recipe) for p in _other_labels(name, tasks[name].labels, known[name])]
    if problems:
        raise InputError(problems)
    wanted = _drawn(recipe, tasks, mixture)
    state = _state(teacher)
    folders = {name: _folder(state, tasks[name]) for name in wanted}
    folder = cache_root() / "soft"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{_digest(state)}.lock"):
        missing = {name: _missing(folders[name], rows) for name, rows in wanted.items()}
        if asked := {name: rows for name, rows in missing.items() if len(rows)}:
            _ask(recipe, teacher, {name: tasks[name] for name in asked}, asked, folders)
        said = {name: _read(path) for name, path in folders.items()}
    settings = recipe.distillation
    found = {}
    for name, outputs in said.items():
        _require_same_rows(recipe, name, outputs, tasks[name])
        values = outputs.values
        if known[name].loss != specs[name].loss:
            values = values_of(specs[name], probabilities(known[name], values))
        found[name] = SoftTargets(outputs.rows, values.astype(np.float32), settings.weight, settings.temperature)
    return found


def _teacher(recipe: Recipe) -> RunFolder:
    assert recipe.distillation.teacher is not None
    return open_run(recipe.distillation.teacher)


def _labelled(recipe: Recipe) -> list[str]:
    return [name for name, task in recipe.tasks.items() if not task.of_tokens]


def _other_labels(name: str, own: tuple[str, ...], spec: HeadSpec) -> list[Problem]:
    if tuple(own) == spec.labels:
        return []
    what = f"its task {name!r} has other labels ({listing(spec.labels)}) than here ({listing(own)})"
    fix = f"set tasks.{name}.labels to those of the teacher, or train a teacher on these"
    return [Problem(FIELD, what, fix, "teacher-labels")]


def _drawn(recipe: Recipe, tasks: Mapping[str, EncodedTask], mixture: Mixture) -> dict[str, NDArray[np.int64]]:
    """Rows of each task with labels that the run draws, ascending, and row 0; all where its weights may change."""
    if recipe.mixture.adaptive.method != "off":
        return {name: np.arange(len(tasks[name].train)) for name in _labelled(recipe)}
    masks = {name: np.zeros(len(tasks[name].train), bool) for name in _labelled(recipe)}
    numbers = {name: number for number, name in enumerate(tasks)}
    total = recipe.schedule.steps * recipe.batch.examples
    for start in range(0, total, DRAWN_AT_ONCE):
        owners, rows = mixture.at(np.arange(start, min(start + DRAWN_AT_ONCE, total)))
        for name, mask in masks.items():
            mask[rows[owners == numbers[name]]] = True
    for mask in masks.values():
        mask[0] = True
    return {name: np.flatnonzero(mask) for name, mask in masks.items()}


def _ask(
    recipe: Recipe,
    teacher: RunFolder,
    tasks: Mapping[str, EncodedTask],
    rows: Mapping[str, NDArray[np.int64]],
    folders: Mapping[str, Path],
) -> None:
    """Let the teacher answer task by task, and add what it says of each to the cache: an interruption loses one."""
    count, began = sum(map(len, rows.values())), time.perf_counter()
    log.info(f"teacher {teacher.path.name}: asked about {count:,} training rows of {listing(list(rows))}")
    for name, task in tasks.items():
        as_encoded = task.task.model_copy(update={"labels": task.labels or None})
        chosen = Chosen(rows[name], len(task.train))
        try:
            said = outputs_of(teacher, {name: as_encoded}, "train", {name: chosen})[name]
        except InputError as error:
            problems = [replace(problem, where=f"{FIELD}: {problem.where}") for problem in error.problems]
            raise InputError(problems) from None
        _require_same_rows(recipe, name, said, task)
        _write(folders[name], said)
    log.info(f"teacher {teacher.path.name}: answered in {time.perf_counter() - began:.0f} s")


def _require_same_rows(recipe: Recipe, name: str, outputs: Outputs, task: EncodedTask) -> None:
    own = task.train.targets[outputs.rows]
    if apart := int((own != outputs.targets).reshape(len(own), -1).any(1).sum()):
        what = f"{recipe.distillation.teacher}: {apart:,} of {len(own):,} training rows of {name!r} have other labels"
        fix = f"train the teacher on the source of tasks.{name}"
        raise InputError(Problem(FIELD, what, fix, "teacher-rows"))


def _state(teacher: RunFolder) -> list[Any]:
    """What changes when the teacher does: path, size and time of change of the files that it is read from."""
    state = []
    for path in sorted(p for p in teacher.model.rglob("*") if p.is_file()):
        status = path.stat()
        state.append([str(path.relative_to(teacher.path)), status.st_size, status.st_mtime_ns])
    return state


def _folder(state: list[Any], task: EncodedTask) -> Path:
    """Where the teacher's answers for a task are kept."""
    decides = [VERSION, state, source_state(task.task.source), task.task.kind, task.labels, len(task.train)]
    return cache_root() / "soft" / _digest(decides)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _missing(folder: Path, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the rows that the teacher has not been asked about."""
    return np.setdiff1d(rows, np.load(folder / "rows.npy")) if folder.is_dir() else rows


def _read(folder: Path) -> Outputs:
    return Outputs(*(np.load(folder / f"{part}.npy") for part in ("rows", "values", "targets")))


def _write(folder: Path, said: Outputs) -> None:
    """Add answers to those that are kept. The caller holds the lock."""
    parts = [_read(folder), said] if folder.is_dir() else [said]
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows)
    with written_at_once(folder) as partial:
        np.save(partial / "rows.npy", rows[order])
        np.save(partial / "values.npy", np.concatenate([part.values for part in parts])[order].astype(np.float32))
        np.save(partial / "targets.npy", np.concatenate([part.targets for part in parts])[order])
