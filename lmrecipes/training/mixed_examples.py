"""Random examples of texts, images and clips, alone and together: what the start-up probe and the export read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmrecipes.data.batches import Batcher, MicroBatch, text_starts
from lmrecipes.data.inputs import FLOOR, ImageSpec, Spec, Specs, longest_example
from lmrecipes.data.layout import Arrangement
from lmrecipes.data.media import MediaArrays
from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.inference.arithmetic import Arithmetic
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.recipe import Modality, Recipe
from lmrecipes.training.engine import Engine
from lmrecipes.training.verification import deviation

TEXT = 7
"""Tokens of a text, where there is room."""
CLIPS = (1.0, 0.4, 0.7)
"""Lengths of clips in turn, as shares of the longest."""


@dataclass(frozen=True)
class MixedExamples:
    """As an `EncodedSplit` holds examples. held: the modalities beside text of each."""

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    media: Mapping[Modality, MediaArrays]
    held: Sequence[Sequence[Modality]]
    types: None = field(default=None)

    def batch(self, parts: list[NDArray[np.int64]], specs: Specs, cut: Arrangement) -> MicroBatch:
        """The examples of `parts` as a micro-batch of no task."""
        batcher = Batcher({"mixed": self}, {}, inputs=specs)
        rows, tasks = np.arange(len(self.held)), np.zeros(len(self.held), np.int16)
        texts = batcher.texts(parts, tasks, rows, cut)
        order = np.concatenate(parts)
        return MicroBatch(texts, {}, batcher.media.batch(tasks[order], rows[order], text_starts(texts), None))


def mixed_examples(
    specs: Specs, vocabulary: int, longest: int, seed: int, other: Modality | None = None
) -> MixedExamples:
    """A text; each modality alone, and beside a text; and all together: those that fit into `longest` positions.

    other: the first example that holds this modality holds another image or clip than without.
    """
    kinds: list[tuple[bool, tuple[Modality, ...]]] = [(True, ())]
    kinds += [(text, (modality,)) for modality in specs for text in (False, True)]
    kinds += [(True, tuple(specs))] if len(specs) > 1 else []
    tokens: list[NDArray[np.int32]] = []
    values: dict[Modality, list[NDArray[Any]]] = {modality: [] for modality in specs}
    rows: dict[Modality, list[int]] = {modality: [0] for modality in specs}
    held: list[tuple[Modality, ...]] = []
    lengths, changed = [], False
    for text, modalities in kinds:
        items = {}
        for modality in modalities:
            new = modality == other and not changed
            changed |= new
            key = hash_key(seed, "mixed", modality, len(held), int(new))
            items[modality] = _item(specs[modality], key, CLIPS[len(values[modality]) % len(CLIPS)])
        positions = sum(_positions(specs[modality], item) for modality, item in items.items())
        words = min(TEXT, longest - positions) if text else 0
        if words < (1 if text else 0):
            continue
        draws = hash_uniform(hash_key(seed, "mixed", "text", len(held)), np.arange(words))
        tokens += [(draws * vocabulary).astype(np.int32), np.zeros(positions, np.int32)]
        for modality in specs:
            found = [items[modality]] if modality in items else []
            values[modality] += found
            rows[modality].append(rows[modality][-1] + sum(map(len, found)))
        held.append(modalities)
        lengths.append(words + positions)
    media = {
        modality: MediaArrays(np.concatenate(values[modality]), np.array(rows[modality]), spec)
        for modality, spec in specs.items()
        if values[modality]
    }
    return MixedExamples(np.concatenate(tokens), np.concatenate([[0], np.cumsum(lengths)]), media, held)


def _item(spec: Spec, key: int, share: float) -> NDArray[Any]:
    """An image [1, height, width, channels], log-mel frames [frames, mels] or samples [samples] of noise."""
    if isinstance(spec, ImageSpec):
        shape = (1, spec.height, spec.width, spec.channels)
        return (256 * _noise(shape, key)).astype(np.uint8)
    samples = max(spec.shortest_samples, round(share * spec.longest_samples))
    if spec.kind == "log_mel":
        return (FLOOR * _noise((spec.frames_of(samples), spec.mels), key)).astype(np.float16)
    return ((_noise((samples,), key) - 0.5) * 2**15).astype(np.int16)


def _noise(shape: tuple[int, ...], key: int) -> NDArray[np.float64]:
    return hash_uniform(key, np.arange(np.prod(shape))).reshape(shape)


def _positions(spec: Spec, item: NDArray[Any]) -> int:
    arrays = MediaArrays(item, np.array([0, len(item)]), spec)
    return int(arrays.positions_of(np.zeros(1, np.int64))[0])


@dataclass(frozen=True)
class MixedOutputs:
    """What the live model gives for such examples, each alone and in the model's own attention."""

    specs: Specs
    batches: list[MicroBatch]
    vectors: Tensor

    @classmethod
    def of(cls, engine: Engine, specs: Specs, recipe: Recipe) -> MixedOutputs:
        """Every rank must call it."""
        trunk = engine.module.trunk
        longest = longest_example(recipe, specs)
        examples = mixed_examples(specs, int(trunk.model.config.vocab_size), longest, recipe.seed)
        batches = [examples.batch([np.array([i])], specs, Arrangement("padded")) for i in range(len(examples.held))]
        with trunk.native():
            found = torch.cat([engine.vectors(batch).float().cpu() for batch in batches])
        return cls(specs, batches, found)

    def deviation(self, model: MultiTaskModel, own: Arithmetic) -> float:
        """How far another model in fp32 gives other vectors, see `verification.deviation`. The model is placed."""
        own.place(model)
        with torch.no_grad(), own.products(), model.trunk.native():
            found = torch.cat([model(batch.to(own.device), "vectors").float().cpu() for batch in self.batches])
        return deviation(found, self.vectors)
