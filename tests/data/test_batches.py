"""Micro-batches: the right numbers in the right rectangles, and denominators that make a step one mean."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmrecipes.data.batches import Batcher, Bucket, MicroBatch, Packed
from lmrecipes.data.encoded import EncodedSplit
from lmrecipes.data.layout import Arrangement
from lmrecipes.data.loss_scales import LossScales
from lmrecipes.data.mixture import Mixture
from lmrecipes.data.stream import Step, TrainingStream
from lmrecipes.models.heads import HeadSpec, head_spec
from lmrecipes.planning.batch import BatchPlan, plan_batch
from lmrecipes.recipe import Loader

BUCKETS = Arrangement("buckets", 3)
SCALES = {"score": 0.5, "topic": 2.0, "tags": 3.0}


def write_split(folder: Path, name: str, lengths: list[int], targets: Any, paired: bool = False) -> EncodedSplit:
    """Text i of a task is `first + i` repeated; its segments change in the middle."""
    first = {"score": 100, "topic": 200, "tags": 300}[name]
    task = folder / name
    task.mkdir()
    tokens = [np.full(length, first + i, np.int32) for i, length in enumerate(lengths)]
    np.save(task / "train.tokens.npy", np.concatenate(tokens))
    np.save(task / "train.offsets.npy", np.cumsum([0, *lengths]).astype(np.int64))
    np.save(task / "train.targets.npy", targets)
    if paired:
        types = [(np.arange(length) >= length // 2).astype(np.uint8) for length in lengths]
        np.save(task / "train.types.npy", np.concatenate(types))
    return EncodedSplit(task, "train")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EncodedSplit]:
    folder = tmp_path_factory.mktemp("encoded")
    rng = np.random.default_rng(0)
    return {
        "score": write_split(folder, "score", rng.integers(1, 6, 40).tolist(), np.arange(40, dtype=np.float32)),
        "topic": write_split(
            folder, "topic", rng.integers(4, 30, 30).tolist(), np.arange(30, dtype=np.int32) % 3, True
        ),
        "tags": write_split(
            folder, "tags", rng.integers(2, 12, 8).tolist(), np.eye(4, dtype=np.uint8)[np.arange(8) % 4]
        ),
    }


@pytest.fixture(scope="module")
def batcher(splits: dict[str, EncodedSplit]) -> Batcher:
    specs = {
        "score": head_spec("regression", (), splits["score"].targets),
        "topic": head_spec("classification", ("a", "b", "c"), splits["topic"].targets),
        "tags": head_spec("multi_label", ("p", "q", "r", "s"), splits["tags"].targets),
    }
    return Batcher(splits, specs)


def stream(
    batcher: Batcher, plan: BatchPlan, rank: int = 0, arrangement: Arrangement = BUCKETS, **loader: int
) -> TrainingStream:
    rows = tuple(len(split) for split in batcher.splits)
    mixture = Mixture.fixed(tuple(batcher.names), rows, (0.5, 0.45, 0.05), 1)
    return TrainingStream(batcher, LossScales(SCALES), mixture, plan, arrangement, rank, Loader(**loader))


def texts_of(bucket: Bucket) -> list[list[int]]:
    mask = bucket.mask if bucket.mask is not None else torch.ones_like(bucket.input_ids)
    return [row[on == 1].tolist() for row, on in zip(bucket.input_ids, mask, strict=True)]


def all_texts(micro: MicroBatch) -> list[list[int]]:
    """The texts of a micro-batch in any layout, in the order of its vectors."""
    if isinstance(micro.texts, list):
        return [text for bucket in micro.texts for text in texts_of(bucket)]
    flat = micro.texts.input_ids.flatten()
    tokens = flat if micro.texts.real is None else flat[micro.texts.real]
    return [text.tolist() for text in tokens.split(micro.texts.lengths.tolist())]


def test_a_bucket_is_padded_on_the_right(batcher: Batcher, splits: dict[str, EncodedSplit]) -> None:
    tasks, rows = np.array([0, 0, 2], np.int16), np.array([0, 7, 3])
    bucket = batcher.bucket(np.array([2, 0, 1]), tasks, rows)
    lengths = [int(splits["tags"].lengths[3]), int(splits["score"].lengths[0]), int(splits["score"].lengths[7])]
    assert bucket.input_ids.shape == (3, max(lengths))
    assert texts_of(bucket) == [[303] * lengths[0], [100] * lengths[1], [107] * lengths[2]]
    assert bucket.mask is not None
    assert bucket.mask.tolist() == [[1] * n + [0] * (max(lengths) - n) for n in lengths]
    assert (bucket.input_ids[bucket.mask == 0] == 0).all()
    assert bucket.types is None
    assert bucket.input_ids.dtype == bucket.mask.dtype == torch.int64


def test_equal_lengths_need_no_mask(batcher: Batcher) -> None:
    bucket = batcher.bucket(np.array([0, 1]), np.array([1, 1], np.int16), np.array([5, 5]))
    assert bucket.mask is None


def test_segments_of_pairs_beside_single_texts(batcher: Batcher, splits: dict[str, EncodedSplit]) -> None:
    bucket = batcher.bucket(np.array([0, 1]), np.array([1, 0], np.int16), np.array([4, 2]))
    n = int(splits["topic"].lengths[4])
    assert bucket.types is not None
    assert bucket.types[0].tolist() == [0] * (n // 2) + [1] * (n - n // 2)
    assert bucket.types[1].tolist() == [0] * n
    assert bucket.types.dtype == torch.int64


def test_no_text_is_one_dummy_token(batcher: Batcher) -> None:
    bucket = batcher.bucket(np.zeros(0, np.int64), np.zeros(0, np.int16), np.zeros(0, np.int64))
    assert bucket.input_ids.tolist() == [[0]]
    assert bucket.mask is None
    assert bucket.types is None


def test_rows_and_targets_of_each_task(batcher: Batcher) -> None:
    tasks, rows = np.array([1, 0, 1, 0], np.int16), np.array([5, 9, 6, 2])
    buckets = [np.array([2, 1]), np.zeros(0, np.int64), np.array([3, 0])]
    micro = batcher.micro_batch(buckets, tasks, rows, {"score": 0.5 / 8, "topic": 2.0 / 2, "tags": 0}, BUCKETS)
    assert len(micro.texts) == 3  # type: ignore[arg-type]
    heads = [row[0] for row in all_texts(micro)]
    assert heads == [206, 109, 0, 102, 205], "a dummy row stands for the empty bucket"
    score, topic, tags = (micro.tasks[name] for name in ("score", "topic", "tags"))
    assert (score.rows.tolist(), score.targets.tolist(), score.scale) == ([1, 3], [9.0, 2.0], 0.5 / 8)
    assert (topic.rows.tolist(), topic.targets.tolist(), topic.scale) == ([0, 4], [0, 2], 2.0 / 2)
    assert (score.examples, topic.examples, tags.examples) == (2, 2, 0)
    assert (score.targets.dtype, topic.targets.dtype) == (torch.float32, torch.int32)


def test_an_idle_task_reads_row_0_for_nothing(batcher: Batcher) -> None:
    micro = batcher.micro_batch(
        [np.array([0])], np.array([0], np.int16), np.array([0]), {"score": 1, "topic": 0, "tags": 0}, BUCKETS
    )
    for name, shape in {"topic": (1,), "tags": (1, 4)}.items():
        task = micro.tasks[name]
        assert (task.rows.tolist(), task.scale, task.examples) == ([0], 0.0, 0)
        assert task.targets.shape == shape
        assert (task.targets == 0).all()


@pytest.mark.parametrize("layout", ["padded", "buckets", "grouped", "packed"])
def test_an_empty_micro_batch_is_one_dummy_token_a_pass(batcher: Batcher, layout: Any) -> None:
    arrangement = Arrangement(layout, 3, width=30)
    nothing, counts = np.zeros(0, np.int64), {"score": 4, "topic": 0, "tags": 0}
    parts = arrangement.parts(nothing, nothing)
    micro = batcher.micro_batch(parts, np.zeros(4, np.int16), np.zeros(4, np.int64), counts, arrangement)
    assert all_texts(micro) == [[0]] * (3 if layout == "buckets" else 1)
    assert all((task.scale, task.examples) == (0.0, 0) for task in micro.tasks.values())


def test_packed_rows(batcher: Batcher, splits: dict[str, EncodedSplit]) -> None:
    """Texts end to end in rows: each has its number, positions from 0 and its segments; the rest is padding."""
    tasks, rows = np.array([0, 1, 2], np.int16), np.array([3, 5, 2])
    n = [int(splits[name].lengths[row]) for name, row in (("score", 3), ("topic", 5), ("tags", 2))]
    width = n[0] + n[1] + 2
    rows_of = Arrangement("packed", width=width, least=width)
    packed = batcher.packed([np.array([1, 0]), np.array([2])], tasks, rows, rows_of)
    first, second = n[1] + n[0], n[2]
    assert packed.input_ids.tolist() == [
        [205] * n[1] + [103] * n[0] + [0] * (width - first),
        [302] * second + [0] * (width - second),
    ]
    assert packed.documents.tolist() == [
        [0] * n[1] + [1] * n[0] + [-1] * (width - first),
        [2] * second + [-1] * (width - second),
    ]
    assert packed.positions.tolist() == [
        [*range(n[1]), *range(n[0]), *[0] * (width - first)],
        [*range(second), *[0] * (width - second)],
    ]
    assert packed.types is not None
    assert packed.types[0, : n[1]].tolist() == [0] * (n[1] // 2) + [1] * (n[1] - n[1] // 2)
    assert packed.types.sum() == n[1] - n[1] // 2
    assert (packed.lengths.tolist(), packed.longest) == ([n[1], n[0], n[2]], max(n))
    assert packed.real is not None
    assert packed.real.tolist() == [*range(first), *range(width, width + second)]


def test_one_row_without_end(batcher: Batcher) -> None:
    packed = batcher.packed([np.arange(3)], np.array([0, 0, 2], np.int16), np.array([1, 2, 3]), Arrangement("packed"))
    assert packed.input_ids.shape == (1, int(packed.lengths.sum()))
    assert packed.real is None
    assert packed.types is None
    assert packed.documents.min() == 0


def every_micro(
    batcher: Batcher, number: int, world: int, micro: int, arrangement: Arrangement = BUCKETS
) -> tuple[Step, list[MicroBatch]]:
    plan = plan_batch(16, micro, world)
    steps = [stream(batcher, plan, rank, arrangement).step(number) for rank in range(world)]
    for step in steps:
        assert (step.examples, step.tokens, step.elements) == (steps[0].examples, steps[0].tokens, steps[0].elements)
        assert len(step.micro_batches) == plan.accumulation
    return steps[0], [one for step in steps for one in step.micro_batches]


@pytest.mark.parametrize(("world", "micro"), [(1, 16), (1, 3), (2, 8), (3, 2), (5, 1)])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_a_step_is_one_mean_over_its_elements(batcher: Batcher, world: int, micro: int, number: int) -> None:
    """Scale is factor / elements of the whole step: its sum over all elements is the factor however a step is cut."""
    step, micros = every_micro(batcher, number, world, micro)
    for name, spec in batcher.specs.items():
        seen = sum(one.tasks[name].examples for one in micros)
        assert seen == step.examples[name]
        assert step.elements[name] == seen * {"score": 1, "topic": 1, "tags": 4}[name]
        total = sum(one.tasks[name].scale * spec.elements(one.tasks[name].examples) for one in micros)
        assert total == pytest.approx(SCALES[name] if seen else 0)
        if seen:
            scales = {one.tasks[name].scale for one in micros if one.tasks[name].examples}
            assert scales == {SCALES[name] / step.elements[name]}


@pytest.mark.parametrize("layout", ["padded", "buckets", "grouped", "packed"])
@pytest.mark.parametrize(("world", "micro"), [(1, 3), (2, 8), (3, 2)])
def test_where_a_step_is_computed_does_not_change_it(batcher: Batcher, world: int, micro: int, layout: Any) -> None:
    def content(micros: list[MicroBatch]) -> list[tuple[str, list[int], Any]]:
        found = []
        for one in micros:
            texts = all_texts(one)
            for name, task in one.tasks.items():
                if task.examples:
                    pairs = zip(task.rows.tolist(), task.targets.tolist(), strict=True)
                    found += [(name, texts[row], target) for row, target in pairs]
        return sorted(found)

    step, together = every_micro(batcher, 2, 1, 16)
    other, apart = every_micro(batcher, 2, world, micro, Arrangement(layout, 3, width=30))
    assert content(together) == content(apart)
    assert (step.examples, step.tokens, step.elements) == (other.examples, other.tokens, other.elements)
    assert step.tokens == {
        name: sum(len(text) for task, text, _ in content(together) if task == name) for name in batcher.names
    }
    assert sum(step.examples.values()) == 16


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return same(vars(a), vars(b)) if hasattr(a, "__dict__") else bool(a == b)


def test_the_stream_equals_step_by_step(batcher: Batcher) -> None:
    source = stream(batcher, plan_batch(16, 4, 2), rank=1)
    steps = list(source.steps(3, 12))
    assert len(steps) == 9
    assert all(same(step, source.step(number)) for number, step in enumerate(steps, 3))
    assert not same(steps[0], steps[1])
    assert [list(source.steps(4, stop)) for stop in (4, 3)] == [[], []]
    assert same(next(source.steps(11, 12)), steps[-1]), "resumed at any step"


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_workers_and_world_change_no_step(batcher: Batcher, world: int) -> None:
    """The same global order, each example once, for 0, 1 and 2 threads and any number of ranks."""

    def seen(step: Step) -> list[tuple[str, Any]]:
        return sorted(
            (name, str((text, target)))
            for one in step.micro_batches
            for texts in [all_texts(one)]
            for name, task in one.tasks.items()
            if task.examples
            for text, target in zip([texts[row] for row in task.rows], task.targets.tolist(), strict=True)
        )

    alone = [seen(step) for step in stream(batcher, plan_batch(16, 4, 1)).steps(0, 6)]
    plan = plan_batch(16, 3, world)
    by_workers = [
        [list(stream(batcher, plan, rank, workers=workers, prefetch=3).steps(0, 6)) for rank in range(world)]
        for workers in (0, 1, 2)
    ]
    assert same(by_workers[0], by_workers[1])
    assert same(by_workers[0], by_workers[2])
    for number, together in enumerate(alone):
        assert sorted(found for rank in by_workers[0] for found in seen(rank[number])) == together


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 2), (1, 2), (1, 5), (2, 1)])
def test_it_works_ahead_and_no_further(
    batcher: Batcher, monkeypatch: pytest.MonkeyPatch, workers: int, prefetch: int
) -> None:
    source = stream(batcher, plan_batch(16, 16, 1), workers=workers, prefetch=prefetch)
    made: list[tuple[int, bool]] = []
    step, ready, last = source.step, threading.Event(), prefetch if workers else 0

    def counted(number: int, mixture: Mixture) -> Step:
        made.append((number, threading.current_thread() is threading.main_thread()))
        if len(made) == last + 1:
            ready.set()
        return step(number, mixture)

    monkeypatch.setattr(source, "step", counted)
    steps: Iterator[Step] = source.steps(0, 100)
    next(steps)
    assert ready.wait(10)
    steps.close()  # type: ignore[attr-defined]
    assert sorted(made) == [(number, workers == 0) for number in range(last + 1)]


def test_a_new_mixture_holds_from_the_next_step_on(batcher: Batcher) -> None:
    """An adaptive run replaces the mixture by one that is the same for what is already under way."""
    for workers, under_way in ((0, 1), (1, 3)):
        source = stream(batcher, plan_batch(16, 16, 1), workers=workers, prefetch=2)
        old, rows = source.mixture, tuple(len(split) for split in batcher.splits)
        new = Mixture.fixed(tuple(batcher.names), rows, (0.01, 0.98, 0.01), 1)
        steps = source.steps(0, 8)
        found = [next(steps)]
        source.mixture = new
        found += steps
        wanted = [source.step(number, old if number < under_way else new) for number in range(8)]
        assert all(same(a, b) for a, b in zip(found, wanted, strict=True))


def test_an_error_in_the_background_reaches_the_loop(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stream(batcher, plan_batch(16, 16, 1))

    def fail(number: int, mixture: Mixture) -> Step:
        raise OSError("the disk is gone")

    monkeypatch.setattr(source, "step", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        list(source.steps(0, 5))


@pytest.mark.parametrize("arrangement", [BUCKETS, Arrangement("packed", width=32)])
def test_to_moves_every_tensor(batcher: Batcher, arrangement: Arrangement) -> None:
    tasks, rows = np.array([0, 1, 0, 1], np.int16), np.arange(4)
    counts = {"score": 2, "topic": 2, "tags": 0}
    parts = arrangement.parts(np.arange(4), batcher.lengths(tasks, rows))
    micro = batcher.micro_batch(parts, tasks, rows, counts, arrangement)
    moved = micro.to(torch.device("meta"))
    parts_of: list[Any] = [moved.texts] if isinstance(moved.texts, Packed) else list(moved.texts)
    tensors = [part for text in parts_of for part in vars(text).values() if isinstance(part, Tensor)]
    tensors += [t for task in moved.tasks.values() for t in (task.rows, task.targets)]
    assert len(tensors) > 6
    assert all(t.device.type == "meta" for t in tensors)
    assert moved.tasks["score"].scale == micro.tasks["score"].scale


def test_spec_elements() -> None:
    spec = HeadSpec("multi_label", ("a", "b", "c"), (0.0, 0.0, 0.0), 1.0)
    assert spec.elements(5) == 15
    assert spec.elements(0) == 0
