"""How fast, how exact and how steady the order of a mixture is, beside `datasets`, `grain` and `torchdata`.

pip install -r benchmarks/requirements.txt
python benchmarks/mixing/run.py                 everything, in one run
python benchmarks/mixing/run.py --full --write  resuming at 1e7 is measured on every side; the tables into README.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402
import with_lmrecipes as lmrecipes  # noqa: E402
from pairs import Pairs, Target, in_turn, markdown_table, measured_on, targets_table  # noqa: E402
from workload import (  # noqa: E402
    Array,
    Workload,
    largest_deviation,
    lengths_of,
    many,
    same_batches,
    token_error,
    union,
)

from lmrecipes.tracking.results import write_results_into  # noqa: E402

THREE = Workload((10_000, 100_000, 1_000_000), (0.5, 0.3, 0.2))
HUNDRED = many(100, 10_000)
SMALL = Workload((1_000, 10_000, 100_000), (0.5, 0.3, 0.2))
"""For the orders, of which only 40 batches are looked at."""
UNEVEN = Workload((40_000, 60_000, 300_000), (0.64, 0.32, 0.04))
LENGTHS = lengths_of(UNEVEN.rows, (600.0, 40.0, 8.0), 4096)
"""Rows of very different lengths; the weights are shares of the tokens."""
PREFIX, TOKEN_SAMPLES = 1_000_000, 200_000
FAR = 10**12
BATCH, BATCHES = lmrecipes.BATCH, 40
WORLDS, WORKERS = (1, 2, 4, 8), (0, 2)
RESUME_AT = (100_000, 1_000_000, 10_000_000)
OURS, DATASETS, GRAIN, TORCHDATA = "lmrecipes", "datasets", "grain", "torchdata"
ITERABLE = "datasets, iterable"


def main() -> int:
    """Measure everything; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of what is timed, each side once a round")
    parser.add_argument("--full", action="store_true", help="measure at index 1e7 what is extrapolated otherwise")
    parser.add_argument("--write", action="store_true", help="write the tables into README.md")
    args = parser.parse_args()
    targets: list[Target] = []
    parts = [
        schedule(args.rounds, targets),
        resume(args.rounds, args.full, targets),
        deviation(),
        orders(),
        tokens(),
    ]
    packages = ("numpy", "datasets", "grain", "torchdata", "torch")
    text = "\n\n".join([targets_table(targets), *parts, f"{measured_on(packages)} {args.rounds} rounds."])
    print(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text)
    return 0 if all(target.met for target in targets) else 1


def say(line: str) -> None:
    """A line of progress."""
    print(f"  {line}", flush=True)


def schedule(rounds: int, targets: list[Target]) -> str:
    """Indices a second: global index -> row."""
    import with_datasets
    import with_grain
    import with_torchdata

    bare, rows, taken = f"{GRAIN}, its two functions alone", {}, {}
    for name, work, ours, one_by_one in (("3", THREE, 1 << 22, 100_000), ("100", HUNDRED, 1 << 21, 20_000)):
        print(f"schedule, {name} sources: indices/s", flush=True)
        tables = with_datasets.tables(work)

        def built(work: Workload = work, tables: list = tables) -> float:
            count, seconds = with_datasets.schedule(work, tables)
            return count / seconds

        measures: dict[str, Callable[[], float]] = {
            OURS: lambda work=work, n=ours: n / lmrecipes.schedule(work, n),
            DATASETS: built,
            GRAIN: lambda work=work, n=one_by_one: n / with_grain.schedule(work, n),
            bare: lambda work=work, n=one_by_one: n / with_grain.bare_schedule(work, n),
            TORCHDATA: lambda work=work: 500_000 / with_torchdata.schedule(work, 500_000),
        }
        taken[name] = in_turn(rounds, measures, say)
        for side, rates in taken[name].items():
            ratio = Pairs(taken[name][OURS], rates).ratio
            rows.setdefault(side, [side]).extend([f"{statistics.median(rates):,.3g}", f"{ratio:,.3g}"])

    def ratio(name: str, side: str) -> float:
        return Pairs(taken[name][OURS], taken[name][side]).ratio

    targets += [
        Target("schedule, 3 sources: rate over grain's two functions", ratio("3", bare), 5),
        Target("schedule, 3 sources: rate over `datasets`, map-style", ratio("3", DATASETS), 10),
        Target("schedule, 100 sources: rate over grain's two functions", ratio("100", bare), 50),
    ]
    head = ["indices/s, rows shuffled", "3 sources", "ours over it", "100 sources", "ours over it"]
    return markdown_table(head, list(rows.values()))


def resume(rounds: int, full: bool, targets: list[Target]) -> str:
    """Milliseconds from nothing to the batch at an index."""
    import with_datasets
    import with_grain
    import with_torchdata

    stream = lmrecipes.Stream(THREE)
    rows: dict[str, list[str]] = {}
    skipped = 0.0
    for index in RESUME_AT:
        print(f"resume at {index:,}", flush=True)
        ours = statistics.median(stream.resume(index) for _ in range(max(rounds, 5)))
        grain = statistics.median(with_grain.resume(THREE, index, BATCH) for _ in range(max(rounds, 5)))
        if index < RESUME_AT[-1] or full:
            skipped = with_datasets.skip(THREE, index)
            skip = _time(skipped)
        else:  # in proportion to the index
            skipped *= RESUME_AT[-1] / RESUME_AT[-2]
            skip = f"{_time(skipped)} (extrapolated)"
        state = "not measured"
        if index == RESUME_AT[0] or full:
            state = _resumed(*with_datasets.resume(THREE, index, BATCH))
        torchdata = _resumed(*with_torchdata.resume(THREE, index, BATCH))
        cells = {
            f"{OURS}: by index": _time(ours),
            f"{ITERABLE}: `skip`": skip,
            f"{ITERABLE}: by a state saved there": state,
            f"{GRAIN}: by index": _time(grain),
            f"{TORCHDATA}: by a state saved there": torchdata,
        }
        for side, cell in cells.items():
            rows.setdefault(side, [side]).append(cell)
            say(f"{side}: {cell}")
    what = "measured" if full else "extrapolated from 1e6"
    targets.append(Target(f"resume at 1e7: `skip` of `datasets` ({what}) over ours", skipped / ours, 1000))
    return markdown_table(
        ["from nothing to the batch at index", *(f"{index:,}" for index in RESUME_AT)], [*rows.values()]
    )


def deviation() -> str:
    """Largest distance, in samples, of a source from its share of a prefix."""
    import with_datasets
    import with_grain
    import with_torchdata

    print("deviation", flush=True)
    start = FAR - FAR % BATCH
    rows: dict[str, list[str]] = {}
    for work in (THREE, HUNDRED):
        mixture = lmrecipes.mixture(work)
        there = [mixture.counts(start)[task] for task in mixture.tasks]
        orders: dict[str, tuple[Array, int, list[int]]] = {
            OURS: (work.sources(lmrecipes.ids(mixture, work, PREFIX)), 0, []),
            f"{OURS}, from index 1e12 on": (mixture.at(np.arange(start, start + PREFIX))[0], start, there),
            f"{DATASETS}, map-style": (work.sources(with_datasets.ids(work, PREFIX)), 0, []),
            GRAIN: (with_grain.sources(work, PREFIX), 0, []),
            TORCHDATA: (work.sources(with_torchdata.ids(work, PREFIX)), 0, []),
        }
        for side, (sources, before, counts) in orders.items():
            found = [largest_deviation(sources, work.weights, every, before, counts) for every in (BATCH, 1)]
            rows.setdefault(side, [side]).extend(f"{value:,.1f}" for value in found)
            say(f"{len(work.rows)} sources, {side}: {rows[side][-2]} at batch edges, {rows[side][-1]} anywhere")
    where = (f"{count} sources, {place}" for count in (3, 100) for place in ("at edges of batches", "anywhere"))
    return markdown_table([f"most samples away from a share in {PREFIX:,}", *where], list(rows.values()))


def orders() -> str:
    """How many of the first global batches stay the same for other numbers of ranks and workers."""
    import with_datasets
    import with_grain
    import with_torchdata

    print("orders", flush=True)
    stream = lmrecipes.Stream(SMALL)
    small, shards = (SMALL, BATCH, BATCHES), with_datasets.SHARDS
    sides: dict[str, Callable[[int, int], list[list[Array]]]] = {
        OURS: lambda world, workers: stream.batches(BATCHES, world, workers),
        f"{DATASETS}, map-style under `DistributedSampler`": lambda *at: with_datasets.map_batches(*small, *at),
        f"{ITERABLE}, 1 shard a source": lambda *at: with_datasets.stream_batches(*small, *at, 1),
        f"{ITERABLE}, {shards} shards a source": lambda *at: with_datasets.stream_batches(*small, *at, shards),
        GRAIN: lambda *at: with_grain.batches(*small, *at),
        TORCHDATA: lambda *at: with_torchdata.batches(*small, *at),
    }
    rows = []
    for side, batches in sides.items():
        reference = union(batches(1, 0))
        same = [same_batches(union(batches(world, n)), reference) for n in WORKERS for world in WORLDS]
        rows.append([side, *map(str, same)])
        say(f"{side}: {same}")
    head = [f"world {world}, workers {workers}" for workers in WORKERS for world in WORLDS]
    return markdown_table([f"same of {BATCHES} global batches", *head], rows)


def tokens() -> str:
    """How far the sources' tokens are from their shares, where the lengths differ much."""
    import with_datasets
    import with_grain
    import with_torchdata

    print("tokens", flush=True)
    corrected = UNEVEN.corrected(LENGTHS)
    by_tokens = lmrecipes.token_mixture(UNEVEN, LENGTHS)
    samples = {
        f"{OURS}, `unit: tokens`": lmrecipes.ids(by_tokens, UNEVEN, TOKEN_SAMPLES),
        f"{OURS}, weights over mean lengths": lmrecipes.ids(lmrecipes.mixture(corrected), UNEVEN, TOKEN_SAMPLES),
        f"{DATASETS}, weights over mean lengths": with_datasets.ids(corrected, TOKEN_SAMPLES),
        f"{GRAIN}, weights over mean lengths": with_grain.ids(corrected, TOKEN_SAMPLES),
        f"{TORCHDATA}, weights over mean lengths": with_torchdata.ids(corrected, TOKEN_SAMPLES),
        f"{GRAIN}, weights as they are": with_grain.ids(UNEVEN, TOKEN_SAMPLES),
    }
    rows = []
    for side, ids in samples.items():
        found = token_error(UNEVEN.sources(ids), LENGTHS[ids], UNEVEN.weights)
        rows.append([side, f"{found.share:.1e}", f"{found.tokens:,.0f}"])
        say(", ".join(rows[-1]))
    head = [f"tokens of {TOKEN_SAMPLES:,} samples", "largest error of a share", "most tokens away at a prefix"]
    return markdown_table(head, rows)


def _resumed(seconds: float, exact: bool) -> str:
    """The time of a resume, and whether it went on with the samples that came next."""
    return _time(seconds) + ("" if exact else " (other samples)")


def _time(seconds: float) -> str:
    """A duration with its unit."""
    return f"{1000 * seconds:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"


if __name__ == "__main__":
    sys.exit(main())
