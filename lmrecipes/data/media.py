"""Images and clips of encoded examples, and what a micro-batch holds of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmrecipes.data.augment import Change
from lmrecipes.data.inputs import FLOOR, AudioSpec, ImageSpec, Spec, Specs
from lmrecipes.recipe_inputs import MEDIA, Modality

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class MediaArrays:
    """The images or clips of some examples: values[rows[i]:rows[i + 1]] are those of example i.

    values: uint8 [images, height, width, channels], an example has one or none; float16 [frames, mels]; int16
    [samples]. rows: int64 [n + 1].
    """

    values: NDArray[Any]
    rows: Numbers
    spec: Spec

    def positions_of(self, rows: Numbers) -> Numbers:
        """Positions of the image or clip of these examples, [k]; 0 where there is none."""
        held = self.rows[rows + 1] - self.rows[rows]
        return held * self.spec.positions if isinstance(self.spec, ImageSpec) else self.spec.positions_held(held)


def specs_of(splits: Iterable[Any]) -> dict[Modality, Spec]:
    """What is read of every modality that some splits hold, in the order of MEDIA."""
    held = {modality: arrays.spec for split in splits for modality, arrays in media_of(split).items()}
    return {modality: held[modality] for modality in MEDIA if modality in held}


def media_of(split: Any) -> Mapping[Modality, MediaArrays]:
    """The images and clips of a task's examples, such as an `EncodedSplit`; what knows texts only need not say so."""
    return getattr(split, "media", {})


@dataclass
class Media:
    """A micro-batch's images or clips, and where their positions are.

    values: images uint8 [k, height, width, channels]; log-mel clips float32 [positions, stack * mels]; waveforms
    float32 [k, samples], padded with 0, of `lengths` int64 [k] samples. places: int64 [positions], those among the
    flattened positions of the texts that the front end's output fills, in its order. A micro-batch without any holds
    one of zeros and no places, so that every front end takes part in every micro-batch on every rank.
    """

    values: Tensor
    places: Tensor
    lengths: Tensor | None = None

    def to(self, device: torch.device) -> Media:
        """The same on a device."""
        lengths = None if self.lengths is None else self.lengths.to(device, non_blocking=True)
        return Media(self.values.to(device, non_blocking=True), self.places.to(device, non_blocking=True), lengths)


class MediaBatcher:
    """The images and clips of a micro-batch's examples.

    splits: by task, in the recipe's order. specs: of every modality of the recipe. changes: of tasks whose training
    examples are changed at random.
    """

    def __init__(self, splits: Mapping[str, Any], specs: Specs, changes: Mapping[tuple[str, Modality], Change]) -> None:
        self.names, self.splits = list(splits), list(splits.values())
        self.specs, self.changes = specs, changes

    def batch(
        self, tasks: NDArray[np.int16], rows: Numbers, starts: Numbers, indices: Numbers | None
    ) -> dict[Modality, Media]:
        """Of the examples of a micro-batch, [k] each: numbers of their tasks, rows, flattened positions where they
        start, and global sample indices (None: nothing is changed at random)."""
        counts = {modality: np.zeros(len(tasks), np.int64) for modality in self.specs}
        lengths = np.zeros(len(tasks), np.int64)
        held: list[tuple[Modality, str, Numbers, MediaArrays]] = []
        for number, (name, split) in enumerate(zip(self.names, self.splits, strict=True)):
            mine = np.flatnonzero(tasks == number)
            if not len(mine):
                continue
            lengths[mine] = split.offsets[rows[mine] + 1] - split.offsets[rows[mine]]
            for modality, arrays in media_of(split).items():
                counts[modality][mine] = arrays.positions_of(rows[mine])
                held.append((modality, name, mine[counts[modality][mine] > 0], arrays))
        found: dict[Modality, Media] = {}
        ends = starts + lengths
        for modality, spec in reversed(list(self.specs.items())):
            ends = ends - counts[modality]
            items: list[Any] = [None] * len(tasks)
            for of, name, mine, arrays in held:
                if of == modality and len(mine):
                    change = None if indices is None else self.changes.get((name, modality))
                    for i, item in zip(mine.tolist(), _read(arrays, rows[mine], indices, mine, change), strict=True):
                        items[i] = item
            given = [item for item in items if item is not None]
            found[modality] = _joined(given, spec, _places(ends, counts[modality]))
        return {modality: found[modality] for modality in self.specs}


def _places(starts: Numbers, counts: Numbers) -> Tensor:
    """start, start + 1, ... of each, end to end."""
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(np.repeat(starts, counts) + within)


def _read(
    arrays: MediaArrays, rows: Numbers, indices: Numbers | None, mine: Numbers, change: Change | None
) -> list[NDArray[Any]]:
    """The images or clips of some examples, changed at random where there is a change."""
    starts, ends = arrays.rows[rows], arrays.rows[rows + 1]
    if isinstance(arrays.spec, ImageSpec):
        items = list(arrays.values[starts])
    else:
        scale = np.float32(1) if arrays.spec.kind == "log_mel" else np.float32(1 / 32767)
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        items = [arrays.values[start:end].astype(np.float32) * scale for start, end in spans]
    return items if change is None or indices is None else change(items, indices[mine])


def _joined(items: list[NDArray[Any]], spec: Spec, places: Tensor) -> Media:
    """What the front end reads of these items; of none, zeros."""
    if isinstance(spec, ImageSpec):
        images = np.stack(items) if items else np.zeros((1, spec.height, spec.width, spec.channels), np.uint8)
        return Media(torch.from_numpy(images), places)
    if spec.kind == "log_mel":
        return Media(torch.from_numpy(_stacked(items, spec)), places)
    clips = items or [np.zeros(spec.shortest_samples, np.float32)]
    lengths = np.fromiter(map(len, clips), np.int64, len(clips))
    padded = np.zeros((len(clips), lengths.max()), np.float32)
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip
    return Media(torch.from_numpy(padded), places, torch.from_numpy(lengths))


def _stacked(clips: list[NDArray[np.float32]], spec: AudioSpec) -> NDArray[np.float32]:
    """Frames as positions, [positions, stack * mels]: each clip's last one is filled up with silence."""
    if not clips:
        return np.zeros((1, spec.stack * spec.mels), np.float32)
    positions = [-(-len(clip) // spec.stack) for clip in clips]
    frames = np.full((sum(positions) * spec.stack, spec.mels), FLOOR, np.float32)
    start = 0
    for clip, count in zip(clips, positions, strict=True):
        frames[start : start + len(clip)] = clip
        start += count * spec.stack
    return frames.reshape(-1, spec.stack * spec.mels)
