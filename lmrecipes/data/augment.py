"""Random changes of training images and clips: a pure function of (seed, task, global sample index).

They do not depend on the world size, the workers or the layout, and a run that goes on repeats them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.audio import MelBank, mel_bank
from lmrecipes.data.inputs import FLOOR, LOWEST_POWER, AudioSpec, Specs
from lmrecipes.data.permutation import hash_key, hash_uniform, numbered_keys
from lmrecipes.recipe_inputs import AudioAugment, ImageAugment, Modality
from lmrecipes.recipe_task import Task

Numbers = NDArray[np.int64]
Clip = NDArray[np.float32]

LEVELS = 1 << 16
"""Different values that normal noise takes."""


class Change(Protocol):
    """Some images or clips of one task, and their global sample indices [k] -> the same, changed."""

    def __call__(self, items: list[NDArray[Any]], indices: Numbers) -> list[NDArray[Any]]: ...


def changes_of(tasks: Mapping[str, Task], specs: Specs, seed: int) -> dict[tuple[str, Modality], Change]:
    """What changes the training examples of each task, by modality, where its recipe says something."""
    found: dict[tuple[str, Modality], Change] = {}
    for name, task in tasks.items():
        image, audio = task.augment.image, task.augment.audio
        key = hash_key("augment", seed, name)
        if image != ImageAugment():
            found[name, "image"] = ImageChange(image, key)
        if audio != AudioAugment():
            spec = specs["audio"]
            assert isinstance(spec, AudioSpec)
            found[name, "audio"] = LogMelChange(audio, key, spec) if spec.kind == "log_mel" else WaveChange(audio, key)
    return found


@dataclass(frozen=True)
class ImageChange:
    """Images uint8 [height, width, channels] of one size: moved, turned, resized, mirrored, brightened, noisy."""

    augment: ImageAugment
    key: int

    def __call__(self, items: list[NDArray[Any]], indices: Numbers) -> list[NDArray[Any]]:
        """The images, changed."""
        images, say = np.stack(items), self.augment
        if say.flip:
            mirrored = hash_uniform(hash_key(self.key, "flip"), indices) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
        down, right = (
            np.floor(hash_uniform(hash_key(self.key, name), indices) * (2 * say.shift + 1)).astype(np.int64) - say.shift
            for name in ("down", "right")
        )
        if say.rotate or say.scale:
            turned = np.deg2rad(_between(self.key, "rotate", indices, say.rotate))
            images = warped(images, down, right, turned, 1 + _between(self.key, "scale", indices, say.scale))
        elif say.shift:
            images = _moved(images, down, right)
        if say.brightness or say.noise:
            factors = 1 + _between(self.key, "brightness", indices, say.brightness)
            bright = images * factors.astype(np.float32)[:, None, None, None]
            if say.noise:
                bright += noise(self.key, indices, bright[0].size).reshape(bright.shape) * np.float32(255 * say.noise)
            images = np.clip(bright + 0.5, 0, 255).astype(np.uint8)
        return list(images)


def _between(key: int, name: str, indices: Numbers, most: float) -> NDArray[np.float64]:
    """Uniform numbers from -most to most, [k]."""
    return (2 * hash_uniform(hash_key(key, name), indices) - 1) * most


def _moved(images: NDArray[np.uint8], down: Numbers, right: Numbers) -> NDArray[np.uint8]:
    """Images [k, height, width, channels] moved by whole pixels, [k] each; edges are repeated."""
    k, height, width, _ = images.shape
    y = np.clip(np.arange(height) - down[:, None], 0, height - 1)
    x = np.clip(np.arange(width) - right[:, None], 0, width - 1)
    return images[np.arange(k)[:, None, None], y[:, :, None], x[:, None, :]]


def warped(
    images: NDArray[np.uint8], down: Numbers, right: Numbers, turned: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Images [k, height, width, channels] turned (radians, counter-clockwise) and enlarged about their centre, then
    moved, [k] each: bilinear; edges are repeated."""
    k, height, width, channels = images.shape
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32((height - 1) / 2)
    x = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
    cos, sin = ((f(turned) / scale).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    y, x = y - down.astype(np.float32)[:, None, None], x - right.astype(np.float32)[:, None, None]
    from_y = np.clip(cos * y + sin * x + np.float32((height - 1) / 2), 0, height - 1)
    from_x = np.clip(cos * x - sin * y + np.float32((width - 1) / 2), 0, width - 1)
    top, left = from_y.astype(np.int32), from_x.astype(np.int32)
    part_y, part_x = (from_y - top)[..., None], (from_x - left)[..., None]
    first = np.arange(k, dtype=np.int32)[:, None, None] * (height * width) + top * width + left
    below = np.where(top < height - 1, np.int32(width), np.int32(0))
    beside = (left < width - 1).astype(np.int32)
    pixels = images.reshape(-1, channels).astype(np.float32)
    upper = pixels.take(first, 0)
    upper += (pixels.take(first + beside, 0) - upper) * part_x
    first += below
    lower = pixels.take(first, 0)
    lower += (pixels.take(first + beside, 0) - lower) * part_x
    upper += (lower - upper) * part_y
    upper += np.float32(0.5)
    return upper.astype(np.uint8)


def noise(key: int, indices: Numbers, count: int) -> NDArray[np.float32]:
    """Normal numbers [k, count], a row for each index: quantiles of the distribution, chosen by 16 hashed bits each."""
    words = -(-count // 4)
    bases = numbered_keys(np.uint64(hash_key(key, "noise")), indices)
    hashed = numbered_keys(np.repeat(bases, words), np.tile(np.arange(words), len(indices)))
    return _quantiles().take(hashed.view(np.uint16).reshape(len(indices), -1)[:, :count])


@lru_cache(maxsize=1)
def _quantiles() -> NDArray[np.float32]:
    from scipy.special import ndtri

    return ndtri((np.arange(LEVELS) + 0.5) / LEVELS).astype(np.float32)


class _Draws:
    """Random numbers of one clip each, [k]: what `AudioAugment` says, drawn for every index."""

    def __init__(self, say: AudioAugment, key: int, indices: Numbers) -> None:
        self.gain_db = _between(key, "gain", indices, say.gain_db)
        self.speed = 1 + _between(key, "stretch", indices, say.stretch)
        self.pitch = 1 + _between(key, "pitch", indices, say.pitch)
        self.masked, self.masked_from, self.mels, self.mels_from = (
            hash_uniform(hash_key(key, name), indices) for name in ("masked", "masked from", "mels", "mels from")
        )


@dataclass(frozen=True)
class LogMelChange:
    """Clips as log-mel frames, float32 [frames, mels] each: played slower or faster, at another pitch, louder or
    softer, with noise, then masked with their mean."""

    augment: AudioAugment
    key: int
    spec: AudioSpec

    @cached_property
    def bank(self) -> MelBank:
        """The bands."""
        return mel_bank(self.spec)

    @cached_property
    def _of_white_noise(self) -> tuple[Clip, Clip]:
        """Power that white noise of variance 1 has in each band, and how many independent parts it is the sum of."""
        sums, squares = self.bank.filters.sum(axis=0), (self.bank.filters**2).sum(axis=0)
        parts = sums**2 / np.maximum(squares, 1e-12) * (self.spec.window / self.bank.fft)
        return sums * (self.bank.window**2).sum(), np.maximum(parts, 1)

    def __call__(self, items: list[NDArray[Any]], indices: Numbers) -> list[NDArray[Any]]:
        """The clips, changed."""
        draws = _Draws(self.augment, self.key, indices)
        return [self._changed(clip, draws, i, indices[i : i + 1]) for i, clip in enumerate(items)]

    def _changed(self, clip: Clip, draws: _Draws, i: int, index: Numbers) -> Clip:
        say, frames = self.augment, len(clip)
        if say.stretch:
            clip = _lines_at(clip, np.arange(frames) * draws.speed[i], FLOOR)
        if say.pitch:
            centres = self.bank.centres
            bands = np.interp(centres * draws.pitch[i], centres, np.arange(self.spec.mels))
            clip = _lines_at(clip.T, bands, FLOOR).T
        if say.gain_db:
            clip = np.maximum(clip + np.float32(draws.gain_db[i] * math.log(10) / 10), np.float32(FLOOR))
        if say.noise_db is not None:
            clip = self._noisy(clip, index)
        mean, clip = clip.mean(), clip.copy()
        begin, end = _span(draws.masked[i] * say.time_mask * frames, draws.masked_from[i], frames)
        clip[begin:end] = mean
        begin, end = _span(draws.mels[i] * (say.mel_mask + 1), draws.mels_from[i], self.spec.mels)
        clip[:, begin:end] = mean
        return clip

    def _noisy(self, clip: Clip, index: Numbers) -> Clip:
        """With white noise: the power of a band is gamma-distributed (Wilson and Hilferty's approximation, 1931)."""
        power, (white, parts) = np.exp(clip), self._of_white_noise
        assert self.augment.noise_db is not None
        variance = power.sum(axis=1).mean() / white.sum() * 10 ** (self.augment.noise_db / 10)
        normal = noise(self.key, index, clip.size).reshape(clip.shape)
        gamma = np.maximum(0, 1 - 1 / (9 * parts) + normal / (3 * np.sqrt(parts))) ** 3
        return np.log(np.maximum(power + variance * white * gamma, LOWEST_POWER)).astype(np.float32)


@dataclass(frozen=True)
class WaveChange:
    """Clips as samples, float32 [samples] each: played slower or faster, louder or softer, with noise, then masked
    with silence."""

    augment: AudioAugment
    key: int

    def __call__(self, items: list[NDArray[Any]], indices: Numbers) -> list[NDArray[Any]]:
        """The clips, changed."""
        draws = _Draws(self.augment, self.key, indices)
        return [self._changed(clip, draws, i, indices[i : i + 1]) for i, clip in enumerate(items)]

    def _changed(self, clip: Clip, draws: _Draws, i: int, index: Numbers) -> Clip:
        say, samples = self.augment, len(clip)
        if say.stretch:
            clip = _lines_at(clip[:, None], np.arange(samples) * draws.speed[i], 0.0)[:, 0]
        clip = clip * np.float32(10 ** (draws.gain_db[i] / 20))
        if say.noise_db is not None:
            level = math.sqrt(float(np.square(clip).mean()) * 10 ** (say.noise_db / 10))
            clip = clip + noise(self.key, index, samples)[0] * np.float32(level)
        begin, end = _span(draws.masked[i] * say.time_mask * samples, draws.masked_from[i], samples)
        clip[begin:end] = 0
        return clip


def _lines_at(values: Clip, places: NDArray[np.float64], beyond: float) -> Clip:
    """Rows of `values` [n, m] between the places 0 to n - 1 [k], by linear interpolation; `beyond` past the last."""
    last = len(values) - 1
    before = np.minimum(places.astype(np.int64), last)
    part = (places - before).astype(np.float32)[:, None]
    found = values[before] * (1 - part) + values[np.minimum(before + 1, last)] * part
    found[places > last] = beyond
    return found


def _span(width: float, u: float, size: int) -> tuple[int, int]:
    """A span of floor(width) within `size`, which begins at a share `u` of the places where it can."""
    whole = min(int(width), size)
    begin = int(u * (size - whole + 1))
    return begin, begin + whole
