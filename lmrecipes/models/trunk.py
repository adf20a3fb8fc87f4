"""The trunk: any `transformers` encoder or decoder without its task head."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from lmrecipes.assets import resolve_model
from lmrecipes.data.encode import model_problem
from lmrecipes.data.permutation import hash_key
from lmrecipes.problems import InputError
from lmrecipes.recipe import Model

DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout",
    "activation_dropout", "hidden_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop", "embedding_dropout", "mlp_dropout",
)  # fmt: skip
"""Names that `transformers` configurations give to dropout rates."""


class Trunk(nn.Module):
    """Reads tokens, returns one vector for each text.

    `unused` holds pretrained weights that no task trains (BERT's pooler): kept out of the module, because a parameter
    without a gradient breaks DDP and ZeRO, and put back on export.
    """

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.unused: dict[str, Tensor] = {}
        if getattr(model, "pooler", None) is not None:
            self.unused = {f"pooler.{name}": _whole(weight) for name, weight in model.pooler.named_parameters()}
            model.pooler = None  # type: ignore[assignment]
        self.reads_types = "token_type_ids" in inspect.signature(model.forward).parameters

    @property
    def hidden_size(self) -> int:
        """Width of the pooled vector."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids: Tensor, mask: Tensor | None, token_types: Tensor | None) -> Tensor:
        """input_ids [rows, time], mask [rows, time] (1 where a token stands; None: everywhere) -> [rows, hidden]."""
        optional = {"token_type_ids": token_types} if self.reads_types and token_types is not None else {}
        hidden = self.model(input_ids=input_ids, attention_mask=mask, **optional).last_hidden_state
        if self.pooling == "first":
            return hidden[:, 0]
        if self.pooling == "last":
            last = mask.sum(1) - 1 if mask is not None else torch.full_like(input_ids[:, 0], hidden.shape[1] - 1)
            return hidden[torch.arange(len(hidden), device=hidden.device), last]
        if mask is None:
            return hidden.mean(1)
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


def _whole(weight: nn.Parameter) -> Tensor:
    """A copy of a parameter, gathered where ZeRO-3 loaded it partitioned."""
    if not hasattr(weight, "ds_id"):
        return weight.detach().clone()
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([weight]):
        return weight.detach().clone()


def load_trunk(model: Model, seed: int) -> Trunk:
    """Load (or initialise from scratch) the trunk of a recipe in fp32. Raises InputError where it cannot be loaded."""
    from transformers import AutoConfig, AutoModel

    name = resolve_model(model.pretrained)
    try:
        config = AutoConfig.from_pretrained(name)
        if model.dropout is not None:
            for field in DROPOUTS:
                if isinstance(getattr(config, field, None), float):
                    setattr(config, field, model.dropout)
        config.dtype = torch.float32
        if model.initialization == "scratch":
            torch.manual_seed(hash_key(seed, "trunk"))
            module: Any = AutoModel.from_config(config, dtype=torch.float32)
        else:
            module = AutoModel.from_pretrained(name, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(model_problem(name, error)) from None
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False
    return Trunk(module, model.pooling)
