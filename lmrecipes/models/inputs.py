"""What the front ends of a recipe read: as their own settings say, or as a pretrained encoder's files do.

Nothing of torch or `transformers` is imported before a pretrained encoder is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from lmrecipes.assets import resolve_model
from lmrecipes.data.inputs import AudioSpec, ImageSpec, Spec, own_specs
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Model, Recipe
from lmrecipes.recipe_inputs import MEDIA, AudioFrontEnd, Modality

WHISPER_STRIDE = 2
"""Frames of a position: the encoder's second convolution takes every other."""


def modalities_of(recipe: Recipe) -> tuple[Modality, ...]:
    """The modalities beside text that the recipe's tasks read, in the order of MEDIA."""
    read = {modality for task in recipe.tasks.values() for modality in task.source.media}
    return tuple(modality for modality in MEDIA if modality in read)


def input_specs(model: Model, modalities: Iterable[Modality]) -> dict[Modality, Spec]:
    """How these modalities are read. Raises InputError for a pretrained encoder that cannot be one of them."""
    own, specs = own_specs(model), {}
    for modality in modalities:
        name = getattr(model, modality).pretrained
        name = None if name is None else resolve_model(name)
        if name is None:
            specs[modality] = own[modality]
        elif modality == "image":
            specs[modality] = _image_spec(name)
        else:
            specs[modality] = _audio_spec(name, model.audio)
    return specs


def saved_spec(modality: str, saved: Mapping[str, Any]) -> Spec:
    """Inverse of `asdict`, of a specification that went through JSON."""
    facts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
    return ImageSpec(**facts) if modality == "image" else AudioSpec(**facts)


def encoder_config(modality: Modality, name: str) -> Any:
    """The configuration of an encoder, or of the part of a larger model that reads this modality, without what would
    draw numbers of its own or leave layers out at random."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise refused(modality, name, str(error).strip().splitlines()[0]) from None
    config = getattr(config, "vision_config", config) if modality == "image" else config
    for field in ("layerdrop", "encoder_layerdrop"):
        if hasattr(config, field):
            setattr(config, field, 0.0)
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False
    return config


def preprocessor(modality: Modality, name: str) -> dict[str, Any]:
    """What the encoder's `preprocessor_config.json` says; empty where there is none."""
    from transformers import FeatureExtractionMixin, ImageProcessingMixin

    try:
        if modality == "image":
            return dict(ImageProcessingMixin.get_image_processor_dict(name)[0])
        return dict(FeatureExtractionMixin.get_feature_extractor_dict(name)[0])
    except (OSError, ValueError):
        return {}


def is_whisper(config: Any) -> bool:
    """Whether an encoder reads log-mel frames of Whisper's kind, of clips filled up to one length."""
    return config.model_type == "whisper"


def refused(modality: Modality, name: str, why: str) -> InputError:
    """An encoder that cannot read this modality."""
    known = "ViT, CLIP, DINOv2, ConvNeXt or ResNet" if modality == "image" else "Wav2Vec2, HuBERT, WavLM or Whisper"
    fix = f"name a folder or a hub name of a model like {known}, or remove it for a front end of our own"
    return InputError(Problem(f"model.{modality}.pretrained", f"{name!r}: {why}", fix, "encoder"))


@cache
def _image_spec(name: str) -> ImageSpec:
    from lmrecipes.models.encoders import trace

    config, said = encoder_config("image", name), preprocessor("image", name)
    channels = getattr(config, "num_channels", None)
    if channels not in (1, 3):
        raise refused("image", name, f"a model of type {config.model_type} reads no images")
    size = said.get("crop_size") if said.get("do_center_crop") else None
    height, width = _sides(size or said.get("size") or getattr(config, "image_size", None) or 224)
    mean, std = (said.get(key) if said.get("do_normalize", True) else None for key in ("image_mean", "image_std"))
    spec = ImageSpec(
        height, width, channels, 1, None if mean is None else tuple(mean), None if std is None else tuple(std)
    )
    return replace(spec, positions=trace("image", name, spec).positions)


def _sides(size: Any) -> tuple[int, int]:
    """Height and width in any of the ways in which `transformers` writes them."""
    if isinstance(size, Mapping):
        edge: Any = size.get("shortest_edge") or size.get("longest_edge")
        return int(size.get("height") or edge), int(size.get("width") or edge)
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _audio_spec(name: str, audio: AudioFrontEnd) -> AudioSpec:
    from lmrecipes.models.encoders import trace

    config, said = encoder_config("audio", name), preprocessor("audio", name)
    rate = int(said.get("sampling_rate") or 16000)
    longest = max(1, round(audio.longest_seconds * rate))
    if is_whisper(config):
        hop = int(said.get("hop_length") or 160)
        longest = min(longest, WHISPER_STRIDE * hop * int(config.max_source_positions))
        spec = AudioSpec("waveform", rate, longest, kernels=(1,), strides=(WHISPER_STRIDE * hop,))
        trace("audio", name, spec)
        return spec
    kernels, strides = (getattr(config, key, None) for key in ("conv_kernel", "conv_stride"))
    if not kernels or not strides or getattr(config, "add_adapter", False) or hasattr(config, "squeeze_factor"):
        raise refused("audio", name, f"a model of type {config.model_type} is no audio encoder that is known here")
    spec = AudioSpec("waveform", rate, longest, kernels=tuple(kernels), strides=tuple(strides))
    if spec.shortest_samples > longest:
        least = math.ceil(spec.shortest_samples / rate * 1000) / 1000
        what = f"{audio.longest_seconds:g}, but the encoder's first position needs {least:g} s"
        raise InputError(Problem("model.audio.longest_seconds", what, f"set it to {least:g} or more", "encoder"))
    trace("audio", name, spec)
    return spec
