"""The start of a run by hand: imports, model, data, engine, one optimizer step; nothing of lmrecipes.

    torchrun --standalone --nproc_per_node=2 benchmarks/startup/bare.py WORK.json     ZeRO, with the JSON named in it
    python benchmarks/startup/bare.py WORK.json                                       one process, plain torch

WORK.json (run.py writes it): `model` (folder), `freeze` (patterns), `attention`, `lr`, `precision`, `clipping`,
`examples`, `deepspeed` (path or null), `done` (the file that says when the first step has ended), `tasks` (folder of
the encoded training split, kind, outputs) and `ranks` (rank -> micro-batches -> buckets -> [task, row] of each text of
the first step).
"""

import json
import os
import sys
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from transformers import AutoModel

work = json.loads(Path(sys.argv[1]).read_text())
rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
zero = work["deepspeed"] is not None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = AutoModel.from_pretrained(
            work["model"], dtype=torch.float32, attn_implementation=work["attention"], add_pooling_layer=False
        )
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(not any(fnmatch(name, pattern) for pattern in work["freeze"]))
        hidden = self.trunk.config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(hidden, task["outputs"]) for task in work["tasks"])

    def forward(self, buckets, rows, targets):
        pooled = []
        for ids, mask in buckets:
            hidden = self.trunk(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1)
            pooled.append((hidden * weights).sum(1, dtype=torch.float32) / weights.sum(1))
        pooled = torch.cat(pooled).to(hidden.dtype)
        loss = 0.0
        for task, head, chosen, wanted in zip(work["tasks"], self.heads, rows, targets, strict=True):
            out = head(pooled[chosen]).float()
            if task["kind"] == "regression":
                loss = loss + F.mse_loss(out[:, 0], wanted.float(), reduction="sum")
            elif task["kind"] == "classification":
                loss = loss + F.cross_entropy(out, wanted.long(), reduction="sum")
            else:
                loss = loss + F.binary_cross_entropy_with_logits(out, wanted.float(), reduction="sum")
        return loss / work["examples"]


class Split:
    def __init__(self, folder: str) -> None:
        self.tokens, self.offsets, self.targets = (
            np.load(f"{folder}/train.{part}.npy", mmap_mode="r") for part in ("tokens", "offsets", "targets")
        )


def tensors(micro, splits):
    """Buckets, and the rows and targets of each task, of one micro-batch."""
    buckets, texts = [], [text for bucket in micro for text in bucket]
    for bucket in micro:
        found = [splits[task].tokens[slice(*splits[task].offsets[row : row + 2])] for task, row in bucket]
        ids = np.zeros((len(found), max(map(len, found))), np.int64)
        for i, tokens in enumerate(found):
            ids[i, : len(tokens)] = tokens
        lengths = np.array([[len(tokens)] for tokens in found])
        buckets.append((torch.from_numpy(ids), torch.from_numpy((np.arange(ids.shape[1]) < lengths).astype(np.int64))))
    rows = [torch.tensor([i for i, (t, _) in enumerate(texts) if t == task]) for task in range(len(splits))]
    targets = [
        torch.from_numpy(split.targets[[row for t, row in texts if t == task]]) for task, split in enumerate(splits)
    ]
    return buckets, [chosen.long() for chosen in rows], targets


splits = [Split(task["folder"]) for task in work["tasks"]]
micros = [tensors(micro, splits) for micro in work["ranks"][rank]]
model = Model()
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
if zero:
    import deepspeed

    optimizer = torch.optim.AdamW(trained, lr=work["lr"], fused=True)
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo")
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=work["deepspeed"])
    for micro in micros:
        engine.backward(engine(*micro))
        engine.step()
else:
    half = work["precision"] != "fp32"
    accelerator = Accelerator(mixed_precision=work["precision"] if half else "no", cpu=not torch.cuda.is_available())
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained, lr=work["lr"], fused=True))
    for i, micro in enumerate(micros):
        with nullcontext() if i == len(micros) - 1 else accelerator.no_sync(model):
            accelerator.backward(model(*micro))
    accelerator.clip_grad_norm_(trained, work["clipping"])
    optimizer.step()
if rank == 0:
    Path(work["done"]).touch()
if zero:
    torch.distributed.destroy_process_group()
