"""A finished run of a tiny Llama, made without training: what cards, exports and benchmarks read of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tiny_gpt import make_gpt, make_gpt_recipe

from lmrecipes.files import write_json
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import RunFolder, recipe_yaml
from lmrecipes.tracking.record import MetricsFile

KINDS = {"law": "language_modelling", "verse": "language_modelling", "talk": "chat", "topic": "classification"}
LABELS = ["medicine", "politics", "other"]


def make_exported_run(folder: Path, lora: bool = False, **changes: Any) -> RunFolder:
    """The run folder `folder/run`; its base model lies in `folder/model`."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from lmrecipes.models.adapters import adapt
    from lmrecipes.models.saving import load_whole, merged_weights, save_adapter, save_whole
    from lmrecipes.recipe import Lora

    base = make_gpt(folder / "model")
    if lora:
        changes["model.lora"] = {"rank": 4}
    recipe = Recipe.model_validate(make_gpt_recipe(folder, **changes))
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.recipe.write_text(recipe_yaml(recipe))
    whole = load_whole(base, True, "sdpa")
    if lora:
        adapted = adapt(whole, Lora(rank=4), 0)
        weights = {name: w.normal_(std=0.2) for name, w in whole.state_dict().items() if "lora_" in name}
        save_adapter(adapted, weights, str(base), run.model / "adapter")
        save_whole(whole, merged_weights(base, run.model / "adapter", True), run.model)
    else:
        save_whole(whole, whole.state_dict(), run.model)
    AutoTokenizer.from_pretrained(base).save_pretrained(run.model)
    hidden = whole.config.hidden_size
    torch.manual_seed(1)
    save_file(
        {"topic.linear.weight": torch.randn(3, hidden), "topic.linear.bias": torch.randn(3)},
        run.model / "heads.safetensors",
    )
    write_json(run.model / "heads.json", exported_facts(recipe))
    write_facts(run)
    return run


def exported_facts(recipe: Recipe) -> dict[str, Any]:
    """The content of `heads.json`."""
    specs = {
        name: {
            "kind": kind,
            "labels": LABELS if kind == "classification" else [],
            "prior": [0.0] * 3 if kind == "classification" else [],
            "constant_loss": 1.0,
            "mean": 0.0,
            "std": 1.0,
        }
        for name, kind in KINDS.items()
    }
    return {
        "pooling": recipe.model.pooling,
        "max_length": recipe.model.max_length,
        "compute": recipe.precision.compute,
        "autocast": True,
        "weights": "fp32",
        "tasks": {name: specs[name] for name in recipe.tasks},
        "verified": {"tokens": 48, "deviation": {"model": 0.0}, "tolerance": 1e-4},
    }


def write_facts(run: RunFolder) -> None:
    """What a run writes besides its model."""
    with MetricsFile(run.metrics) as record:
        for step in (1, 2):
            metrics: dict[str, float | None] = {"loss": 5.0}
            for at, name in enumerate(KINDS):
                metrics |= {f"examples/{name}": 8.0 * step * (at + 1), f"tokens/{name}": 1234.0 * step * (at + 1)}
                metrics |= {f"share/{name}": 0.1 * (at + 1), f"target_share/{name}": 0.1 * (at + 1)}
            record.write(step, metrics)
    write_json(run.mixture, {name: {"rows": 64, "duplicates": {"train/test": int(name == "law")}} for name in KINDS})
    versions = {"torch": "2.13.0", "transformers": "5.23.0"}
    write_json(
        run.environment,
        {"versions": versions, "commit": "abc123", "device": "cpu", "cpu": "A CPU", "world_size": 2, "zero": 2,
         "precision": "bf16", "started": "2026-11-22T10:15:30+0000"},
    )  # fmt: skip
    tokens = {"perplexity": 12.5, "bits_per_byte": 1.25, "token_accuracy": 0.4}
    metrics_of = {name: tokens if kind != "classification" else {"accuracy": 0.75} for name, kind in KINDS.items()}
    before = {name: {metric: 2 * value for metric, value in found.items()} for name, found in metrics_of.items()}
    scores = {
        name: {"kind": KINDS[name], "headline": next(iter(found)), "rows": 20, "loss": 2.5, "metrics": found}
        for name, found in metrics_of.items()
    }
    said = {"title": "before training", "measured": "with this run", "date": "2026-11-22"}
    evaluation = {"run": "run", "step": 2, "split": "test", "seconds_of_training": 61.0, "tasks": scores}
    write_json(run.evaluation, {**evaluation, "baselines": {"start": {**said, "tasks": before}}})


def copy_of(run: RunFolder, folder: Path) -> RunFolder:
    """Another run folder with the same content, to be changed."""
    return RunFolder(Path(shutil.copytree(run.path, folder)))


def change_json(path: Path, **changes: Any) -> None:
    """Set top-level fields."""
    write_json(path, {**json.loads(path.read_text()), **changes})
