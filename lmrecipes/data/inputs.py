"""What a front end reads, and how many positions of the trunk its output takes. Pure: no torch, no files.

An example is a sequence of positions: its text's tokens, then its image's positions, then its audio's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmrecipes.recipe import Model, Recipe, Task
from lmrecipes.recipe_inputs import MEDIA, Modality

LOWEST_POWER = 1e-6
"""Mel powers below this count as this much: 100 dB below the peak of a loud tone (samples run from -1 to 1)."""
FLOOR = math.log(LOWEST_POWER)
"""Log-mel value of silence."""


@dataclass(frozen=True)
class ImageSpec:
    """Images as a front end reads them: uint8 [height, width, channels], `positions` of the trunk each.

    mean, std: of each channel, in shares of the whole range, by which a pretrained encoder's pixels are normalised.
    """

    height: int
    width: int
    channels: int
    positions: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def longest(self) -> int:
        """Most positions of an image."""
        return self.positions


@dataclass(frozen=True)
class AudioSpec:
    """Clips as a front end reads them, at most `longest_samples` at `sample_rate` Hz.

    log_mel: float [frames, mels], the natural logarithm of power in mel bands, in windows of `window` samples every
    `hop`; `stack` frames make a position. waveform: samples, whose positions are those left by convolutions without
    padding (`kernels`, `strides`).
    """

    kind: Literal["log_mel", "waveform"]
    sample_rate: int
    longest_samples: int
    mels: int = 0
    window: int = 0
    hop: int = 0
    stack: int = 1
    kernels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def frames_of(self, samples: int) -> int:
        """Log-mel frames of a clip: as many as cover it; the last window is filled up with silence."""
        return 1 + max(0, math.ceil((min(samples, self.longest_samples) - self.window) / self.hop))

    def positions_of(self, samples: int) -> int:
        """Positions of a clip of `samples` (at least `shortest_samples`); longer ones are cut."""
        held = self.frames_of(samples) if self.kind == "log_mel" else min(samples, self.longest_samples)
        return int(self.positions_held(np.array([held]))[0])

    def positions_held(self, held: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of clips that hold so many frames, or samples of a waveform, [k]; 0 where there is no clip."""
        if self.kind == "log_mel":
            return -(-held // self.stack)
        length = held
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            length = (length - kernel) // stride + 1
        return np.where(held > 0, length, 0)

    @property
    def shortest_samples(self) -> int:
        """Samples of the shortest clip that has a position; shorter ones are filled up with silence."""
        if self.kind == "log_mel":
            return 1
        length = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            length = (length - 1) * stride + kernel
        return length

    @property
    def longest(self) -> int:
        """Most positions of a clip."""
        return self.positions_of(self.longest_samples)


Spec = ImageSpec | AudioSpec
Specs = Mapping[Modality, Spec]
"""By modality, in the order of MEDIA."""


def own_specs(model: Model) -> dict[Modality, Spec]:
    """What our own front ends read, where the recipe names no pretrained encoder."""
    image, audio = model.image, model.audio
    samples = audio.sample_rate / 1000
    own: dict[Modality, Spec] = {
        "image": ImageSpec(image.height, image.width, image.channels, image.positions),
        "audio": AudioSpec(
            kind="log_mel",
            sample_rate=audio.sample_rate,
            longest_samples=max(1, round(audio.longest_seconds * audio.sample_rate)),
            mels=audio.mels,
            window=max(1, round(audio.window_ms * samples)),
            hop=max(1, round(audio.hop_ms * samples)),
            stack=audio.stack,
        ),
    }
    return {modality: own[modality] for modality in MEDIA if getattr(model, modality).pretrained is None}


def reads_texts(task: Task) -> bool:
    """Whether examples hold tokens, of a text or ready ids: only media have none."""
    return task.source.text_column is not None or task.source.ids is not None


def longest_example(recipe: Recipe, specs: Specs) -> int:
    """Positions of the longest example that a task may hold: of its text, its image and its clip. specs: of every
    modality of the recipe."""
    return max(
        (task.max_length or recipe.model.longest if reads_texts(task) else 0)
        + sum(specs[modality].longest for modality in task.source.media)
        for task in recipe.tasks.values()
    )
