"""One small student that learns from several models: their average is written, then taught, then all are compared.

    TO/            the student's run, an ordinary one: `lmrecipes train TO` repeats it
       teacher/    the average of the runs; none where --teacher names one, or where there is one run, which teaches
       control/    with --control: the same student without a teacher, for as many steps

What is finished in TO is not made again, so that an interrupted command goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lmrecipes.combine.combination import specs_of
from lmrecipes.combine.measures import Role, facts_of, member
from lmrecipes.combine.members import ask
from lmrecipes.combine.options import CombineOptions
from lmrecipes.combine.panel import Panel
from lmrecipes.files import write_json
from lmrecipes.flags import parse
from lmrecipes.launcher import TrainOptions, train
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import find_recipe, recipe_from_yaml
from lmrecipes.run_folder import FREE_ON_RESUME, RunFolder, mismatches, new_run, open_run
from lmrecipes.tracking.report import write_report

log = logging.getLogger(__name__)

TEACHER = "--distillation.teacher"


def distil(options: CombineOptions) -> dict[str, Any]:
    """Train the student; returns the content of its combination.json. Raises InputError, and SystemExit with the exit
    code of a training that did not end well."""
    runs = [open_run(path) for path in options.runs]
    reference, *flags = shlex.split(options.student) if options.student else [str(options.runs[0])]
    name = _recipe(reference, flags).name
    to = new_run(f"{name}-distil").path if options.to is None else options.to
    if options.teacher is not None:
        teacher = open_run(options.teacher)
    else:
        teacher = runs[0] if len(runs) == 1 else _average(options, runs, to / "teacher")
    student = trained(reference, [*flags, TEACHER, str(teacher.path)], to)
    beside = {"student": student}
    if options.control:
        beside["control"] = trained(reference, [*flags, TEACHER, "None"], to / "control")
    return _compared(runs, beside, teacher, student)


def trained(reference: str, flags: Sequence[str], folder: Path) -> RunFolder:
    """The finished run of a recipe and its flags in a folder: trained now, gone on with, or found there.

    Raises InputError where a run of another recipe lies there, and SystemExit where the training does not end well.
    """
    run = RunFolder(folder)
    if run.evaluation.is_file():
        both = recipe_from_yaml(run.recipe), _recipe(reference, flags)
        before, now = (recipe.model_dump(mode="json") for recipe in both)
        if changed := mismatches(before, now, FREE_ON_RESUME, f"the run {folder} was trained with"):
            fix = "name another folder with --to, or remove this one"
            raise InputError([Problem(field, what, fix, "distil-changed") for field, what in changed.items()])
        log.info(f"{folder} is finished, and not trained again")
        return run
    resume = any(run.checkpoints.glob("step-*"))
    if not resume:
        for left in (run.recipe, run.metrics):
            left.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    code = train(reference, [*flags, "--run-folder", str(folder), *(["--resume"] if resume else [])])
    if code:
        raise SystemExit(code)
    return run


def _recipe(reference: str, flags: Sequence[str]) -> Recipe:
    return parse(find_recipe(reference), TrainOptions, flags, f"lmrecipes train {reference}")[1]


def _average(options: CombineOptions, runs: Sequence[RunFolder], folder: Path) -> RunFolder:
    """The runs' average as a run of its own."""
    from lmrecipes.combine.start import combine

    run = RunFolder(folder)
    if run.evaluation.is_file():
        known = json.loads(run.combined.read_text(encoding="utf-8"))["of"]
        if known != [one.path.resolve().name for one in runs]:
            what = f"{folder} is the average of other runs: {', '.join(known)}"
            raise InputError(Problem("--to", what, "name another folder", "distil-changed"))
        return run
    shutil.rmtree(folder, ignore_errors=True)
    combine(replace(options, method="average", to=folder, student=None, teacher=None, control=False))
    return run


def _compared(
    runs: list[RunFolder], beside: dict[str, RunFolder], teacher: RunFolder, student: RunFolder
) -> dict[str, Any]:
    """Members, what can be made of them, and students: on the same rows, with the student's facts written down."""
    panel = Panel.ask(runs, False, recipe_from_yaml(runs[0].recipe).evaluation.examples)
    alike, notes = panel.alike() if len(runs) > 1 else ([], [])
    blends, soup = panel.blends() if len(runs) > 1 else {}, None
    if alike:
        with TemporaryDirectory(dir=student.path, prefix=".soup-") as scratch:
            soup = ask(panel.soup(alike, Path(scratch) / "soup"), "soup", panel.tasks, panel.most)
    shown: list[tuple[Role, str, RunFolder]] = [("distil", name, run) for name, run in beside.items()]
    known = dict(zip([run.path.resolve() for run in runs], panel.names, strict=True))
    known[student.path.resolve() / "teacher"] = "average"
    taught_by = known.get(teacher.path.resolve(), "teacher")
    if taught_by == "teacher":
        shown = [("teacher", "teacher", teacher), *shown]
    others = [(role, ask(run, name, panel.tasks, panel.most), specs_of(run.model)) for role, name, run in shown]
    facts = {}
    for task, given in panel.tasks.items():
        candidates = panel.candidates(task, blends, soup, "distil")
        candidates += [member(said, task, own[task], role) for role, said, own in others]
        facts[task] = facts_of(given.metric_names[0], candidates)
    made = {
        "run": student.path.resolve().name,
        "path": str(student.path),
        "method": "distil",
        "of": panel.names,
        "teacher": str(teacher.path),
        "taught_by": taught_by,
        "weights": None,
        "soup_of": [panel.names[at] for at in alike],
        "notes": [f"not combined, {left}" for left in panel.left_out] + notes,
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "tasks": facts,
    }
    write_json(student.combined, made)
    write_report([student.path], student.report)
    return made
