"""Steps of a run as other programs train on them: tensors without a trace of ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmrecipes.data.batches import MicroBatch, Packed
from lmrecipes.data.stream import Step, TrainingStream

IGNORED = -100
"""The label of a position that carries no loss, as everywhere around torch."""


def dump(stream: TrainingStream, rates: list[float], folder: Path) -> None:
    """Write the run's first steps, one for each learning rate, into `folder`: `micros.pt` (see `rectangle`) and
    `texts.pt` (see `texts_of`)."""
    steps = list(stream.steps(0, len(rates)))
    micros = [
        {"rate": rate, "micros": [rectangle(micro) for micro in step.micro_batches]}
        for rate, step in zip(rates, steps, strict=True)
    ]
    texts = [{"rate": rate, "texts": texts_of(stream, number)} for number, rate in enumerate(rates)]
    torch.save(micros, folder / "micros.pt")
    torch.save(texts, folder / "texts.pt")


def rectangle(micro: MicroBatch) -> dict[str, Any]:
    """A micro-batch as one rectangle.

    ids, positions, documents: int64 [rows, time]; documents number the texts, -1 where there is padding. labels: the
    token that follows each position where it carries loss, else IGNORED. scale: factor of the summed loss, the same for
    all tasks, or ValueError.
    """
    scales = [rows.scale for rows in micro.tasks.values() if rows.examples] or [0.0]
    if not math.isclose(min(scales), max(scales), rel_tol=1e-6):
        raise ValueError("the tasks' tokens count differently; take a recipe with `token_loss: pooled`")
    ids = parts_of(micro)
    labels = torch.full((sum(part.numel() for part in ids),), IGNORED)
    for rows in micro.tasks.values():
        if rows.examples:
            labels[rows.rows] = rows.targets
    if isinstance(micro.texts, Packed):
        documents, positions = micro.texts.documents, micro.texts.positions
    else:
        masks = [b.mask if b.mask is not None else torch.ones_like(b.input_ids) for b in micro.texts]
        real = torch.cat(_widened(masks, 0)).bool()
        documents = torch.where(real, torch.arange(len(real))[:, None], -1)
        positions = torch.arange(real.shape[1]).expand_as(real) * real
    by_part = zip(labels.split([part.numel() for part in ids]), ids, strict=True)
    return {
        "ids": torch.cat(_widened(ids, 0)),
        "labels": torch.cat(_widened([mine.view_as(part) for mine, part in by_part], IGNORED)),
        "positions": positions,
        "documents": documents,
        "scale": scales[0],
    }


def texts_of(stream: TrainingStream, number: int) -> list[dict[str, list[int]]]:
    """The texts of a step in the order of the stream: `input_ids`, and `labels`, each token itself or IGNORED."""
    first, found = number * stream.plan.examples, []
    tasks, rows = stream.mixture.at(np.arange(first, first + stream.plan.examples))
    for task, row in zip(tasks.tolist(), rows.tolist(), strict=True):
        split = stream.batcher.splits[task]
        span = slice(int(split.offsets[row]), int(split.offsets[row + 1]))
        ids = split.tokens[span].astype(np.int64)
        carries = np.arange(len(ids)) > 0 if split.loss is None else split.loss[span] != 0
        found.append({"input_ids": ids.tolist(), "labels": np.where(carries, ids, IGNORED).tolist()})
    return found


def tokens_of(step: Step) -> int:
    """Tokens of a step's texts."""
    return sum(step.tokens.values())


def positions_of(step: Step) -> int:
    """Positions that the linear layers compute in a step."""
    return sum(part.numel() for micro in step.micro_batches for part in parts_of(micro))


def parts_of(micro: MicroBatch) -> list[Tensor]:
    """Token ids of the rectangles of a micro-batch, [rows, time] each."""
    return [micro.texts.input_ids] if isinstance(micro.texts, Packed) else [part.input_ids for part in micro.texts]


def _widened(parts: list[Tensor], filling: int) -> list[Tensor]:
    """Rectangles [rows, time], each filled up to the widest."""
    widest = max(part.shape[1] for part in parts)
    return [F.pad(part, (0, widest - part.shape[1]), value=filling) for part in parts]
