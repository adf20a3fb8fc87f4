"""Small images and clips on disk, encoders with random weights, and a recipe of texts, images and audio."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from tiny import WORDS, change

RATE = 1000
IMAGE = {"height": 8, "width": 8, "channels": 1, "patch": 4, "overlap": 1}
AUDIO = {"sample_rate": RATE, "mels": 8, "stack": 2, "longest_seconds": 0.2}


def make_media(folder: Path, count: int = 48) -> None:
    """JSONL files of four tasks: texts alone, pictures (which quadrant is bright), sounds (high or low), and texts
    beside pictures, of which some rows lack one."""
    import soundfile
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"words": [], "pictures": [], "sounds": [], "both": []}
    for i in range(count):
        rng = random.Random(i)
        pixels = np.random.default_rng(i).integers(0, 90, (8, 8), dtype=np.uint8)
        top, left = rng.random() < 0.5, rng.random() < 0.5
        pixels[slice(0, 4) if top else slice(4, 8), slice(0, 4) if left else slice(4, 8)] += 150
        Image.fromarray(pixels).save(folder / f"{i}.png")
        high, seconds = rng.random() < 0.5, rng.uniform(0.03, 0.2)
        times = np.arange(round(seconds * RATE)) / RATE
        noise = np.random.default_rng(i).normal(0, 0.02, len(times))
        soundfile.write(folder / f"{i}.wav", 0.4 * np.sin(2 * math.pi * (330 if high else 90) * times) + noise, RATE)
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
        rows["words"].append({"text": text, "label": "long" if len(text) > 30 else "short"})
        where = f"{'top' if top else 'bottom'} {'left' if left else 'right'}"
        rows["pictures"].append({"image": f"{i}.png", "label": where})
        rows["sounds"].append({"audio": f"{i}.wav", "label": "high" if high else "low"})
        missing = (None, "text", "image")[i % 3]
        both = {"text": text, "image": f"{i}.png"} | ({missing: None} if missing else {})
        rows["both"].append({**both, "label": "yes" if top else "no"})
    for task, found in rows.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


def make_media_recipe(model: Path, data: Path, **changes: Any) -> dict[str, Any]:
    """A recipe (as a dictionary) over `make_media`."""
    columns: dict[str, dict[str, str]] = {
        "words": {}, "pictures": {"image": "image"}, "sounds": {"audio": "audio"},
        "both": {"text": "text", "image": "image"},
    }  # fmt: skip
    recipe: dict[str, Any] = {
        "name": "tiny_media",
        "tasks": {
            task: {"kind": "classification", "source": {"files": str(data / f"{task}.jsonl"), **named}}
            for task, named in columns.items()
        },
        "model": {"pretrained": str(model), "max_length": 24, "image": IMAGE, "audio": AUDIO},
        "batch": {"examples": 16, "micro_examples": 16, "length_buckets": 2},
        "optimizer": {"lr": 0.002},
        "schedule": {"steps": 10},
        "precision": {"compute": "fp32"},
        "tracking": {"wandb": "off", "tensorboard": False},
    }
    return change(recipe, changes)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONVOLUTIONS = {
    "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "initializer_range": 0.2,
}  # fmt: skip


def make_vision(folder: Path, kind: str = "vit") -> Path:
    """A vision encoder with random weights, and how its pixels are normalised."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    small = {**SMALL, "initializer_range": 0.2}
    model: Any = {
        "vit": lambda: hf.ViTModel(hf.ViTConfig(image_size=8, patch_size=4, num_channels=1, **small)),
        "clip": lambda: hf.CLIPModel(
            hf.CLIPConfig(
                vision_config={"image_size": 8, "patch_size": 4, "projection_dim": 8, **SMALL},
                text_config={"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "projection_dim": 8, **SMALL},
            )
        ),
        "dinov2": lambda: hf.Dinov2Model(
            hf.Dinov2Config(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        ),
        "convnext": lambda: hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1])),
        "resnet": lambda: hf.ResNetModel(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
    }[kind]()
    model.save_pretrained(folder)
    size = 32 if kind in ("convnext", "resnet") else 8
    said = {"size": {"height": size, "width": size}, "image_mean": [0.4], "image_std": [0.2], "do_normalize": True}
    channels = 1 if kind == "vit" else 3
    said |= {"image_mean": [0.4] * channels, "image_std": [0.2] * channels}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def make_hearing(folder: Path, kind: str = "wav2vec2") -> Path:
    """An audio encoder with random weights and its preprocessor."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    layered = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    model: Any = {
        "wav2vec2": lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SMALL, **CONVOLUTIONS)),
        "wav2vec2-layer": lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SMALL, **CONVOLUTIONS, **layered)),
        "hubert": lambda: hf.HubertModel(hf.HubertConfig(**SMALL, **CONVOLUTIONS)),
        "whisper": lambda: hf.WhisperModel(
            hf.WhisperConfig(
                vocab_size=60,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
                num_mel_bins=8,
                d_model=16,
                encoder_layers=2,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_source_positions=50,
                suppress_tokens=None,
                begin_suppress_tokens=None,
            )
        ),
    }[kind]()
    model.save_pretrained(folder)
    if kind == "whisper":
        hf.WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    else:
        hf.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask="layer" in kind).save_pretrained(folder)
    return folder
