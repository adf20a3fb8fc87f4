"""Samples: how the model continues texts that it was not trained on, the same at every evaluation of every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.encoded import EncodedSplit, EncodedTask
from lmrecipes.recipe import Recipe
from lmrecipes.tracking.samples import Sample

SHORTEST, LONGEST = 8, 64
"""Tokens of a text of language modelling that the model is given: a quarter of the text, within these bounds."""


class Generator(Protocol):
    """The part of the engine that samples need."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""

    def generate(self, prompts: list[list[int]], most: int) -> list[list[int]]:
        """Greedy continuations of at most `most` tokens; every rank calls it with the same prompts."""


@dataclass(frozen=True)
class _Text:
    """A text as tokens: what the model is given, how it goes on, and how many tokens the model may add.

    end: the token that ends the text or the turn, if it is a special one; nothing after it is shown.
    """

    task: str
    chat: bool
    prompt: list[int]
    reference: list[int]
    end: int
    most: int


class Samples:
    """The texts that a run is sampled on: `evaluation.samples` of each token task's validation split, by hash.

    Language modelling: the model is given the text's beginning. Chat: the conversation up to the assistant's last turn
    that leaves room for an answer in the task's longest text, else up to its first. References are no longer than
    continuations may be.
    """

    def __init__(self, recipe: Recipe, tasks: Mapping[str, EncodedTask], tokenizer: str | None) -> None:
        self._tokenizer_name = tokenizer
        self._texts: list[_Text] = []
        evaluation = recipe.evaluation
        for name, task in tasks.items() if evaluation.samples else ():
            if task.task.of_tokens:
                split, limit = task.splits["validation"], task.task.max_length or recipe.model.max_length
                rows = split.sample(evaluation.samples, "samples").tolist()
                self._texts += [_text(name, task, split, row, evaluation.sample_tokens, limit) for row in rows]

    def __bool__(self) -> bool:
        return bool(self._texts)

    def draw(self, engine: Generator, step: int) -> list[Sample]:
        """The samples after a step on rank 0, elsewhere none. Every rank must call it."""
        following: dict[int, list[int]] = {}
        for most in sorted({text.most for text in self._texts}):
            numbers = [number for number, text in enumerate(self._texts) if text.most == most]
            found = engine.generate([self._texts[number].prompt for number in numbers], most)
            following |= zip(numbers, found, strict=True)
        if not engine.is_main:
            return []
        return [self._sample(step, text, following[number]) for number, text in enumerate(self._texts)]

    def _sample(self, step: int, text: _Text, following: list[int]) -> Sample:
        prompt = text.prompt if text.chat else [token for token in text.prompt if token not in self._special]
        shown = self._decode(prompt).rstrip(_BROKEN)
        ends = {text.end} & self._special
        continuation, reference = (
            self._after(shown, prompt, _before(ids, ends)) for ids in (following, text.reference)
        )
        return Sample(step, text.task, shown, continuation, reference)

    def _after(self, shown: str, prompt: list[int], following: list[int]) -> str:
        """Text of tokens that follow a prompt. Decoded with it: a character may lie in two tokens, and the decoders of
        some tokenizers drop a space where a text begins."""
        whole = self._decode(prompt + following).rstrip(_BROKEN)
        return whole[len(shown) :] if whole.startswith(shown) else self._decode(following)

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _tokenizer(self) -> Any:
        from lmrecipes.data.tokenizer import load_tokenizer

        assert self._tokenizer_name is not None, "tasks on tokens have one"
        return load_tokenizer(self._tokenizer_name)

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(number for number, token in self._tokenizer.added_tokens_decoder.items() if token.special)


_BROKEN = "\ufffd"
"""What decoders write for a part of a character."""


def _before(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first of `ends`."""
    return list(takewhile(lambda token: token not in ends, tokens))


def _text(name: str, task: EncodedTask, split: EncodedSplit, row: int, most: int, limit: int) -> _Text:
    """A text cut in two. limit: tokens of the longest text that the model has seen of this task."""
    begin, end = split.offsets[row], split.offsets[row + 1]
    tokens: list[int] = split.tokens[begin:end].tolist()
    start, stop = min(max(SHORTEST, len(tokens) // 4), LONGEST, len(tokens) - 1), len(tokens)
    if split.loss is not None:
        turns = _turns(split.loss[begin:end])
        start, stop = next((turn for turn in reversed(turns) if limit - turn[0] >= most), turns[0])
    most = min(most, limit - start)
    reference = tokens[start:stop]
    return _Text(name, task.task.kind == "chat", tokens[:start], reference[:most], reference[-1], most)


def _turns(loss: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """(first, behind the last) of each stretch of tokens that carry loss."""
    edges = np.flatnonzero(np.diff(loss, prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
