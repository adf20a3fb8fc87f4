"""Chat: what carries loss is what the assistant says, with the token that ends its turn, whatever the template."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import FAMILIES, LLAMA2, MARKED, PLAIN, THINKS, byte_level, pieces

from lmrecipes.data.chat import ChatEncoder, ChatRenderer
from lmrecipes.data.conversations import BadRow, Conversation, read_conversation
from lmrecipes.data.targets import Piece, Rendered
from lmrecipes.data.tokenizer import CHATML
from lmrecipes.data.writer import Tokenised
from lmrecipes.problems import InputError
from lmrecipes.recipe import Task

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi, the cat?"},
    {"role": "assistant", "content": "Wörter 🎉"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "  return x\n"},
]


def task(supervise: str = "assistant") -> Task:
    return Task.model_validate({"kind": "chat", "source": {"files": "x"}, "supervise": supervise})


def with_template(template: str | None, tokenizer: Any = None) -> Any:
    changed = copy.copy(tokenizer or byte_level())
    changed.chat_template = template
    return changed


def rendered(
    template: str, talk: list[dict[str, Any]], supervise: str = "assistant", tokenizer: Any = None
) -> Rendered:
    conversation = read_conversation({"turns": talk})
    return ChatRenderer(with_template(template, tokenizer), "t", task(supervise))(conversation)


def learned(template: str, talk: list[dict[str, Any]], supervise: str = "assistant") -> list[str]:
    text, spans = rendered(template, talk, supervise)
    return [text[start:end] for start, end in spans]


def piece_of(*conversations: Rendered) -> Piece:
    texts, spans = [one.text for one in conversations], [one.spans for one in conversations]
    numbers = list(range(len(texts)))
    return Piece(texts, None, spans, numbers, numbers, lambda i: f"row {i}")


def encoded(tokenizer: Any, max_length: int, *conversations: Rendered) -> tuple[Tokenised, ChatEncoder]:
    encoder = ChatEncoder(tokenizer, max_length)
    return encoder("train", piece_of(*conversations)), encoder


def test_the_turn_and_its_end_carry_loss() -> None:
    assert learned(CHATML, TALK) == ["Wörter 🎉<|im_end|>", "  return x\n<|im_end|>"]
    text = rendered(CHATML, TALK).text
    assert text == byte_level().apply_chat_template(TALK, tokenize=False)
    assert learned(MARKED, TALK) == learned(CHATML, TALK), "as a template with generation blocks says it"
    inside = MARKED.replace("<|im_end|>{% endgeneration %}", "<|im_end|>\n{% endgeneration %}")
    assert learned(inside, TALK) == learned(CHATML, TALK), "space behind the end is nothing to learn"


def test_where_no_token_ends_a_turn_its_space_does() -> None:
    assert learned(PLAIN, TALK[1:]) == ["Wörter 🎉\n\n", "  return x\n\n\n"]


@pytest.mark.parametrize("template", [CHATML, MARKED, PLAIN])
def test_only_the_last_turn(template: str) -> None:
    assert learned(template, TALK, "last_assistant") == learned(template, TALK)[1:]


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_turns_without_loss(template: str) -> None:
    talk = [*TALK[:2], {**TALK[2], "weight": 0}, *TALK[3:]]
    assert learned(template, talk) == learned(template, TALK)[1:]
    assert learned(template, [*talk[:3], TALK[4]]) == ["  return x\n<|im_end|>"]


def test_a_template_that_writes_a_turn_in_another_way_later() -> None:
    with pytest.raises(InputError) as caught:
        rendered(THINKS, TALK)
    (problem,) = caught.value.problems
    assert (problem.where, problem.id) == ("model.chat_template", "chat-template-prefix")
    assert "<think>" in problem.what
    assert "{% generation %}" in problem.fix
    assert "tasks.t.supervise to last_assistant" in problem.fix
    assert learned(THINKS, TALK[:3]) == ["<think>\n\n</think>\n\nWörter 🎉<|im_end|>"]
    assert learned(THINKS, TALK, "last_assistant") == ["<think>\n\n</think>\n\n  return x\n<|im_end|>"]


def test_a_generation_prompt_that_no_turn_begins_with() -> None:
    template = CHATML.replace("assistant\\n'", "assistant\\n<think>'")
    with pytest.raises(InputError, match="another way than its generation prompt does \\('<think>' against") as caught:
        rendered(template, TALK[:3], "last_assistant")
    assert "last_assistant" not in caught.value.problems[0].fix, "which would not help"


def test_generation_blocks_that_are_not_one_a_turn() -> None:
    once = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    assert len(learned(once, TALK)) == 1, "the template decides"
    with pytest.raises(InputError, match="1 generation blocks for 2 turns"):
        learned(once, [*TALK[:2], {**TALK[2], "weight": 0}, *TALK[3:]])


def test_what_the_template_refuses_is_a_bad_row() -> None:
    with pytest.raises(BadRow, match=r"the chat template refuses it \(no system turns, please\)"):
        rendered(LLAMA2, TALK, tokenizer=pieces())
    text, spans = rendered(LLAMA2, TALK[1:], tokenizer=pieces())
    assert text.startswith("<s>[INST]")
    assert [text[a:b] for a, b in spans] == [" Wörter 🎉 </s>", " return x </s>"]


def test_no_template() -> None:
    with pytest.raises(InputError, match=r"no chat template, which tasks\.t needs") as caught:
        ChatRenderer(with_template(None), "t", task())
    assert caught.value.problems[0].where == "model.chat_template"


def test_the_date_is_always_the_same() -> None:
    dated = "{{ strftime_now('%d %B %Y') }}\n" + CHATML
    assert rendered(dated, TALK).text.startswith("01 January 2025\n")


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_whole_text(family: str) -> None:
    tokenizer = FAMILIES[family]()
    found, _ = encoded(tokenizer, 1000, rendered(CHATML, TALK, tokenizer=tokenizer))
    assert found.ids.tolist() == tokenizer.apply_chat_template(TALK)["input_ids"]
    assert found.lengths.tolist() == [len(found.ids)]
    assert found.loss is not None
    predicted = [int(token) for token, on in zip(found.ids, found.loss, strict=True) if on]
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>")] * 2
    assert [token for token in predicted if token in ends] == ends
    assert found.counts == {"masked": 0, "truncated": 0}


def test_what_is_learned_decodes_to_what_the_assistant_says() -> None:
    found, _ = encoded(byte_level(), 1000, rendered(CHATML, TALK), rendered(CHATML, TALK[:3]))
    assert found.loss is not None
    said = byte_level().decode(found.ids[found.loss > 0])
    assert said == "Wörter 🎉<|im_end|>  return x\n<|im_end|>Wörter 🎉<|im_end|>"
    sizes = [len("Wörter 🎉".encode()), len("  return x\n")]
    assert list(found.values) == [sum(sizes), sizes[0]], "special tokens stand for no text"


WORD = st.text(alphabet=st.sampled_from("abcxy öé🎉.\n{}1"), min_size=1, max_size=12).filter(lambda text: text.strip())


@settings(deadline=None, max_examples=150)
@given(
    talks=st.lists(st.lists(WORD, min_size=2, max_size=6), min_size=1, max_size=4),
    max_length=st.integers(2, 60),
    family=st.sampled_from(list(FAMILIES)),
    template=st.sampled_from([CHATML, MARKED, PLAIN]),
)
def test_spans_tokens_and_bytes_agree(talks: list[list[str]], max_length: int, family: str, template: str) -> None:
    """Against the slow way: token by token, by the tokenizer's own offsets."""
    tokenizer = FAMILIES[family]()
    conversations = []
    for contents in talks:
        turns = [{"role": ("user", "assistant")[i % 2], "content": said} for i, said in enumerate(contents)]
        conversations.append(rendered(template, turns, tokenizer=tokenizer))
    found, encoder = encoded(tokenizer, max_length, *conversations)
    assert found.loss is not None
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids, loss, masked, values = [], [], [], []
    for number, (text, spans) in enumerate(conversations):
        one = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        on = [
            int(j > 0 and any(start < b and end > a for a, b in spans))
            for j, (start, end) in enumerate(one["offset_mapping"])
        ]
        if not any(on[:max_length]):
            masked.append(number)
            continue
        ids += one["input_ids"][:max_length]
        loss += on[:max_length]
        places: set[int] = set()
        for j in range(min(len(on), max_length)):
            start, end = one["offset_mapping"][j]
            if on[j] and one["input_ids"][j] not in special:
                start = one["offset_mapping"][j - 1][1] if on[j - 1] else start
                places |= set(range(start, end))
        values.append(sum(len(text[place].encode()) for place in places))
    assert found.ids.tolist() == ids
    assert found.loss.tolist() == loss
    assert list(found.values) == values
    assert found.counts["masked"] == len(masked)
    assert encoder.finish()["masked_places"] == [f"row {number}" for number in masked][:3]


def test_rows_that_lose_all_loss_are_left_out_and_named() -> None:
    short, long = rendered(CHATML, TALK[1:3]), rendered(CHATML, [{"role": "user", "content": "a 1 " * 30}, TALK[2]])
    whole, _ = encoded(byte_level(), 1000, short, long)
    needed = [int(np.flatnonzero(part)[0]) + 1 for part in np.split(whole.loss, [whole.lengths[0]])]
    found, encoder = encoded(byte_level(), needed[1] - 1, long, short, long, long, long)
    assert found.counts == {"masked": 4, "truncated": 0}
    assert found.lengths.tolist() == [whole.lengths[0]]
    more = encoder.finish()
    assert more["masked_places"] == ["row 0", "row 2", "row 3"]
    assert more["needed_length"][20] == needed[0]
    assert more["needed_length"][21] == more["needed_length"][100] == needed[1]
    kept, _ = encoded(byte_level(), needed[1], long)
    assert kept.counts == {"masked": 0, "truncated": 1}
    assert kept.loss is not None
    assert (kept.loss.sum(), kept.loss[-1]) == (1, 1)


def test_nothing_learned_before_the_first_token() -> None:
    """A text that begins with the assistant: its first token is not predicted."""
    found, _ = encoded(byte_level(), 100, Rendered("the cat", [(0, 7)]))
    assert found.loss is not None
    assert found.loss.tolist() == [0] + [1] * (len(found.ids) - 1)


def test_contents_of_a_conversation() -> None:
    assert Conversation(TALK, (2,)).contents() == [turn["content"] for turn in TALK]
