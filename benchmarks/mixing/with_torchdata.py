"""`torchdata.nodes.MultiNodeWeightedSampler` over samplers that shuffle anew in every epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from torchdata.nodes import Batcher, MultiNodeWeightedSampler, ParallelMapper, SamplerWrapper, StopCriteria
from workload import Array, Workload


class Rows(Sampler[int]):
    """A source's rows in an order of its own for each epoch; each rank has its part, as by `DistributedSampler`."""

    def __init__(self, first: int, end: int, rank: int, world: int) -> None:
        self.first, self.end, self.rank, self.world = first, end, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by `SamplerWrapper` before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.first + self.epoch)
        order = torch.randperm(self.end - self.first, generator=generator) + self.first
        return iter(order[self.rank :: self.world].tolist())


def mixed(work: Workload, rank: int = 0, world: int = 1) -> Any:
    """The weighted sampler."""
    nodes = {
        str(source): SamplerWrapper(Rows(first, end, rank, world))
        for source, (first, end) in enumerate(pairwise(work.offsets))
    }
    weights = {name: float(weight) for name, weight in zip(nodes, work.weights, strict=True)}
    forever = StopCriteria.CYCLE_FOREVER
    return MultiNodeWeightedSampler(nodes, weights, forever, rank=rank, world_size=world, seed=0)


def schedule(work: Workload, count: int) -> float:
    """Seconds for the rows of the first `count` samples."""
    began = time.perf_counter()
    ids(work, count)
    return time.perf_counter() - began


def ids(work: Workload, count: int) -> Array:
    """Rows of the first `count` samples."""
    node = mixed(work)
    node.reset()
    return np.fromiter(islice(node, count), np.int64, count)


def resume(work: Workload, index: int, batch: int) -> tuple[float, bool]:
    """Seconds from a saved state to the batch at an index, and whether it is the batch of the run that saved it."""
    node = mixed(work)
    node.reset()
    for _ in islice(node, index):
        pass
    state = node.state_dict()
    expected = list(islice(node, batch))
    began = time.perf_counter()
    again = mixed(work)
    again.reset(state)
    found = list(islice(again, batch))
    return time.perf_counter() - began, found == expected


def batches(work: Workload, batch: int, count: int, world: int, workers: int) -> list[list[Array]]:
    """The first `count` batches of each rank: sources split by rank, a sampler seeded by rank, mapped by threads."""
    found = []
    for rank in range(world):
        node = mixed(work, rank, world)
        if workers:
            node = ParallelMapper(node, _same, num_workers=workers)
        node = Batcher(node, batch // world)
        node.reset()
        found.append([np.array(part) for part in islice(node, count)])
    return found


def _same(row: int) -> int:
    return row
