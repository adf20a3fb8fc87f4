"""Started on every rank by the fixture `ranks`: train a tiny causal model for three steps in each of several cases.

Arguments: a JSON file with {"cases": {name: fields of `Case`}, "out": folder}. Writes <name>.json with the losses and
the names of what is trained, and <name>.safetensors with all weights.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ROWS, TIME, STEPS, LR = 4, 12, 3, 0.1


@dataclass
class Case:
    """stage: of ZeRO; None: plain torch, or DDP. blocks: with our attention, else the model's own."""

    model: str
    stage: int | None = None
    half: bool = False
    lora: dict[str, Any] | None = None
    checkpointed: bool = False
    blocks: bool = False

    @property
    def deepspeed(self) -> dict[str, Any]:
        """Nothing stays gathered for longer than a module runs: the hardest case of ZeRO-3."""
        kept = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance")
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": self.stage, **{f"stage3_{name}": 0 for name in kept}},
            "bf16": {"enabled": self.half},
            "zero_allow_untested_optimizer": True,
        }


class Causal(nn.Module):
    """The base model and the head, as `MultiTaskModel` registers them."""

    def __init__(self, whole: Any, blocks: bool) -> None:
        super().__init__()
        from lmrecipes.models.attention import KERNEL, register
        from lmrecipes.models.language import LanguageHead

        register()
        self.model = whole.base_model
        self.language = LanguageHead(whole)
        self.blocks = blocks
        if blocks:
            self.model.set_attn_implementation(KERNEL)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        """ids [rows, time], weights [rows, time - 1] -> the weighted loss of every next token."""
        from lmrecipes.models.attention import Block, Blocks

        rows, time = ids.shape
        if self.blocks:
            inputs = self.model.get_input_embeddings()(ids.reshape(1, -1))
            places = torch.arange(time).repeat(rows)[None]
            options = {"position_ids": places, "attention_mask": None, "blocks": Blocks([Block(rows, time)])}
            hidden = self.model(inputs_embeds=inputs, **options).last_hidden_state.view(rows, time, -1)
        else:
            hidden = self.model(ids).last_hidden_state
        loss: Tensor = self.language(hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), weights.flatten())[0]
        return loss


def main() -> None:
    from lmrecipes.training.engine import prepare_environment

    prepare_environment()
    order = json.loads(Path(sys.argv[1]).read_text())
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    for name, fields in order["cases"].items():
        train(Case(**fields), Path(order["out"]) / name)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train(case: Case, out: Path) -> None:
    """One case; rank 0 writes."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    from lmrecipes.models.acceleration import checkpoint_activations
    from lmrecipes.models.adapters import adapt
    from lmrecipes.recipe import Lora

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    alive = HfDeepSpeedConfig(case.deepspeed) if case.stage is not None else None
    whole = AutoModelForCausalLM.from_pretrained(case.model, dtype=torch.float32)
    assert any(hasattr(parameter, "ds_id") for parameter in whole.parameters()) == (case.stage == 3)
    whole.config.use_cache = False
    adapted = adapt(whole, Lora(**case.lora), seed=5) if case.lora else None
    if case.checkpointed:
        checkpoint_activations(whole.base_model)
    model: Any = Causal(whole, case.blocks).train()
    if case.stage == 3 and case.half:
        for parameter in model.parameters():
            if not hasattr(parameter, "ds_id"):
                parameter.data = parameter.data.bfloat16()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    engine = model
    if case.stage is not None:
        import deepspeed

        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=case.deepspeed)[0]
    elif world > 1:
        engine = nn.parallel.DistributedDataParallel(model)
    losses = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        ids = torch.randint(0, whole.config.vocab_size, (ROWS, TIME), generator=generator)
        weights = torch.rand(ROWS, TIME - 1, generator=generator) / (ROWS * TIME)
        own = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
        loss = engine(ids[own], weights[own])
        if case.stage is not None:
            engine.backward(loss * world)
            engine.step()
        else:
            (loss * world).backward()
            optimizer.step()
            optimizer.zero_grad()
        total = loss.detach().clone()
        if world > 1:
            torch.distributed.all_reduce(total)
        losses.append(float(total))
    weights_now = {name: gathered(parameter, case.stage) for name, parameter in model.named_parameters()}
    if adapted is not None:
        check_adapter_state(adapted, whole, weights_now)
    if rank == 0:
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        out.with_suffix(".json").write_text(json.dumps({"losses": losses, "trained": trained}))
        save_file(weights_now, out.with_suffix(".safetensors"))
    del alive  # `transformers` knows it by a weak reference


def gathered(parameter: nn.Parameter, stage: int | None) -> Tensor:
    """A parameter whole, from the master weights where it has some."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    full = safe_get_full_fp32_param(parameter) if stage and parameter.requires_grad else None
    if full is None:
        with GatheredParameters([parameter], enabled=stage == 3):
            full = parameter.detach().clone()
    return full.detach().float().cpu().contiguous()


def check_adapter_state(adapted: Any, whole: Any, weights: dict[str, Tensor]) -> None:
    """peft's state dict can be made of gathered weights, by their names in the whole model."""
    from peft import get_peft_model_state_dict

    before = f"base_model.model.{whole.base_model_prefix}."
    state = {before + name.removeprefix("model."): weight for name, weight in weights.items() if "lora_" in name}
    saved = get_peft_model_state_dict(adapted, state_dict=state, save_embedding_layers=False)
    assert len(saved) == len(state)
    assert all(name.startswith(before) and ".default" not in name for name in saved), list(saved)[:3]


if __name__ == "__main__":
    main()
