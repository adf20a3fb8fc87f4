"""Micro-batches of tasks whose loss is of tokens: what is predicted, from where, and what it counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.data.batches import Batcher, Packed, text_starts
from lmrecipes.data.layout import Arrangement
from lmrecipes.data.loss_scales import LossScales
from lmrecipes.models.heads import HeadSpec, head_spec

ARRANGEMENTS = {
    "padded": Arrangement("padded"), "buckets": Arrangement("buckets", 3), "grouped": Arrangement("grouped", 2),
    "packed": Arrangement("packed", width=24, least=24), "endless": Arrangement("packed"),
}  # fmt: skip


def split_of(lengths: list[int], loss: np.ndarray | None, first_token: int) -> Any:
    """Texts whose tokens are all different numbers."""
    offsets = np.cumsum([0, *lengths])
    carries = np.ones(offsets[-1], np.uint8) if loss is None else loss.copy()
    carries[offsets[:-1]] = 0
    counts = np.add.reduceat(carries, offsets[:-1]).astype(np.int64)
    return SimpleNamespace(
        tokens=np.arange(first_token, first_token + offsets[-1], dtype=np.int32), offsets=offsets, types=None,
        targets=np.zeros(len(lengths), np.int32), loss=None if loss is None else carries,
        supervised_of=lambda rows: counts[rows], carries=carries,
    )  # fmt: skip


@pytest.mark.parametrize("name", ARRANGEMENTS)
@given(
    documents=st.lists(st.integers(2, 20), min_size=1, max_size=8),
    talks=st.lists(st.integers(2, 20), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_every_supervised_token_is_predicted_once_from_the_one_before(
    name: str, documents: list[int], talks: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    splits = {
        "documents": split_of(documents, None, 1000),
        "talks": split_of(talks, rng.integers(0, 2, sum(talks)).astype(np.uint8), 5000),
    }
    specs = {"documents": HeadSpec("language_modelling", (), (), 1.0), "talks": HeadSpec("chat", (), (), 1.0)}
    batcher, arrangement = Batcher(splits, specs), ARRANGEMENTS[name]
    tasks = np.repeat(np.array([0, 1], np.int16), [len(documents), len(talks)])
    rows = np.concatenate([np.arange(len(documents)), np.arange(len(talks))])
    lengths = batcher.lengths(tasks, rows)
    parts = arrangement.parts(np.argsort(-lengths, kind="stable"), lengths)
    micro = batcher.micro_batch(parts, tasks, rows, {"documents": 0.5, "talks": 0.25}, arrangement)
    texts = micro.texts if isinstance(micro.texts, list) else [micro.texts]
    flat = torch.cat([part.input_ids.flatten() for part in texts])
    for task, split in splits.items():
        found = micro.tasks[task]
        assert (flat[found.rows + 1] == found.targets).all(), "the next token"
        assert (flat[found.rows] == found.targets - 1).all(), "of the same text"
        assert sorted(found.targets.tolist()) == split.tokens[split.carries != 0].tolist()
        assert (found.rows.dtype, found.targets.dtype) == (torch.int64, torch.int64)
    assert batcher.elements(tasks, rows) == {task: int(split.carries.sum()) for task, split in splits.items()}
    starts = text_starts(micro.texts)
    first = [int(splits[list(splits)[tasks[i]]].tokens[splits[list(splits)[tasks[i]]].offsets[rows[i]]]) for i in
             np.concatenate(parts).astype(int)]  # fmt: skip
    empty = sum(len(part) == 0 for part in parts)
    assert [token for token in flat[torch.from_numpy(starts)].tolist() if token] == first
    assert len(starts) == len(first) + empty


def test_an_idle_task_predicts_one_token_for_nothing() -> None:
    splits = {"documents": split_of([3, 4], None, 7), "tags": SimpleNamespace(targets=np.eye(2, dtype=np.uint8))}
    specs = {
        "documents": HeadSpec("language_modelling", (), (), 1.0),
        "tags": head_spec("multi_label", ("p", "q"), splits["tags"].targets),
    }
    splits["tags"].tokens, splits["tags"].offsets, splits["tags"].types = np.array([1, 2], np.int32), np.arange(3), None
    batcher = Batcher(splits, specs)
    micro = batcher.micro_batch(
        [np.array([0])], np.array([1], np.int16), np.array([0]), {"documents": 9.0, "tags": 0.5}, Arrangement("padded")
    )
    idle, busy = micro.tasks["documents"], micro.tasks["tags"]
    assert (idle.rows.tolist(), idle.targets.tolist(), idle.scale, idle.examples) == ([0], [0], 0.0, 0)
    assert (busy.rows.tolist(), busy.targets.tolist(), busy.scale, busy.examples) == ([0], [[1, 0]], 0.5, 1)
    assert batcher.elements(np.array([1, 0], np.int16), np.array([0, 1])) == {"documents": 3, "tags": 2}


def test_starts_skip_the_padding_of_rows() -> None:
    zeros = torch.zeros(2, 5, dtype=torch.int64)
    packed = Packed(zeros, None, zeros, zeros, torch.tensor([0, 1, 2, 5, 6, 7, 8]), torch.tensor([3, 2, 2]), 3)
    assert text_starts(packed).tolist() == [0, 5, 7]


def test_pooled_tasks_count_by_their_elements_and_others_do_not() -> None:
    scales = LossScales({"law": 1.0, "verse": 1.0, "topic": 0.5}, frozenset({"law", "verse"}))
    assert scales.factors({"law": 30, "verse": 10, "topic": 7}) == {"law": 0.75, "verse": 0.25, "topic": 0.5}
    assert scales.factors({"law": 0, "verse": 4, "topic": 0}) == {"law": 0.0, "verse": 1.0, "topic": 0.5}
    assert LossScales({"law": 2.0}).factors({"law": 30}) == {"law": 2.0}, "nothing pooled"
    nothing = scales.factors({"law": 0, "verse": 0, "topic": 3})
    assert nothing["topic"] == 0.5, "a step without any pooled token"
