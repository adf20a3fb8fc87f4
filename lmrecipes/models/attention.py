"""Attention between the tokens of one text when several texts share a pass of the model.

`transformers` lets a name stand for an attention function (`AttentionInterface.register`), and hands it the keyword
arguments that the model was called with. A model whose attention is `KERNEL` runs its linear layers, activations and
norms over all tokens of a micro-batch as one [1, tokens, hidden] matrix; here each rectangle of texts is cut out of the
queries, keys and values and attends by itself. For a name without a mask function the model makes no mask of its own:
padding, neighbours, causality and sliding windows are masked here (`seen`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmrecipes.data.layout import Arrangement, LayoutName
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Model, Recipe

FLASH = "flash_attention_2"
KERNEL = "lmrecipes_blocks"
"""The name under which `blocks_attention` is known to `transformers`."""
SHORT_TEXT = 256
"""Tokens up to which [time, time] scores are cheap enough to be held whole on a CPU. There the fused kernel's backward
is far slower than plain products (measured: 190 of 720 ms of a step against 30 of 540)."""

Products = Literal["auto", "eager", "sdpa", "flex_attention"]
_UNKNOWN = ("softcap", "s_aux", "position_bias")
"""Arguments by which some models change the scores in ways that `blocks_attention` does not know."""


@dataclass
class Block:
    """A rectangle of tokens. documents: int64 [rows, time], tokens attend where equal; None: each row is one text."""

    rows: int
    time: int
    documents: Tensor | None = None


@dataclass
class Blocks:
    """The rectangles of a pass, end to end, and how to compute them (auto: by their length)."""

    blocks: list[Block]
    products: Products = "auto"
    _masks: dict[Any, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """Tokens of each block, padding included."""
        return [block.rows * block.time for block in self.blocks]

    def kernel(self, block: Block) -> Products:
        """How a block is computed."""
        return self.products if self.products != "auto" else ("eager" if block.time <= SHORT_TEXT else "sdpa")

    def once(self, make: Callable[..., Any], block: Block, *rule: Any) -> Any:
        """make(block, *rule), kept: the layers of a model mostly share their masks."""
        at = (make, id(block), *rule)
        if at not in self._masks:
            self._masks[at] = make(block, *rule)
        return self._masks[at]


def seen(block: Block, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """Bool [rows or 1, time, time], True where a query (second axis) sees a key (third); None where all see all.

    window: as flash attention counts it: a key is seen up to window - 1 tokens away.
    """
    place = torch.arange(block.time, device=device)
    found = None
    if causal:
        found = (place[:, None] >= place)[None]
    if window is not None and window < block.time:
        near = ((place[:, None] - place).abs() < window)[None]
        found = near if found is None else found & near
    if block.documents is not None:
        same = block.documents[:, :, None] == block.documents[:, None, :]
        found = same if found is None else found & same
    return found


def bias(block: Block, causal: bool, window: int | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """`seen` as what is added to the scores: 0 or minus infinity. Every token sees itself: no row is all infinite."""
    found = seen(block, causal, window, device)
    return None if found is None else torch.zeros_like(found, dtype=dtype).masked_fill_(~found, -torch.inf)


def block_mask(block: Block, causal: bool, window: int | None, device: torch.device) -> Any:
    """`seen` as flex attention's BlockMask."""
    from torch.nn.attention.flex_attention import create_block_mask

    found = seen(block, causal, window, device)
    if found is None:
        return None
    whole = found.expand(block.rows, -1, -1)
    return create_block_mask(
        lambda b, h, q, k: whole[b, q, k], block.rows, None, block.time, block.time, device=str(device)
    )


def blocks_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, sliding_window: int | None = None,
    is_causal: bool | None = None, blocks: Blocks | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [1, heads, tokens, width], key and value with as many heads or a divisor -> [1, tokens, heads, width]."""
    if blocks is None or query.shape[0] != 1 or any(kwargs.get(name) is not None for name in _UNKNOWN):
        raise InputError(unsupported(module))
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    dropout = dropout if module.training else 0.0
    repeats = query.shape[1] // key.shape[1]
    parts = zip(*(part[0].split(blocks.sizes, dim=1) for part in (query, key, value)), strict=True)
    outputs = []
    for block, part in zip(blocks.blocks, parts, strict=True):
        q, k, v = (one.unflatten(1, (block.rows, block.time)) for one in part)  # [heads, rows, time, width]
        kernel = blocks.kernel(block)
        if repeats > 1 and kernel != "eager":
            k, v = (one.repeat_interleave(repeats, dim=0) for one in (k, v))
        attend = {"eager": _products, "sdpa": _fused, "flex_attention": _flex}[kernel]
        out = attend(blocks, block, (q, k, v), causal, sliding_window, scaling, dropout)
        outputs.append(out.permute(1, 2, 0, 3).flatten(0, 1))
    return torch.cat(outputs)[None], None


QKV = tuple[Tensor, Tensor, Tensor]


def _products(
    blocks: Blocks, block: Block, qkv: QKV, causal: bool, window: int | None, scaling: float, dropout: float
) -> Tensor:
    """Scores as one batched product, scaled inside it. Queries that share a key go into one product, end to end: to
    repeat the keys and values for them takes a quarter more time."""
    groups, repeats = qkv[1].shape[0], qkv[0].shape[0] // qkv[1].shape[0]
    q = qkv[0].unflatten(0, (groups, repeats)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    k, v = (part.flatten(0, 1) for part in qkv[1:])  # [groups * rows, time, width]; q: [..., repeats * time, width]
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scaling)
    hidden = blocks.once(bias, block, causal, window, q.device, scores.dtype)
    if hidden is not None:
        apart = scores.unflatten(1, (repeats, block.time)).unflatten(0, (groups, block.rows))
        scores = (apart + hidden[:, None]).flatten(2, 3).flatten(0, 1)
    shares = F.dropout(scores.softmax(-1), dropout)
    out = torch.bmm(shares.to(v.dtype), v).unflatten(1, (repeats, block.time)).unflatten(0, (groups, block.rows))
    return out.transpose(1, 2).flatten(0, 1)


def _fused(
    blocks: Blocks, block: Block, qkv: QKV, causal: bool, window: int | None, scaling: float, dropout: float
) -> Tensor:
    """torch's fused kernel; a plain causal mask goes as a flag, which the fastest variants need."""
    q, k, v = (part.transpose(0, 1) for part in qkv)  # [rows, heads, time, width]
    plain = causal and block.documents is None and (window is None or window >= block.time)
    mask = None if plain else blocks.once(seen, block, causal, window, q.device)
    mask = mask if mask is None else mask[:, None]
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=plain, scale=scaling)
    return out.transpose(0, 1)


def _flex(
    blocks: Blocks, block: Block, qkv: QKV, causal: bool, window: int | None, scaling: float, dropout: float
) -> Tensor:
    """torch's flex attention, which skips blocks of tokens that no mask joins."""
    if dropout:
        what = "flex_attention has no dropout on attention weights"
        raise InputError(Problem("model.attention", what, "set model.dropout: 0, or attention: sdpa", "attention"))
    q, k, v = (part.transpose(0, 1).contiguous() for part in qkv)
    mask = blocks.once(block_mask, block, causal, window, q.device)
    out: Tensor = _flex_kernel(q.is_cuda)(q, k, v, block_mask=mask, scale=scaling)
    return out.transpose(0, 1)


@cache
def _flex_kernel(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def unsupported(module: nn.Module) -> Problem:
    """A model whose attention cannot be taken over."""
    name = type(module).__name__
    what = f"grouped and packed cannot keep texts apart in {name}: its tokens meet elsewhere than in plain attention"
    return Problem("batch.layout", what, "set batch.layout: buckets", "layout-model")


def takes_blocks(module: nn.Module) -> bool:
    """Whether a model can run on texts that lie end to end: it hands its attention to `transformers`' interface, takes
    position ids, and mixes tokens by attention alone (no state-space or convolution layers)."""
    interface = bool(getattr(module, "_supports_attention_backend", False))
    positions = "position_ids" in inspect.signature(module.forward).parameters
    return interface and positions and not getattr(module, "_is_stateful", False)


@dataclass(frozen=True)
class Choice:
    """A layout and its kernels. native: the model's own attention, by its name in `transformers`; products: how blocks
    are computed where `KERNEL` takes its place."""

    layout: LayoutName = "buckets"
    native: str = "eager"
    products: Products = "auto"

    def __str__(self) -> str:
        kernel = self.products if self.attention == KERNEL else self.native
        return f"{self.layout} ({'by length: eager, sdpa' if kernel == 'auto' else kernel} attention)"

    @property
    def attention(self) -> str:
        """The attention that the model is set to."""
        return KERNEL if self.layout in ("grouped", "packed") and self.native != FLASH else self.native


def own_attention(model: Model) -> str:
    """The recipe's choice; for `auto`, what is fastest on rectangles."""
    if model.attention != "auto":
        return model.attention
    return "sdpa" if torch.cuda.is_available() or model.max_length > SHORT_TEXT else "eager"


def _head_width(module: nn.Module) -> int:
    """Width of an attention head; flex attention's kernel takes 16 and more."""
    config: Any = module.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def choose(model: Model, layout: LayoutName | Literal["auto"], module: nn.Module, half: bool) -> Choice:
    """The layout of a run. half: it computes in 16 bits. Raises InputError where the model cannot run in it."""
    asked, native, cuda, able = model.attention, own_attention(model), torch.cuda.is_available(), takes_blocks(module)
    if layout in ("padded", "buckets") or (layout == "auto" and not able):
        return Choice("padded" if layout == "padded" else "buckets", native)
    if not able:
        raise InputError(unsupported(module))
    products: Products = "auto" if asked == "flash_attention_2" else asked
    flash = asked == FLASH or (asked == "auto" and cuda and half and find_spec("flash_attn") is not None)
    flex = asked == "flex_attention" or (asked == "auto" and cuda and model.dropout == 0 and _head_width(module) >= 16)
    if layout == "grouped" and asked in (FLASH, "flex_attention"):
        what = f"{asked} computes packed rows or single rectangles, not batch.layout: grouped"
        raise InputError(Problem("model.attention", what, "set it to auto, or batch.layout to packed", "attention"))
    if layout == "packed" or (layout == "auto" and (flash or flex)):
        if flash:
            return Choice("packed", FLASH)
        return Choice("packed", native, "flex_attention" if flex else products)
    # Two cores, MiniLM, texts of 25 tokens: rows 6,700 tokens a second, rectangles in one pass 4,900, in turn 3,200.
    packs = layout == "auto" and not cuda and model.max_length <= SHORT_TEXT and products != "sdpa"
    return Choice("packed" if packs else "grouped", native, products)


def arrangement(recipe: Recipe, choice: Choice, longest: int) -> Arrangement:
    """How the recipe's micro-batches are cut, whose longest example takes `longest` positions. Flash attention's one
    row has no end; flex attention's rows are always as wide as the longest example, because every new width is
    compiled."""
    width = None if choice.native == FLASH else longest
    least = longest if choice.products == "flex_attention" else Arrangement.least
    return Arrangement(choice.layout, recipe.batch.length_buckets, width, least)


def register() -> None:
    """Make `KERNEL` known to `transformers`."""
    from transformers import AttentionInterface

    AttentionInterface.register(KERNEL, blocks_attention)
