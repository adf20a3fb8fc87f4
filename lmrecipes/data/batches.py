"""Micro-batches as tensors: what the model reads, and the stream that makes them in the background."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmrecipes.data.encode import EncodedSplit
from lmrecipes.data.layout import Positions, lay_out
from lmrecipes.data.mixture import Mixture
from lmrecipes.models.heads import HeadSpec
from lmrecipes.planning.batch import BatchPlan

PREFETCH = 2
"""Steps that are assembled ahead."""


@dataclass
class Bucket:
    """A rectangle of texts, all int64 [rows, time]; mask None where nothing is padded, types None for one segment."""

    input_ids: Tensor
    mask: Tensor | None
    types: Tensor | None

    def to(self, device: torch.device) -> Bucket:
        """The same on a device."""
        ids, mask, types = (
            part if part is None else part.to(device, non_blocking=True)
            for part in (self.input_ids, self.mask, self.types)
        )
        assert ids is not None
        return Bucket(ids, mask, types)


@dataclass
class TaskRows:
    """The rows of one task among the micro-batch's texts, [k] each.

    scale: what one unit of this task's summed loss adds to the step's loss. An idle task reads row 0 with scale 0, so
    that every head takes part in every micro-batch on every rank.
    """

    rows: Tensor
    targets: Tensor
    scale: float
    examples: int

    def to(self, device: torch.device) -> TaskRows:
        """The same on a device."""
        return TaskRows(
            self.rows.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.scale,
            self.examples,
        )


@dataclass
class MicroBatch:
    """What one rank computes in one forward and backward."""

    buckets: list[Bucket]
    tasks: dict[str, TaskRows]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        return MicroBatch([b.to(device) for b in self.buckets], {t: rows.to(device) for t, rows in self.tasks.items()})


@dataclass
class Step:
    """One optimizer step on one rank, and what the whole step holds over all ranks."""

    micro_batches: list[MicroBatch]
    examples: dict[str, int]
    tokens: dict[str, int]
    elements: dict[str, int]


class Batcher:
    """Turns (task, row) pairs into micro-batches. `specs` and `splits` are by task, in the recipe's order."""

    def __init__(self, splits: dict[str, EncodedSplit], specs: dict[str, HeadSpec], scales: dict[str, float]) -> None:
        self.names = list(splits)
        self.splits = list(splits.values())
        self.specs, self.scales = specs, scales

    def lengths(self, tasks: NDArray[np.int16], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each example, [k]."""
        out = np.empty(len(rows), np.int64)
        for number, split in enumerate(self.splits):
            chosen = tasks == number
            out[chosen] = split.lengths[rows[chosen]]
        return out

    def micro_batch(
        self,
        buckets: list[Positions],
        tasks: NDArray[np.int16],
        rows: NDArray[np.int64],
        elements: dict[str, int],
    ) -> MicroBatch:
        """Assemble the examples at `buckets`' positions; `elements` are the whole step's loss denominators."""
        made = [self.bucket(bucket, tasks, rows) for bucket in buckets]
        places = np.concatenate([bucket if len(bucket) else [-1] for bucket in buckets])  # -1: a dummy text
        task_of = np.where(places >= 0, tasks[places], -1)
        by_task = {}
        for number, (name, split) in enumerate(zip(self.names, self.splits, strict=True)):
            mine = np.flatnonzero(task_of == number)
            if len(mine):
                targets, scale = split.targets[rows[places[mine]]], self.scales[name] / elements[name]
            else:
                targets, scale = np.zeros_like(split.targets[:1]), 0.0
            chosen = mine if len(mine) else np.zeros(1, np.int64)
            by_task[name] = TaskRows(torch.from_numpy(chosen), torch.from_numpy(targets), scale, len(mine))
        return MicroBatch(made, by_task)

    def bucket(self, positions: Positions, tasks: NDArray[np.int16], rows: NDArray[np.int64]) -> Bucket:
        """The texts at `positions` as one rectangle; no texts give one dummy token, so that every rank has work."""
        if len(positions) == 0:
            return Bucket(torch.zeros(1, 1, dtype=torch.int64), None, None)
        lengths = self.lengths(tasks[positions], rows[positions])
        ids = np.zeros((len(positions), lengths.max()), np.int64)
        types = np.zeros_like(ids)
        paired = False
        for i, position in enumerate(positions):
            split, row = self.splits[tasks[position]], rows[position]
            text = slice(split.offsets[row], split.offsets[row + 1])
            ids[i, : lengths[i]] = split.tokens[text]
            if split.types is not None:
                paired = True
                types[i, : lengths[i]] = split.types[text]
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        return Bucket(
            torch.from_numpy(ids),
            None if mask.all() else torch.from_numpy(mask.astype(np.int64)),
            torch.from_numpy(types) if paired else None,
        )


class TrainingStream:
    """Steps of the global stream as this rank sees them, assembled ahead by one background thread."""

    def __init__(self, batcher: Batcher, mixture: Mixture, plan: BatchPlan, buckets: int, rank: int) -> None:
        self.batcher, self.mixture, self.plan, self.buckets, self.rank = batcher, mixture, plan, buckets, rank

    def step(self, number: int) -> Step:
        """Step `number` (from 0): global samples number * examples up to (number + 1) * examples."""
        first = number * self.plan.examples
        tasks, rows = self.mixture.at(np.arange(first, first + self.plan.examples))
        lengths = self.batcher.lengths(tasks, rows)
        counts = np.bincount(tasks, minlength=len(self.batcher.names))
        tokens = np.bincount(tasks, weights=lengths, minlength=len(self.batcher.names)).astype(np.int64)
        examples = dict(zip(self.batcher.names, counts.tolist(), strict=True))
        elements = {name: self.batcher.specs[name].elements(n) for name, n in examples.items()}
        layout = lay_out(lengths, self.plan, self.buckets)
        micros = [self.batcher.micro_batch(m, tasks, rows, elements) for m in layout.positions[self.rank]]
        return Step(micros, examples, dict(zip(self.batcher.names, tokens.tolist(), strict=True)), elements)

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Steps start..stop-1 in order."""
        with ThreadPoolExecutor(1, "batches") as pool:
            ahead: list[Any] = [pool.submit(self.step, n) for n in range(start, min(start + PREFETCH, stop))]
            for number in range(start, stop):
                if number + PREFETCH < stop:
                    ahead.append(pool.submit(self.step, number + PREFETCH))
                yield ahead.pop(0).result()
