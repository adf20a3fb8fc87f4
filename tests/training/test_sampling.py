"""Samples: which texts, where they are cut, and that what is shown is the text itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.data.encoded import EncodedSplit, EncodedTask
from lmrecipes.recipe import Recipe, TaskKind
from lmrecipes.tracking.samples import Sample, SamplesFile, read_samples
from lmrecipes.training.sampling import LONGEST, SHORTEST, Samples

END, START, TURN_ENDS = 256, 257, 258
Text = tuple[list[int], list[int]]
"""Tokens, and 1 for each that carries loss."""


@pytest.fixture(scope="session")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer of single bytes and three special tokens; token b is byte b."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    of_byte = {letter: byte for byte in range(256) for letter in [_letter(byte)]}
    assert sorted(of_byte) == letters
    tokenizer = Tokenizer(models.BPE(of_byte, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("bytes")
    special = ["<|im_start|>", "<|im_end|>"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=special, eos_token="<|end|>"
    ).save_pretrained(folder)
    return str(folder)


def _letter(byte: int) -> str:
    """The letter that stands for a byte in byte-level tokenizers (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in shown else chr(256 + [b for b in range(256) if b not in shown].index(byte))


class FakeEngine:
    """Continues every prompt with the same tokens."""

    def __init__(self, following: list[int] | None = None, is_main: bool = True) -> None:
        self.following = following if following is not None else list(b" and so on, for ever and ever")
        self.is_main = is_main
        self.calls: list[tuple[list[list[int]], int]] = []

    def generate(self, prompts: list[list[int]], most: int) -> list[list[int]]:
        self.calls.append((prompts, most))
        return [self.following[:most] for _ in prompts]


def make_task(folder: Path, kind: TaskKind, texts: list[Text], max_length: int | None = None) -> EncodedTask:
    """An encoded task whose validation split holds these texts."""
    folder.mkdir(exist_ok=True)
    parts = {
        "tokens": np.concatenate([np.array(tokens, np.int32) for tokens, _ in texts]),
        "offsets": np.cumsum([0, *(len(tokens) for tokens, _ in texts)]),
    }
    if kind == "chat":
        parts["loss"] = np.concatenate([np.array(loss, np.uint8) for _, loss in texts])
    for part, values in parts.items():
        np.save(folder / f"validation.{part}.npy", values)
    task = make_recipe(kind, max_length=max_length).tasks["task"]
    splits = {"validation": EncodedSplit(folder, "validation")}
    return EncodedTask("task", task, (), 0, {}, {}, splits, unigram=5.0)


def make_recipe(kind: TaskKind, samples: int = 3, most: int = 12, max_length: int | None = None) -> Recipe:
    task = {"kind": kind, "source": {"files": "x.jsonl"}, "max_length": max_length}
    evaluation = {"samples": samples, "sample_tokens": most}
    return Recipe.model_validate(
        {"name": "toy", "tasks": {"task": task}, "evaluation": evaluation, "model": {"max_length": 256}}
    )


def document(text: str) -> Text:
    return [END, *text.encode(), END], []


def conversation(*turns: tuple[str, str]) -> Text:
    """Turns in ChatML; the assistant's carry loss, with the token that ends them."""
    tokens, loss = [], []
    for role, said in turns:
        head, body = [START, *f"{role}\n".encode()], [*said.encode(), TURN_ENDS]
        tokens += [*head, *body, *b"\n"]
        loss += [0] * len(head) + [int(role == "assistant")] * len(body) + [0]
    return tokens, loss


def test_language_modelling_continues_the_first_quarter(tmp_path: Path, bytes_tokenizer: str) -> None:
    text = "It was the best of times, it was the worst of times, it was the age of wisdom."
    task, engine = make_task(tmp_path, "language_modelling", [document(text)]), FakeEngine()
    (sample,) = Samples(make_recipe("language_modelling"), {"task": task}, bytes_tokenizer).draw(engine, 30)
    given_tokens = (len(text) + 2) // 4
    assert engine.calls == [([[END, *text.encode()[: given_tokens - 1]]], 12)]
    assert sample == Sample(30, "task", text[: given_tokens - 1], " and so on, ", text[given_tokens - 1 :][:12])


@pytest.mark.parametrize(("tokens", "given_tokens"), [(2, 1), (6, 5), (20, SHORTEST), (100, 25), (250, 62)])
def test_how_much_of_a_text_is_given(tokens: int, given_tokens: int, tmp_path: Path, bytes_tokenizer: str) -> None:
    task, engine = make_task(tmp_path, "language_modelling", [([65] * tokens, [])]), FakeEngine()
    (sample,) = Samples(make_recipe("language_modelling"), {"task": task}, bytes_tokenizer).draw(engine, 1)
    assert engine.calls[0][0] == [[65] * given_tokens]
    assert len(sample.reference) == min(12, tokens - given_tokens)
    assert given_tokens <= LONGEST


def test_chat_answers_at_the_end_of_the_conversation(tmp_path: Path, bytes_tokenizer: str) -> None:
    talk = conversation(
        ("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "How?"), ("assistant", "Well.")
    )
    engine = FakeEngine([*b"Fine.", TURN_ENDS, *b"\nmore"])
    task = make_task(tmp_path, "chat", [talk])
    (sample,) = Samples(make_recipe("chat"), {"task": task}, bytes_tokenizer).draw(engine, 2)
    assert sample.prompt == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (sample.continuation, sample.reference) == ("Fine.", "Well."), "up to the end of the turn"


def test_a_turn_without_room_for_an_answer_is_passed_over(tmp_path: Path, bytes_tokenizer: str) -> None:
    """max_length cut the conversation in its last turn; the model may not be able to go further than that."""
    turns = [("user", "a"), ("assistant", "first"), ("user", "b"), ("assistant", "second, and cut off")]
    tokens, loss = conversation(*turns)
    cut = len(loss) - loss[::-1].index(1) - len(" and cut off<")  # one token ends the turn
    room = cut + 5
    task = make_task(tmp_path, "chat", [(tokens[:cut], loss[:cut])], max_length=room)
    recipe = make_recipe("chat", max_length=room)
    (sample,) = Samples(recipe, {"task": task}, bytes_tokenizer).draw(FakeEngine(), 1)
    assert sample.prompt.endswith("b<|im_end|>\n<|im_start|>assistant\n") and sample.reference == "second,"
    recipe, engine = make_recipe("chat", most=13), FakeEngine()
    (sample,) = Samples(recipe, {"task": task}, bytes_tokenizer).draw(engine, 1)
    assert sample.reference == "first" and engine.calls[0][1] == 13
    recipe, engine = make_recipe("chat", most=100), FakeEngine()
    (sample,) = Samples(recipe, {"task": task}, bytes_tokenizer).draw(engine, 1)
    ((prompt,), most) = engine.calls[0]
    assert sample.reference == "first" and len(prompt) + most == room, "no turn has room: less is generated"


@given(text=st.text(min_size=3, max_size=80).filter(lambda text: "\ufffd" not in text), kept=st.integers(0, 12))
def test_prompt_and_reference_are_the_text_whole(
    text: str, kept: int, tmp_path_factory: pytest.TempPathFactory, bytes_tokenizer: str
) -> None:
    """Also where a character's bytes lie on both sides of the cut, or the reference ends inside of one."""
    tokens, _ = document(text)
    most = max(1, len(tokens) - kept)
    task = make_task(tmp_path_factory.mktemp("text"), "language_modelling", [(tokens, [])], max_length=1000)
    recipe = make_recipe("language_modelling", most=most)
    (sample,) = Samples(recipe, {"task": task}, bytes_tokenizer).draw(FakeEngine([]), 1)
    given_tokens = min(max(8, len(tokens) // 4), 64, len(tokens) - 1)
    whole = text.encode()[: given_tokens - 1 + most].decode(errors="ignore")
    assert sample.prompt + sample.reference == whole
    assert sample.continuation == ""


def test_the_same_texts_every_time_and_as_many_as_asked_for(tmp_path: Path, bytes_tokenizer: str) -> None:
    texts = [document(f"Text number {number} of all that there are.") for number in range(50)]
    task = make_task(tmp_path, "language_modelling", texts)

    def drawn(samples: int) -> list[str]:
        recipe = make_recipe("language_modelling", samples)
        return [s.prompt + s.reference for s in Samples(recipe, {"task": task}, bytes_tokenizer).draw(FakeEngine(), 1)]

    assert drawn(5) == drawn(5) and len(set(drawn(5))) == 5
    assert set(drawn(5)) < set(drawn(9)), "more samples are the same and others"
    assert len(drawn(60)) == 50


def test_nothing_to_sample(tmp_path: Path, bytes_tokenizer: str) -> None:
    task = make_task(tmp_path, "language_modelling", [document("A text that is long enough.")])
    engine = FakeEngine()
    none = Samples(make_recipe("language_modelling", samples=0), {"task": task}, bytes_tokenizer)
    assert not none and none.draw(engine, 1) == [] and engine.calls == []
    labelled = make_recipe("classification", samples=0)
    other = EncodedTask("task", labelled.tasks["task"], ("a",), 0, {}, {}, task.splits, unigram=None)
    assert not Samples(labelled, {"task": other}, bytes_tokenizer)


def test_other_ranks_generate_too_and_return_nothing(tmp_path: Path) -> None:
    task = make_task(tmp_path, "language_modelling", [document("A text that is long enough.")])
    engine = FakeEngine(is_main=False)
    samples = Samples(make_recipe("language_modelling"), {"task": task}, "no tokenizer is loaded")
    assert samples and samples.draw(engine, 1) == [] and len(engine.calls) == 1


def test_a_resumed_run_drops_the_samples_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    made = [Sample(step, "task", "Once\u2028\n", f"upon {step}", '"a" time') for step in (0, 10, 20, 30)]
    with SamplesFile(path) as file:
        file.write(made[:2])
        file.write(made[2:])
    assert read_samples(path) == made
    with SamplesFile(path, resumed_at=20) as file:
        assert read_samples(path) == made[:3]
        file.write([])
        file.write(made[3:])
    assert read_samples(path) == made
    assert read_samples(tmp_path / "none.jsonl") == []
