"""A combined run on disk: the recipe, the model, the results, what it was made of."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmrecipes.combine.combination import Blend, write_combination
from lmrecipes.files import link_or_copy, sync_tree, write_json
from lmrecipes.models.heads import HeadSpec
from lmrecipes.publishing.card import README, write_card
from lmrecipes.ranks import launch_command
from lmrecipes.recipe import TOKEN_KINDS, Recipe, Task
from lmrecipes.run_folder import DERIVED, RunFolder, write_environment, write_recipe
from lmrecipes.tracking.report import write_report
from lmrecipes.training.evaluation import Scores


def write_member(run: RunFolder, to: Path, with_model: bool = True) -> None:
    """The part of a run that predicts, in the new folder `to`: recipe.yaml and model/. Files are linked where the file
    system can."""
    to.mkdir(parents=True)
    shutil.copy2(run.recipe, to / "recipe.yaml")
    if with_model:
        ignored = shutil.ignore_patterns(README, "adapter", *DERIVED)
        shutil.copytree(run.model, to / "model", ignore=ignored, copy_function=link_or_copy)


def write_blended_model(
    folder: Path,
    method: str,
    members: Sequence[RunFolder],
    names: Sequence[str],
    blends: Mapping[str, Blend],
    specs: Mapping[str, HeadSpec],
) -> None:
    """The `model/` of a combination: its members, and how their predictions become one."""
    for number, run in enumerate(members):
        write_member(run, folder / "members" / str(number))
    write_combination(folder, method, names, blends, specs)


def combined_recipe(first: Recipe, tasks: Mapping[str, Task], method: str) -> Recipe:
    """The first member's recipe, of the tasks that were combined. What speaks of other tasks or of training against
    something else is left out."""
    kept = {name: first.tasks[name] for name in tasks}
    kinds = {task.kind for task in kept.values()}
    content = first.model_dump() | {
        "name": f"{first.name}-{method}",
        "description": f"{first.description} (combined: {method})".strip(),
        "tasks": {name: task.model_dump() for name, task in kept.items()},
        "mixture": {},
        "loss_weighting": {},
        "distillation": {},
        "gates": {},
        "evaluation": first.evaluation.model_dump() | {"start": False, "samples": 0},
        "tracking": first.tracking.model_dump() | {"cosines_every": 0},
    }
    if "chat" not in kinds:
        content["model"]["chat_template"] = None
    if not kinds & set(TOKEN_KINDS):
        content["token_loss"] = "pooled"
    return Recipe.model_validate(content)


def results(
    run: RunFolder,
    recipe: Recipe,
    scores: Scores,
    members: Sequence[RunFolder],
    of_members: Mapping[str, Scores],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of evaluation.json: as `lmrecipes evaluate` would compute it, beside the best member of each task (on
    the validation split) and the first member's linear models."""
    evaluations = [json.loads(member.evaluation.read_text()) for member in members if member.evaluation.is_file()]
    best = {task: of_members[found["best"]["validation"]][task]["metrics"] for task, found in facts.items()}
    said = {"title": "best member", "measured": "with this run", "date": time.strftime("%Y-%m-%d"), "tasks": best}
    baselines = {"best_member": said}
    for name, baseline in (evaluations[0].get("baselines") or {}).items() if evaluations else ():
        if name == "linear":
            baselines[name] = baseline
    seconds = [found.get("seconds_of_training") for found in evaluations]
    return {
        "run": run.path.name,
        "step": recipe.schedule.steps,
        "split": "test",
        **({"seconds_of_training": round(sum(seconds), 3)} if seconds and None not in seconds else {}),
        "tasks": scores,
        "baselines": baselines,
    }


def write_run(
    run: RunFolder, recipe: Recipe, model: Path, facts: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> None:
    """A finished run's new folder with its card and report; `model` is moved into it."""
    run.path.mkdir(parents=True)
    write_recipe(run, recipe)
    write_environment(run, {"world_size": 1, "precision": recipe.precision.compute, "command": launch_command()})
    sync_tree(model)
    model.rename(run.model)
    write_json(run.combined, facts)
    write_json(run.evaluation, evaluation)
    write_card(run)
    write_report([run.path], run.report)
