"""The start-up probe: does the run's layout really keep texts apart, on this model, this device and these kernels?

A few random texts go through the wrapped model as the run will lay them out. Then one of them is changed: no other may
move. And each must be read as it is when it is alone in the model's own attention: that catches wrong positions, read
padding, and arithmetic of a model's attention that the layout's kernel does not know. Where tokens are predicted, no
token may see those after it, and the loss must be that of the logits which `transformers` computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmrecipes.data.batches import Batcher, MicroBatch, TaskRows
from lmrecipes.data.inputs import Specs
from lmrecipes.data.layout import Arrangement
from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.problems import InputError, Problem
from lmrecipes.training.engine import Engine
from lmrecipes.training.probe_media import media_problem
from lmrecipes.training.reading import LEAK, judge

LENGTHS = (19, 17, 12, 11, 7, 4, 3)
"""Tokens of the texts: alike in pairs, so that rectangles hold neighbours and padding."""
READ_ALONE = (0, 1, 3, 6)
"""The texts that are also read alone."""
NATS_APART = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Largest distance between two computations of a token's loss, by the dtype of the products; on top of it two units of
the dtype's resolution at the largest logit (GPT-2's are around 100)."""


@dataclass(frozen=True)
class _Split:
    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    types: None = None


def probe(engine: Engine, arrangement: Arrangement, longest: int, seed: int, inputs: Specs | None = None) -> None:
    """Raise InputError on every rank where the run could not be right. Every rank must call it.

    longest: positions of the longest example that the run may hold; inputs: what it reads beside texts. A run by layer
    is probed in the arithmetic of its weights: rounding to fp8 is no leak, and would hide one.
    """
    with engine.uniformly():
        probe_layout(engine, arrangement, longest, seed)
        if inputs:
            _raise_first(engine, media_problem(engine, arrangement, longest, seed, inputs))
        if engine.module.language is not None:
            probe_language(engine, arrangement, longest, seed)


def probe_layout(engine: Engine, arrangement: Arrangement, longest: int, seed: int) -> None:
    """Raise InputError where texts touch each other, or are not read as alone."""
    _raise_first(engine, _found(engine, replace(arrangement, buckets=min(arrangement.buckets, 3)), longest, seed))


def probe_language(engine: Engine, arrangement: Arrangement, longest: int, seed: int) -> None:
    """Raise InputError where tokens see those after them, or where the loss is not that of the model's own logits."""
    ids, other = _words(engine, np.array([min(LENGTHS[0], longest)]), seed)
    changed = np.append(ids[:-1], other[-1])
    logits, moved = engine.outputs(ids.tolist()), engine.outputs(changed.tolist())
    batcher = Batcher({"probe": _Split(ids, np.array([0, len(ids)]))}, {})
    texts = batcher.texts([np.array([0])], np.zeros(1, np.int16), np.zeros(1, np.int64), arrangement)
    places, targets = torch.arange(len(ids) - 1), torch.from_numpy(ids[1:].astype(np.int64))
    asked = TaskRows(places, targets, 0.0, 1)
    idle = TaskRows(places[:1], targets[:1], 0.0, 0)
    name = engine.module.token_tasks[0]
    tasks = {task: asked if task == name else idle for task in engine.module.tasks}
    found = engine.predict(MicroBatch(texts, tasks))[name][:, 0].cpu()
    expected = -logits.log_softmax(-1)[places, targets]
    _raise_first(engine, judge_language(logits, moved, found, expected, engine.compute_dtype))


def judge_language(
    logits: Tensor, moved: Tensor, found: Tensor, expected: Tensor, dtype: torch.dtype
) -> Problem | None:
    """logits, moved: fp32 [time, vocabulary] of a text and of one that differs in its last token; found, expected: the
    loss of each next token by the run and by those logits, in nats, fp32 [time - 1]."""
    if not bool(torch.isfinite(logits).all()) or not bool(torch.isfinite(found).all()):
        what = "its logits are not finite in the run's arithmetic"
        return Problem("model.pretrained", what, "set precision.compute: fp32, or use another model", "head-finite")
    steps = (moved - logits).norm(dim=1)
    if not float(steps[:-1].max()) < LEAK * float(steps[-1]):
        what = "its tokens see the ones after them, so that predicting these would teach nothing"
        return Problem("model.pretrained", what, "use a causal model (GPT, Llama)", "head-not-causal")
    apart = float((found - expected).abs().max())
    if not apart < NATS_APART[dtype] + 2 * torch.finfo(dtype).eps * float(logits.abs().max()):
        what = f"the loss of a token is {apart:.3f} nats away from that of the model's own logits"
        fix = "use another model; this one does arithmetic behind its head that lmrecipes does not know"
        return Problem("model.pretrained", what, fix, "head-unknown")
    return None


def _raise_first(engine: Engine, problem: Problem | None) -> None:
    """The first rank's problem, raised on all."""
    first = next((found for found in engine.gather(problem) if found is not None), None)
    if first is not None:
        raise InputError(first)


def _found(engine: Engine, arrangement: Arrangement, longest: int, seed: int) -> Problem | None:
    exactly = engine.module.trunk.exactly
    lengths = np.minimum(LENGTHS, longest).astype(np.int64) if exactly is None else np.full(len(LENGTHS), exactly)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens, other = _words(engine, lengths, seed)
    changed = np.concatenate([other[: lengths[0]], tokens[lengths[0] :]])

    def vectors(words: NDArray[np.int32], parts: list[NDArray[np.int64]], cut: Arrangement) -> Tensor:
        batcher, count = Batcher({"probe": _Split(words, offsets)}, {}), len(lengths)
        texts = batcher.texts(parts, np.zeros(count, np.int16), np.arange(count), cut)
        return engine.vectors(texts).float()

    if engine.module.heads and engine.module.trunk.pooling == "first":
        ended = np.concatenate([tokens[: lengths[0] - 1], other[lengths[0] - 1 : lengths[0]]])
        alone = [np.array([0])]
        with engine.module.trunk.native():
            whole, cut = (vectors(words, alone, Arrangement("padded")) for words in (tokens, ended))
        if not float((whole - cut).norm()) > 0:
            what = "the first token of a causal model sees no other, so that heads would read the same of every text"
            return Problem("model.pooling", what, "set it to last, or to mean", "pooling-first")
    parts = arrangement.parts(np.arange(len(lengths)), lengths)
    order = np.concatenate(parts)
    place = np.argsort(order)
    before, after = (vectors(words, parts, arrangement)[place] for words in (tokens, changed))
    moved = (after - before).norm(dim=1)
    with engine.module.trunk.native():
        one_by_one = [vectors(tokens, [np.array([text])], Arrangement("padded")) for text in READ_ALONE]
    among = before[list(READ_ALONE)]
    return judge(among, torch.cat(one_by_one), moved, engine.compute_dtype, arrangement.layout)


def _words(engine: Engine, lengths: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Random tokens for texts of these lengths, and as many others."""
    vocabulary = int(engine.module.trunk.model.config.vocab_size)
    draws = hash_uniform(hash_key(seed, "probe"), np.arange(lengths.sum()))
    tokens = (draws * vocabulary).astype(np.int32)
    return tokens, (tokens + vocabulary // 2) % vocabulary
