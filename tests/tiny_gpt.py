"""A tiny pretrained-looking Llama and small data for it: language modelling, chat and labels, on disk, in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tiny import WORDS, change, make_rows

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_gpt(folder: Path, tied: bool = True, hidden: int = 32) -> Path:
    """A causal language model with random weights and a byte-level tokenizer, in a folder that `transformers` loads."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[2], pad_token=SPECIAL[0],
        model_max_length=128,
    )  # fmt: skip
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=2 * hidden, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_documents(count: int, longest: int, seed: str) -> list[dict[str, Any]]:
    """Documents of words in an order that can be learned: each word is mostly followed by the next of the list."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        at, words = rng.randrange(len(WORDS)), []
        for _ in range(rng.randint(3, longest)):
            words.append(WORDS[at % len(WORDS)])
            at += 1 if rng.random() < 0.8 else rng.randrange(len(WORDS))
        rows.append({"text": " ".join(words)})
    return rows


def make_talks(count: int) -> list[dict[str, Any]]:
    """Conversations in ShareGPT's columns: the assistant repeats a word of the question."""
    rng, rows = random.Random("talks"), []
    for _ in range(count):
        turns = [{"from": "system", "value": "repeat"}] if rng.random() < 0.3 else []
        for _ in range(rng.randint(1, 3)):
            words = rng.choices(WORDS, k=rng.randint(1, 5))
            turns += [{"from": "human", "value": " ".join(words)}, {"from": "gpt", "value": words[0]}]
        rows.append({"conversations": turns})
    return rows


def make_gpt_data(folder: Path) -> dict[str, Path]:
    """JSONL files of four tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        "law": make_documents(80, 60, "law"),
        "verse": make_documents(120, 12, "verse"),
        "talk": make_talks(150),
        "topic": make_rows("long", 120),
    }
    files = {}
    for task, content in rows.items():
        files[task] = folder / f"{task}.jsonl"
        files[task].write_text("".join(json.dumps(row) + "\n" for row in content))
    return files


def make_gpt_recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe (as a dictionary) over `make_gpt` and `make_gpt_data`, shares in tokens; `topic` is absent from some
    steps."""
    kinds = {"law": "language_modelling", "verse": "language_modelling", "talk": "chat", "topic": "classification"}
    weights = {"law": 0.5, "verse": 0.2, "talk": 0.27, "topic": 0.03}
    recipe: dict[str, Any] = {
        "name": "tiny_gpt",
        "tasks": {
            task: {"kind": kind, "weight": weights[task], "source": {"files": str(folder / "data" / f"{task}.jsonl")}}
            for task, kind in kinds.items()
        },
        "model": {"pretrained": str(folder / "model"), "max_length": 48, "pooling": "last"},
        "mixture": {"unit": "tokens"},
        "batch": {"examples": 16, "micro_examples": 16, "length_buckets": 2},
        "optimizer": {"lr": 0.002},
        "schedule": {"steps": 10},
        "precision": {"compute": "fp32"},
        "tracking": {"wandb": "off", "tensorboard": False},
    }
    return change(recipe, changes)
