"""Evaluation: every task on its own rows, in batches that do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmrecipes.data.batches import Batcher, Bucket
from lmrecipes.data.encoded import EncodedTask
from lmrecipes.metrics import mean_loss, task_metrics
from lmrecipes.models.heads import HeadSpec

Predict = Callable[[list[Bucket]], dict[str, Tensor]]
Gather = Callable[[Any], list[Any]]


def evaluate_tasks(
    tasks: dict[str, EncodedTask],
    specs: dict[str, HeadSpec],
    split: str,
    most: int | None,
    micro_examples: int,
    predict: Predict,
    rank: int = 0,
    world_size: int = 1,
    gather: Gather = lambda value: [value],
    moved: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Metrics of each task on (at most `most` rows of) a split, on every rank.

    Returns {task: {kind, headline, rows, loss, metrics}}. `moved(done, total)` is told of each batch.
    """
    work = [(name, rows) for name, task in tasks.items() for rows in _batches(task, split, most, micro_examples)]
    turns = -(-len(work) // world_size)
    found: dict[str, list[tuple[NDArray[np.int64], NDArray[Any]]]] = {name: [] for name in tasks}
    batcher = Batcher({name: task.splits[split] for name, task in tasks.items()}, specs, {})
    numbers = {name: number for number, name in enumerate(tasks)}
    for turn in range(turns):
        mine = turn * world_size + rank
        name, rows = work[mine] if mine < len(work) else (work[0][0], np.zeros(0, np.int64))
        bucket = batcher.bucket(np.arange(len(rows)), np.full(len(rows), numbers[name], np.int16), rows)
        outputs = predict([bucket])
        if len(rows):
            found[name].append((rows, outputs[name].float().cpu().numpy()))
        moved(turn + 1, turns)
    return _score(tasks, specs, split, gather(found))


def evaluation_metrics(scores: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Scores under their contract names `eval/<task>/<metric>`."""
    return {
        f"eval/{name}/{metric}": value
        for name, score in scores.items()
        for metric, value in {"loss": score["loss"], **score["metrics"]}.items()
    }


def _batches(task: EncodedTask, split: str, most: int | None, micro_examples: int) -> list[NDArray[np.int64]]:
    """Rows of a split in batches of similar length, longest first."""
    encoded = task.splits[split]
    rows = encoded.sample(most, "evaluation")
    rows = rows[np.argsort(-encoded.lengths_of(rows), kind="stable")]
    return [rows[i : i + micro_examples] for i in range(0, len(rows), micro_examples)]


def _score(
    tasks: dict[str, EncodedTask], specs: dict[str, HeadSpec], split: str, by_rank: list[dict[str, list[Any]]]
) -> dict[str, dict[str, Any]]:
    scores = {}
    for name, task in tasks.items():
        parts = [part for found in by_rank for part in found[name]]
        rows = np.concatenate([part[0] for part in parts])
        predictions = np.concatenate([part[1] for part in parts])
        order = np.argsort(rows)
        predictions, targets = predictions[order], task.splits[split].targets[rows[order]]
        names = task.task.metric_names
        scores[name] = {
            "kind": task.task.kind,
            "headline": names[0],
            "rows": len(rows),
            "loss": mean_loss(specs[name], predictions, targets),
            "metrics": task_metrics(names, specs[name], predictions, targets),
        }
    return scores
