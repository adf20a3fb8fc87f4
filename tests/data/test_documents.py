"""Language modelling: every token of a document predicted once, in order, and every byte counted once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import FAMILIES, byte_level, words

from lmrecipes.data import documents as module
from lmrecipes.data.documents import DocumentEncoder
from lmrecipes.data.slices import slices
from lmrecipes.data.targets import Piece
from lmrecipes.data.writer import Tokenised
from lmrecipes.problems import InputError

TEXTS = st.text(alphabet=st.sampled_from("abcdehot  \nöé🎉.{}1"), min_size=1, max_size=120)


def encoded(texts: list[str], tokenizer: Any, max_length: int) -> tuple[Tokenised, DocumentEncoder]:
    encoder = DocumentEncoder(tokenizer, max_length, "tasks.t.source", skip=True)
    piece = Piece(texts, None, [None] * len(texts), [0] * len(texts), list(range(len(texts))), lambda i: f"row {i}")
    return encoder("train", piece), encoder


def parts(found: Tokenised) -> list[list[int]]:
    return [part.tolist() for part in np.split(found.ids, np.cumsum(found.lengths)[:-1])]


def documents_of(found: Tokenised, max_length: int, start: int, end: int) -> list[list[int]]:
    """The documents put together again: a text that begins with what the former ends with goes on with it."""
    whole: list[list[int]] = []
    for text in parts(found):
        assert 2 <= len(text) <= max_length
        if whole and whole[-1][-1] != end and len(whole[-1]) > 1:
            assert text[0] == whole[-1][-1]
            whole[-1] += text[1:]
        else:
            assert text[0] == start
            whole.append(text)
    return whole


@settings(deadline=None, max_examples=150)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4), max_length=st.integers(2, 40), family=st.sampled_from(list(FAMILIES))
)
def test_every_token_is_predicted_once_and_every_byte_counted_once(
    texts: list[str], max_length: int, family: str
) -> None:
    tokenizer = FAMILIES[family]()
    found, _ = encoded(texts, tokenizer, max_length)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    wanted = [[start, *tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts]
    assert documents_of(found, max_length, start, end) == wanted
    assert (found.lengths - 1).sum() == sum(len(document) - 1 for document in wanted)
    assert found.counts == {"documents": len(texts)}
    assert len(found.values) == len(found.lengths)
    ends = np.cumsum([-(-(len(document) - 1) // (max_length - 1)) for document in wanted])
    sizes = [sum(part) for part in np.split(np.array(found.values), ends[:-1])]
    assert sizes == [len(text.encode()) for text in texts]


@settings(deadline=None, max_examples=60)
@given(text=st.text(alphabet=st.sampled_from("ab cd\nö"), min_size=1, max_size=300), at_once=st.integers(1, 50))
def test_slices_and_batches_change_nothing(text: str, at_once: int) -> None:
    whole, _ = encoded([text, "b"], byte_level(), 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_CHARACTERS", at_once)
        patch.setattr(module, "slices", lambda text: slices(text, 40))
        cut, _ = encoded([text, "b"], byte_level(), 9)
    assert sum(cut.values) == sum(whole.values)
    if all(part.startswith(" ") for part in list(slices(text, 40))[1:]):
        assert cut.ids.tolist() == whole.ids.tolist()
        assert list(cut.values) == list(whole.values)


def test_bytes_are_those_of_the_texts() -> None:
    text = "the cat sat. Wörter 🎉! return"
    tokenizer = byte_level()
    found, _ = encoded([text], tokenizer, 5)
    decoded = [tokenizer.backend_tokenizer.decode(part[1:], skip_special_tokens=True) for part in parts(found)]
    for said, size in zip(decoded, found.values, strict=True):
        if "\ufffd" not in said:
            assert len(said.encode()) == size
    assert sum(found.values) == len(text.encode())


def test_without_a_begin_a_document_starts_with_the_end() -> None:
    found, _ = encoded(["one two", "three"], words(), 8)
    assert parts(found) == [[0, 2, 3, 0], [0, 4, 0]]


def test_documents_without_tokens_are_bad_rows() -> None:
    found, encoder = encoded(["one", "~~", "two", "~"], words(), 8)
    assert parts(found) == [[0, 2, 0], [0, 3, 0]]
    assert found.counts == {"documents": 2}
    assert encoder.finish() == {"skipped": 2}
    encoder.skip = False
    with pytest.raises(InputError, match=r"2 bad row\(s\): row 1: the tokenizer finds no token in it; row 3:"):
        encoder.finish()
    nothing, _ = encoded(["~"], words(), 8)
    assert (len(nothing.ids), len(nothing.lengths), nothing.values) == (0, 0, [])


def test_a_tokenizer_without_an_end() -> None:
    class Endless:
        eos_token_id = None
        bos_token_id = 1

    with pytest.raises(InputError, match="has no eos_token") as caught:
        DocumentEncoder(Endless(), 8, "tasks.t.source", skip=False)
    assert caught.value.problems[0].where == "tasks.t"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_marks_that_the_tokenizer_adds_are_not_doubled(family: Callable[[], Any]) -> None:
    tokenizer = family()
    found, _ = encoded(["the cat"], tokenizer, 64)
    ids = found.ids.tolist()
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
