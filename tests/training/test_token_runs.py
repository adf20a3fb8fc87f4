"""Whole runs of token tasks: resumed as they were, with adapters and without; samples and scores along the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from made_runs import Runs, engine_config, run_cases
from test_resume import measured
from tiny_gpt import make_gpt_recipe

from lmrecipes.tracking.record import read_metrics
from lmrecipes.tracking.samples import read_samples

COMMON = {
    "schedule.steps": 6, "batch.micro_examples": 4, "evaluation.examples": 12, "evaluation.start": True,
    "evaluation.samples": 2, "evaluation.sample_tokens": 6, "evaluation.every": 3,
}  # fmt: skip
PAIRS = ("plain_adapters", "zero2_adapters", "zero3")


@pytest.fixture(scope="module")
def runs(run: Run, tiny_gpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """On two ranks: ZeRO-2 with adapters and ZeRO-3 without, in bf16, whole, cut and resumed. On one: plain torch with
    adapters, likewise; a model from a configuration, with a tokenizer of its own; compiled layers."""
    folder = tmp_path_factory.mktemp("token_runs")
    bf16 = {"precision.compute": "bf16"}
    lora = {"model.lora.rank": 4, "model.lora.dropout": 0.1, "optimizer.lr": 0.02}
    full, adapters = make_gpt_recipe(tiny_gpt, **COMMON, **bf16), make_gpt_recipe(tiny_gpt, **COMMON, **bf16, **lora)

    def cases(name: str, recipe: dict[str, Any], deepspeed: dict[str, Any] | None) -> list[dict[str, Any]]:
        case = {"recipe": recipe, "deepspeed": deepspeed}
        return [
            {"name": name, "run": name, **case},
            {"name": f"{name}_cut", "run": f"{name}_cut", "until": 4, **case},
            {"name": f"{name}_resumed", "run": f"{name}_cut", "resume": True, **case},
        ]

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    scratch = make_gpt_recipe(tiny_gpt, **COMMON)
    scratch["model"] = {
        "config": {"model_type": "llama", **shape}, "tokenizer_vocabulary": 512, "max_length": 48, "pooling": "last",
    }  # fmt: skip
    short = {**COMMON, "schedule.steps": 2, "mixture.unit": "supervised_tokens"}
    compiled = make_gpt_recipe(tiny_gpt, **{**short, "model.compile": True})
    eager = make_gpt_recipe(tiny_gpt, **short)
    said = run_cases(
        run, folder, 2,
        [
            *cases("zero2_adapters", adapters, engine_config(adapters, 2, 2)),
            *cases("zero3", full, engine_config(full, 3, 2)),
        ],
    )  # fmt: skip
    said |= run_cases(
        run, folder, 1,
        [
            *cases("plain_adapters", adapters, None),
            {"name": "scratch", "run": "scratch", "recipe": scratch, "deepspeed": None},
            {"name": "compiled", "run": "compiled", "recipe": compiled, "deepspeed": None},
            {"name": "eager", "run": "eager", "recipe": eager, "deepspeed": None},
        ],
    )  # fmt: skip
    assert not (failed := {name: outcome for name, outcome in said.items() if "failed" in outcome}), failed
    return Runs(folder, said)


@pytest.mark.parametrize("name", PAIRS)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(name: str, runs: Runs) -> None:
    cut, whole = runs[f"{name}_cut"], runs[name]
    assert measured(cut) == measured(whole)
    assert (cut / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()
    one, other = (json.loads((folder / "evaluation.json").read_text()) for folder in (cut, whole))
    assert one["tasks"] == other["tasks"]
    assert one["baselines"] == other["baselines"], "what the model knew before training is known after a resume"
    assert (cut / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


def test_a_checkpoint_of_adapters_holds_no_frozen_weights(runs: Runs) -> None:
    def size(name: str) -> int:
        (checkpoint,) = (runs[f"{name}_cut"] / "checkpoints").iterdir()
        return sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())

    assert size("plain_adapters") < 0.7 * size("zero3")
    assert size("zero2_adapters") < 0.7 * size("zero3")


@pytest.mark.parametrize("name", [*PAIRS, "scratch"])
def test_samples_are_drawn_at_every_evaluation(name: str, runs: Runs) -> None:
    samples = read_samples(runs[name] / "samples.jsonl")
    tasks = ("law", "verse", "talk")
    assert [(s.step, s.task) for s in samples] == [(step, task) for step in (0, 3, 6) for task in tasks for _ in "12"]
    by_step = {step: [s for s in samples if s.step == step] for step in (0, 3, 6)}
    for step in (3, 6):
        assert [(s.prompt, s.reference) for s in by_step[step]] == [(s.prompt, s.reference) for s in by_step[0]]
    assert [s.continuation for s in by_step[6]] != [s.continuation for s in by_step[0]], "the model has learned"


def test_every_rank_and_stage_begins_with_the_same_model(runs: Runs) -> None:
    """Scores before training do not depend on what runs below, but for rounding to bf16."""
    before = {name: json.loads((runs[name] / "start.json").read_text()) for name in (*PAIRS, "eager")}
    for task in ("law", "verse", "talk"):
        losses = [scores[task]["loss"] for scores in before.values()]
        assert losses == pytest.approx([losses[-1]] * len(losses), rel=5e-3)


def test_perplexity_falls_and_is_what_the_loss_says(runs: Runs) -> None:
    import math

    for name in (*PAIRS, "scratch"):
        content = json.loads((runs[name] / "evaluation.json").read_text())
        for task in ("law", "verse"):
            scores, before = content["tasks"][task], content["baselines"]["start"]["tasks"][task]
            assert scores["headline"] == "perplexity"
            assert scores["metrics"]["perplexity"] == pytest.approx(math.exp(scores["loss"]))
            assert scores["metrics"]["perplexity"] < before["perplexity"], (name, task)
            assert scores["metrics"]["bits_per_byte"] < before["bits_per_byte"]


def test_shares_count_what_the_mixture_counts(runs: Runs) -> None:
    """Tokens with loss: a text of `topic` has one. The share asked for is met to within a text or two."""
    row = read_metrics(runs["eager"] / "metrics.jsonl")[-1]
    tasks = ("law", "verse", "talk", "topic")
    drawn = {task: row[f"supervised/{task}"] for task in tasks}
    assert drawn["topic"] == row["examples/topic"]
    assert all(row[f"examples/{task}"] < drawn[task] < row[f"tokens/{task}"] for task in ("law", "verse", "talk"))
    for task in tasks:
        assert row[f"share/{task}"] == pytest.approx(drawn[task] / sum(drawn.values()))
        assert row[f"share/{task}"] == pytest.approx(row[f"target_share/{task}"], abs=0.1)


def test_compiled_layers_learn_the_same(runs: Runs) -> None:
    losses = {name: [row["loss"] for row in measured(runs[name])] for name in ("compiled", "eager")}
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-5)
    assert "compiled layers" in json.loads((runs["compiled"] / "environment.json").read_text())["kernels"]
