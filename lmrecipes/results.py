"""The end of a run: baselines beside its results, the report, the table on the screen."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from lmrecipes.data.encode import encode_tasks, task_texts
from lmrecipes.files import write_json
from lmrecipes.problems import listing
from lmrecipes.publishing.card import write_card
from lmrecipes.recipe import Recipe, Source
from lmrecipes.recipe_files import RecipeFile, recipe_from_yaml
from lmrecipes.run_folder import RunFolder

Scores = dict[str, dict[str, float]]

BASELINES = {"linear": "linear", "scratch": "same model from scratch"}
"""Titles of what `--baselines` measures. `start`, before training, is the run's own (`evaluation.start`)."""
FEATURES = {"text": "TF-IDF", "image": "pixels", "audio": "log-mel frames"}
"""What the linear models read of each modality."""


def finish_run(run: RunFolder, file: RecipeFile | None) -> None:
    """Put the recipe's stored baselines beside a finished run's results, write card and report, print the results."""
    evaluation = read_evaluation(run)
    stored = stored_baselines(file, run_recipe(run)) if file is not None else {}
    if stored:
        evaluation.setdefault("baselines", {}).update(stored)
        write_json(run.evaluation, evaluation)
    write_card(run)
    show_results(run)
    if gates := run_recipe(run).gates:
        said = f"{listing(list(gates))}: measured by `lmrecipes gate {run.path}`"
        Console(soft_wrap=True).print(f"gates {said}", markup=False, highlight=False)


def show_results(run: RunFolder) -> None:
    """Write the report, print the results table and where the report is."""
    from lmrecipes.tracking.report import write_report

    write_report([run.path], run.report)
    print_results(read_evaluation(run))
    Console(soft_wrap=True).print(f"report: {run.report.resolve()}", markup=False, highlight=False)


def print_results(evaluation: dict[str, Any]) -> None:
    """The results table, between a title and a caption as wide as the terminal (rich wraps them at the table's)."""
    from lmrecipes.tracking.results import results_table

    console = Console(highlight=False)
    table = results_table(evaluation)
    title, caption, table.title, table.caption = table.title, table.caption, None, None
    console.print(title or "")
    console.print(table)
    if caption:
        console.print(caption, style="dim")


def read_evaluation(run: RunFolder) -> dict[str, Any]:
    """The content of evaluation.json."""
    content: dict[str, Any] = json.loads(run.evaluation.read_text(encoding="utf-8"))
    return content


def baselines_path(file: RecipeFile) -> Path | None:
    """Where a recipe keeps its stored baselines."""
    return file.folder / "baselines.json" if file.folder is not None else None


def stored_baselines(file: RecipeFile, recipe: Recipe) -> dict[str, Any]:
    """The baselines measured earlier, marked as stored: those whose result this recipe, as it ran, would repeat."""
    path = baselines_path(file)
    if path is None or not path.is_file():
        return {}
    wanted = _settings(recipe)
    return {
        name: {**{key: value for key, value in baseline.items() if key != "settings"}, "measured": "stored"}
        for stored in json.loads(path.read_text(encoding="utf-8")).values()
        for name, baseline in stored.items()
        if baseline.get("settings") == wanted.get(name)
    }


def store_baselines(file: RecipeFile, recipe: Recipe, baselines: dict[str, Any]) -> None:
    """Keep baselines beside the recipe, by the number of steps they belong to."""
    path = baselines_path(file)
    if path is None:
        return
    by_steps = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings = _settings(recipe)
    by_steps[str(recipe.schedule.steps)] = {
        name: {**{key: value for key, value in baseline.items() if key != "measured"}, "settings": settings[name]}
        for name, baseline in baselines.items()
    }
    write_json(path, dict(sorted(by_steps.items(), key=lambda item: int(item[0]))))


def _settings(recipe: Recipe) -> dict[str, str]:
    """A hash, for each baseline that a recipe has, of all in the recipe that its result depends on."""
    content = recipe.model_dump(mode="json", exclude_defaults=True)

    def rows(tasks: Iterable[str]) -> dict[str, Any]:
        chosen = {name: recipe.tasks[name] for name in tasks}
        return {
            "tasks": {name: [task.kind, task.source, task.labels, task.metrics] for name, task in chosen.items()},
            "examples": recipe.evaluation.examples,
            "seed": recipe.seed,
        }

    model = {key: value for key, value in content.get("model", {}).items() if key not in ("initialization", "lora")}
    content["model"] = model or None
    for part in ("name", "description", "precision", "checkpoint", "tracking", "evaluation"):
        content.pop(part, None)
    depends: dict[str, list[Any]] = {"scratch": [rows(recipe.tasks), content]}
    if labelled := _labelled(recipe):
        depends["linear"] = [rows(labelled), *_media(recipe, labelled)]
    texts = {name: json.dumps(parts, sort_keys=True, default=_dump) for name, parts in depends.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}


def _dump(source: Source) -> dict[str, Any]:
    return source.model_dump(mode="json", exclude_defaults=True)


def measure_baselines(
    run: RunFolder, file: RecipeFile, recipe: Recipe, train_scratch: Callable[[Path], dict[str, Any]]
) -> None:
    """Train the baselines on the run's data: linear models on all rows with labels, and the same model from scratch.

    `train_scratch(folder)` runs the recipe with random initial weights in `folder` and returns its evaluation.
    """
    labelled = _labelled(recipe)
    if len(labelled) < len(recipe.tasks):
        only = f"{_of_linear(recipe)['title']} for {listing(labelled)} only" if labelled else "no linear model"
        text = f"baselines: the same model from scratch; {only}: the other tasks label no texts, images or clips"
        Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)
    found: dict[str, Scores] = {"linear": linear_scores(recipe)} if labelled else {}
    scratch = train_scratch(run.path / "baselines" / "scratch")
    found["scratch"] = {name: score["metrics"] for name, score in scratch["tasks"].items()}
    said = {"date": time.strftime("%Y-%m-%d"), "measured": "with this run"}
    baselines = {name: {"title": BASELINES[name], **said, "tasks": tasks} for name, tasks in found.items()}
    if labelled:
        baselines["linear"] |= _of_linear(recipe)
    evaluation = read_evaluation(run)
    write_json(run.evaluation, {**evaluation, "baselines": {**evaluation.get("baselines", {}), **baselines}})
    store_baselines(file, recipe, baselines)


def _labelled(recipe: Recipe) -> list[str]:
    """Tasks that a linear model can learn: those that label texts, images or clips."""
    return [name for name, task in recipe.tasks.items() if task.labels_texts or task.source.media]


def _of_linear(recipe: Recipe) -> dict[str, str]:
    """Title of the linear models, and where they do not all read texts alone a note of what they read."""
    by_features: dict[str, list[str]] = {}
    for name in _labelled(recipe):
        source = recipe.tasks[name].source
        read = (["text"] if source.text_column is not None else []) + list(source.media)
        by_features.setdefault(" and ".join(FEATURES[modality] for modality in read), []).append(name)
    if list(by_features) == [FEATURES["text"]]:
        return {"title": f"{FEATURES['text']} + linear"}
    note = "; ".join(f"{features} of {', '.join(names)}" for features, names in by_features.items())
    return {"title": BASELINES["linear"], "note": note}


def _media(recipe: Recipe, tasks: Iterable[str]) -> list[Any]:
    """How the media of these tasks are read; nothing where they have none."""
    read = sorted({modality for name in tasks for modality in recipe.tasks[name].source.media})
    return [{modality: getattr(recipe.model, modality).model_dump(mode="json") for modality in read}] if read else []


def linear_scores(recipe: Recipe) -> Scores:
    """Test metrics of a linear model for each task with labels, on the rows that the model is evaluated on."""
    from lmrecipes.baselines import linear, media_features, text_features
    from lmrecipes.metrics import task_metrics
    from lmrecipes.training.losses import head_specs

    encoded, texts, scores = encode_tasks(recipe), task_texts(recipe), {}
    specs = head_specs(encoded)
    for name in _labelled(recipe):
        task = encoded[name]
        train, test = task.train, task.splits["test"]
        rows = test.sample(recipe.evaluation.examples, "evaluation")
        blocks = [media_features(arrays, test.media[modality], rows) for modality, arrays in train.media.items()]
        if name in texts:
            said = texts[name].splits
            asked = [said["test"].joined(i) for i in rows.tolist()]
            blocks.insert(0, text_features(said["train"].all_joined(), asked))
        known, other = zip(*blocks, strict=True)
        found = linear(task.task.kind, known, train.targets, other, max(1, len(task.labels)), recipe.seed)
        scores[name] = task_metrics(task.task.metric_names, specs[name], found, test.targets[rows])
    return scores


def run_recipe(run: RunFolder) -> Recipe:
    """The resolved recipe of a run."""
    return recipe_from_yaml(run.recipe)
