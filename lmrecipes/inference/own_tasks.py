"""A finished run's exported model on its own tasks: their splits, or a file. The run may be a combination of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmrecipes.combine.combination import Combination, is_combination, specs_of
from lmrecipes.data.encode import encode_tasks
from lmrecipes.inference.predictor import Predictor
from lmrecipes.models.heads import HeadSpec
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Recipe, Source, Task
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.run_folder import RunFolder
from lmrecipes.tracking.progress import evaluation_bar
from lmrecipes.training.evaluation import Most, Outputs, Predict, score_outputs, task_outputs

PLACES = ("files", "splits", "dataset", "function", "offline", "group", "validation_fraction", "test_fraction")
"""Fields of a source that say which rows there are, and in which split; the others say how a model reads one."""
Opened = Callable[[Path], Predict]
"""The folder of an exported model -> the model, called with micro-batches."""


def evaluate_run(run: RunFolder, only: str | None = None, data: Path | None = None) -> dict[str, Any]:
    """The content that evaluation.json would have, computed from the exported model."""
    recipe, tasks = recipe_from_yaml(run.recipe), tasks_of(run, only, data)
    specs, most = specs_of(run.model), None if data else recipe.evaluation.examples
    scores = score_outputs(tasks, specs, outputs_of(run, tasks, most=most))
    return {"run": run.path.name, "step": recipe.schedule.steps, "split": str(data or "test"), "tasks": scores}


def tasks_of(run: RunFolder, only: str | None = None, data: Path | None = None) -> dict[str, Task]:
    """The run's tasks with the labels of their heads; of `data`, a file's rows stand for every split.

    Raises InputError where `only` is none of them, or where it is not said which of several the file is of.
    """
    specs = specs_of(run.model)
    if only is not None and only not in specs:
        known = list(specs)
        raise InputError(
            Problem(
                "--task",
                f"no task {only!r}.{did_you_mean(only, known)}",
                f"use one of {listing(known)}",
                "task-unknown",
            )
        )
    if data is not None and only is None and len(specs) > 1:
        raise InputError(Problem("--data", "needs to know the task of the file", "add --task", "task-missing"))
    tasks = {name: task for name, task in recipe_from_yaml(run.recipe).tasks.items() if only in (None, name)}
    if data is not None:
        tasks = {
            name: task.model_copy(update={"source": _file_source(task.source, data)}) for name, task in tasks.items()
        }
    return {name: _with_labels(task, specs[name]) for name, task in tasks.items()}


def outputs_of(
    run: RunFolder,
    tasks: Mapping[str, Task],
    split: str = "test",
    most: Most = None,
    opened: Opened = Predictor,
    micro_examples: int | None = None,
) -> dict[str, Outputs]:
    """What the run's exported model says of (at most `most` rows of) a split of tasks that it knows.

    tasks: whose rows; columns, tokenizer and longest text are those that the model was trained with, of a combination
    each member's own. opened: how a model is read. micro_examples: rows computed at once; None: as in the run's own
    evaluation. Raises InputError where members do not read the same rows.
    """
    if is_combination(run.model):
        combination = Combination.load(run.model)
        of_members = [outputs_of(member, tasks, split, most, opened, micro_examples) for member in combination.members]
        return combination.combined_outputs(of_members)
    recipe, specs = recipe_from_yaml(run.recipe), specs_of(run.model)
    chosen = _own_view(run, recipe, {name: _read_by(recipe.tasks[name], task) for name, task in tasks.items()})
    with evaluation_bar() as moved:
        return task_outputs(
            encode_tasks(chosen),
            {name: specs[name] for name in tasks},
            split,
            most,
            micro_examples or recipe.evaluation.micro_examples,
            opened(run.model),
            moved=moved,
        )


def _own_view(run: RunFolder, recipe: Recipe, tasks: Mapping[str, Task]) -> Recipe:
    """The run's recipe with these tasks alone, read with the tokenizer and chat template that lie beside the model."""
    model = recipe.model.model_dump()
    if recipe.model.tokenizer_vocabulary:  # the one that was trained for the run, not another for these tasks
        model |= {"tokenizer": str(run.model), "tokenizer_vocabulary": 0}
    if recipe.model.chat_template:  # the run's own copy: the recipe's path may be relative to another folder
        chats = any(task.kind == "chat" for task in tasks.values())
        model["chat_template"] = str(run.model / "chat_template.jinja") if chats else None
    dumped = {name: task.model_dump() for name, task in tasks.items()}
    return Recipe.model_validate({"name": recipe.name, "tasks": dumped, "model": model})


def _with_labels(task: Task, spec: HeadSpec) -> Task:
    """Labels as the head knows them: a file need not hold every class."""
    return task.model_copy(update={"labels": spec.labels or None, "weight": 1.0})


def _read_by(own: Task, given: Task) -> Task:
    """The rows of `given` as the model with the task `own` reads them."""
    places = given.source.model_dump(include=set(PLACES))
    source = Source.model_validate({**own.source.model_dump(exclude=set(PLACES)), **places})
    return own.model_copy(update={"source": source, "labels": given.labels, "weight": 1.0})


def _file_source(source: Source, data: Path) -> Source:
    """The task's columns read from another file, which stands for every split."""
    splits = {"train": str(data), "validation": str(data), "test": str(data)}
    return Source(splits=splits, **source.model_dump(exclude={*PLACES}))
