"""The trunk: any `transformers` encoder or decoder without its task head."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmrecipes.assets import resolve_model
from lmrecipes.data.batches import Bucket, Packed, Texts
from lmrecipes.data.encode import model_problem
from lmrecipes.data.layout import LayoutName
from lmrecipes.data.permutation import hash_key
from lmrecipes.models.attention import KERNEL, Block, Blocks, Choice, choose, own_attention, register
from lmrecipes.problems import InputError, Problem, listing
from lmrecipes.recipe import Model

DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout",
    "activation_dropout", "hidden_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop", "embedding_dropout",
    "mlp_dropout",
)  # fmt: skip
"""Names that `transformers` configurations give to dropout rates."""


class Trunk(nn.Module):
    """Reads tokens, returns one vector for each text.

    `unused` holds pretrained weights that no task trains (BERT's pooler): kept out of the module, because a parameter
    without a gradient breaks DDP and ZeRO, and put back on export.
    """

    def __init__(self, model: nn.Module, pooling: str, choice: Choice | None = None) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.choice = choice or Choice()
        self.unused: dict[str, Tensor] = {}
        if isinstance(pooler := getattr(model, "pooler", None), nn.Module):
            self.unused = {f"pooler.{name}": _whole(weight) for name, weight in pooler.named_parameters()}
            model.pooler = None  # type: ignore[assignment]
        self.reads_types = reads_types(model)
        self.first_position = first_position(model)
        self._use(self.choice.attention)

    @property
    def hidden_size(self) -> int:
        """Width of the pooled vector."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @contextmanager
    def native(self) -> Iterator[None]:
        """Within: each bucket goes by itself through the model's own attention, whatever the layout."""
        chosen, self.choice = self.choice, Choice("buckets", self.choice.native)
        self._use(self.choice.attention)
        try:
            yield
        finally:
            self.choice = chosen
            self._use(chosen.attention)

    def _use(self, attention: str) -> None:
        config = getattr(self.model, "config", None)
        if config is not None and config._attn_implementation != attention:
            self.model.set_attn_implementation(attention)  # type: ignore[operator]

    def forward(self, texts: Texts) -> Tensor:
        """One vector for each text, in order: [texts, hidden].

        Tokens are looked up once for all buckets: the gradient of the embedding table is as large as the table, and
        would otherwise be filled and added up once a bucket.
        """
        if isinstance(texts, Packed):
            return self._packed(texts)
        if self.choice.attention == KERNEL:
            return self._grouped(texts)
        table: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        flat = table(torch.cat([bucket.input_ids.flatten() for bucket in texts]))
        parts = flat.split([bucket.input_ids.numel() for bucket in texts])
        pooled = []
        for bucket, part in zip(texts, parts, strict=True):
            inputs = part.view(*bucket.input_ids.shape, -1)
            pooled.append(self._pool(self._read(inputs, bucket.types, attention_mask=bucket.mask), bucket.mask))
        return torch.cat(pooled)

    def _read(self, inputs: Tensor, types: Tensor | None, **options: Any) -> Tensor:
        """Looked-up tokens [rows, time, hidden] through the model."""
        if self.reads_types and types is not None:
            options["token_type_ids"] = types
        hidden: Tensor = self.model(inputs_embeds=inputs, **options).last_hidden_state
        return hidden

    def _flat(self, ids: Tensor, types: Tensor | None, positions: Tensor, **options: Any) -> Tensor:
        """Tokens [tokens] that lie end to end in one pass: [tokens, hidden]. positions start at 0 with each text."""
        table: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        places = positions[None] + self.first_position
        types = types if types is None else types[None]
        return self._read(table(ids[None]), types, attention_mask=None, position_ids=places, **options)[0]

    def _grouped(self, buckets: list[Bucket]) -> Tensor:
        """All buckets in one pass."""
        shapes = [bucket.input_ids.shape for bucket in buckets]
        ids = torch.cat([bucket.input_ids.flatten() for bucket in buckets])
        places = torch.cat([torch.arange(time, device=ids.device).repeat(rows) for rows, time in shapes])
        types = None
        if any(bucket.types is not None for bucket in buckets):
            parts = [b.types if b.types is not None else torch.zeros_like(b.input_ids) for b in buckets]
            types = torch.cat([part.flatten() for part in parts])
        blocks = [Block(shape[0], shape[1], bucket.mask) for shape, bucket in zip(shapes, buckets, strict=True)]
        hidden = self._flat(ids, types, places, blocks=Blocks(blocks, self.choice.products))
        split = hidden.split([rows * time for rows, time in shapes])
        return torch.cat(
            [
                self._pool(part.view(*shape, -1), bucket.mask)
                for part, shape, bucket in zip(split, shapes, buckets, strict=True)
            ]
        )

    def _packed(self, texts: Packed) -> Tensor:
        """Rows of several texts."""
        rows, width = texts.documents.shape
        if self.choice.attention == KERNEL:
            apart: dict[str, Any] = {"blocks": Blocks([Block(rows, width, texts.documents)], self.choice.products)}
        else:  # flash attention wants the ends of the texts
            ends = F.pad(texts.lengths.cumsum(0), (1, 0)).int()
            apart = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
            apart |= {"max_length_q": texts.longest, "max_length_k": texts.longest}
        types = texts.types if texts.types is None else texts.types.flatten()
        hidden = self._flat(texts.input_ids.flatten(), types, texts.positions.flatten(), **apart)
        if self.pooling != "mean":
            ends = texts.lengths.cumsum(0)
            at = ends - (1 if self.pooling == "last" else texts.lengths)
            return hidden[at if texts.real is None else texts.real[at]]
        tokens = (hidden if texts.real is None else hidden[texts.real]).float()
        return torch.segment_reduce(tokens, "mean", lengths=texts.lengths, unsafe=True).to(hidden.dtype)

    def _pool(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[rows, time, hidden] -> [rows, hidden]."""
        rows, time = hidden.shape[:2]
        if self.pooling == "first":
            return hidden[:, 0]
        if self.pooling == "last":
            last = mask.sum(1) - 1 if mask is not None else hidden.new_full((rows,), time - 1).long()
            return hidden[torch.arange(rows, device=hidden.device), last]
        # Summed in fp32: bf16 has no odd numbers above 256, so a count of tokens would be rounded.
        if mask is None:
            return hidden.mean(1, dtype=torch.float32).to(hidden.dtype)
        weights = mask.unsqueeze(-1)
        return ((hidden * weights).sum(1, dtype=torch.float32) / weights.sum(1)).to(hidden.dtype)


def _whole(weight: nn.Parameter) -> Tensor:
    """A copy of a parameter, gathered where ZeRO-3 loaded it partitioned."""
    if not hasattr(weight, "ds_id"):
        return weight.detach().clone()
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([weight]):
        return weight.detach().clone()


def reads_types(model: nn.Module) -> bool:
    """Whether the model has segments. GPT-2 has none, but would look segment 0 up as a word, and so read a text beside
    a pair in another way than alone."""
    segments = getattr(getattr(model, "config", None), "type_vocab_size", None) or 1
    return segments > 1 and "token_type_ids" in inspect.signature(model.forward).parameters


def first_position(model: nn.Module) -> int:
    """The position id of a text's first token: models of RoBERTa's family count from behind the padding's id."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_inputs_embeds"):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


def load_trunk(model: Model, seed: int, layout: LayoutName | Literal["auto"] = "buckets", half: bool = False) -> Trunk:
    """Load (or initialise from scratch) the trunk of a recipe in fp32, to run in a layout, in 16 bits or not.

    Raises InputError where it cannot be loaded or cannot run in the layout.
    """
    from transformers import AutoConfig, AutoModel

    name = resolve_model(model.pretrained)
    attention = own_attention(model)
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
    except (ImportError, OSError, ValueError) as error:
        raise InputError(model_problem(name, error)) from None
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False
    freeze(module, model.freeze)
    register()
    return Trunk(module, model.pooling, choose(model, layout, module, half))


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
