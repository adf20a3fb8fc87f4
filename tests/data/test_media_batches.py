"""Micro-batches with images and clips: the right ones at the right places, the same step however it is laid out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.data.augment import changes_of
from lmrecipes.data.batches import Batcher, MicroBatch, Packed, text_starts
from lmrecipes.data.inputs import FLOOR, AudioSpec, ImageSpec, Spec
from lmrecipes.data.layout import Arrangement
from lmrecipes.data.loss_scales import LossScales
from lmrecipes.data.media import MediaArrays
from lmrecipes.data.mixture import Mixture
from lmrecipes.data.stream import TrainingStream
from lmrecipes.models.heads import head_spec
from lmrecipes.planning.batch import plan_batch
from lmrecipes.recipe import Loader, Task
from lmrecipes.recipe_inputs import Modality

IMAGE = ImageSpec(2, 3, 1, 3)
LOG_MEL = AudioSpec("log_mel", 8000, 8000, mels=2, window=200, hop=80, stack=3)
WAVE = AudioSpec("waveform", 8000, 8000, kernels=(4, 2), strides=(3, 2))
ROWS = 12
ARRANGEMENTS = {
    "padded": Arrangement("padded"), "buckets": Arrangement("buckets", 3), "grouped": Arrangement("grouped", 2),
    "packed": Arrangement("packed", width=24, least=24), "endless": Arrangement("packed"),
}  # fmt: skip
Numbers = np.ndarray[Any, np.dtype[np.int64]]


def media_of(held: list[int], spec: Spec, number: int) -> MediaArrays:
    """Row i holds `held[i]` images, frames or samples; its values are all 10 * number + i + 1, but clips' first ones
    are half of that."""
    rows = np.concatenate([[0], np.cumsum(held)]).astype(np.int64)
    each = np.repeat(10 * number + np.arange(ROWS) + 1, held)
    if isinstance(spec, ImageSpec):
        return MediaArrays(
            np.broadcast_to(each[:, None, None, None], (len(each), 2, 3, 1)).astype(np.uint8), rows, spec
        )
    if spec.kind == "log_mel":
        return MediaArrays(np.repeat(each[:, None], 2, 1).astype(np.float16), rows, spec)
    return MediaArrays((each * 100).astype(np.int16), rows, spec)


def split_of(texts: list[int], number: int, media: dict[Modality, MediaArrays]) -> Any:
    """Row i holds `texts[i]` tokens 1000 * number + i + 1, then placeholders for its media."""
    every = np.arange(ROWS)
    positions = sum((arrays.positions_of(every) for arrays in media.values()), np.zeros(ROWS, np.int64))
    tokens = [np.repeat([1000 * number + i + 1, 0], [texts[i], positions[i]]) for i in range(ROWS)]
    return SimpleNamespace(
        tokens=np.concatenate(tokens).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(np.array(texts) + positions)]),
        types=None,
        targets=np.arange(ROWS, dtype=np.float32),
        media=media,
        supervised_of=lambda rows: np.ones(len(rows), np.int64),
        __len__=lambda: ROWS,
    )


def splits_of(audio: AudioSpec) -> dict[str, Any]:
    """A task of texts, one of images, one of clips, and one of all three whose rows lack one in turn."""
    frames = [3 + i for i in range(ROWS)] if audio.kind == "log_mel" else [7 + 5 * i for i in range(ROWS)]
    one = [1] * ROWS
    mixed_image = media_of([int(i % 3 != 0) for i in range(ROWS)], IMAGE, 3)
    mixed_audio = media_of([frames[i] if i % 3 != 1 else 0 for i in range(ROWS)], audio, 3)
    return {
        "texts": split_of([1 + i for i in range(ROWS)], 0, {}),
        "images": split_of([0] * ROWS, 1, {"image": media_of(one, IMAGE, 1)}),
        "clips": split_of([0] * ROWS, 2, {"audio": media_of(frames, audio, 2)}),
        "mixed": split_of(
            [0 if i % 3 == 2 else 2 for i in range(ROWS)], 3, {"image": mixed_image, "audio": mixed_audio}
        ),
    }


SPLITS = {"log_mel": splits_of(LOG_MEL), "waveform": splits_of(WAVE)}
AUGMENT = {"image": {"brightness": 0.4}, "audio": {"gain_db": 6.0}}
TASKS = {
    name: Task.model_validate(
        {
            "kind": "regression",
            "source": {"files": "x", **{modality: modality for modality in split.media}},
            "augment": {modality: AUGMENT[modality] for modality in split.media},
        }
    )
    for name, split in SPLITS["log_mel"].items()
}


def batcher_of(kind: str, augmented: bool = False) -> Batcher:
    splits = SPLITS[kind]
    specs = {name: head_spec("regression", (), split.targets) for name, split in splits.items()}
    audio = LOG_MEL if kind == "log_mel" else WAVE
    inputs: dict[Modality, Spec] = {"image": IMAGE, "audio": audio}
    return Batcher(splits, specs, inputs=inputs, changes=changes_of(TASKS, inputs, 5) if augmented else None)


def read_back(micro: MicroBatch, audio: AudioSpec) -> list[tuple[Any, ...]]:
    """What each text of a micro-batch is: at each of its positions a token, or what the front end would say there."""
    if isinstance(micro.texts, Packed):
        flat, lengths = micro.texts.input_ids.flatten(), micro.texts.lengths.numpy()
    else:
        flat = torch.cat([bucket.input_ids.flatten() for bucket in micro.texts])
        masks = [b.mask if b.mask is not None else torch.ones_like(b.input_ids) for b in micro.texts]
        lengths = np.concatenate([mask.sum(1).numpy() for mask in masks])
    said: list[Any] = flat.tolist()
    image, sound = micro.media["image"], micro.media["audio"]
    assert image.places.dtype == sound.places.dtype == torch.int64
    if len(image.places):
        assert len(image.places) == len(image.values) * IMAGE.positions
        values = image.values.double().mean((1, 2, 3)).repeat_interleave(IMAGE.positions)
        for place, value in zip(image.places.tolist(), values.tolist(), strict=True):
            assert said[place] == 0
            said[place] = ("image", round(value, 3))
    if len(sound.places):
        if audio.kind == "log_mel":
            per_place = [tuple(row.round(decimals=3).tolist()) for row in sound.values]
        else:
            assert sound.lengths is not None
            counts = audio.positions_held(sound.lengths.numpy())
            per_place = [
                (round(float(clip[:length].mean()), 5), int(length), n)
                for clip, length, count in zip(sound.values, sound.lengths, counts, strict=True)
                for n in range(count)
            ]
        for place, value in zip(sound.places.tolist(), per_place, strict=True):
            assert said[place] == 0
            said[place] = ("audio", value)
    starts = text_starts(micro.texts)
    return [tuple(said[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def expected(kind: str, task: int, row: int) -> tuple[Any, ...]:
    """The same, from the split."""
    split = list(SPLITS[kind].values())[task]
    audio = LOG_MEL if kind == "log_mel" else WAVE
    found: list[Any] = [t for t in split.tokens[split.offsets[row] : split.offsets[row + 1]].tolist() if t]
    value = 10 * task + row + 1
    for modality, arrays in split.media.items():
        held = int(arrays.rows[row + 1] - arrays.rows[row])
        if modality == "image":
            found += [("image", float(value))] * (held * IMAGE.positions)
        elif audio.kind == "log_mel":
            for start in range(0, held, 3):
                frames = min(3, held - start)
                filled = [float(value)] * (2 * frames) + [round(float(np.float32(FLOOR)), 3)] * (6 - 2 * frames)
                found.append(("audio", tuple(filled)))
        else:
            mean = round(float(np.float32(value * 100) / np.float32(32767)), 5)
            found += [("audio", (mean, held, n)) for n in range(int(audio.positions_of(held)) if held else 0)]
    return tuple(found)


def rounded(example: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers of log-mel positions as they print."""
    return tuple(
        ("audio", tuple(round(x, 3) for x in part[1])) if isinstance(part, tuple) and part[0] == "audio" else part
        for part in example
    )


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("name", ARRANGEMENTS)
@settings(max_examples=12, deadline=None)
@given(drawn=st.lists(st.tuples(st.integers(0, 3), st.integers(0, ROWS - 1)), min_size=1, max_size=9))
def test_every_position_holds_what_its_row_says(kind: str, name: str, drawn: list[tuple[int, int]]) -> None:
    batcher, arrangement = batcher_of(kind), ARRANGEMENTS[name]
    tasks, rows = np.array([t for t, _ in drawn], np.int16), np.array([r for _, r in drawn], np.int64)
    lengths = batcher.lengths(tasks, rows)
    parts = arrangement.parts(np.arange(len(drawn)), lengths)
    micro = batcher.micro_batch(parts, tasks, rows, dict.fromkeys(SPLITS[kind], 1.0), arrangement)
    found = read_back(micro, LOG_MEL if kind == "log_mel" else WAVE)
    order = np.concatenate([part if len(part) else [-1] for part in parts]).astype(int)  # -1: a dummy text
    wanted = [(0,) if i < 0 else rounded(expected(kind, int(tasks[i]), int(rows[i]))) for i in order]
    assert [rounded(example) for example in found] == wanted
    for number, task in enumerate(SPLITS[kind]):
        if micro.tasks[task].scale:
            assert {int(tasks[order[mine]]) for mine in micro.tasks[task].rows.tolist()} == {number}


@pytest.mark.parametrize("name", ARRANGEMENTS)
@pytest.mark.parametrize("kind", SPLITS)
def test_a_micro_batch_without_a_modality_holds_a_dummy(name: str, kind: str) -> None:
    batcher, arrangement = batcher_of(kind), ARRANGEMENTS[name]
    for drawn in ([], [0]):
        tasks, rows = np.zeros(len(drawn), np.int16), np.array(drawn, np.int64)
        parts = arrangement.parts(np.arange(len(drawn)), batcher.lengths(tasks, rows))
        micro = batcher.micro_batch(parts, tasks, rows, dict.fromkeys(SPLITS[kind], 1.0), arrangement)
        assert list(micro.media) == ["image", "audio"]
        image, sound = micro.media["image"], micro.media["audio"]
        assert image.values.shape == (1, 2, 3, 1)
        assert image.values.dtype == torch.uint8
        assert image.lengths is None
        assert sound.values.shape == ((1, 6) if kind == "log_mel" else (1, WAVE.shortest_samples))
        assert sound.values.dtype == torch.float32
        assert (sound.lengths is None) == (kind == "log_mel")
        assert len(image.places) == len(sound.places) == 0
        assert image.values.max() == sound.values.abs().max() == 0
        moved = micro.to(torch.device("meta"))
        assert all(part.values.is_meta and part.places.is_meta for part in moved.media.values())


def all_of_a_step(kind: str, world: int, micro_examples: int, name: str, step: int, workers: int = 0) -> list[Any]:
    """Everything that the ranks read in a step, sorted."""
    batcher, found = batcher_of(kind, augmented=True), []
    mixture = Mixture.fixed(tuple(batcher.names), (ROWS,) * 4, (0.2, 0.3, 0.2, 0.3), 1)
    for rank in range(world):
        plan = plan_batch(12, micro_examples, world)
        loader = Loader(workers=workers)
        stream = TrainingStream(
            batcher, LossScales(dict.fromkeys(TASKS, 1.0)), mixture, plan, ARRANGEMENTS[name], rank, loader
        )
        (made,) = stream.steps(step, step + 1)
        for micro in made.micro_batches:
            assert list(micro.media) == ["image", "audio"]
            found += read_back(micro, LOG_MEL if kind == "log_mel" else WAVE)
    return sorted(repr(example) for example in found if example != (0,))


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("name", ["grouped", "packed"])
def test_a_step_is_the_same_for_every_world_size_and_its_examples_are_changed(kind: str, name: str) -> None:
    whole = all_of_a_step(kind, 1, 12, "padded", 3)
    assert len(whole) == 12
    for world, micro, workers in ((1, 4, 2), (2, 6, 0), (3, 2, 0), (5, 3, 0)):
        assert all_of_a_step(kind, world, micro, name, 3, workers) == whole, (world, micro)
    assert all_of_a_step(kind, 1, 12, "padded", 4) != whole


def test_changes_are_of_training_only() -> None:
    batcher = batcher_of("log_mel", augmented=True)
    tasks, rows, parts = np.ones(4, np.int16), np.arange(4), [np.arange(4)]
    units = dict.fromkeys(SPLITS["log_mel"], 1.0)

    def images(indices: Numbers | None) -> torch.Tensor:
        return batcher.micro_batch(parts, tasks, rows, units, Arrangement("padded"), indices).media["image"].values

    plain = SPLITS["log_mel"]["images"].media["image"].values[:4]
    assert np.array_equal(images(None).numpy(), plain)
    assert not np.array_equal(images(np.arange(4)).numpy(), plain)
    assert not torch.equal(images(np.arange(4)), images(np.arange(4, 8)))


def test_inputs_are_found_in_the_splits() -> None:
    splits = SPLITS["log_mel"]
    specs = {name: head_spec("regression", (), split.targets) for name, split in splits.items()}
    assert Batcher(splits, specs).media.specs == {"image": IMAGE, "audio": LOG_MEL}
    only = {"texts": splits["texts"]}
    assert Batcher(only, specs).media.specs == {}
