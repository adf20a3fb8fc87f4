"""The start-up probe: sound layouts pass in every precision, and each kind of leak is refused with its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_layouts import CASES, config

from lmrecipes.data.layout import Arrangement
from lmrecipes.models import attention
from lmrecipes.models.attention import Choice
from lmrecipes.models.loading import load_trunk
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.models.trunk import Trunk
from lmrecipes.problems import InputError
from lmrecipes.recipe import Model
from lmrecipes.training.probe import judge, probe_layout

LEAKY = {case: CASES[case] for case in CASES if CASES[case][0].layout in ("grouped", "packed")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder and a decoder with random weights."""
    from transformers import AutoModel

    folders = {name: tmp_path_factory.mktemp(name) for name in ("roberta", "gpt2")}
    for name, folder in folders.items():
        torch.manual_seed(0)
        AutoModel.from_config(config(name)).save_pretrained(folder)
    return folders


def probe(
    folder: Path, case: str, dtype: torch.dtype = torch.float32, pooling: Any = "mean",
    change: Callable[[Trunk], None] = lambda trunk: None,
) -> None:  # fmt: skip
    """Probe a layout as one rank would; `change` may break the trunk."""
    choice, arrangement = CASES[case]
    trunk = Trunk(load_trunk(Model(pretrained=str(folder), max_length=24), 0).model, pooling, choice)
    change(trunk)
    model = MultiTaskModel(trunk.to(dtype), {}).eval()

    def vectors(texts: Any) -> Any:
        with torch.no_grad():
            return model(texts)

    engine: Any = SimpleNamespace(
        module=model, compute_dtype=dtype, vectors=vectors, gather=lambda value: [None, value]
    )
    probe_layout(engine, arrangement, 24, seed=3)
    assert trunk.model.config._attn_implementation == choice.attention, "left as it was"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
@pytest.mark.parametrize("case", CASES)
def test_sound_layouts_pass(name: str, case: str, folders: dict[str, Path]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for pooling in ("mean", "first", "last"):
            probe(folders[name], case, dtype, pooling)


@pytest.mark.parametrize("case", LEAKY)
def test_a_mask_left_out(case: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped reads padding then; packed reads neighbours."""
    monkeypatch.setattr(attention, "seen", lambda *rule: None)
    monkeypatch.setattr(attention, "bias", lambda *rule: None)
    what = "moves its neighbours" if case.startswith("packed") else "to another text from itself alone"
    with pytest.raises(InputError, match=rf"batch\.layout(.|\n)*{what}"):
        probe(folders["roberta"], case)


@pytest.mark.parametrize("case", LEAKY)
def test_a_causal_mask_left_out(case: str, folders: dict[str, Path]) -> None:
    def see_all(trunk: Trunk) -> None:
        for module in trunk.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False

    choice = CASES[case][0]
    if choice.products != "sdpa":  # the model's own sdpa asks the module too
        with pytest.raises(InputError, match="itself alone"):
            probe(folders["gpt2"], case, change=see_all)


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
@pytest.mark.parametrize("case", LEAKY)
def test_positions_that_run_on(name: str, case: str, folders: dict[str, Path]) -> None:
    def run_on(trunk: Trunk) -> None:
        flat = trunk._flat
        trunk._flat = lambda ids, types, positions, **rest: flat(  # type: ignore[method-assign]
            ids, types, torch.arange(len(positions)) % 38, **rest
        )

    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(InputError, match=r"itself alone(.|\n)*batch\.layout: buckets"):
            probe(folders[name], case, dtype, change=run_on)


def test_a_wrong_first_position(folders: dict[str, Path]) -> None:
    """RoBERTa's texts begin at position 2."""

    def from_zero(trunk: Trunk) -> None:
        assert trunk.first_position == 2
        trunk.first_position = 0

    with pytest.raises(InputError, match="itself alone"):
        probe(folders["roberta"], "grouped", change=from_zero)


def test_short_texts_only(folders: dict[str, Path]) -> None:
    trunk = Trunk(load_trunk(Model(pretrained=str(folders["gpt2"])), 0).model, "mean", Choice("grouped"))
    model = MultiTaskModel(trunk, {}).eval()
    engine: Any = SimpleNamespace(
        module=model, compute_dtype=torch.float32, gather=lambda value: [value],
        vectors=lambda texts: model(texts).detach(),
    )  # fmt: skip
    for seed in range(5):
        probe_layout(engine, Arrangement("grouped", 8), 4, seed)


def test_numbers_that_are_not_finite() -> None:
    vectors = torch.eye(3)
    moved = torch.tensor([1.0, 0, 0])
    assert judge(vectors, vectors, moved, torch.float32, "packed") is None
    for broken in ((vectors * torch.nan, vectors, moved), (vectors, vectors, moved * torch.inf)):
        problem = judge(*broken, torch.float32, "packed")
        assert problem is not None
        assert "not finite" in problem.what
    assert judge(vectors, vectors, torch.tensor([1.0, 0.02, 0]), torch.bfloat16, "packed") is not None
    assert judge(vectors, vectors * 1.2, moved, torch.bfloat16, "packed") is not None
