"""The parts of a recipe that say how images and audio become positions of the trunk, beside the tokens of texts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmrecipes.recipe_types import Broken, Config, Count, Fraction, NonNegative, Positive, RulesBroken, require

Modality = Literal["text", "image", "audio"]
MEDIA: tuple[Modality, ...] = ("image", "audio")
"""Modalities with a front end of their own; in an example they follow the text in this order."""


class Rates(Config):
    """Learning rate of one part of the model over the run."""

    decay: Literal["schedule", "linear", "cosine", "constant"] = "schedule"
    """Shape after the warm-up. schedule: all as `schedule` says."""
    start: Fraction = 0.0
    """Share of the run's steps before which the rate is 0."""
    warmup_fraction: Fraction = 0.06
    """Share of the part's own steps in which the rate rises linearly from 0."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Rate at the end, as a share of the peak."""

    @model_validator(mode="after")
    def _own(self) -> Self:
        if self.decay == "schedule" and self != Rates.model_construct():
            what = "is schedule, but the part has numbers of its own"
            raise RulesBroken([Broken("decay", what, "set it to linear, cosine or constant, or remove the numbers")])
        return self


class FrontEnd(Config):
    """What images' and audio's front ends have in common."""

    pretrained: str | None = None
    """A vision or audio encoder of `transformers`: a hub name or a folder. Its positions, projected to the trunk's
    width, enter the trunk; how inputs are read follows its own configuration. None: a linear front end of our own."""
    learning_rate_factor: Positive = 10.0
    """The front end learns at `optimizer.lr` times this (of a pretrained encoder: its projection)."""
    encoder_rate_factor: NonNegative = 1.0
    """A pretrained encoder learns at `optimizer.lr` times this; 0: it is frozen."""
    rates: Rates = Rates()
    """Learning rate over the run."""


class ImageFrontEnd(FrontEnd):
    """Images: patches, or a pretrained encoder."""

    height: Count = 32
    """Images are resized to this many pixels, as they are, without cropping (bilinear, with antialiasing)."""
    width: Count = 32
    """Pixels."""
    channels: Literal[1, 3] = 3
    """1: luminance; 3: red, green, blue. Images of other kinds (palettes, 16 bits, CMYK) are converted; what is
    transparent shows white."""
    patch: Count = 8
    """Side of the square patches; each is one position of the trunk."""
    overlap: Annotated[int, Field(ge=0)] = 0
    """Pixels that a patch reaches into its neighbours on every side."""

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        broken = [
            Broken(field, f"{size} is not a multiple of patch ({self.patch})", "choose one that is")
            for field, size in (("height", self.height), ("width", self.width))
            if self.pretrained is None and size % self.patch
        ]
        require(broken)
        return self

    @property
    def positions(self) -> int:
        """Patches of an image (of our own front end)."""
        return (self.height // self.patch) * (self.width // self.patch)


class AudioFrontEnd(FrontEnd):
    """Audio: log-mel frames, or a pretrained encoder."""

    sample_rate: Count = 16000
    """Clips are resampled to this rate, in Hz; channels are averaged."""
    mels: Count = 40
    """Mel bands of a frame."""
    window_ms: Positive = 25.0
    """Length of a frame's window."""
    hop_ms: Positive = 10.0
    """Time between two frames."""
    stack: Count = 4
    """Consecutive frames that make one position of the trunk."""
    longest_seconds: Positive = 2.0
    """Longer clips are cut."""


class ImageAugment(Config):
    """Random changes of training images: a pure function of the example's place in the run."""

    shift: Annotated[int, Field(ge=0)] = 0
    """Most pixels that an image is moved, in each direction; edges are repeated."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Most degrees that an image is turned, in each direction; edges are repeated."""
    scale: Fraction = 0.0
    """Most that an image is enlarged or reduced, as a share; edges are repeated."""
    flip: bool = False
    """Mirror every other image."""
    brightness: NonNegative = 0.0
    """Most that intensities are multiplied by more or less than 1."""
    noise: NonNegative = 0.0
    """Standard deviation of normal noise, in shares of the whole range of intensities."""


class AudioAugment(Config):
    """Random changes of training clips, on their log-mel frames or, for a pretrained encoder, on samples: a pure
    function of the example's place in the run."""

    gain_db: NonNegative = 0.0
    """Most decibels that a clip is made louder or softer."""
    stretch: Fraction = 0.0
    """Most that a clip is played slower or faster, as a share; as many positions are left, of silence or cut."""
    pitch: Fraction = 0.0
    """Most that the frequency axis is stretched, as a share (vocal tract length perturbation, Jaitly and Hinton 2013).
    Of log-mel frames."""
    time_mask: Fraction = 0.0
    """Longest share of a clip that is masked (SpecAugment, arXiv 1904.08779)."""
    mel_mask: Annotated[int, Field(ge=0)] = 0
    """Most neighbouring mel bands that are masked. Of log-mel frames."""
    noise_db: float | None = None
    """Level of white noise that is added, against the clip's own mean level (-20: a hundredth of its power). None:
    none."""


class Augment(Config):
    """Random changes of a task's training examples. Evaluation has none."""

    image: ImageAugment = ImageAugment()
    """Of its images."""
    audio: AudioAugment = AudioAugment()
    """Of its clips."""
