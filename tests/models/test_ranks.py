"""The language-model head, adapters and activation checkpointing on two ranks, by DDP and by ZeRO 1-3, are what they
are in one process. ZeRO-3 loads the models partitioned and keeps nothing gathered."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Run
from safetensors.torch import load_file
from torch import Tensor

STAGES = (None, 1, 2, 3)
LORA, DORA = {"rank": 4}, {"rank": 4, "dora": True}
KINDS: dict[str, dict[str, Any]] = {
    "tied": {"model": "tied"},
    "untied": {"model": "untied"},
    "lora": {"model": "tied", "lora": LORA},
    "dora": {"model": "untied", "lora": DORA},
    "checkpointed": {"model": "tied", "checkpointed": True, "blocks": True},
    "checkpointed-lora": {"model": "tied", "checkpointed": True, "lora": LORA},
}
HALF = {f"half-{stage}": {"model": "tied", "stage": stage, "half": True, "lora": LORA} for stage in (1, 3)}


@dataclass(frozen=True)
class Outcome:
    """Losses of the steps, names of the trained parameters, all weights at the end."""

    losses: list[float]
    trained: list[str]
    weights: dict[str, Tensor]


Trained = Callable[[int, str], Outcome]


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of two models, with tied and with untied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folders = {}
    for name in ("tied", "untied"):
        folders[name] = str(tmp_path_factory.mktemp(name))
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=name == "tied", initializer_range=0.2,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def trained(run: Run, llamas: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What a case gave: without checkpoints, ranks and ZeRO (world 1), or as it says on two ranks."""
    plain = {"checkpointed": False, "blocks": False}
    all_cases = {
        1: {kind: {**case, **plain} for kind, case in KINDS.items()},
        2: {f"{kind}-{stage}": {**case, "stage": stage} for kind, case in KINDS.items() for stage in STAGES} | HALF,
    }
    folders = {world: tmp_path_factory.mktemp(f"world{world}") for world in all_cases}
    for world, cases in all_cases.items():
        order = folders[world] / "order.json"
        named = {name: {**case, "model": llamas[case["model"]]} for name, case in cases.items()}
        order.write_text(json.dumps({"cases": named, "out": str(order.parent)}))
        launch = [sys.executable] if world == 1 else ["torchrun", "--standalone", "--nproc_per_node=2"]
        done = run(*launch, ROOT / "tests" / "models" / "ranks_worker.py", order, cwd=order.parent)
        assert done.returncode == 0, done.stderr[-3000:]

    def outcome(world: int, name: str) -> Outcome:
        at = folders[world] / name
        return Outcome(**json.loads(Path(f"{at}.json").read_text()), weights=load_file(f"{at}.safetensors"))

    return outcome


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_are_one_process(kind: str, stage: int | None, trained: Trained) -> None:
    found, wanted = trained(2, f"{kind}-{stage}"), trained(1, kind)
    assert found.losses == pytest.approx(wanted.losses, rel=1e-5)
    assert found.trained == wanted.trained
    assert found.weights.keys() == wanted.weights.keys()
    for name, weight in wanted.weights.items():
        assert torch.allclose(found.weights[name], weight, rtol=0, atol=1e-6), name


def test_all_kinds_learn_and_differ(trained: Trained) -> None:
    """So that equal numbers mean something."""
    runs = {kind: trained(1, kind) for kind in KINDS}
    assert all(len(set(run.losses)) == 3 for run in runs.values())
    assert len({run.losses[-1] for kind, run in runs.items() if "checkpointed" not in kind}) == 4
    assert {kind for kind, run in runs.items() if "language.weight" in run.weights} == {"untied", "dora"}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_only_adapters_change(kind: str, trained: Trained, llamas: dict[str, str]) -> None:
    found = trained(2, f"{kind}-3")
    assert all("lora_" in name for name in found.trained)
    for name, weight in load_file(f"{llamas[KINDS[kind]['model']]}/model.safetensors").items():
        names = {name, name.replace(".weight", ".base_layer.weight"), name.replace("lm_head", "language")}
        (kept,) = (found.weights[own] for own in names if own in found.weights)
        assert torch.equal(kept, weight), name


@pytest.mark.parametrize("case", HALF)
def test_adapters_in_sixteen_bits(case: str, trained: Trained) -> None:
    found, wanted = trained(2, case), trained(1, "lora")
    assert found.losses == pytest.approx(wanted.losses, rel=0.01)
    for name in found.trained:
        assert torch.allclose(found.weights[name], wanted.weights[name], rtol=0, atol=0.01), name
