"""A finished run's exported model on its own tasks: their test splits, or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmrecipes.data.encode import encode_tasks
from lmrecipes.inference.predictor import Predictor
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Recipe, Source
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.run_folder import RunFolder
from lmrecipes.tracking.progress import evaluation_bar
from lmrecipes.training.evaluation import evaluate_tasks


def evaluate_run(run: RunFolder, only: str | None = None, data: Path | None = None) -> dict[str, Any]:
    """The content that evaluation.json would have, computed from the exported model."""
    recipe = recipe_from_yaml(run.recipe)
    predictor = Predictor(run.model)
    specs = predictor.exported.specs
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
    tasks = {name: task for name, task in recipe.tasks.items() if only in (None, name)}
    if data is not None:
        tasks = {
            name: task.model_copy(update={"source": _file_source(task.source, data)}) for name, task in tasks.items()
        }
    # Labels as the heads know them: a file need not hold every class.
    tasks = {
        name: task.model_copy(update={"labels": specs[name].labels or None, "weight": 1.0})
        for name, task in tasks.items()
    }
    model = recipe.model.model_dump()
    if recipe.model.tokenizer_vocabulary:  # the one that was trained for the run, not another for these tasks
        model |= {"tokenizer": str(run.model), "tokenizer_vocabulary": 0}
    if recipe.model.chat_template:  # the run's own copy: the recipe's path may be relative to another folder
        chats = any(task.kind == "chat" for task in tasks.values())
        model["chat_template"] = str(run.model / "chat_template.jinja") if chats else None
    plain = {"mixture": {}, "evaluation": {"samples": 0}}  # what they say of other tasks than these is no matter
    dumped = {"tasks": {n: t.model_dump() for n, t in tasks.items()}, "model": model, **plain}
    chosen = Recipe.model_validate({**recipe.model_dump(), **dumped})
    with evaluation_bar() as moved:
        scores = evaluate_tasks(
            encode_tasks(chosen),
            {name: specs[name] for name in tasks},
            "test",
            None if data else recipe.evaluation.examples,
            recipe.evaluation.micro_examples,
            predictor,
            moved=moved,
        )
    return {"run": run.path.name, "step": recipe.schedule.steps, "split": str(data or "test"), "tasks": scores}


def _file_source(source: Source, data: Path) -> Source:
    """The task's columns read from another file, which stands for every split."""
    columns = source.model_dump(include={"text", "text_pair", "ids", "label", "label_separator", "chat", "on_bad_row"})
    return Source(splits={"train": str(data), "validation": str(data), "test": str(data)}, **columns)
