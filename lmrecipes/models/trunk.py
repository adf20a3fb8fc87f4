"""The trunk: any `transformers` encoder or decoder without its task head."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmrecipes.assets import resolve_model
from lmrecipes.data.batches import Bucket
from lmrecipes.data.encode import model_problem
from lmrecipes.data.permutation import hash_key
from lmrecipes.problems import InputError, Problem, listing
from lmrecipes.recipe import Model

DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout",
    "activation_dropout", "hidden_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop", "embedding_dropout",
    "mlp_dropout",
)  # fmt: skip
"""Names that `transformers` configurations give to dropout rates."""


SHORT_TEXT = 256
"""Tokens up to which [time, time] scores are cheap enough to be held whole on a CPU."""


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
        if isinstance(pooler := getattr(model, "pooler", None), nn.Module):
            self.unused = {f"pooler.{name}": _whole(weight) for name, weight in pooler.named_parameters()}
            model.pooler = None  # type: ignore[assignment]
        self.reads_types = "token_type_ids" in inspect.signature(model.forward).parameters

    @property
    def hidden_size(self) -> int:
        """Width of the pooled vector."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, buckets: Sequence[Bucket]) -> Tensor:
        """One vector for each row of each bucket, in order: [rows, hidden].

        Tokens are looked up once for all buckets: the gradient of the embedding table is as large as the table, and
        would otherwise be filled and added up once a bucket.
        """
        table: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        flat = table(torch.cat([bucket.input_ids.flatten() for bucket in buckets]))
        parts = flat.split([bucket.input_ids.numel() for bucket in buckets])
        return torch.cat([self._pool(bucket, part) for bucket, part in zip(buckets, parts, strict=True)])

    def _pool(self, bucket: Bucket, embedded: Tensor) -> Tensor:
        """embedded: [rows * time, hidden] -> [rows, hidden]."""
        rows, time = bucket.input_ids.shape
        optional = {"token_type_ids": bucket.types} if self.reads_types and bucket.types is not None else {}
        inputs = embedded.view(rows, time, -1)
        hidden = self.model(inputs_embeds=inputs, attention_mask=bucket.mask, **optional).last_hidden_state
        if self.pooling == "first":
            return hidden[:, 0]
        if self.pooling == "last":
            last = bucket.mask.sum(1) - 1 if bucket.mask is not None else hidden.new_full((rows,), time - 1).long()
            return hidden[torch.arange(rows, device=hidden.device), last]
        # Summed in fp32: bf16 has no odd numbers above 256, so a count of tokens would be rounded.
        if bucket.mask is None:
            return hidden.mean(1, dtype=torch.float32).to(hidden.dtype)
        weights = bucket.mask.unsqueeze(-1)
        return ((hidden * weights).sum(1, dtype=torch.float32) / weights.sum(1)).to(hidden.dtype)


def _whole(weight: nn.Parameter) -> Tensor:
    """A copy of a parameter, gathered where ZeRO-3 loaded it partitioned."""
    if not hasattr(weight, "ds_id"):
        return weight.detach().clone()
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([weight]):
        return weight.detach().clone()


def attention_implementation(model: Model) -> str:
    """The recipe's choice; for `auto`, what is fastest: on a CPU the fused kernel's backward is far slower than plain
    products for texts of up to a few hundred tokens (measured: 190 of 720 ms of a step against 30 of 540)."""
    if model.attention != "auto":
        return model.attention
    return "sdpa" if torch.cuda.is_available() or model.max_length > SHORT_TEXT else "eager"


def load_trunk(model: Model, seed: int) -> Trunk:
    """Load (or initialise from scratch) the trunk of a recipe in fp32. Raises InputError where it cannot be loaded."""
    from transformers import AutoConfig, AutoModel

    name = resolve_model(model.pretrained)
    attention = attention_implementation(model)
    try:
        config = AutoConfig.from_pretrained(name)
        if model.dropout is not None:
            for field in DROPOUTS:
                if isinstance(getattr(config, field, None), (int, float)):
                    setattr(config, field, model.dropout)
        if config.is_encoder_decoder:
            raise ValueError("it is an encoder-decoder; a trunk is an encoder or a decoder")
        config.dtype = torch.float32
        if model.initialization == "scratch":
            torch.manual_seed(hash_key(seed, "trunk"))
            module: Any = AutoModel.from_config(config, dtype=torch.float32, attn_implementation=attention)
        else:
            module, found = AutoModel.from_pretrained(
                name, config=config, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
            )
            if absent := sorted(key for key in found["missing_keys"] if not key.startswith("pooler.")):
                raise ValueError(f"its file lacks {len(absent)} weights of the model ({listing(absent, 3)})")
    except (OSError, ValueError) as error:
        raise InputError(model_problem(name, error)) from None
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False
    freeze(module, model.freeze)
    return Trunk(module, model.pooling)


def freeze(module: nn.Module, patterns: tuple[str, ...]) -> None:
    """Stop training the parameters whose names match. Raises InputError for a pattern that matches nothing."""
    names = [name for name, _ in module.named_parameters()]
    problems = []
    for pattern in patterns:
        chosen = fnmatch.filter(names, pattern)
        if not chosen:
            problems.append(
                Problem(
                    "model.freeze", f"{pattern!r} matches no parameter", f"names are like {listing(names, 4)}", "freeze"
                )
            )
        for name in chosen:
            module.get_parameter(name).requires_grad_(False)
    if problems:
        raise InputError(problems)
