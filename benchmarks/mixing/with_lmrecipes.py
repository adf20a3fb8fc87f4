"""Our side: `Mixture`, and for batches the `TrainingStream` that training itself reads."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from workload import Array, Workload

from lmrecipes.data.batches import Batcher
from lmrecipes.data.interleave import Stage, integer_weights
from lmrecipes.data.layout import Arrangement
from lmrecipes.data.loss_scales import LossScales
from lmrecipes.data.mixture import Mixture, Supply
from lmrecipes.data.stream import TrainingStream
from lmrecipes.models.heads import HeadSpec
from lmrecipes.planning.batch import plan_batch
from lmrecipes.recipe import Loader

BLOCK = 1 << 17
"""Indices that are asked for at once."""
BATCH = 64
"""Samples of a step, and so the slots that the mixture permutes among themselves."""
_REGRESSION = HeadSpec("regression", (), (0.0,), 1.0)


@dataclass(frozen=True)
class Numbers:
    """An encoded split of texts of one token; the target of a text is its row, so that a batch says what it holds."""

    count: int
    types: None = None
    tokens: NDArray[np.int32] = field(init=False)
    offsets: Array = field(init=False)
    targets: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", np.arange(self.count, dtype=np.int32))
        object.__setattr__(self, "offsets", np.arange(self.count + 1))
        object.__setattr__(self, "targets", np.arange(self.count, dtype=np.float32))


def mixture(work: Workload) -> Mixture:
    """The mixture of a workload."""
    names = [str(source) for source in range(len(work.rows))]
    return Mixture.fixed(names, work.rows, work.weights, 0, BATCH)


def token_mixture(work: Workload, lengths: Array) -> Mixture:
    """The same with weights on tokens."""
    supplies = []
    for first, end in pairwise(work.offsets):
        own = lengths[first:end]
        supplies.append(Supply(len(own), int(own.sum()), None, own.__getitem__))
    names = [str(source) for source in range(len(work.rows))]
    return Mixture(names, supplies, [Stage(0, integer_weights(work.weights))], 0, BATCH)


def schedule(work: Workload, count: int) -> float:
    """Seconds for (source, row) of the first `count` indices, block by block, from a new mixture."""
    began = time.perf_counter()
    made = mixture(work)
    for start in range(0, count, BLOCK):
        made.at(np.arange(start, min(start + BLOCK, count)))
    return time.perf_counter() - began


def ids(made: Mixture, work: Workload, count: int) -> Array:
    """Rows of the first `count` samples."""
    sources, rows = made.at(np.arange(count))
    return rows + np.array(work.offsets)[sources]


class Stream:
    """What training reads, over a workload whose texts are their own row numbers."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        splits = {str(source): Numbers(count) for source, count in enumerate(work.rows)}
        self.batcher = Batcher(splits, dict.fromkeys(splits, _REGRESSION))
        self.scales = LossScales(dict.fromkeys(splits, 1.0))

    def open(self, world: int, rank: int, workers: int) -> TrainingStream:
        """The stream as one rank sees it, from a new mixture."""
        plan = plan_batch(BATCH, BATCH, world)
        return TrainingStream(
            self.batcher, self.scales, mixture(self.work), plan, Arrangement("padded"), rank, Loader(workers=workers)
        )

    def resume(self, index: int) -> float:
        """Seconds from nothing to the batch at a global index."""
        began = time.perf_counter()
        self.open(1, 0, 0).step(index // BATCH)
        return time.perf_counter() - began

    def batches(self, count: int, world: int, workers: int) -> list[list[Array]]:
        """The first `count` batches of each rank: [rank][step]."""
        return [
            [
                np.concatenate(
                    [
                        task.targets.numpy().astype(np.int64) + first
                        for micro in step.micro_batches
                        for first, task in zip(self.work.offsets, micro.tasks.values(), strict=False)
                        if task.examples
                    ]
                )
                for step in self.open(world, rank, workers).steps(0, count)
            ]
            for rank in range(world)
        ]
