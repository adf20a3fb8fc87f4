"""The trunk: any `transformers` encoder or decoder, and how it reads a micro-batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmrecipes.data.batches import Bucket, Packed, Texts
from lmrecipes.models.attention import KERNEL, Block, Blocks, Choice

Inserted = Sequence[tuple[Tensor, Tensor]]
"""Vectors [k, hidden] that no token is looked up for, after where they belong: the first so many places, int64, among
the flattened positions. Without places they take part all the same, with a gradient of 0."""
WORDS_LOOKED_AT = 256
"""Rows of the embedding table, evenly spread, that tell how large its vectors are."""


class Trunk(nn.Module):
    """Reads texts, returns one vector for each token, or for each text.

    `model` is what reads; `whole` the model as `transformers` saves it: with a language-model head where the recipe has
    tasks for it, else the same. `adapted` is peft's view of `whole` where adapters are trained. Neither is a module of
    the trunk. `unused` holds pretrained weights that no task trains (BERT's pooler): kept out of the module, because a
    parameter without a gradient breaks DDP and ZeRO, and put back on export. `exactly`: tokens of every text, of a
    model that reads no other number.
    """

    exactly: int | None = None

    def __init__(
        self, whole: nn.Module, pooling: str, choice: Choice | None = None, adapted: nn.Module | None = None
    ) -> None:
        super().__init__()
        model = getattr(whole, "base_model", whole)
        self.model = model
        self._seen = (whole, adapted)  # in a tuple: torch would register them
        self.pooling = pooling
        self.choice = choice or Choice()
        self.unused: dict[str, Tensor] = {}
        if isinstance(pooler := getattr(model, "pooler", None), nn.Module):
            self.unused = {f"pooler.{name}": _whole(weight) for name, weight in pooler.named_parameters()}
            model.pooler = None
        self.reads_types = reads_types(model)
        self.first_position = first_position(model)
        self._use(self.choice.attention)

    @property
    def hidden_size(self) -> int:
        """Width of the pooled vector."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def whole(self) -> Any:
        """The model as `transformers` saves it."""
        return self._seen[0]

    @property
    def adapted(self) -> Any:
        """peft's view of it, or None."""
        return self._seen[1]

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

    def predict_only(self) -> None:
        """From now on rectangles go by themselves through `sdpa`, where a kernel of ours took its place: it is made for
        rows of many texts and for gradients, and a single text is a tenth slower in it (MiniLM in bf16, 64 tokens)."""
        if self.choice.attention == KERNEL:
            self.choice = Choice("buckets", "sdpa")
            self._use(self.choice.attention)

    def _use(self, attention: str) -> None:
        config = getattr(self.model, "config", None)
        if config is not None and config._attn_implementation != attention:
            self.model.set_attn_implementation(attention)  # type: ignore[operator]

    def forward(self, texts: Texts, inserted: Inserted = ()) -> Tensor:
        """One vector for each position of the micro-batch, padding included: [positions, hidden].

        Tokens are looked up once for all buckets: the gradient of the embedding table is as large as the table, and
        would otherwise be filled and added up once a bucket.
        """
        if isinstance(texts, Packed):
            return self._packed(texts, inserted)
        if self.choice.attention == KERNEL:
            return self._grouped(texts, inserted)
        flat = self._embedded(torch.cat([bucket.input_ids.flatten() for bucket in texts]), inserted)
        parts = flat.split([bucket.input_ids.numel() for bucket in texts])
        hidden = []
        for bucket, part in zip(texts, parts, strict=True):
            inputs = part.view(*bucket.input_ids.shape, -1)
            hidden.append(self._read(inputs, bucket.types, attention_mask=bucket.mask).flatten(0, 1))
        return torch.cat(hidden)

    def pool(self, texts: Texts, hidden: Tensor) -> Tensor:
        """What `forward` gave -> one vector for each text, in order: [texts, hidden]."""
        if isinstance(texts, Packed):
            return self._pool_packed(texts, hidden)
        parts = hidden.split([bucket.input_ids.numel() for bucket in texts])
        return torch.cat(
            [
                self._pool(part.view(*bucket.input_ids.shape, -1), bucket.mask)
                for part, bucket in zip(parts, texts, strict=True)
            ]
        )

    def _embedded(self, ids: Tensor, inserted: Inserted) -> Tensor:
        """Looked-up tokens [positions, hidden], and at their places what was inserted."""
        table: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        flat: Tensor = table(ids)
        for places, vectors in inserted:
            flat = flat.index_copy(0, places, vectors[: len(places)].to(flat.dtype))
        return flat

    def embedding_scale(self) -> float:
        """Root mean square of the numbers that looked-up tokens have."""
        table: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        if table.weight.is_meta:
            return 1.0
        with torch.no_grad(), _gathered(table.weight):
            words = torch.linspace(0, table.num_embeddings - 1, WORDS_LOOKED_AT, device=table.weight.device).long()
            return float(table(words).float().square().mean().sqrt())

    def _read(self, inputs: Tensor, types: Tensor | None, **options: Any) -> Tensor:
        """Looked-up tokens [rows, time, hidden] through the model."""
        if self.reads_types and types is not None:
            options["token_type_ids"] = types
        hidden: Tensor = self.model(inputs_embeds=inputs, **options).last_hidden_state
        return hidden

    def _flat(self, ids: Tensor, types: Tensor | None, positions: Tensor, inserted: Inserted, **options: Any) -> Tensor:
        """Tokens [tokens] that lie end to end in one pass: [tokens, hidden]. positions start at 0 with each text."""
        places = positions[None] + self.first_position
        types = types if types is None else types[None]
        looked_up = self._embedded(ids, inserted)[None]
        return self._read(looked_up, types, attention_mask=None, position_ids=places, **options)[0]

    def _grouped(self, buckets: list[Bucket], inserted: Inserted) -> Tensor:
        """All buckets in one pass."""
        shapes = [bucket.input_ids.shape for bucket in buckets]
        ids = torch.cat([bucket.input_ids.flatten() for bucket in buckets])
        places = torch.cat([torch.arange(time, device=ids.device).repeat(rows) for rows, time in shapes])
        types = None
        if any(bucket.types is not None for bucket in buckets):
            parts = [b.types if b.types is not None else torch.zeros_like(b.input_ids) for b in buckets]
            types = torch.cat([part.flatten() for part in parts])
        blocks = [Block(shape[0], shape[1], bucket.mask) for shape, bucket in zip(shapes, buckets, strict=True)]
        return self._flat(ids, types, places, inserted=inserted, blocks=Blocks(blocks, self.choice.products))

    def _packed(self, texts: Packed, inserted: Inserted) -> Tensor:
        """Rows of several texts."""
        rows, width = texts.documents.shape
        if self.choice.attention == KERNEL:
            apart: dict[str, Any] = {"blocks": Blocks([Block(rows, width, texts.documents)], self.choice.products)}
        else:  # flash attention wants the ends of the texts
            ends = F.pad(texts.lengths.cumsum(0), (1, 0)).int()
            apart = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
            apart |= {"max_length_q": texts.longest, "max_length_k": texts.longest}
        types = texts.types if texts.types is None else texts.types.flatten()
        return self._flat(texts.input_ids.flatten(), types, texts.positions.flatten(), inserted=inserted, **apart)

    def _pool_packed(self, texts: Packed, hidden: Tensor) -> Tensor:
        """[positions, hidden] of rows of several texts -> [texts, hidden]."""
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
    with _gathered(weight):
        return weight.detach().clone()


def _gathered(weight: nn.Parameter) -> AbstractContextManager[object]:
    """Within: a parameter is whole, also where ZeRO-3 loaded it partitioned."""
    if not hasattr(weight, "ds_id"):
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    within: AbstractContextManager[object] = GatheredParameters([weight])
    return within


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
