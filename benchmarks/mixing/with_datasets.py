"""`datasets.interleave_datasets`, over tables in memory with one column: the row's number."""

from __future__ import annotations

import time
from itertools import islice, pairwise
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, interleave_datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, DistributedSampler
from workload import Array, Workload

SHARDS = 16
"""Shards of a source, a multiple of all ranks and workers: what its documentation advises for several nodes."""

datasets.disable_progress_bars()
datasets.logging.set_verbosity_error()


def tables(work: Workload) -> list[Dataset]:
    """The sources."""
    return [Dataset.from_dict({"id": np.arange(a, b)}) for a, b in pairwise(work.offsets)]


def mapped(work: Workload, sources: list[Dataset]) -> Dataset:
    """Map-style: shuffled sources, drawn until each was read whole; one that ends early starts again."""
    shuffled = [source.shuffle(seed=number) for number, source in enumerate(sources)]
    weights = list(work.weights)
    return interleave_datasets(shuffled, probabilities=weights, seed=0, stopping_strategy="all_exhausted")


def schedule(work: Workload, sources: list[Dataset]) -> tuple[int, float]:
    """Indices of the map-style order and the seconds that it takes to build; reading them out is not counted."""
    began = time.perf_counter()
    made = mapped(work, sources)
    return len(made), time.perf_counter() - began


def ids(work: Workload, count: int) -> Array:
    """Rows of the first `count` samples, map-style."""
    found = mapped(work, tables(work)).with_format("numpy")[:count]["id"]
    assert len(found) == count, f"the order has only {len(found)} samples"
    return np.asarray(found, np.int64)


def streamed(work: Workload, shards: int = 1) -> Any:
    """Iterable, without end. Sources are not shuffled: a shuffle buffer costs time and cannot be resumed exactly."""
    sources = [table.to_iterable_dataset(num_shards=shards).repeat(None) for table in tables(work)]
    return interleave_datasets(sources, probabilities=list(work.weights), seed=0)


def skip(work: Workload, index: int) -> float:
    """Seconds from nothing to the sample at an index, by skipping those before it."""
    began = time.perf_counter()
    next(iter(streamed(work).skip(index)))
    return time.perf_counter() - began


def resume(work: Workload, index: int, batch: int) -> tuple[float, bool]:
    """Seconds from a saved state to the batch at an index, and whether it is the batch of the run that saved it.

    The state is one of a run from the start: one of a stream that has skipped skips again.
    """
    stream = streamed(work)
    samples = iter(stream)
    for _ in islice(samples, index):
        pass
    state = stream.state_dict()
    expected = list(islice(samples, batch))
    began = time.perf_counter()
    again = streamed(work)
    again.load_state_dict(state)
    found = list(islice(again, batch))
    return time.perf_counter() - began, found == expected


def stream_batches(work: Workload, batch: int, count: int, world: int, workers: int, shards: int) -> list[list[Array]]:
    """The first `count` batches of each rank of the iterable, split by node and read by `DataLoader`."""
    return [
        _read(split_dataset_by_node(streamed(work, shards), rank, world), batch // world, count, workers)
        for rank in range(world)
    ]


def map_batches(work: Workload, batch: int, count: int, world: int, workers: int) -> list[list[Array]]:
    """The same of the map-style order, dealt by `DistributedSampler` without a shuffle of its own."""
    made = mapped(work, tables(work))
    return [
        _read(made, batch // world, count, workers, DistributedSampler(made, world, rank, shuffle=False))
        for rank in range(world)
    ]


def _read(data: Any, batch: int, count: int, workers: int, sampler: Any = None) -> list[Array]:
    loader = DataLoader(data.with_format("torch"), batch_size=batch, num_workers=workers, sampler=sampler)
    with torch.no_grad():
        return [part["id"].numpy() for part in islice(loader, count)]
