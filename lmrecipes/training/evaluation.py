"""Evaluation: every task on its own rows, in batches that do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmrecipes.data.batches import Batcher, MicroBatch
from lmrecipes.data.encoded import EncodedSplit, EncodedTask
from lmrecipes.data.layout import Arrangement
from lmrecipes.metrics import mean_loss, task_metrics
from lmrecipes.models.heads import HeadSpec
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Task

Predict = Callable[[MicroBatch], dict[str, Tensor]]
Gather = Callable[[Any], list[Any]]
Moved = Callable[[int, int], None]
"""Is told of each batch: how many are done, of how many."""
Scores = dict[str, dict[str, Any]]
"""By task: kind, headline, rows, loss, metrics."""


@dataclass(frozen=True)
class Chosen:
    """Rows of one task's split, ascending, int64 [n]; of: how many the split has, as whoever chose them reads it."""

    rows: NDArray[np.int64]
    of: int


Most = int | Mapping[str, Chosen] | None
"""How many rows of a split, at most, or which of each task. None: all."""


@dataclass(frozen=True)
class Outputs:
    """What a model says of rows of one task, beside what is true.

    rows: their numbers in the split, ascending, int64 [n]. values: what `Head.predictions` gives, fp32 [n] or
    [n, outputs]; of tokens fp64 [n, 2], for each text the sum of its tokens' negative log-likelihoods and how many were
    predicted right. targets: as encoded, [n] or [n, labels]; of tokens int64 [n, 2], predicted tokens and their bytes.
    groups: as `EncodedSplit.groups`, uint64 [n] or None.
    """

    rows: NDArray[np.int64]
    values: NDArray[Any]
    targets: NDArray[Any]
    groups: NDArray[np.uint64] | None = None


def task_outputs(
    tasks: dict[str, EncodedTask],
    specs: dict[str, HeadSpec],
    split: str,
    most: Most,
    micro_examples: int,
    predict: Predict,
    rank: int = 0,
    world_size: int = 1,
    gather: Gather = lambda value: [value],
    moved: Moved = lambda done, total: None,
) -> dict[str, Outputs]:
    """What the model says of (at most `most` rows of) a split of each task, on every rank."""
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
    by_rank = gather(found)
    return {
        name: _in_order(task.splits[split], specs[name], [part for of_rank in by_rank for part in of_rank[name]])
        for name, task in tasks.items()
    }


def score_outputs(tasks: Mapping[str, Task], specs: Mapping[str, HeadSpec], outputs: Mapping[str, Outputs]) -> Scores:
    """Metrics of what a model said of each task."""
    return {
        name: {
            "kind": task.kind,
            "headline": task.metric_names[0],
            "rows": len(outputs[name].rows),
            "loss": mean_loss(specs[name], outputs[name].values, outputs[name].targets),
            "metrics": task_metrics(task.metric_names, specs[name], outputs[name].values, outputs[name].targets),
        }
        for name, task in tasks.items()
    }


def _in_order(split: EncodedSplit, spec: HeadSpec, parts: list[tuple[NDArray[np.int64], NDArray[Any]]]) -> Outputs:
    """The parts of all ranks, sorted by row."""
    rows = np.concatenate([part[0] for part in parts])
    order = np.argsort(rows)
    rows, values = rows[order], np.concatenate([part[1] for part in parts])[order]
    return Outputs(rows, values, _targets(split, spec, rows), None if split.groups is None else split.groups[rows])


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


def _batches(task: EncodedTask, split: str, most: Most, micro_examples: int) -> list[NDArray[np.int64]]:
    """Rows of a split in batches of similar length, longest first. Raises InputError where those that are asked for are
    numbered in another split than this."""
    encoded = task.splits[split]
    if isinstance(most, Mapping):
        rows, of = most[task.name].rows, most[task.name].of
        if of != len(encoded):
            what = f"the model reads {len(encoded):,} rows of {split}, where there are {of:,}"
            fix = "use data of which both leave out the same bad rows"
            raise InputError(Problem(f"tasks.{task.name}.source", what, fix, "rows-differ"))
    else:
        rows = encoded.sample(most, "evaluation")
    rows = rows[np.argsort(-encoded.lengths_of(rows), kind="stable")]
    return [rows[i : i + micro_examples] for i in range(0, len(rows), micro_examples)]
