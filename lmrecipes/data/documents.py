"""Documents -> texts for language modelling, in which every token of a document is predicted exactly once.

A document's tokens are [start, *tokens, end]. Texts of at most `max_length` of them follow each other; each begins with
the last token of the one before, which it does not predict again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.rows import BLOCK_CHARACTERS
from lmrecipes.data.slices import slices
from lmrecipes.data.targets import BadRows, Piece
from lmrecipes.data.writer import Tokenised
from lmrecipes.problems import InputError, Problem

Tokenizer = Any


class DocumentEncoder:
    """Texts of a block's documents; a long document is tokenised slice by slice.

    where: the task's source. skip: leave documents without tokens out. Raises InputError for a tokenizer that cannot
    say where a document ends.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, where: str, skip: bool) -> None:
        if tokenizer.eos_token_id is None:
            what = "language modelling needs a token that ends a document, and the tokenizer has no eos_token"
            fix = "use the tokenizer of a causal language model, or set model.tokenizer_vocabulary to train one"
            raise InputError(Problem(where.removesuffix(".source"), what, fix, "tokenizer-no-end"))
        self.tokenizer, self.max_length, self.skip = tokenizer, max_length, skip
        self.end = int(tokenizer.eos_token_id)
        self.start = self.end if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
        self.bad = BadRows(where)

    def __call__(self, split: str, piece: Piece) -> Tokenised:
        """The texts of a split's piece, with the bytes that each one's predicted tokens stand for."""
        documents = [_Document(self.max_length - 1) for _ in piece.texts]
        backend = self.tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        both = zip(documents, piece.texts, strict=True)
        for some in _batches((document, part) for document, text in both for part in slices(text)):
            encodings = backend.encode_batch([part for _, part in some], add_special_tokens=False)
            for (document, part), encoding in zip(some, encodings, strict=True):
                document.add(part, encoding)
        good = [document for document in documents if document.tokens]
        for i, document in enumerate(documents):
            if not document.tokens:
                self.bad.add(piece.place(i), "the tokenizer finds no token in it")
        texts = [text for document in good for text in document.texts(self.start, self.end)]
        return Tokenised(
            np.concatenate(texts) if texts else np.zeros(0, np.int32),
            np.fromiter(map(len, texts), np.int64, len(texts)),
            values=[size for document in good for size in document.sizes()],
            counts={"documents": len(good)},
        )

    def finish(self) -> dict[str, Any]:
        """After the last block: raises InputError for bad documents. Returns what meta.json says more."""
        if not self.skip:
            self.bad.refuse()
        return {"skipped": self.bad.count}


class _Document:
    """The tokens of one document, and the bytes up to each place where a text of it ends.

    stride: tokens that a text predicts at most.
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.tokens = 0
        self._ids: list[NDArray[np.int32]] = []
        self._sizes: list[int] = []
        self._open = 0  # bytes behind the last such place

    def add(self, part: str, encoding: Any) -> None:
        """The document's next slice."""
        self._ids.append(np.array(encoding.ids, np.int32))
        done = 0
        for token in range(-(self.tokens + 1) % self.stride, len(encoding), self.stride):
            # The last predicted token of a text. Tokens may share a character, of which the first then has all bytes.
            end = encoding.token_to_chars(token)[1]
            self._sizes.append(self._open + len(part[done:end].encode()))
            self._open, done = 0, end
        self._open += len(part[done:].encode())
        self.tokens += len(encoding)

    def texts(self, start: int, end: int) -> Iterator[NDArray[np.int32]]:
        """The document in texts of at most stride + 1 tokens."""
        whole = np.concatenate([np.array([start], np.int32), *self._ids, np.array([end], np.int32)])
        for first in range(0, len(whole) - 1, self.stride):
            yield whole[first : first + self.stride + 1]

    def sizes(self) -> list[int]:
        """Bytes of what each text predicts: together the document. The end has none."""
        return [*self._sizes, self._open]


def _batches(parts: Iterable[tuple[_Document, str]]) -> Iterator[list[tuple[_Document, str]]]:
    """Parts in lists of about as many characters as a block has."""
    held: list[tuple[_Document, str]] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part[1])
        if size >= BLOCK_CHARACTERS:
            yield held
            held, size = [], 0
    if held:
        yield held
