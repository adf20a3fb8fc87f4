"""`lmrecipes train RECIPE --each-task-alone`: what each task of a run reaches without the others.

Each task that the run drew is trained alone: same recipe, same batch size, as many steps as give it the examples that
it saw in the run. The difference on the test split is what the other tasks gave it, or took from it. The runs are the
cells of a study in RUN/alone; RUN/alone.json is the answer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmrecipes.files import write_json
from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.launch_pair import Stage
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Distillation, LossWeighting, Mixture, Recipe
from lmrecipes.results import read_evaluation, run_recipe
from lmrecipes.run_folder import RunFolder
from lmrecipes.studies.cells import Cell, recipe_key, with_seeds
from lmrecipes.studies.folder import open_study, with_results
from lmrecipes.studies.gains import METHOD, Comparison, print_alone
from lmrecipes.studies.launch import check_cells, prepare_data, train_cells
from lmrecipes.studies.record import CellResult
from lmrecipes.tracking.record import read_metrics
from lmrecipes.tracking.results import lower_is_better


def check_alone(recipe: Recipe, others: Sequence[str]) -> None:
    """Raise InputError where a run of the recipe has nothing to compare. others: flags that exclude this one."""
    problems = []
    if others:
        what = f"given together with {' and '.join(others)}: the tasks alone start with --processes and --zero"
        problems.append(Problem("--each-task-alone", what, "leave one of them out", "flag-conflict"))
    if sum(task.weight > 0 for task in recipe.tasks.values()) < 2:
        what = "compares a task among others with the task alone, and only one is drawn"
        problems.append(Problem("--each-task-alone", what, "leave it out, or add a task", "alone-tasks"))
    if problems:
        raise InputError(problems)


def finished_before(run: RunFolder, recipe: Recipe) -> bool:
    """Whether the run itself is done. Raises InputError where it is one of another recipe."""
    if not run.evaluation.is_file():
        return False
    if recipe_key(run_recipe(run)) != recipe_key(recipe):
        what = "the run in it was trained with other settings than these"
        raise InputError(Problem("--run-folder", what, "repeat the flags of its start", "resume-mismatch"))
    return True


def train_alone(run: RunFolder, recipe: Recipe, hardware: Hardware, zero: Stage | None) -> int:
    """Train what has not been trained yet, write alone.json, and print it. Returns the contract's exit code."""
    cells = alone_cells(recipe, examples_seen(run), run.model)
    check_cells(cells, hardware, zero)
    folder = open_study(run.path / "alone", cells, {"processes": hardware.processes, "zero": zero})
    with folder.alone():
        if any(result is None for _, result in with_results(cells, folder.results())):
            prepare_data(cells)
            again = f"Go on with --each-task-alone --resume --run-folder {run.path}; finished"
            if code := train_cells(folder, cells, hardware, zero, again, keep_outputs=True):
                return code
    found = compared(run, recipe, list(with_results(cells, folder.results())), folder.outputs)
    seconds = {
        "joint": read_evaluation(run)["seconds_of_training"],
        "alone": round(sum(one.seconds for one in found.values()), 3),
    }
    content = {
        "measured": time.strftime("%Y-%m-%d"),
        "method": METHOD,
        "environment": folder.surroundings(),
        "seconds": seconds,
        "tasks": {task: {**asdict(one), "verdict": one.verdict} for task, one in found.items()},
    }
    write_json(run.alone, content)
    from lmrecipes.tracking.report import write_report

    write_report([run.path], run.report)
    print_alone(content, run.alone)
    return 3 if all(one.failed for one in found.values()) else 0


def examples_seen(run: RunFolder) -> dict[str, int]:
    """Of each task in a finished run."""
    last = read_metrics(run.metrics)[-1]
    return {key.partition("/")[2]: int(count) for key, count in last.items() if key.startswith("examples/") and count}


def alone_cells(recipe: Recipe, seen: Mapping[str, int], tokenizer: Path) -> list[Cell]:
    """One run for each task that was seen, of as many whole steps as come nearest to it. tokenizer: of the run, where
    it trained one.

    What mixes tasks, and bars and formats that name others' parts, are left out; caps on epochs too: they held in the
    run.
    """
    from lmrecipes.precision.layer_rules import fitting

    cells, trained = [], {"tokenizer": str(tokenizer), "tokenizer_vocabulary": 0}
    for name, examples in seen.items():
        task = recipe.tasks[name].model_copy(update={"max_epochs": None, "weight": 1.0})
        steps = max(1, round(examples / recipe.batch.examples))
        model = recipe.model.model_copy(update=trained if recipe.model.tokenizer_vocabulary else {})
        if task.kind != "chat":
            model = model.model_copy(update={"chat_template": None})
        changes = {
            "tasks": {name: task}, "mixture": Mixture(), "loss_weighting": LossWeighting(), "gates": {}, "latency": {},
            "schedule": recipe.schedule.model_copy(update={"steps": steps}), "model": model,
            "distillation": Distillation() if task.of_tokens else recipe.distillation,
        }  # fmt: skip
        own = recipe.model_copy(update=changes)
        cells += with_seeds(name, (), own.model_copy(update={"precision": fitting(own)}), 1)
    return cells


def compared(
    run: RunFolder, recipe: Recipe, cells: Sequence[tuple[Cell, CellResult | None]], outputs: Path
) -> dict[str, Comparison]:
    """Every task's comparison. outputs: what the cells said of the test rows, by key."""
    from lmrecipes.combine.combination import specs_of
    from lmrecipes.inference.own_tasks import outputs_of, tasks_of
    from lmrecipes.studies.outputs import read_outputs

    evaluation, seen = read_evaluation(run), examples_seen(run)
    joint = outputs_of(run, tasks_of(run), most=recipe.evaluation.examples)
    specs, found = specs_of(run.model), {}
    for cell, result in cells:
        assert result is not None
        task, scores = cell.variant, evaluation["tasks"][cell.variant]
        metric, value = str(scores["headline"]), scores["metrics"][scores["headline"]]
        steps = cell.recipe.schedule.steps
        interval = None
        if result.failed is None:
            alone = read_outputs(outputs, cell.key)[task]
            interval = gain_interval(metric, specs[task], joint[task], alone)
        own = result.headline(task)
        gain = None if own is None or value is None else (own - value if lower_is_better(metric) else value - own)
        found[task] = Comparison(
            metric, scores["rows"], value, own, gain, interval, seen[task], steps * recipe.batch.examples, steps,
            round((result.seconds_per_step or 0.0) * steps, 3), result.failed,
        )  # fmt: skip
    return found


def gain_interval(metric: str, spec: Any, joint: Any, alone: Any) -> tuple[float, float] | None:
    """Of how much better the joint outputs are, both scored on the same draws of the same rows; None where a draw gives
    no number."""
    import numpy as np

    from lmrecipes.combine.bootstrap import Resamples, interval, resampled_metric

    if not np.array_equal(joint.rows, alone.rows):
        return None
    draws = Resamples.of(len(joint.rows), joint.groups)
    one, other = (resampled_metric(metric, spec, side.values, side.targets, draws) for side in (joint, alone))
    low, high = interval(other - one if lower_is_better(metric) else one - other)
    return (low, high) if np.isfinite([low, high]).all() else None
