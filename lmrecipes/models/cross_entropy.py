"""Cross-entropy of next tokens without the [tokens, vocabulary] logits.

Logits of one chunk of tokens exist at a time: they are computed, turned into the loss and into their own gradient in
place, and multiplied into the gradients of the hidden states and of the head's weight, all in the forward pass; the
backward pass only multiplies by the incoming gradient (Hsu et al. 2024, Liger Kernel, arXiv 2410.10989, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 27
"""Bytes of a chunk's logits. Every chunk adds to the gradient of the whole weight, so few large chunks are faster:
8,192 tokens, vocabulary 49,152 and width 576 in bf16 took 3.0 s in chunks of 341 tokens, 2.0 in 1,365, 1.6 in 2,730."""
BLOCK = {"cpu": 1 << 19, "cuda": 1 << 25}
"""Logits that go through the softmax at once, in fp32. On a CPU they stay in the cache of a core: 26 us for a token of
49,152 logits against 80 us where a whole chunk goes through each operation."""
SLICE = 8192
"""Words of the vocabulary whose gradient is multiplied at once before it is added in fp32: half the time of all at once
on a CPU, and no second tensor as large as the weight."""
LIFT = 256.0
"""fp16 holds nothing below 6e-8: there gradients of logits are larger by this much while they are multiplied."""


@dataclass(frozen=True)
class _Head:
    """Logits = cap(scale * (hidden @ weight.T + bias)), cap(x) = softcap * tanh(x / softcap); all in one dtype."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def in_products_dtype(self) -> _Head:
        """The same in the dtype of its matrix products."""
        device, dtype = self.hidden.device.type, self.hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        if dtype is torch.float16 and device != "cuda":  # only CUDA's products of fp16 can be summed up outside fp16
            dtype = torch.float32
        bias = self.bias if self.bias is None else self.bias.to(dtype)
        return replace(self, hidden=self.hidden.to(dtype), weight=self.weight.to(dtype), bias=bias)

    @property
    def wide(self) -> torch.dtype:
        """dtype of the softmax and of sums over chunks."""
        return torch.promote_types(self.hidden.dtype, torch.float32)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Tokens of each chunk and their raw logits [tokens, vocabulary], in a buffer that the next chunk reuses."""
        tokens, vocabulary = len(self.hidden), len(self.weight)
        size = _even(tokens, CHUNK // (vocabulary * self.hidden.element_size()))
        buffer = self.hidden.new_empty(min(size, tokens), vocabulary)
        for start in range(0, tokens, size):
            part = self.hidden[start : start + size]
            logits = buffer[: len(part)]
            if self.bias is None:
                torch.mm(part, self.weight.T, out=logits)
            else:
                torch.addmm(self.bias, part, self.weight.T, out=logits)
            yield slice(start, start + len(part)), logits

    def blocks(self, chunk: slice, logits: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
        """Tokens of each block of a chunk, their raw logits, the final ones in fp32, and how much these grow with the
        raw ones, over `scale` (None: 1). Raw and final logits share memory where the products are in fp32."""
        size = _even(len(logits), BLOCK.get(logits.device.type, BLOCK["cuda"]) // logits.shape[1])
        for start in range(0, len(logits), size):
            raw = logits[start : start + size]
            final, slope = raw.to(self.wide), None
            if self.scale != 1.0:
                final.mul_(self.scale)
            if self.softcap is not None:
                final.div_(self.softcap).tanh_()
                slope = 1 - final.square()
                final.mul_(self.softcap)
            yield slice(chunk.start + start, chunk.start + start + len(raw)), raw, final, slope


def _even(count: int, most: int) -> int:
    """Size of the fewest parts, about equal, of at most `most` each (or 1)."""
    most = max(1, most)
    return max(1, -(-count // max(1, -(-count // most))))


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, *,
    scale: float = 1.0, softcap: float | None = None, bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Weighted sum of the tokens' negative log-likelihoods, fp32 [], and each token's, fp32 [k], detached.

    hidden [k, h], weight [v, h], targets int64 [k], weights fp32 [k], bias [v]. Differentiable once in hidden, weight
    and bias, whichever of them require it. Products are in autocast's dtype, else in that of hidden, sums over chunks
    and the softmax in fp32.
    """
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden, weight, bias)]
    head = _Head(hidden.detach(), weight.detach(), bias if bias is None else bias.detach(), scale, softcap)
    loss, nll = _Loss.apply(hidden, weight, bias, head, targets, weights, wanted)
    return loss, nll


def score_tokens(
    hidden: Tensor, weight: Tensor, targets: Tensor, *,
    scale: float = 1.0, softcap: float | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Of each token its negative log-likelihood, and 1 where it is the likeliest (of equals the first): fp32 [k, 2].

    Takes what `chunked_cross_entropy` takes; has no gradient.
    """
    with torch.no_grad():
        head = _Head(hidden, weight, bias, scale, softcap).in_products_dtype()
        scores = hidden.new_empty(len(hidden), 2, dtype=head.wide)
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk, logits in head.chunks():
                for rows, _, final, _ in head.blocks(chunk, logits):
                    best, at = final.max(1, keepdim=True)
                    aim = targets[rows, None]
                    chosen = final.gather(1, aim)
                    total = final.sub_(best).exp_().sum(1, keepdim=True)
                    scores[rows, :1] = best + total.log() - chosen
                    scores[rows, 1:] = (at == aim).to(scores.dtype)
    return scores


class _Loss(torch.autograd.Function):
    """Gradients are of the loss over `ctx.factor`: with the largest weight at 1 they fit any dtype, whatever the number
    of tokens and the loss scale."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None,
        head: _Head, targets: Tensor, weights: Tensor, wanted: list[bool],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The loss, and each token's."""
        head = head.in_products_dtype()
        wide, lift = head.wide, LIFT if head.hidden.dtype is torch.float16 else 1.0
        weights = weights.to(wide)
        largest = F.pad(weights.abs(), (0, 1)).max()
        shares = lift * (weights / largest.clamp(min=torch.finfo(wide).tiny))[:, None]
        nll = hidden.new_empty(len(hidden), dtype=wide)
        ctx.gradients = [
            torch.empty_like(head.hidden) if wanted[0] else None,
            torch.zeros_like(head.weight, dtype=wide) if wanted[1] else None,
            torch.zeros_like(head.bias, dtype=wide) if wanted[2] and head.bias is not None else None,
        ]
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk, logits in head.chunks():
                for rows, raw, final, slope in head.blocks(chunk, logits):
                    nll[rows] = _softmax_gradient(final, targets[rows, None], shares[rows])
                    if any(wanted):
                        raw.copy_(final if slope is None else final.mul_(slope))
                _accumulate(ctx.gradients, head, chunk, logits)
        ctx.factor = largest * (head.scale / lift)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.mark_non_differentiable(nll)
        return (nll * weights).sum(), nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Works once: what the forward pass has left is scaled in place."""
        if ctx.gradients is None:
            raise RuntimeError("chunked_cross_entropy was already differentiated; compute it again")
        gradients, ctx.gradients = ctx.gradients, None
        factor = loss * ctx.factor
        scaled = [g if g is None else _scaled(g, factor).to(to) for g, to in zip(gradients, ctx.dtypes, strict=True)]
        return *scaled, None, None, None, None


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """gradient * factor, fp32 []. A factor without dimensions would be rounded to the dtype of 16-bit gradients."""
    return gradient.mul_(factor) if gradient.dtype == factor.dtype else gradient * factor.reshape(1)


def _softmax_gradient(logits: Tensor, aim: Tensor, shares: Tensor) -> Tensor:
    """The rows' losses; turns logits [rows, vocabulary] into shares * (softmax - one-hot). aim, shares [rows, 1]."""
    best = logits.amax(1, keepdim=True)
    chosen = logits.gather(1, aim)
    total = logits.sub_(best).exp_().sum(1, keepdim=True)
    logits.mul_(shares / total)
    logits.scatter_add_(1, aim, -shares)
    return (best + total.log() - chosen)[:, 0]


def _accumulate(gradients: list[Tensor | None], head: _Head, chunk: slice, logits: Tensor) -> None:
    """Add a chunk's part to the gradients of hidden, weight and bias; its logits hold their own gradient."""
    of_hidden, of_weight, of_bias = gradients
    part = head.hidden[chunk]
    if of_hidden is not None:
        torch.mm(logits, head.weight, out=of_hidden[chunk])
    if of_weight is not None:
        for into, of_words in zip(of_weight.split(SLICE), logits.split(SLICE, dim=1), strict=True):
            if into.dtype == logits.dtype:
                into.addmm_(of_words.T, part)
            elif logits.is_cuda:
                into += torch.mm(of_words.T, part, out_dtype=into.dtype)
            else:
                into += of_words.T @ part
    if of_bias is not None:
        of_bias += logits.sum(0, dtype=of_bias.dtype)
