"""Micro-batches as tensors: what the model reads, and what of it carries loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmrecipes.data.augment import Change
from lmrecipes.data.inputs import Specs
from lmrecipes.data.layout import Arrangement, Positions
from lmrecipes.data.media import Media, MediaBatcher, specs_of
from lmrecipes.data.soft_targets import SoftTargets
from lmrecipes.models.distillation import Soft
from lmrecipes.models.heads import HeadSpec
from lmrecipes.recipe_inputs import Modality


@dataclass
class Bucket:
    """A rectangle of texts, all int64 [rows, time]; mask None where nothing is padded, types None for one segment."""

    input_ids: Tensor
    mask: Tensor | None
    types: Tensor | None

    def to(self, device: torch.device) -> Bucket:
        """The same on a device."""
        return Bucket(_to(self.input_ids, device), _to(self.mask, device), _to(self.types, device))


@dataclass
class Packed:
    """Texts end to end in rows, all int64.

    input_ids, types, positions: [rows, width]; positions start at 0 with each text. documents: [rows, width], number
    of the text in the micro-batch, -1 for padding. real: [tokens], places of the texts' tokens in the flattened rows,
    None where all are. lengths: [texts]; longest: the largest of them.
    """

    input_ids: Tensor
    types: Tensor | None
    positions: Tensor
    documents: Tensor
    real: Tensor | None
    lengths: Tensor
    longest: int

    def to(self, device: torch.device) -> Packed:
        """The same on a device."""
        return Packed(
            _to(self.input_ids, device), _to(self.types, device), _to(self.positions, device),
            _to(self.documents, device), _to(self.real, device), _to(self.lengths, device), self.longest,
        )  # fmt: skip


Texts = list[Bucket] | Packed
"""A micro-batch's texts: rectangles, or rows of several texts."""


def texts_to(texts: Texts, device: torch.device) -> Texts:
    """The same on a device."""
    return texts.to(device) if isinstance(texts, Packed) else [bucket.to(device) for bucket in texts]


def _to(part: Any, device: torch.device) -> Any:
    return part if part is None else part.to(device, non_blocking=True)


@dataclass
class TaskRows:
    """What the loss of one task reads in a micro-batch, [k] each.

    rows: numbers of the task's texts; for a task with a loss per token, places of tokens among the flattened positions
    of the texts, and targets are the tokens that follow them. scale: what one unit of this task's summed loss adds to
    the step's loss. examples: texts of the task. soft: what a teacher says of them, where there is one. An idle task
    reads row 0 with scale 0, so that every head takes part in every micro-batch on every rank.
    """

    rows: Tensor
    targets: Tensor
    scale: float
    examples: int
    soft: Soft | None = None

    def to(self, device: torch.device) -> TaskRows:
        """The same on a device."""
        soft = self.soft and self.soft.to(device)
        return TaskRows(_to(self.rows, device), _to(self.targets, device), self.scale, self.examples, soft)


@dataclass
class MicroBatch:
    """What one rank computes in one forward and backward. media: an entry for every modality of the recipe."""

    texts: Texts
    tasks: dict[str, TaskRows]
    media: dict[Modality, Media] = field(default_factory=dict)

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        return MicroBatch(
            texts_to(self.texts, device),
            {task: rows.to(device) for task, rows in self.tasks.items()},
            {modality: media.to(device) for modality, media in self.media.items()},
        )


class Batcher:
    """Turns (task, row) pairs into micro-batches. `specs` and `splits` are by task, in the recipe's order.

    splits: `EncodedSplit`s, or what has their `tokens`, `offsets`, `types`, `targets`, `loss` and `media`. soft: what a
    teacher says of the rows of tasks, where there is one. inputs: of every modality that the model reads; None: those
    that the splits hold. changes: of the media of examples whose place in the run is known, see `changes_of`.
    """

    def __init__(
        self,
        splits: Mapping[str, Any],
        specs: Mapping[str, HeadSpec],
        soft: Mapping[str, SoftTargets] | None = None,
        inputs: Specs | None = None,
        changes: Mapping[tuple[str, Modality], Change] | None = None,
    ) -> None:
        self.names = list(splits)
        self.splits = list(splits.values())
        self.specs = specs
        self.soft = soft or {}
        self.media = MediaBatcher(splits, specs_of(self.splits) if inputs is None else inputs, changes or {})

    def lengths(self, tasks: NDArray[np.int16], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each example, [k]."""
        out = np.empty(len(rows), np.int64)
        for number, split in enumerate(self.splits):
            chosen = np.flatnonzero(tasks == number)
            out[chosen] = split.offsets[rows[chosen] + 1] - split.offsets[rows[chosen]]
        return out

    def elements(self, tasks: NDArray[np.int16], rows: NDArray[np.int64]) -> dict[str, int]:
        """Supervised elements of each task in these examples."""
        counts = {}
        for number, (name, split) in enumerate(zip(self.names, self.splits, strict=True)):
            mine, spec = rows[tasks == number], self.specs[name]
            counts[name] = int(split.supervised_of(mine).sum()) if spec.of_tokens else spec.elements(len(mine))
        return counts

    def micro_batch(
        self,
        parts: list[Positions],
        tasks: NDArray[np.int16],
        rows: NDArray[np.int64],
        units: Mapping[str, float],
        arrangement: Arrangement,
        indices: NDArray[np.int64] | None = None,
    ) -> MicroBatch:
        """Assemble the examples at the positions of `parts`. units: what one unit of each task's summed loss adds to
        the step's loss. indices: the examples' places in the run, where they are of training."""
        texts = self.texts(parts, tasks, rows, arrangement)
        places = np.concatenate([part if len(part) else [-1] for part in parts] or [[-1]])  # -1: a dummy text
        task_of = np.append(tasks, -1)[places]
        starts = text_starts(texts)
        by_task = {}
        for number, (name, split) in enumerate(zip(self.names, self.splits, strict=True)):
            mine = np.flatnonzero(task_of == number)
            of_tokens = self.specs[name].of_tokens
            if not len(mine):
                some = split.tokens[:1].astype(np.int64) if of_tokens else split.targets[:1]
                chosen, targets = np.zeros(1, np.int64), np.zeros_like(some)
            elif of_tokens:
                chosen, targets = predicted_tokens(split, rows[places[mine]], starts[mine])
            else:
                chosen, targets = mine, split.targets[rows[places[mine]]]
            scale = units[name] if len(mine) else 0.0
            soft = self.soft[name].of(rows[places[mine]]) if name in self.soft else None
            by_task[name] = TaskRows(torch.from_numpy(chosen), torch.from_numpy(targets), scale, len(mine), soft)
        mine = np.flatnonzero(places >= 0)
        real = places[mine]
        media = self.media.batch(tasks[real], rows[real], starts[mine], None if indices is None else indices[real])
        return MicroBatch(texts, by_task, media)

    def texts(
        self, parts: list[Positions], tasks: NDArray[np.int16], rows: NDArray[np.int64], arrangement: Arrangement
    ) -> Texts:
        """The examples at the positions of `parts`, which `arrangement` cut."""
        if arrangement.layout == "packed":
            return self.packed(parts, tasks, rows, arrangement)
        return [self.bucket(part, tasks, rows) for part in parts or [np.zeros(0, np.int64)]]

    def bucket(self, positions: Positions, tasks: NDArray[np.int16], rows: NDArray[np.int64]) -> Bucket:
        """The texts at `positions` as one rectangle; no texts give one dummy token, so that every rank has work."""
        if len(positions) == 0:
            return Bucket(torch.zeros(1, 1, dtype=torch.int64), None, None)
        tokens, types, lengths = self._end_to_end(tasks[positions], rows[positions])
        mask = np.arange(lengths.max()) < lengths[:, None]
        if mask.all():
            return Bucket(_tensor(tokens, mask.shape), None, None if types is None else _tensor(types, mask.shape))
        return Bucket(
            _spread(tokens, mask),
            torch.from_numpy(mask.astype(np.int64)),
            None if types is None else _spread(types, mask),
        )

    def packed(
        self, parts: list[Positions], tasks: NDArray[np.int16], rows: NDArray[np.int64], arrangement: Arrangement
    ) -> Packed:
        """One row for each part, as wide as `arrangement` says."""
        places = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        if len(places) == 0:
            zero = torch.zeros(1, 1, dtype=torch.int64)
            return Packed(zero, None, zero, zero, None, zero[0] + 1, 1)
        tokens, types, lengths = self._end_to_end(tasks[places], rows[places])
        ends = np.cumsum(lengths)
        positions = np.arange(len(tokens)) - np.repeat(ends - lengths, lengths)
        documents = np.repeat(np.arange(len(places)), lengths)
        used = np.diff(ends[np.cumsum([len(part) for part in parts if len(part)]) - 1], prepend=0)
        real = np.arange(arrangement.row(int(lengths.max())) or len(tokens)) < used[:, None]
        return Packed(
            _spread(tokens, real),
            None if types is None else _spread(types, real),
            _spread(positions, real),
            _spread(documents, real, -1),
            None if real.all() else torch.from_numpy(np.flatnonzero(real)),
            torch.from_numpy(lengths),
            int(lengths.max()),
        )

    def _end_to_end(
        self, tasks: NDArray[np.int16], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8] | None, NDArray[np.int64]]:
        """Token ids of the texts one after the other, their segments (None: all 0), and the texts' lengths."""
        lengths = self.lengths(tasks, rows)
        first = np.cumsum(lengths) - lengths
        tokens, types = np.empty(lengths.sum(), np.int32), None
        for number in np.unique(tasks):
            split, mine = self.splits[number], np.flatnonzero(tasks == number)
            within = np.arange(lengths[mine].sum()) - np.repeat(np.cumsum(lengths[mine]) - lengths[mine], lengths[mine])
            source = np.repeat(split.offsets[rows[mine]], lengths[mine]) + within
            target = np.repeat(first[mine], lengths[mine]) + within
            tokens[target] = split.tokens[source]
            if split.types is not None:
                types = np.zeros(len(tokens), np.uint8) if types is None else types
                types[target] = split.types[source]
        return tokens, types, lengths


def predicted_tokens(
    split: Any, rows: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of texts that begin at flattened positions `starts`: the positions whose next token carries loss, and that token;
    text by text, int64 [k] each."""
    begins = split.offsets[rows]
    ahead = split.offsets[rows + 1] - begins - 1
    within = np.arange(ahead.sum()) - np.repeat(np.cumsum(ahead) - ahead, ahead)
    targets, places = np.repeat(begins + 1, ahead) + within, np.repeat(starts, ahead) + within
    if split.loss is not None:
        carries = split.loss[targets] != 0
        targets, places = targets[carries], places[carries]
    return places, split.tokens[targets].astype(np.int64)


def text_starts(texts: Texts) -> NDArray[np.int64]:
    """Place of each text's first token among the flattened positions of the micro-batch, [texts]."""
    if isinstance(texts, Packed):
        lengths = texts.lengths.numpy()
        starts = np.cumsum(lengths) - lengths
        return starts if texts.real is None else texts.real.numpy()[starts]
    shapes = [bucket.input_ids.shape for bucket in texts]
    ends = np.cumsum([rows * time for rows, time in shapes])
    return np.concatenate(
        [end - rows * time + np.arange(rows) * time for end, (rows, time) in zip(ends, shapes, strict=True)]
    ).astype(np.int64)


def _tensor(values: NDArray[Any], shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64).reshape(shape))


def _spread(values: NDArray[Any], real: NDArray[np.bool_], padding: int = 0) -> Tensor:
    """The values at the true places, row by row; int64."""
    out = np.full(real.shape, padding, np.int64)
    out[real] = values
    return torch.from_numpy(out)
