"""Runs that read images and clips: the start-up probe, the export and what is read back, learning rates by part."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model
from tiny_media import make_hearing, make_media, make_media_recipe, make_vision

from lmrecipes.inference.exported import load_exported
from lmrecipes.models.encoders import Encoder
from lmrecipes.models.inputs import input_specs
from lmrecipes.models.shapes import shapes_of
from lmrecipes.models.trunk import Trunk
from lmrecipes.planning.by_precision import compare
from lmrecipes.planning.hardware import Hardware
from lmrecipes.precision.layer_rules import layer_problems
from lmrecipes.problems import InputError, RunFailed
from lmrecipes.recipe import Recipe
from lmrecipes.training.flops import parameters_of
from lmrecipes.training.loop import Start, Training
from lmrecipes.training.schedule import owner_of, rates

Made = Callable[..., Training]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media_runs")
    make_model(folder / "model")
    make_media(folder / "data")
    make_vision(folder / "vision")
    make_hearing(folder / "hearing", "whisper")
    return folder


def recipe(media: Path, encoders: bool = False, **changes: Any) -> Recipe:
    if encoders:
        audio = {"pretrained": str(media / "hearing"), "longest_seconds": 0.2}
        changes = {"model.image": {"pretrained": str(media / "vision")}, "model.audio": audio, **changes}
    return Recipe.model_validate(make_media_recipe(media / "model", media / "data", **{"schedule.steps": 2, **changes}))


@pytest.fixture
def made(media: Path, tmp_path: Path) -> Iterator[Made]:
    """Runs, not trained yet; their engines are given up afterwards."""
    runs: list[Training] = []

    def make(encoders: bool = False, **changes: Any) -> Training:
        runs.append(Training(recipe(media, encoders, **changes), Start(None, tmp_path / f"run{len(runs)}")))
        return runs[-1]

    yield make
    for training in runs:
        training.engine.release()


CASES: dict[str, dict[str, Any]] = {
    "own": {"batch.layout": "grouped"},
    "encoders beside adapters": {"encoders": True, "model.lora.rank": 2, "model.image.encoder_rate_factor": 0},
    "pure": {"encoders": True, "precision": {"compute": "bf16", "master_weights": "none"}},
    "by layer": {"precision": {"compute": "bf16", "layers": {"inputs.image.patches": "fp8", "inputs.audio": "fp32"}}},
}


@pytest.mark.parametrize("case", CASES)
def test_the_exported_model_is_the_live_one(case: str, made: Made) -> None:
    training = made(**CASES[case])
    training.fit()
    folder = training.run.model
    saved = json.loads((folder / "heads.json").read_text())
    assert saved["verified"]["deviation"]["inputs"] <= saved["verified"]["tolerance"]
    exported = load_exported(folder)
    assert exported.inputs == input_specs(training.recipe.model, ("image", "audio")) == training.inputs
    live = dict(training.engine.module.inputs.state_dict())
    read = dict(exported.model.inputs.state_dict())
    assert live.keys() == read.keys()
    assert all(torch.equal(weight.float(), read[name]) for name, weight in live.items())
    for modality, front_end in training.engine.module.inputs.items():
        assert (folder / modality / "preprocessor_config.json").is_file() == isinstance(front_end, Encoder)


def test_other_front_ends_are_not_published(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    import lmrecipes.training.export as export

    save = export.save_inputs

    def wrong(*args: Any) -> None:
        save(*args)
        weights = load_file(args[-1] / "inputs.safetensors")
        weights["image.rows"] = weights["image.rows"].roll(1, 0).contiguous()
        save_file(weights, args[-1] / "inputs.safetensors")

    monkeypatch.setattr(export, "save_inputs", wrong)
    training = made()
    with pytest.raises(RunFailed, match="front ends"):
        training.fit()


def test_idle_front_ends_take_part(made: Made) -> None:
    """Else DDP and ZeRO wait for gradients that never come."""
    training = made(encoders=True, **{"batch.micro_examples": 1})
    micros = training.stream.step(0).micro_batches
    idle = next(micro for micro in micros if not any(len(media.places) for media in micro.media.values()))
    training.engine.micro_step(idle, last=True)
    inputs = training.engine.module.inputs
    gradients = {name: weight.grad for name, weight in inputs.named_parameters() if weight.requires_grad}
    assert len(gradients) > 20
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())


def misplaced(places: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (places.roll(1) if len(places) else places), vectors


def spilled(places: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each vector knows of the others."""
    return places, vectors + vectors.mean(0)


@pytest.mark.parametrize(("wrong", "layout"), [(misplaced, "packed"), (spilled, "padded")])
def test_the_probe_sees_what_lies_wrong(
    wrong: Callable[..., Any], layout: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = Trunk._embedded
    monkeypatch.setattr(
        Trunk, "_embedded", lambda trunk, ids, inserted: embedded(trunk, ids, [wrong(*part) for part in inserted])
    )
    with pytest.raises(InputError, match=r"batch\.layout"):
        made(**{"batch.layout": layout})


def test_each_part_learns_at_its_own_rate(media: Path) -> None:
    shaped = {"decay": "constant", "start": 0.5, "warmup_fraction": 0.0}
    changes = {
        "schedule.steps": 10, "schedule.warmup_fraction": 0.0, "model.image.encoder_rate_factor": 0.5,
        "model.image.learning_rate_factor": 3, "tasks.sounds.rates": shaped, "tasks.words.learning_rate_factor": 2,
    }  # fmt: skip
    training = recipe(media, encoders=True, **changes)
    first, last = rates(training, 0), rates(training, 9)
    assert first["trunk"] == 0.002 and last["trunk"] == pytest.approx(0.0002)
    assert first["heads.words"] == 0.004 and first["heads.pictures"] == pytest.approx(0.02)
    assert first["heads.sounds"] == 0 and last["heads.sounds"] == pytest.approx(0.02)
    assert first["inputs.image"] == pytest.approx(0.006) and first["inputs.image.encoder"] == 0.001
    names = ("trunk.model.a.weight", "language.weight", "heads.words.linear.weight", "inputs.audio.norm.bias",
             "inputs.image.encoder.layers.0.weight")  # fmt: skip
    assert [owner_of(name) for name in names] == [
        "trunk", "trunk", "heads.words", "inputs.audio", "inputs.image.encoder"
    ]  # fmt: skip


def test_a_part_without_a_rate_stands_still(made: Made) -> None:
    late = {"decay": "constant", "start": 0.5, "warmup_fraction": 0.0}
    training = made(**{"model.audio.rates": late, "schedule.warmup_fraction": 0.0})
    inputs = training.engine.module.inputs
    before = {name: weight.clone() for name, weight in inputs.state_dict().items()}
    training.one_step(training.stream.step(0))
    moved = {name for name, weight in inputs.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved and not any(name.startswith("audio") for name in moved)
    training.one_step(training.stream.step(1))
    assert not torch.equal(inputs.state_dict()["audio.frames.weight"], before["audio.frames.weight"])


@pytest.mark.parametrize("encoders", [False, True])
def test_the_planner_counts_what_the_model_has(encoders: bool, made: Made, media: Path) -> None:
    plain = recipe(media, encoders)
    outputs = {"words": 2, "pictures": 4, "sounds": 2, "both": 2}
    shapes = shapes_of(plain, outputs)
    whole, trained = parameters_of(made(encoders).engine.module)
    assert (shapes.trained + shapes.frozen, shapes.trained) == (whole, trained)
    names = {product.name for product in shapes.products}
    first = "encoder.embeddings.patch_embeddings.projection" if encoders else "patches"
    assert f"inputs.image.{first}" in names
    rows = compare(plain, shapes, Hardware.parse("1xA100-80GB"), None).rows
    assert all(row.cost.flops for row in rows)
    assert shapes.longest == 24 + (5 if encoders else 4), "a text beside an image"
    unknown = recipe(media, encoders, **{"precision": {"layers": {"inputs.vision": "bf16"}}})
    assert "inputs.vision" in layer_problems(unknown)[0].what


def test_positions_are_counted_against_the_trunk(made: Made) -> None:
    with pytest.raises(InputError, match="text, image and audio may take") as refused:
        made(**{"model.max_length": 62})
    assert refused.value.problems[0].id == "max-length"
