"""Small tokenizers of different families, with chat templates of different habits."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lmrecipes.data.tokenizer import CHATML, train_tokenizer

TEXTS = ["the cat sat on the mat. The dog said: Wörter, 🎉! " * 3, "def f(x):\n    return x + 1\n" * 3]

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
"""Without special tokens: an empty line ends a turn."""
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no ' + m.role + ' turns, please') }}{% endif %}{% endfor %}"
)
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Thoughts stand in the last turn only, as Qwen3 has it."""


@cache
def byte_level() -> Any:
    """As GPT-2 and Llama 3: bytes, ChatML."""
    return train_tokenizer(TEXTS, 400, chats=True)


@cache
def trimmed() -> Any:
    """As RoBERTa: spaces are in no token's offsets."""
    tokenizer = train_tokenizer(TEXTS, 420, chats=True)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


@cache
def pieces() -> Any:
    """As Llama 2: a space before the text, words with their space, marks of begin and end that it adds itself."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = [chr(code) for code in range(33, 127)] + ["\n", "▁", "ö", "ü", "é", "🎉"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=["<|im_start|>", "<|im_end|>"], **names
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@cache
def words() -> Any:
    """Words that spaces part; what is no word has no token. No mark of the begin."""
    backend = Tokenizer(models.WordLevel({"[END]": 0, "[UNK]": 1, "one": 2, "two": 3, "three": 4}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("~", "removed")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[END]", unk_token="[UNK]")


FAMILIES = {"byte_level": byte_level, "trimmed": trimmed, "pieces": pieces}
