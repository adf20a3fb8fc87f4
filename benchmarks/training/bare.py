"""A training loop as one writes it by hand on torch and `transformers`, on steps that ours.py has written.

    python benchmarks/training/bare.py SETTINGS.json

SETTINGS: `model` (folder), `batches` (micros.pt), `attention` (of `transformers`), `isolated` (whether texts that share
a row see only themselves), `optimizer` (`betas`, `eps`, `weight_decay`), `clip` (of the gradient norm), `compute`
(fp32 or bf16). Weights and optimizer are in fp32, bf16 products by autocast; the steps say each one's learning rate.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM
from turns import Turns


def own_text(documents: Tensor, attention: str, dtype: torch.dtype) -> Tensor:
    """What a position sees, those before it of the same text: [rows, 1, time, time], bool, or for eager attention what
    is added to the scores."""
    time = documents.shape[1]
    seen = ((documents[:, :, None] == documents[:, None, :]) & torch.ones(time, time).tril().bool())[:, None]
    if attention == "eager":
        return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return seen


def run_step(model: Any, optimizer: torch.optim.Optimizer, step: dict[str, Any], settings: dict[str, Any]) -> float:
    """One optimizer step; returns the summed loss of its supervised tokens."""
    summed, half = 0.0, settings["compute"] == "bf16"
    for group in optimizer.param_groups:
        group["lr"] = step["rate"]
    for micro in step["micros"]:
        apart = {}
        if settings["isolated"]:
            mask = own_text(micro["documents"], settings["attention"], torch.bfloat16 if half else torch.float32)
            apart = {"attention_mask": mask, "position_ids": micro["positions"]}
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(micro["ids"], **apart, use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), micro["labels"].flatten(), reduction="sum")
        (loss * micro["scale"]).backward()
        summed += float(loss)
        del logits, loss
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
    optimizer.step()
    optimizer.zero_grad()
    return summed


def main() -> None:
    """Train when asked."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    turns = Turns()
    model = AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=torch.float32, attn_implementation=settings["attention"]
    )
    model.train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    chosen = settings["optimizer"]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": chosen["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}],
        betas=chosen["betas"], eps=chosen["eps"], fused=True,
    )  # fmt: skip
    for step in torch.load(settings["batches"]):
        turns.wait()
        summed = run_step(model, optimizer, step, settings)
        micros = step["micros"]
        tokens = sum(int((micro["documents"] >= 0).sum()) for micro in micros)
        supervised = sum(int((micro["labels"] >= 0).sum()) for micro in micros)
        turns.tell(tokens, sum(micro["ids"].numel() for micro in micros), summed / supervised)
    turns.wait()


if __name__ == "__main__":
    main()
