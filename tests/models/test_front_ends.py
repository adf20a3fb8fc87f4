"""Front ends: what they give, how large it is, what each input depends on; and what is read of encoders' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model
from tiny_media import make_hearing, make_vision
from torch import Tensor

from lmrecipes.data.inputs import FLOOR, AudioSpec, ImageSpec
from lmrecipes.data.media import Media
from lmrecipes.models.encoders import AudioEncoder
from lmrecipes.models.front_ends import front_ends
from lmrecipes.models.inputs import input_specs
from lmrecipes.models.loading import load_trunk
from lmrecipes.models.trunk import Trunk
from lmrecipes.problems import InputError
from lmrecipes.recipe import Model

NOWHERE = torch.zeros(0, dtype=torch.int64)
OWN: dict[str, Any] = {
    "image": {"height": 8, "width": 16, "channels": 3, "patch": 4, "overlap": 1},
    "audio": {"sample_rate": 1000, "mels": 5, "stack": 3, "longest_seconds": 0.3},
}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return load_trunk(Model(pretrained=str(make_model(tmp_path_factory.mktemp("front") / "model"))), 0)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of encoders by kind."""
    folder = tmp_path_factory.mktemp("encoders")
    seen = {kind: make_vision(folder / kind, kind) for kind in ("vit", "clip", "dinov2", "convnext", "resnet")}
    heard = {kind: make_hearing(folder / kind, kind) for kind in ("wav2vec2", "wav2vec2-layer", "hubert", "whisper")}
    return {kind: str(path) for kind, path in {**seen, **heard}.items()}


def images(spec: ImageSpec, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, spec.height, spec.width, spec.channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_our_own_have_the_size_of_words(trunk: Trunk) -> None:
    specs = input_specs(Model(**OWN), ("image", "audio"))
    made = front_ends(Model(**OWN), specs, trunk, 0)
    words = float(trunk.model.get_input_embeddings().weight.square().mean().sqrt())  # type: ignore[operator]
    pixels = made["image"](Media(images(specs["image"]), NOWHERE))  # type: ignore[arg-type]
    heard = made["audio"](Media(FLOOR * torch.rand(7, 15), NOWHERE))
    assert pixels.shape == (3 * 8, 32) and heard.shape == (7, 32)
    for found in (pixels, heard):
        assert float(found.square().mean().sqrt()) == pytest.approx(words, rel=0.2)
    again = front_ends(Model(**OWN), specs, trunk, 0)
    other = front_ends(Model(**OWN), specs, trunk, 1)
    for name, weight in made["image"].state_dict().items():
        assert torch.equal(weight, again["image"].state_dict()[name]), "the same on every rank"
    assert not torch.equal(made["image"].rows, other["image"].rows)  # type: ignore[arg-type]


def test_patches_lie_row_by_row_and_reach_into_their_neighbours(trunk: Trunk) -> None:
    specs = input_specs(Model(**OWN), ("image",))
    front_end = front_ends(Model(**OWN), specs, trunk, 0)["image"]
    blank = torch.zeros(1, 8, 16, 3, dtype=torch.uint8)
    before = front_end(Media(blank, NOWHERE))
    for (row, column), moved in {(1, 1): {0}, (6, 9): {6}, (4, 5): {1, 5}, (3, 8): {1, 2, 5, 6}}.items():
        dotted = blank.clone()
        dotted[0, row, column] = 255
        apart = (front_end(Media(dotted, NOWHERE)) - before).abs().sum(1)
        assert set(apart.nonzero().flatten().tolist()) == moved
    assert len({tuple(vector) for vector in before.tolist()}) == 8, "blank patches differ by their place"


@pytest.mark.parametrize(("kind", "size", "positions"), [
    ("vit", 8, 5), ("clip", 8, 5), ("dinov2", 8, 5), ("convnext", 32, 1), ("resnet", 32, 16),
])  # fmt: skip
def test_vision_encoders(kind: str, size: int, positions: int, trunk: Trunk, encoders: dict[str, str]) -> None:
    model = Model(**{"image": {"pretrained": encoders[kind]}})
    spec = input_specs(model, ("image",))["image"]
    channels = 1 if kind == "vit" else 3
    assert spec == ImageSpec(size, size, channels, positions, (0.4,) * channels, (0.2,) * channels)
    front_end = front_ends(model, {"image": spec}, trunk, 0)["image"].train()
    pixels = images(spec)
    found = front_end(Media(pixels, NOWHERE))
    assert found.shape == (3 * positions, 32)
    alone = torch.cat([front_end(Media(pixels[i : i + 1], NOWHERE)) for i in range(3)])
    assert torch.allclose(found, alone, atol=1e-6), "also of batch norms: nothing depends on the micro-batch"
    found.square().sum().backward()
    without = [name for name, p in front_end.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "a parameter without a gradient breaks DDP and ZeRO"


@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-layer", "hubert", "whisper"])
def test_audio_encoders(kind: str, trunk: Trunk, encoders: dict[str, str]) -> None:
    model = Model(**{"audio": {"pretrained": encoders[kind], "longest_seconds": 0.8}})
    spec = input_specs(model, ("audio",))["audio"]
    assert isinstance(spec, AudioSpec)
    front_end = front_ends(model, {"audio": spec}, trunk, 0)["audio"].train()
    lengths = torch.tensor([700, 400, 123])
    clips = torch.randn(3, 700, generator=torch.Generator().manual_seed(0)) * (torch.arange(700) < lengths[:, None])
    found = front_end(Media(clips, NOWHERE, lengths))
    counts = [spec.positions_of(length) for length in lengths.tolist()]
    assert found.shape == (sum(counts), 32) and counts == ([3, 2, 1] if kind == "whisper" else [69, 39, 11])
    alone = [front_end(Media(clips[i : i + 1, : lengths[i]], NOWHERE, lengths[i : i + 1])) for i in range(3)]
    assert torch.allclose(found, torch.cat(alone), atol=1e-6)
    found.square().sum().backward()
    assert not [name for name, p in front_end.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_clips_are_prepared_as_their_own_preprocessor_does(kind: str, trunk: Trunk, encoders: dict[str, str]) -> None:
    from transformers import AutoFeatureExtractor

    clip = torch.randn(800, generator=torch.Generator().manual_seed(0)) * 0.1
    prepare = AutoFeatureExtractor.from_pretrained(encoders[kind])
    model = Model(**{"audio": {"pretrained": encoders[kind], "longest_seconds": 0.8}})
    spec = input_specs(model, ("audio",))["audio"]
    front_end = front_ends(model, {"audio": spec}, trunk, 0)["audio"].eval()
    assert isinstance(front_end, AudioEncoder)
    wanted = prepare(clip.numpy(), sampling_rate=spec.sample_rate, return_tensors="pt")  # type: ignore[union-attr]
    with torch.no_grad():
        out = front_end.encoder(next(iter(wanted.values()))).last_hidden_state[0]
        found = front_end.encoded(Media(clip[None], NOWHERE, torch.tensor([800])))
    assert torch.allclose(found, out[: len(found)], atol=1e-4)


def test_a_frozen_encoder_rests(trunk: Trunk, encoders: dict[str, str]) -> None:
    model = Model(**{"image": {"pretrained": encoders["vit"], "encoder_rate_factor": 0}})
    front_end = front_ends(model, input_specs(model, ("image",)), trunk, 0)["image"].train()
    trained = {name for name, p in front_end.named_parameters() if p.requires_grad}
    assert trained == {"projection.weight", "projection.bias", "norm.weight", "norm.bias"}
    assert front_end.training and not front_end.encoder.training  # type: ignore[union-attr]


def test_what_cannot_read_a_modality_is_refused(encoders: dict[str, str], tmp_path: Path) -> None:
    text = str(make_model(tmp_path / "text"))
    for modality, name in (("image", text), ("image", encoders["wav2vec2"]), ("audio", encoders["vit"]),
                           ("audio", text), ("audio", "no/such-model")):  # fmt: skip
        with pytest.raises(InputError) as refused:
            input_specs(Model(**{modality: {"pretrained": name}}), (modality,))  # type: ignore[arg-type]
        assert refused.value.problems[0].where == f"model.{modality}.pretrained"
    with pytest.raises(InputError, match="longest_seconds"):
        short = {"pretrained": encoders["wav2vec2"], "longest_seconds": 0.001}
        input_specs(Model(**{"audio": short}), ("audio",))
    wrong = make_vision(tmp_path / "vit")
    said = {"size": {"height": 12, "width": 12}}
    (wrong / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match="cannot be a front end"):
        input_specs(Model(**{"image": {"pretrained": str(wrong)}}), ("image",))
