"""The front matter of a model card: what the hub reads of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lmrecipes.assets import hub_name
from lmrecipes.recipe import TOKEN_KINDS
from lmrecipes.tracking.results import results_of, words
from lmrecipes.tracking.run_record import RunRecord

HUB_METRICS = {
    "macro_f1": "f1", "micro_f1": "f1", "spearman": "spearmanr", "pearson": "pearsonr",
    "mean_squared_error": "mse", "mean_absolute_error": "mae",
}  # fmt: skip
"""Our metrics under the names of https://hf.co/metrics, where they differ."""


def front_matter(record: RunRecord, name: str, adapter: bool) -> str:
    """The YAML between the card's first two lines of dashes. Neither licence nor language: the run knows neither."""
    from huggingface_hub import ModelCardData

    kinds = {task["kind"] for task in record.tasks.values()}
    language, base = bool(kinds & set(TOKEN_KINDS)), base_on_hub(record)
    mlp = (record.recipe["model"].get("mlp") or {}).get("hidden")
    tags = ["lmrecipes", *(["multi-task"] if len(record.tasks) > 1 else []), *(["lora"] if adapters(record) else [])]
    data = ModelCardData(
        base_model=base,
        base_model_relation=None if base is None else "adapter" if adapter else "finetune",
        library_name="lmrecipes" if mlp else "peft" if adapter else "transformers",
        pipeline_tag="text-generation" if language else None if mlp else "feature-extraction",
        tags=tags + (["conversational"] if "chat" in kinds else []),
        datasets=sorted({found[0] for task in record.tasks.values() if (found := hub_dataset(task))}) or None,
        model_name=name,
        eval_results=_results(record) or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def base_on_hub(record: RunRecord) -> str | None:
    """The hub's name of the model that the run started from; None for a folder, or for random weights."""
    model = record.recipe["model"]
    scratch = model.get("config") or model.get("initialization") == "scratch" or (model.get("mlp") or {}).get("hidden")
    return None if scratch else hub_name(model["pretrained"])


def adapters(record: RunRecord) -> int:
    """Rank of the adapters that the run trained; 0: none."""
    return int((record.recipe["model"].get("lora") or {}).get("rank", 0))


def hub_dataset(task: Any) -> tuple[str, str | None] | None:
    """(owner/name, configuration) of a task's data set on the hub."""
    name, _, configuration = (task["source"].get("dataset") or "").partition(":")
    return (name, configuration or None) if name and not Path(name).exists() else None


def _results(record: RunRecord) -> list[Any]:
    from huggingface_hub import EvalResult

    evaluation, found = record.evaluation or {}, []
    for result in results_of(evaluation, headline_only=False):
        if result.ours is None or not math.isfinite(result.ours):
            continue
        dataset, configuration = hub_dataset(record.tasks[result.task]) or (result.task, None)
        found.append(
            EvalResult(
                task_type="text-generation" if result.kind in TOKEN_KINDS else "text-classification",
                task_name=words(result.kind),
                dataset_type=dataset,
                dataset_name=result.task,
                dataset_config=configuration,
                dataset_split=evaluation.get("split"),
                metric_type=HUB_METRICS.get(result.metric, result.metric),
                metric_name=f"{words(result.metric)} ({result.task})",
                metric_value=result.ours,
            )
        )
    return found
