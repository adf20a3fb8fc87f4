"""The promise of a step where tasks read texts, images and clips: one recipe gives one trajectory, whatever it runs on.

Ranks and micro-batches hold different modalities, and some hold none of one. Losses and gradient norms of ten steps
agree in fp32 to 1e-5 (relative) between one process and two, accumulations, layouts, plain torch, DDP and ZeRO 0-3,
with front ends of our own and with pretrained encoders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from tiny import make_model
from tiny_media import make_hearing, make_media, make_media_recipe, make_vision
from trajectories import Engine, Rows, assert_same, train_cases

Cases = dict[str, dict[str, Any]]
LAYOUTS = ("padded", "buckets", "grouped", "packed")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trunk, images and clips, and two encoders."""
    folder = tmp_path_factory.mktemp("media")
    make_model(folder / "model")
    make_media(folder / "data")
    make_vision(folder / "vision")
    make_hearing(folder / "hearing")
    return folder


def recipe(media: Path, **changes: Any) -> dict[str, Any]:
    return make_media_recipe(media / "model", media / "data", **changes)


def pretrained(media: Path, **changes: Any) -> dict[str, Any]:
    """Encoders by name; the audio encoder is frozen."""
    image = {"pretrained": str(media / "vision"), "rates": {"decay": "cosine", "start": 0.2, "warmup_fraction": 0}}
    audio = {"pretrained": str(media / "hearing"), "longest_seconds": 0.2, "encoder_rate_factor": 0}
    return recipe(media, **{"model.image": image, "model.audio": audio, **changes})


@pytest.fixture(scope="module")
def alone(run: Run, media: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """One process, plain torch: the references, and every layout with accumulation 4."""
    cases: Cases = {"own": recipe(media), "pretrained": pretrained(media)}
    for layout in LAYOUTS:
        cases[layout] = recipe(media, **{"batch.micro_examples": 4, "batch.layout": layout})
    cases["pretrained in parts"] = pretrained(media, **{"batch.micro_examples": 2})
    return train_cases(run, tmp_path_factory.mktemp("alone"), 1, "plain", cases)


def test_micro_batches_and_layouts(alone: dict[str, Rows]) -> None:
    for layout in LAYOUTS:
        assert_same(alone[layout], alone["own"], 1e-5)
    assert_same(alone["pretrained in parts"], alone["pretrained"], 1e-5)
    assert sum(row["idle_heads"] for row in alone["packed"]) > 10, "micro-batches without some of the tasks"
    assert alone["own"][0]["lr"] == alone["pretrained"][0]["lr"]
    shaped = [row["lr/inputs.image"] for row in alone["pretrained"]]
    assert shaped[:2] == [0, 0] and shaped[2] == pytest.approx(0.02) and 0 < shaped[-1] < 0.002
    assert not any(key.startswith("lr/") for key in alone["own"][0])


def test_two_ranks_under_every_engine(run: Run, media: Path, alone: dict[str, Rows], tmp_path: Path) -> None:
    engines: dict[str, Engine] = {}
    cases: Cases = {}
    own: dict[Engine, int] = {"plain": 2, 0: 8, 1: 8, 2: 2, 3: 2}
    for engine, micro in own.items():
        cases[f"own {engine}"], engines[f"own {engine}"] = recipe(media, **{"batch.micro_examples": micro}), engine
    for engine in ("plain", 3):
        case = f"pretrained {engine}"
        cases[case], engines[case] = pretrained(media, **{"batch.micro_examples": 4}), engine
    found = train_cases(run, tmp_path, 2, engines, cases)
    for case, rows in found.items():
        assert_same(rows, alone[case.split()[0]], 1e-5)
