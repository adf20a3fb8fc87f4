"""Evaluation: every task on its own rows, in batches that do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmrecipes.data.batches import Batcher, MicroBatch
from lmrecipes.data.encoded import EncodedSplit, EncodedTask
from lmrecipes.data.layout import Arrangement
from lmrecipes.metrics import mean_loss, task_metrics
from lmrecipes.models.heads import HeadSpec

Predict = Callable[[MicroBatch], dict[str, Tensor]]
Gather = Callable[[Any], list[Any]]
Moved = Callable[[int, int], None]
"""Is told of each batch: how many are done, of how many."""
Scores = dict[str, dict[str, Any]]
"""By task: kind, headline, rows, loss, metrics."""


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
    moved: Moved = lambda done, total: None,
) -> Scores:
    """Metrics of each task on (at most `most` rows of) a split, on every rank."""
    work = [(name, rows) for name, task in tasks.items() for rows in _batches(task, split, most, micro_examples)]
    turns = -(-len(work) // world_size)
    found: dict[str, list[tuple[NDArray[np.int64], NDArray[Any]]]] = {name: [] for name in tasks}
    batcher = Batcher({name: task.splits[split] for name, task in tasks.items()}, specs)
    numbers = {name: number for number, name in enumerate(tasks)}
    units = dict.fromkeys(tasks, 1.0)
    for turn in range(turns):
        mine = turn * world_size + rank
        name, rows = work[mine] if mine < len(work) else (work[0][0], np.zeros(0, np.int64))
        parts, owners = [np.arange(len(rows))], np.full(len(rows), numbers[name], np.int16)
        outputs = predict(batcher.micro_batch(parts, owners, rows, units, Arrangement("padded")))
        if len(rows):
            values = outputs[name].float().cpu().numpy()
            if specs[name].of_tokens:
                values = _by_text(values, tasks[name].splits[split].supervised_of(rows))
            found[name].append((rows, values))
        moved(turn + 1, turns)
    return _score(tasks, specs, split, gather(found))


def _by_text(tokens: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums over the tokens of each text: [tokens, columns] -> fp64 [texts, columns]. Every text has a token or more."""
    return np.add.reduceat(tokens.astype(np.float64), np.cumsum(counts) - counts)


def _targets(split: EncodedSplit, spec: HeadSpec, rows: NDArray[np.int64]) -> NDArray[Any]:
    """What predictions are compared with; of a task with a loss per token how much was predicted: int64 [rows, 2],
    tokens and bytes."""
    targets = split.targets[rows]
    return np.stack([split.supervised_of(rows), targets], axis=1).astype(np.int64) if spec.of_tokens else targets


def evaluation_metrics(scores: Scores) -> dict[str, float]:
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
) -> Scores:
    scores: Scores = {}
    for name, task in tasks.items():
        parts = [part for found in by_rank for part in found[name]]
        rows = np.concatenate([part[0] for part in parts])
        predictions = np.concatenate([part[1] for part in parts])
        order = np.argsort(rows)
        predictions, targets = predictions[order], _targets(task.splits[split], specs[name], rows[order])
        names = task.task.metric_names
        scores[name] = {
            "kind": task.task.kind,
            "headline": names[0],
            "rows": len(rows),
            "loss": mean_loss(specs[name], predictions, targets),
            "metrics": task_metrics(names, specs[name], predictions, targets),
        }
    return scores
