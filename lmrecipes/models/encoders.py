"""Pretrained vision and audio encoders of `transformers` as front ends.

What an encoder gives for an image or a clip may depend on nothing else in the micro-batch: a step means the same
however it is laid out. So statistics of batch norms stay as they were trained, and clips are filled up to one length
where an encoder normalises over time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmrecipes.assets import resolve_model
from lmrecipes.data.inputs import AudioSpec, ImageSpec, Spec
from lmrecipes.data.media import Media
from lmrecipes.data.permutation import hash_key
from lmrecipes.files import write_json
from lmrecipes.models.inputs import encoder_config, is_whisper, preprocessor, refused
from lmrecipes.models.loading import DROPOUTS
from lmrecipes.recipe_inputs import FrontEnd, Modality

MORE_DROPOUTS = ("feat_proj_dropout", "final_dropout", "drop_path_rate")
"""Names of dropout rates that trunks do not have."""
LEAST_VARIANCE = 1e-7
"""Added to a clip's variance, as `Wav2Vec2FeatureExtractor` does."""


class Encoder(nn.Module):
    """An encoder's positions, projected: [positions, hidden]."""

    def __init__(self, encoder: Any, width: int, hidden: int, scale: float, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        if not self.projection.weight.is_meta:
            generator = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.projection.weight, std=width**-0.5, generator=generator)
            nn.init.zeros_(self.projection.bias)
            nn.init.constant_(self.norm.weight, scale)

    def train(self, mode: bool = True) -> Self:
        """As ever, but a frozen encoder stays in evaluation mode, and so does every batch norm."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, media: Media) -> Tensor:
        """Of all images or clips, one after the other."""
        out: Tensor = self.norm(self.projection(self.encoded(media)))
        return out

    def encoded(self, media: Media) -> Tensor:
        """The encoder's own vectors, [positions, width]."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoder's weights."""
        return next(self.encoder.parameters()).dtype


class ImageEncoder(Encoder):
    """A vision encoder: [positions, channels of its last layer], or a map of them."""

    def __init__(self, encoder: Any, spec: ImageSpec, width: int, hidden: int, scale: float, seed: int) -> None:
        super().__init__(encoder, width, hidden, scale, seed)
        self.mean = spec.mean or (0.5,) * spec.channels
        self.std = spec.std or (0.5,) * spec.channels

    def encoded(self, media: Media) -> Tensor:
        """Of images uint8 [k, height, width, channels]."""
        values = media.values / 255
        values = (values - values.new_tensor(self.mean)) / values.new_tensor(self.std)
        # Contiguous: torch 2.13 crashes in the backward pass of a frozen batch norm with channels last, on a CPU.
        out: Tensor = self.encoder(values.permute(0, 3, 1, 2).to(self.dtype).contiguous()).last_hidden_state
        return (out.flatten(2).transpose(1, 2) if out.ndim == 4 else out).flatten(0, 1)


class AudioEncoder(Encoder):
    """An audio encoder on samples, by convolutions (Wav2Vec2 and its kind) or on log-mel frames (Whisper)."""

    def __init__(
        self, encoder: Any, spec: AudioSpec, said: dict[str, Any], width: int, hidden: int, scale: float, seed: int
    ) -> None:
        super().__init__(encoder, width, hidden, scale, seed)
        self.spec = spec
        self.whisper = is_whisper(encoder.config)
        self.normalised = bool(said.get("do_normalize", True)) and not self.whisper
        self.over_time = getattr(encoder.config, "feat_extract_norm", "layer") == "group"
        if self.whisper:
            from transformers.audio_utils import mel_filter_bank

            self.fft, self.hop = int(said.get("n_fft") or 400), int(said.get("hop_length") or 160)
            bands = mel_filter_bank(
                1 + self.fft // 2, int(encoder.config.num_mel_bins), 0.0, 8000.0, spec.sample_rate, norm="slaney",
                mel_scale="slaney",
            )  # fmt: skip
            self.bands = torch.from_numpy(bands).float()

    def encoded(self, media: Media) -> Tensor:
        """Of clips float32 [k, samples] of `lengths` samples: the positions that they cover."""
        values, lengths = media.values, media.lengths
        if lengths is None:
            lengths = torch.full((len(values),), values.shape[1], device=values.device)
        real = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        if self.normalised:
            mean = (values * real).sum(1) / lengths
            variance = ((values - mean[:, None]).square() * real).sum(1) / lengths
            values = (values - mean[:, None]) / (variance[:, None] + LEAST_VARIANCE).sqrt() * real
        if self.whisper:
            out = self.encoder(self._log_mel(values).to(self.dtype)).last_hidden_state
        elif self.over_time:
            values = F.pad(values, (0, self.spec.longest_samples - values.shape[1]))
            out = self.encoder(values.to(self.dtype)).last_hidden_state
        else:
            mask = None if values.is_meta else real.long()
            out = self.encoder(values.to(self.dtype), attention_mask=mask).last_hidden_state
        if out.is_meta:
            return out.flatten(0, 1)
        counts = torch.tensor([self.spec.positions_of(n) for n in lengths.tolist()], device=out.device)
        covered = torch.arange(out.shape[1], device=out.device) < counts[:, None]
        return out[covered]

    def _log_mel(self, values: Tensor) -> Tensor:
        """[k, samples] -> [k, mels, frames], as `WhisperFeatureExtractor` computes it (arXiv 2212.04356, 2.2)."""
        frames = 2 * int(self.encoder.config.max_source_positions)
        if values.is_meta:
            return values.new_empty(len(values), len(self.bands.T), frames)
        values = F.pad(values.float(), (0, frames * self.hop - values.shape[1]))
        with torch.autocast(values.device.type, enabled=False):
            window = torch.hann_window(self.fft, device=values.device)
            power = torch.stft(values, self.fft, self.hop, window=window, return_complex=True)[..., :-1].abs().square()
            found = (self.bands.T.to(values.device) @ power).clamp(min=1e-10).log10()
            found = torch.maximum(found, found.amax((1, 2), keepdim=True) - 8)
        return (found + 4) / 4


def load_encoder(
    modality: Modality, settings: FrontEnd, spec: Spec, dropout: float | None, hidden: int, scale: float, seed: int,
    empty: bool = False,
) -> Encoder:  # fmt: skip
    """A front end with the pretrained encoder that `settings` name; empty: without its weights, so that nothing but its
    configuration is looked at. Raises InputError where it cannot be loaded.

    Weights that its positions do not depend on (a pooler, the vector of masked places) are kept and never trained.
    """
    name = settings.pretrained
    assert name is not None
    folder = resolve_model(name)
    config = encoder_config(modality, folder)
    if dropout is not None:
        for field in (*DROPOUTS, *MORE_DROPOUTS):
            if isinstance(getattr(config, field, None), (int, float)):
                setattr(config, field, dropout)
    try:
        encoder = _made(config) if empty else _pretrained(folder, config)
    except (ImportError, OSError, ValueError) as error:
        raise refused(modality, name, str(error).strip().splitlines()[0]) from None
    traced = trace(modality, folder, spec)
    for key, parameter in encoder.named_parameters():
        parameter.requires_grad_(settings.encoder_rate_factor > 0 and key not in traced.unused)
    said, own_seed = preprocessor(modality, folder), hash_key(seed, modality)
    return _wrapped(encoder, spec, said, traced.width, hidden, scale, own_seed)


def save_encoder(modality: Modality, like: Encoder, weights: dict[str, Tensor], source: str, folder: Path) -> None:
    """Write an encoder of the class of `like` with these weights, by their names in its state dict; others are those of
    `source`, and so is how its inputs are prepared."""
    known = resolve_model(source)
    whole = {**_pretrained(known, encoder_config(modality, known)).state_dict(), **weights}
    with torch.device("meta"):
        empty = type(like.encoder)(like.encoder.config)
    empty.save_pretrained(folder, state_dict={name: tensor.contiguous() for name, tensor in whole.items()})
    if said := preprocessor(modality, known):
        write_json(folder / "preprocessor_config.json", said)


def dummy(spec: Spec) -> Media:
    """An image, or the longest clip, of zeros."""
    if isinstance(spec, ImageSpec):
        values = torch.zeros(1, spec.height, spec.width, spec.channels, dtype=torch.uint8)
    elif spec.kind == "log_mel":
        values = torch.zeros(spec.longest, spec.stack * spec.mels)
    else:
        values = torch.zeros(1, spec.longest_samples)
    return Media(values, torch.zeros(0, dtype=torch.int64))


@dataclass(frozen=True)
class Traced:
    """Width and number of an encoder's positions for an input, and the weights that they do not depend on, by name."""

    width: int
    positions: int
    unused: frozenset[str]


def trace(modality: Modality, name: str, spec: Spec) -> Traced:
    """From one forward and backward pass without numbers, once in a process: before DeepSpeed is started, because with
    ZeRO 3 `transformers` makes partitioned models only. Raises InputError for what is no encoder of this modality."""
    return _traced(modality, name, replace(spec, positions=1) if isinstance(spec, ImageSpec) else spec)


@cache
def _traced(modality: Modality, name: str, spec: Spec) -> Traced:
    config = encoder_config(modality, name)
    try:
        with torch.device("meta"):
            encoder = _made(config)
            front_end = _wrapped(encoder, spec, {}, 1, 1, 1.0, 0)
            out = front_end.encoded(dummy(spec))
            out.sum().backward()
    except (AttributeError, ImportError, IndexError, RuntimeError, TypeError, ValueError) as error:
        what = f"a model of type {config.model_type} cannot be a front end ({str(error).strip().splitlines()[0]})"
        raise refused(modality, name, what) from None
    unused = frozenset(key for key, parameter in encoder.named_parameters() if parameter.grad is None)
    return Traced(out.shape[1], out.shape[0], unused)


def _wrapped(
    encoder: Any, spec: Spec, said: dict[str, Any], width: int, hidden: int, scale: float, seed: int
) -> Encoder:
    if isinstance(spec, ImageSpec):
        return ImageEncoder(encoder, spec, width, hidden, scale, seed)
    return AudioEncoder(encoder, spec, said, width, hidden, scale, seed)


def _made(config: Any) -> Any:
    """An encoder without pretrained weights."""
    from transformers import AutoModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(config) if is_whisper(config) else AutoModel.from_config(config)


def _pretrained(name: str, config: Any) -> Any:
    """An encoder in fp32. Of Whisper's encoder and decoder the first alone."""
    from transformers import AutoModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    alone = is_whisper(config) and config.architectures == [WhisperEncoder.__name__]
    encoder, found = (WhisperEncoder if alone else AutoModel).from_pretrained(name, **options)
    if absent := sorted(map(str, found["missing_keys"])):
        raise ValueError(f"its file lacks {len(absent)} weights of the model ({absent[0]}, ...)")
    return encoder.get_encoder() if is_whisper(config) and not alone else encoder
