"""A tiny pretrained-looking BERT and small mixed data on disk: real files, no network, seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = [
    "good", "bad", "fine", "awful", "heart", "lung", "eye", "bone", "fever", "rash",
    "tax", "vote", "war", "peace", "law", "trade", "river", "city", "child", "doctor",
    "north", "south", "quick", "slow", "red", "blue", "one", "two", "three", "four",
]  # fmt: skip


def make_model(folder: Path, hidden: int = 32, layers: int = 2) -> Path:
    """A BERT with random weights and a word-level tokenizer in a folder that `transformers` loads."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=2 * hidden, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def make_rows(task: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a task; lengths differ much between tasks, and labels can be learned from the words."""
    rng = random.Random(f"{task}{seed}")
    rows = []
    for _ in range(count):
        length = {"short": rng.randint(1, 4), "long": rng.randint(10, 40), "rare": rng.randint(2, 20)}[task]
        words = rng.choices(WORDS, k=length)
        label: Any = {
            "short": round(sum(len(w) for w in words) / length + rng.gauss(0, 0.1), 3),
            "long": ["medicine", "politics", "other"][WORDS.index(words[0]) % 3],
            "rare": [w for w in ("red", "blue", "heart") if w in words],
        }[task]
        rows.append({"text": " ".join(words), "label": label})
    return rows


def make_data(folder: Path) -> dict[str, Path]:
    """JSONL files of three tasks of different kinds, lengths and sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for task, count in {"short": 300, "long": 200, "rare": 60}.items():
        files[task] = folder / f"{task}.jsonl"
        files[task].write_text("".join(json.dumps(row) + "\n" for row in make_rows(task, count)))
    return files


def make_recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe (as a dictionary) over `make_data`; `rare` is absent from some steps."""
    model, files = folder / "model", folder / "data"
    kinds = {"short": "regression", "long": "classification", "rare": "multi_label"}
    weights = {"short": 0.6, "long": 0.37, "rare": 0.03}
    recipe: dict[str, Any] = {
        "name": "tiny",
        "tasks": {
            task: {"kind": kind, "weight": weights[task], "source": {"files": str(files / f"{task}.jsonl")}}
            for task, kind in kinds.items()
        },
        "model": {"pretrained": str(model), "max_length": 48},
        "batch": {"examples": 16, "micro_examples": 16, "length_buckets": 2},
        "optimizer": {"lr": 0.002},
        "schedule": {"steps": 10},
        "precision": {"compute": "fp32"},
        "tracking": {"wandb": "off", "tensorboard": False},
    }
    return change(recipe, changes)


def change(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Set fields by dotted path, in place."""
    for key, value in changes.items():
        part = recipe
        *parents, last = key.split(".")
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = value
    return recipe
