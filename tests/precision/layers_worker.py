"""Started on every rank by test_layers: train models with mixed formats under one engine, hash what they become.

Arguments: plain, ddp or a ZeRO stage; the file that rank 0 writes, {case: [hash of the weights, losses, whether
autocast is still on]}.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmrecipes.precision.layers import install
from lmrecipes.precision.plan import layer_formats
from lmrecipes.recipe_precision import Precision

STEPS = 30
LATER = ({"at": 1 / 3, "layers": {"*.1": "bf16"}}, {"at": 2 / 3, "layers": {"*.1": "fp32", "*.2": "fp8_e4m3"}})
RULES = {
    "bert": {
        "*": "fp8", "embeddings": "fp32", "encoder.layer.0": "bf16", "*.1.attention.self.query": "fp32",
        "*.1.output": "fp16", "encoder.layer.2": "fp32", "*.2.intermediate": "fp8", "heads": "fp32",
    },
    "gpt": {"*": "fp8", "h.0": "fp32", "h.0.mlp": "bf16", "h.1.attn.c_proj": "fp16", "heads": "fp16"},
}  # fmt: skip


class Model(nn.Module):
    """A trunk of `transformers` under the names of a `MultiTaskModel`, and one head."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.ModuleDict({"model": trunk})
        self.heads = nn.ModuleDict({"a": nn.Linear(32, 3)})

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Token ids [rows, time], targets [rows] -> sum of the cross-entropy."""
        hidden = self.trunk["model"](input_ids=ids).last_hidden_state
        return nn.functional.cross_entropy(self.heads["a"](hidden.mean(1)).float(), targets, reduction="sum")


def make_model(kind: str, checkpointing: bool) -> Model:
    """Three layers, without dropout; the weights come from the seed alone."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

    torch.manual_seed(0)
    if kind == "bert":
        sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
        config = BertConfig(
            vocab_size=48, intermediate_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes
        )
        trunk: Any = BertModel(config, add_pooling_layer=False)
    else:
        config = GPT2Config(vocab_size=48, n_positions=16, n_embd=32, n_layer=3, n_head=2)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
        trunk = GPT2Model(config)
    if checkpointing:
        trunk.gradient_checkpointing_enable({"use_reentrant": False})
    return Model(trunk).train()


def micro_batch(step: int, part: int) -> tuple[Tensor, Tensor]:
    """Of a step's two parts: the same under every engine."""
    generator = torch.Generator().manual_seed(2 * step + part)
    return torch.randint(48, (4, 12), generator=generator), torch.randint(3, (4,), generator=generator)


def train(engine: str, kind: str, checkpointing: bool) -> list[Any]:
    """30 steps whose formats change twice; two micro-batches a step, one for each rank."""
    model = make_model(kind, checkpointing)
    precision = Precision(compute="bf16", layers=RULES[kind], changes=LATER)
    layers = install(model, precision, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, foreach=False)
    wrapped: Any = model
    if engine == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model)
    elif engine != "plain":
        wrapped = _with_deepspeed(model, optimizer, int(engine))
    losses = []
    for step in range(STEPS):
        layers.use(layer_formats(precision, list(layers.modules), step / STEPS))
        losses.append(_step(engine, wrapped, optimizer, step))
    return [_hash(model, engine), losses, torch.is_autocast_enabled("cpu")]


def _step(engine: str, wrapped: Any, optimizer: torch.optim.Optimizer, step: int) -> float:
    """The loss of part 0."""
    if engine == "plain":
        found = [wrapped(*micro_batch(step, part)) for part in (0, 1)]
        for loss in found:
            loss.backward()
    else:
        found = [wrapped(*micro_batch(step, torch.distributed.get_rank()))]
        if engine == "ddp":
            (found[0] * 2).backward()
        else:
            wrapped.backward(found[0] * 2, scale_wrt_gas=False)
            wrapped.step()
            return float(found[0])
    optimizer.step()
    optimizer.zero_grad()
    return float(found[0])


def _with_deepspeed(model: nn.Module, optimizer: torch.optim.Optimizer, stage: int) -> Any:
    import deepspeed

    zero: dict[str, Any] = {"stage": stage, "stage3_param_persistence_threshold": 0}
    zero |= dict.fromkeys(("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"), 100_000)
    config = {
        "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1, "zero_optimization": zero,
        "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def _hash(model: nn.Module, engine: str) -> str:
    """Of all weights, whole."""
    from contextlib import nullcontext

    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        gathered = nullcontext()
        if engine == "3":
            from deepspeed.runtime.zero import GatheredParameters

            gathered = GatheredParameters([weight])
        with gathered:
            digest.update(name.encode() + weight.detach().float().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Every case under one engine."""
    engine, out = sys.argv[1], Path(sys.argv[2])
    torch.use_deterministic_algorithms(True)
    if engine == "ddp":
        torch.distributed.init_process_group("gloo")
    elif engine != "plain":
        import deepspeed

        deepspeed.init_distributed("gloo")
    wanted = [("bert", True), ("gpt", False)] + ([("bert", False)] if engine == "plain" else [])
    cases = {f"{kind}, checkpointing {on}": train(engine, kind, on) for kind, on in wanted}
    if int(os.environ.get("RANK", "0")) == 0:
        out.write_text(json.dumps(cases))
    if engine != "plain":
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
