"""`transformers.Trainer` on one encoded regression task, timed (run.py starts it).

    python benchmarks/training/trainer.py SETTINGS.json RESULT.json

SETTINGS: `model` (folder), `data` (folder of the encoded task), `arguments` (of `TrainingArguments`, else defaults),
`attention` and `dropout` (null: as the library and the model's configuration say), `freeze` (patterns of trunk
parameters), `examples` (to be counted, about: with length grouping whole rounds of its sorting are counted, because
each round goes from long to short texts). RESULT: `steps`, `tokens` (padding not counted), `computed` (with padding)
and `seconds`, from the start of the first step to the end of the last, loading included; a few steps of another
`Trainer` on the same model came before.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

WARMUP = 5
"""Steps before those that count."""
MOST_BATCHES = 50
"""Batches that `LengthGroupedSampler` sorts at once, where the data set is at least four times as large."""


class Texts(torch.utils.data.Dataset):
    """The encoded training split: token ids and the target, standardised as a regression head of ours sees it."""

    def __init__(self, folder: Path) -> None:
        self.tokens, self.offsets, targets = (
            np.load(folder / f"train.{part}.npy") for part in ("tokens", "offsets", "targets")
        )
        self.targets = (targets - targets.mean()) / targets.std()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> dict[str, Any]:
        ids = self.tokens[self.offsets[row] : self.offsets[row + 1]].tolist()
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": float(self.targets[row])}


class Clock(TrainerCallback):
    """Seconds from the start of an epoch to the end of the last step."""

    began = ended = 0.0

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = self.began or time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended = time.perf_counter()


class Counting(Trainer):
    """Counts tokens; nothing else differs."""

    tokens = computed = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.tokens += int(inputs["attention_mask"].sum())
        self.computed += inputs["attention_mask"].numel()
        return super().training_step(model, inputs, *args, **kwargs)


def steps_for(examples: int, batch: int, rows: int, grouped: bool) -> int:
    """Optimizer steps of `batch` examples for about so many examples: with length grouping whole rounds of sorting."""
    once = max(1, min(rows // (4 * batch), MOST_BATCHES)) if grouped else 1
    return max(1, round(examples / (once * batch))) * once


def main() -> None:
    """Train, and write what was counted."""
    settings_file, result_file = map(Path, sys.argv[1:])
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    changes = {} if settings["attention"] is None else {"attn_implementation": settings["attention"]}
    if settings["dropout"] is not None:
        names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        changes |= dict.fromkeys(names, settings["dropout"])
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"], num_labels=1, **changes)
    for name, parameter in model.base_model.named_parameters():
        parameter.requires_grad_(not any(fnmatch(name, pattern) for pattern in settings["freeze"]))
    tokenizer, texts = AutoTokenizer.from_pretrained(settings["model"]), Texts(Path(settings["data"]))
    chosen = settings["arguments"]
    probe = TrainingArguments(output_dir="unused", use_cpu=not torch.cuda.is_available(), **chosen)
    batch = probe.per_device_train_batch_size * probe.gradient_accumulation_steps
    grouped = probe.train_sampling_strategy == "group_by_length"
    steps = steps_for(settings["examples"], batch, len(texts), grouped)
    with tempfile.TemporaryDirectory() as folder:
        for count in (WARMUP, steps):
            arguments = TrainingArguments(
                output_dir=folder, max_steps=count, save_strategy="no", report_to="none", disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(), **chosen,
            )  # fmt: skip
            clock = Clock()
            trainer = Counting(
                model=model, args=arguments, train_dataset=texts, processing_class=tokenizer, callbacks=[clock]
            )
            trainer.train()
    result = {
        "steps": steps,
        "tokens": trainer.tokens,
        "computed": trainer.computed,
        "seconds": clock.ended - clock.began,
    }
    result_file.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
