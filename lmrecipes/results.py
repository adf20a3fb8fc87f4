"""The end of a run: baselines beside its results, the report, the table on the screen."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from lmrecipes.data.encode import encode_tasks, task_texts
from lmrecipes.files import write_json
from lmrecipes.recipe import Recipe, Source
from lmrecipes.recipe_files import RecipeFile, recipe_from_yaml
from lmrecipes.run_folder import RunFolder

Scores = dict[str, dict[str, float]]


def finish_run(run: RunFolder, file: RecipeFile | None) -> None:
    """Put the recipe's stored baselines beside a finished run's results, write the report and print both."""
    evaluation = read_evaluation(run)
    stored = stored_baselines(file, run_recipe(run)) if file is not None else {}
    if stored:
        evaluation.setdefault("baselines", {}).update(stored)
        write_json(run.evaluation, evaluation)
    show_results(run)


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
    """A hash, for each baseline, of all in a recipe that its result depends on."""
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    rows = {
        "tasks": {name: [task.kind, task.source, task.labels, task.metrics] for name, task in recipe.tasks.items()},
        "examples": recipe.evaluation.examples,
        "seed": recipe.seed,
    }
    for part in ("name", "description", "precision", "checkpoint", "tracking", "evaluation"):
        content.pop(part, None)
    content.get("model", {}).pop("initialization", None)
    depends = {"tfidf_linear": [rows], "scratch": [rows, content]}
    texts = {name: json.dumps(parts, sort_keys=True, default=_dump) for name, parts in depends.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}


def _dump(source: Source) -> dict[str, Any]:
    return source.model_dump(mode="json", exclude_defaults=True)


def measure_baselines(
    run: RunFolder, file: RecipeFile, recipe: Recipe, train_scratch: Callable[[Path], dict[str, Any]]
) -> None:
    """Train both baselines on the run's data: TF-IDF + linear on all rows, and the same model from scratch.

    `train_scratch(folder)` runs the recipe with random initial weights in `folder` and returns its evaluation.
    """
    scratch = train_scratch(run.path / "baselines" / "scratch")
    today = time.strftime("%Y-%m-%d")
    tasks = {name: score["metrics"] for name, score in scratch["tasks"].items()}
    baselines = {
        "tfidf_linear": {
            "title": "TF-IDF + linear",
            "date": today,
            "measured": "with this run",
            "tasks": tfidf_scores(recipe),
        },
        "scratch": {"title": "same model from scratch", "date": today, "measured": "with this run", "tasks": tasks},
    }
    evaluation = read_evaluation(run)
    write_json(run.evaluation, {**evaluation, "baselines": baselines})
    store_baselines(file, recipe, baselines)


def tfidf_scores(recipe: Recipe) -> Scores:
    """Test metrics of TF-IDF + linear for each task, on the rows that the model is evaluated on."""
    from lmrecipes.baselines import tfidf_linear
    from lmrecipes.metrics import task_metrics
    from lmrecipes.training.losses import head_specs

    encoded, scores = encode_tasks(recipe), {}
    specs = head_specs(encoded)
    for name, data in task_texts(recipe).items():
        train, test = data.splits["train"], data.splits["test"]
        rows = encoded[name].splits["test"].sample(recipe.evaluation.examples, "evaluation")
        texts = [test.joined(i) for i in rows.tolist()]
        found = tfidf_linear(
            recipe.tasks[name].kind, train.all_joined(), train.targets, texts, max(1, len(data.labels)), recipe.seed
        )
        scores[name] = task_metrics(recipe.tasks[name].metric_names, specs[name], found, test.targets[rows])
    return scores


def run_recipe(run: RunFolder) -> Recipe:
    """The resolved recipe of a run."""
    return recipe_from_yaml(run.recipe)
