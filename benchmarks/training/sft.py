"""Steps of TRL's `SFTTrainer`, one at a time when asked (turns.py), on texts that ours.py has written.

    python benchmarks/training/sft.py SETTINGS.json

SETTINGS: `model` (folder), `batches` (texts.pt: token ids and labels, so that the same tokens carry loss), `arguments`
(of `SFTConfig`, else its defaults), `optimizer` (`betas`, `eps`, `weight_decay`), `compute` (fp32 or bf16). A step is
timed from the end of the one before, so that collating its batch counts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
from turns import Turns


class Counting(SFTTrainer):
    """Counts tokens and sums losses; nothing else differs."""

    tokens = computed = 0
    summed = 0.0

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        real = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"])
        self.tokens += int(real.sum())
        self.computed += real.numel()
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.summed += float(loss.detach())
        return loss


class Resting(TrainerCallback):
    """Takes a step when asked."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.trainer = turns, None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.turns.wait()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        trainer: Any = self.trainer
        self.turns.tell(trainer.tokens, trainer.computed, trainer.summed)
        trainer.tokens = trainer.computed = 0
        trainer.summed = 0.0
        self.turns.wait()


def optimizer_of(model: Any, chosen: dict[str, Any], rates: list[float]) -> tuple[Any, Any]:
    """AdamW with decay of matrices alone, and the schedule."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": chosen["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}],
        lr=1.0, betas=chosen["betas"], eps=chosen["eps"], fused=True,
    )  # fmt: skip
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])


def main() -> None:
    """Train when asked."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    turns = Turns()
    steps = torch.load(settings["batches"])
    texts = Dataset.from_list([text for step in steps for text in step["texts"]])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder, max_steps=len(steps), save_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(), bf16=settings["compute"] == "bf16", **settings["arguments"],
        )  # fmt: skip
        resting = Resting(turns)
        trainer = Counting(
            model=model, args=arguments, train_dataset=texts, callbacks=[resting],
            processing_class=AutoTokenizer.from_pretrained(settings["model"]),
            optimizers=optimizer_of(model, settings["optimizer"], [step["rate"] for step in steps]),
        )  # fmt: skip
        resting.trainer = trainer
        trainer.train()


if __name__ == "__main__":
    main()
