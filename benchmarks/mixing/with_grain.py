"""`grain.MapDataset.mix` over shuffled sources that repeat; an element is its row's number."""

from __future__ import annotations

import time
from itertools import islice, pairwise
from typing import Any

import grain
import numpy as np
from grain._src.python.dataset.transformations.mix import SelectionWithProportionsMap
from grain._src.python.experimental.index_shuffle.python import index_shuffle_module
from workload import Array, Workload


def mixed(work: Workload) -> Any:
    """The mix. Heaviest source first: its search goes through the sources in order."""
    sources = [
        grain.MapDataset.range(first, end).seed(number).shuffle().repeat()
        for number, (first, end) in enumerate(pairwise(work.offsets))
    ]
    return grain.MapDataset.mix(sources, weights=list(work.weights))


def schedule(work: Workload, count: int) -> float:
    """Seconds for the rows of the first `count` indices, one index at a time: its only public way."""
    began = time.perf_counter()
    made = mixed(work)
    for index in range(count):
        made[index]
    return time.perf_counter() - began


def bare_schedule(work: Workload, count: int) -> float:
    """The same by the two functions that do the work inside, without the data set's objects around them."""
    sources = [grain.MapDataset.range(rows).repeat() for rows in work.rows]
    select, shuffle = SelectionWithProportionsMap(sources, list(work.weights)), index_shuffle_module.index_shuffle
    last = [rows - 1 for rows in work.rows]
    began = time.perf_counter()
    for index in range(count):
        source, rank = select[index]
        epoch, position = divmod(rank, work.rows[source])
        shuffle(position, max_index=last[source], seed=source + epoch, rounds=4)
    return time.perf_counter() - began


def ids(work: Workload, count: int) -> Array:
    """Rows of the first `count` samples."""
    made = mixed(work)
    return np.fromiter((made[index] for index in range(count)), np.int64, count)


def sources(work: Workload, count: int) -> Array:
    """Sources of the first `count` samples, without their rows."""
    parts = [grain.MapDataset.range(rows).repeat() for rows in work.rows]
    select = SelectionWithProportionsMap(parts, list(work.weights))
    return np.fromiter((select[index][0] for index in range(count)), np.int64, count)


def resume(work: Workload, index: int, batch: int) -> float:
    """Seconds from nothing to the batch at an index."""
    began = time.perf_counter()
    made = mixed(work)
    for place in range(index, index + batch):
        made[place]
    return time.perf_counter() - began


def batches(work: Workload, batch: int, count: int, world: int, workers: int) -> list[list[Array]]:
    """The first `count` batches of each rank: the mix sliced by rank, as its documentation does it."""
    found = []
    for rank in range(world):
        made = mixed(work)[rank::world].batch(batch // world).to_iter_dataset()
        if workers:
            made = made.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        found.append([np.asarray(part, np.int64) for part in islice(made, count)])
    return found
