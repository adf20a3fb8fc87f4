"""Long texts in slices: together the text, each bounded, cut where no tokenizer reads across."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from lmrecipes.data.slices import slices
from lmrecipes.data.tokenizer import WORDS

TEXTS = st.text(alphabet=st.sampled_from("ab1;\n\t  é🎉'"), max_size=300)


@given(TEXTS, st.integers(1, 40))
def test_slices_are_the_text(text: str, most: int) -> None:
    parts = list(slices(text, most))
    assert "".join(parts) == text
    assert all(len(part) <= most for part in parts)
    assert len(parts) == 1 or all(parts)


@given(TEXTS, st.integers(20, 60))
def test_words_are_those_of_the_whole(text: str, most: int) -> None:
    """Under the patterns of GPT-2 and of Llama 3, where every slice ends before a space."""
    parts = list(slices(text, most))
    if all(part.startswith(" ") for part in parts[1:]):
        gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
        llama = pre_tokenizers.Split(Regex(WORDS), "isolated")
        for words in (gpt2, llama):
            whole = [word for word, _ in words.pre_tokenize_str(text)]
            assert [word for part in parts for word, _ in words.pre_tokenize_str(part)] == whole


def test_a_slice_ends_before_a_space_behind_a_word() -> None:
    assert list(slices("one two three", 9)) == ["one two", " three"]
    assert list(slices("one;\n    two", 8)) == ["one;\n   ", " two"], "no such place: cut at the bound"
    assert list(slices("one two\n    three", 13)) == ["one", " two\n    thre", "e"]
    assert list(slices("x" * 25, 10)) == ["x" * 10, "x" * 10, "x" * 5]
    assert list(slices("", 10)) == [""]
