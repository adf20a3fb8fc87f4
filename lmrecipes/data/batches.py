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
    """A rectangle of texts: input_ids int64 [rows, time]; mask None where nothing is padded; types None for one segment."""

    input_ids: Tensor
    mask: Tensor | None
    types: Tensor | None

    def to(self, device: torch.device) -> Bucket:
        """The same on a device."""
        move = lambda x: None if x is None else x.to(device, non_blocking=True)  # noqa: E731
        return Bucket(self.input_ids.to(device, non_blocking=True), move(self.mask), move(self.types))


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
        made, order = [], []
        for bucket in buckets:
            made.append(self.bucket(bucket, tasks, rows))
            order.append(bucket if len(bucket) else np.array([-1]))
        places = np.concatenate(order)
        number_of = np.where(places >= 0, tasks[places], -1)
        by_task = {}
        for number, name in enumerate(self.names):
            mine = np.flatnonzero(number_of == number)
            spec, split = self.specs[name], self.splits[number]
            targets = split.targets[rows[places[mine]]] if len(mine) else np.zeros_like(split.targets[:1])
            scale = self.scales[name] / elements[name] if len(mine) else 0.0
            chosen = torch.from_numpy(mine if len(mine) else np.zeros(1, np.int64))
            by_task[name] = TaskRows(chosen, torch.from_numpy(np.array(targets)), scale, len(mine))
            assert spec.kind != "multi_label" or targets.ndim == 2
        return MicroBatch(made, by_task)

    def bucket(self, positions: Positions, tasks: NDArray[np.int16], rows: NDArray[np.int64]) -> Bucket:
        """The texts at `positions` as one rectangle; no texts give one dummy token, so that every rank has work."""
        if len(positions) == 0:
            return Bucket(torch.zeros(1, 1, dtype=torch.int64), None, None)
        texts, types = [], []
        for position in positions:
            split = self.splits[tasks[position]]
            start, end = split.offsets[rows[position]], split.offsets[rows[position] + 1]
            texts.append(split.tokens[start:end])
            types.append(None if split.types is None else split.types[start:end])
        lengths = np.array([len(text) for text in texts])
        ids = np.zeros((len(texts), int(lengths.max())), np.int64)
        segments = np.zeros_like(ids) if any(t is not None for t in types) else None
        for i, text in enumerate(texts):
            ids[i, : len(text)] = text
            if segments is not None and types[i] is not None:
                segments[i, : len(text)] = types[i]
        mask = None
        if lengths.min() < lengths.max():
            mask = torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64))
        return Bucket(torch.from_numpy(ids), mask, None if segments is None else torch.from_numpy(segments))


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
