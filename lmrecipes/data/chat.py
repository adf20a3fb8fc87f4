"""Conversations -> tokens and which of them carry loss: what the assistant says, with the token that ends its turn.

The tokenizer's chat template renders a conversation once, as a whole, and the text is tokenised once. Which characters
are the assistant's is said by the template where it has `{% generation %}` blocks. Else they stand between two prefixes
of the text: the conversation before the turn with the generation prompt, and the conversation up to the turn.
"""

from __future__ import annotations

import re
from datetime import date
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.conversations import BadRow, Conversation, Message
from lmrecipes.data.sources import SPLITS
from lmrecipes.data.targets import EXAMPLES_SHOWN, Piece, Rendered
from lmrecipes.data.writer import Histogram, Tokenised
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Task

Tokenizer = Any

DAY = date(2025, 1, 1)
"""What templates that name the current date get, so that a recipe's data is the same on every day."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_MARKS_FIX = "give model.chat_template a file with a template that has {% generation %} ... {% endgeneration %} around "


class ChatRenderer:
    """A `Render` by a tokenizer's chat template. name: the task's. Raises InputError where there is no template."""

    def __init__(self, tokenizer: Tokenizer, name: str, task: Task) -> None:
        self.where, self.last_only = f"tasks.{name}", task.supervise == "last_assistant"
        try:
            template: str = tokenizer.get_chat_template()
        except ValueError:
            what = f"the tokenizer has no chat template, which {self.where} needs"
            fix = "use a model with one (an -Instruct model), or set model.chat_template to a file with one"
            raise InputError(Problem("model.chat_template", what, fix, "chat-template-missing")) from None
        self.template = _NOW.sub(lambda match: repr(DAY.strftime(match[2])), template)
        self.marks = _GENERATION.search(template) is not None
        self.special = tuple(token.content for token in tokenizer.added_tokens_decoder.values())
        self.names = dict(tokenizer.special_tokens_map)

    def __call__(self, conversation: Conversation) -> Rendered:
        """The conversation as text. Raises BadRow where the template refuses it, InputError where it is no use."""
        learned = conversation.learned[-1:] if self.last_only else conversation.learned
        if self.marks:
            return self._by_marks(conversation, learned)
        text, _ = self._render(conversation.messages)
        return Rendered(text, [self._span(conversation.messages, turn, text) for turn in learned])

    def _by_marks(self, conversation: Conversation, learned: tuple[int, ...]) -> Rendered:
        text, blocks = self._render(conversation.messages, return_assistant_tokens_mask=True)
        turns = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if len(blocks) == len(turns):
            blocks = [block for turn, block in zip(turns, blocks, strict=True) if turn in learned]
        elif len(learned) < len(turns):
            what = f"the chat template has {len(blocks)} generation blocks for {len(turns)} turns of the assistant"
            fix = f"{_MARKS_FIX}each of them"
            raise InputError(Problem(self.where, what, fix, "chat-template-marks"))
        return Rendered(text, [(start, self._end(text, end)) for start, end in blocks if start < end])

    def _span(self, messages: list[Message], turn: int, text: str) -> tuple[int, int]:
        """Where a turn of the assistant stands in the text of the conversation."""
        before, _ = self._render(messages[:turn], add_generation_prompt=True)
        through = text if turn == len(messages) - 1 else self._render(messages[: turn + 1])[0]
        if not through.startswith(before):
            what = "begins a turn of the assistant in another way than its generation prompt does"
            raise self._unstable(what, before, through)
        if not text.startswith(through):
            what = "writes a turn of the assistant in another way when more turns follow"
            raise self._unstable(what, through, text, f", or set {self.where}.supervise to last_assistant")
        return len(before), self._end(text, len(through))

    def _end(self, text: str, end: int) -> int:
        """The end of a turn without the space behind it, where a token marks the end; else that space does."""
        ended = len(text[:end].rstrip())
        return ended if text.endswith(self.special, 0, ended) else end

    def _unstable(self, how: str, prefix: str, text: str, or_else: str = "") -> InputError:
        at = next((i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), len(text))
        what = (
            f"the chat template {how} ({prefix[at : at + 40]!r} against {text[at : at + 40]!r}), "
            "so which tokens are the assistant's is not known"
        )
        fix = f"{_MARKS_FIX}the assistant's turns{or_else}"
        return InputError(Problem("model.chat_template", what, fix, "chat-template-prefix"))

    def _render(self, messages: list[Message], **how: Any) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            (text,), blocks = render_jinja_template([messages], chat_template=self.template, **how, **self.names)
        except (TemplateError, TypeError, ValueError) as error:
            raise BadRow(f"the chat template refuses it ({error})") from None
        return text, blocks[0] if blocks else []


class ChatEncoder:
    """Tokens of a block's rendered conversations, cut at their end; those that lose all loss are left out."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        added = tokenizer.added_tokens_decoder.items()
        self.special = np.array([number for number, token in added if token.special], np.int32)
        self.needed = Histogram()
        self._masked: dict[str, list[str]] = {split: [] for split in SPLITS}

    def __call__(self, split: str, piece: Piece) -> Tokenised:
        """The rows of a split's piece, with the bytes that the predicted tokens stand for; special tokens have none."""
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        encodings = backend.encode_batch(piece.texts, add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)
        row = np.repeat(np.arange(len(lengths)), lengths)
        position = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)

        spans = _Spans(piece, encodings, row)
        loss = spans.covered & (position > 0)
        first = np.full(len(lengths), np.iinfo(np.int32).max, np.int64)
        np.minimum.at(first, row[loss], position[loss])
        needed = np.where(first < np.iinfo(np.int32).max, first + 1, lengths)  # to keep the row in
        kept = first < self.max_length
        self.needed.add(needed)
        named = self._masked[split]
        named += [piece.place(i) for i in np.flatnonzero(~kept)[: EXAMPLES_SHOWN - len(named)]]

        stay = kept[row] & (position < self.max_length)
        learned = loss & stay
        sizes = spans.bytes_of(learned, learned & np.isin(ids, self.special))
        return Tokenised(
            ids[stay],
            np.minimum(lengths, self.max_length)[kept],
            loss=learned[stay].astype(np.uint8),
            values=sizes[kept].tolist(),
            counts={"masked": int((~kept).sum()), "truncated": int((kept & (lengths > self.max_length)).sum())},
        )

    def finish(self) -> dict[str, Any]:
        """After the last block: what meta.json says more, see `refuse_masked`."""
        places = list(chain.from_iterable(self._masked.values()))[:EXAMPLES_SHOWN]
        return {"masked_places": places, "needed_length": self.needed.quantiles(100)}


class _Spans:
    """Which characters of some texts carry loss, by token. The texts are seen as one, end to end.

    row: [tokens], the text of each token.
    """

    def __init__(self, piece: Piece, encodings: list[Any], row: NDArray[np.int64]) -> None:
        sizes = np.fromiter(map(len, piece.texts), np.int64, len(piece))
        bases = np.cumsum(sizes) - sizes
        pairs = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
        places = np.fromiter(pairs, np.int64, 2 * len(row)).reshape(-1, 2) + bases[row][:, None]
        self.row, self.rows = row, len(piece)
        self.starts, self.ends = np.maximum.accumulate(places, axis=0).T
        counts = np.fromiter(map(len, piece.values), np.int64, len(piece))
        inside = np.fromiter(chain.from_iterable(chain.from_iterable(piece.values)), np.int64, 2 * counts.sum())
        self.spans = inside.reshape(-1, 2) + np.repeat(bases, counts)[:, None]
        self.text = "".join(piece.texts)

    @property
    def covered(self) -> NDArray[np.bool_]:
        """[tokens]: whether a token shares a character with a span."""
        steps = np.zeros(len(self.row) + 1, np.int64)
        first = np.searchsorted(self.ends, self.spans[:, 0], "right")
        last = np.searchsorted(self.starts, self.spans[:, 1], "left")
        np.add.at(steps, first, 1)
        np.add.at(steps, np.maximum(first, last), -1)
        return np.cumsum(steps)[:-1] > 0

    def bytes_of(self, learned: NDArray[np.bool_], special: NDArray[np.bool_]) -> NDArray[np.int64]:
        """[rows]: UTF-8 bytes of the learned tokens, the special ones left out. Where the token before is learned too,
        one begins at its end: space between tokens counts, and a character of several tokens counts once."""
        follows = learned[1:] & learned[:-1] & (self.row[1:] == self.row[:-1])
        begins = self.starts.copy()
        begins[1:][follows] = self.ends[:-1][follows]
        chosen = learned & ~special
        sizes = self._bytes_before(self.ends[chosen]) - self._bytes_before(begins[chosen])
        return np.bincount(self.row[chosen], sizes, self.rows).astype(np.int64)

    def _bytes_before(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """UTF-8 bytes before each character."""
        if self.text.isascii():
            return places
        points = np.frombuffer(self.text.encode("utf-32-le"), np.uint32)
        sizes = 1 + sum((points >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000))
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])[places]
