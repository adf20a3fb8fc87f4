"""The tokenizer of a recipe: one that is named, that of the pretrained model, or one trained on the tasks' texts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from lmrecipes.assets import cache_root, resolve_model
from lmrecipes.data.progress import progress_in_rows
from lmrecipes.data.slices import slices
from lmrecipes.data.sources import open_rows, source_state
from lmrecipes.data.targets import CheckedRows, Piece
from lmrecipes.files import written_at_once
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Model, Recipe

log = logging.getLogger(__name__)

TOKENIZER_VERSION = 1
"""Part of a trained tokenizer's fingerprint: raise it when another one comes of the same texts."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip
SAMPLE_CHARACTERS = 200_000_000
"""Most characters that a tokenizer is trained on, the same share for each task."""
END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What no token reaches across: the pattern of cl100k and Llama 3."""
CHATML = """\
{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
"""The chat template of trained tokenizers."""
Tokenizer = Any


def tokenizer_of(recipe: Recipe, progress: bool = True) -> str | None:
    """What `load_tokenizer` takes: a folder or a hub name. Trains and caches one where the recipe asks for it. None
    where no task needs one and none is named."""
    if not any(task.needs_tokenizer for task in recipe.tasks.values()) and recipe.model.tokenizer is None:
        return None
    if recipe.model.tokenizer_vocabulary:
        return str(_trained(recipe, progress))
    return resolve_model(recipe.model.tokenizer or recipe.model.pretrained)


def vocabulary_of(recipe: Recipe) -> int:
    """How many token ids the recipe's model knows. Raises InputError where it, or its tokenizer, does not load."""
    from transformers import AutoConfig

    model = recipe.model
    if model.mlp.hidden:
        return model.mlp.levels
    if isinstance(size := model.config.get("vocab_size"), int):
        return size
    if (name := tokenizer_of(recipe)) is not None and model.from_scratch and (model.config or model.tokenizer):
        return len(load_tokenizer(name, where=tokenizer_field(model)))
    where = resolve_model(model.pretrained)
    try:
        return int(AutoConfig.from_pretrained(where).get_text_config().vocab_size)
    except (OSError, ValueError) as error:
        raise InputError(model_problem(where, error)) from None


def tokenizer_field(model: Model) -> str:
    """The field of a recipe that names its tokenizer."""
    return "model.tokenizer" if model.tokenizer else "model.pretrained"


def load_tokenizer(name: str, chat_template: str | None = None, where: str = "model.pretrained") -> Tokenizer:
    """The fast tokenizer of a folder or a hub name, with the chat template of a file in place of its own.

    where: the field of the recipe that names it. Raises InputError.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(model_problem(name, error, where)) from None
    if not tokenizer.is_fast:
        raise InputError(model_problem(name, ValueError("it has no fast tokenizer (tokenizer.json)"), where))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    return tokenizer


def read_template(path: str) -> str:
    """The content of `model.chat_template`."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"{path!r} cannot be read ({error})"
        fix = "name a file with a Jinja chat template, relative to the working directory"
        raise InputError(Problem("model.chat_template", what, fix, "chat-template-file")) from None


def model_problem(name: str, error: Exception, where: str = "model.pretrained") -> Problem:
    """A model or tokenizer that does not load, as a problem with a fix."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True") else ""
    return Problem(
        where,
        f"{name!r} could not be loaded{offline}: {first}",
        "use an asset (`lmrecipes assets`), a local folder, or a hub name on a machine with a network",
        "model-missing",
    )


def tokenizer_state(name: str, where: str) -> list[Any]:
    """What changes when the tokenizer does; of a hub name only the name. Raises InputError for a folder without one."""
    folder = Path(name)
    if not folder.is_dir():
        return [name]
    files = [folder / file for file in TOKENIZER_FILES]
    state = [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files if file.is_file()]
    if not state:  # transformers would make a tokenizer without a vocabulary from config.json
        raise InputError(model_problem(name, FileNotFoundError("the folder holds no tokenizer"), where))
    return state


def _trained(recipe: Recipe, progress: bool) -> Path:
    """The folder of the tokenizer trained for a recipe, from the cache or trained now."""
    size, chats = recipe.model.tokenizer_vocabulary, any(task.kind == "chat" for task in recipe.tasks.values())
    read = [[task.kind, source_state(task.source)] for task in recipe.tasks.values()]
    decides = json.dumps([TOKENIZER_VERSION, SAMPLE_CHARACTERS, size, chats, read], sort_keys=True)
    folder = cache_root() / "tokenizers" / hashlib.sha256(decides.encode()).hexdigest()[:24]
    if not (folder / "tokenizer.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "tokenizer.json").exists():
                log.info("training a tokenizer of %s tokens on the tasks' texts", f"{size:,}")
                sample = training_sample(recipe, SAMPLE_CHARACTERS, progress)
                with written_at_once(folder) as partial:
                    train_tokenizer(sample, size, chats).save_pretrained(partial)
    return folder


def training_sample(recipe: Recipe, most: int, progress: bool = False) -> Iterator[str]:
    """Texts of the training splits, of each task at most its part of so many characters: those of smallest hash.

    Raises InputError for bad rows, as encoding does.
    """
    tasks = {name: task for name, task in recipe.tasks.items() if task.needs_tokenizer}
    for name, task in tasks.items():
        checked = CheckedRows(name, task, open_rows(name, task))
        sample = _Sample(most // len(tasks))
        with progress_in_rows(f"reading {name} for the tokenizer", checked.total, progress) as advance:
            for rows, pieces in checked.blocks():
                piece = pieces.get("train", Piece())
                pairs = piece.pairs or [""] * len(piece)
                for key, text, pair in zip(piece.keys, piece.texts, pairs, strict=True):
                    if text is not None:  # a row of media may lack it
                        sample.add(key, f"{text} {pair}" if pair else text)
                advance(rows)
        checked.finish()
        for text in sample.texts():
            yield from slices(text)


class _Sample:
    """Texts whose hash lies below a bound, which halves each time that they are more than `most` characters."""

    def __init__(self, most: int) -> None:
        self.most, self.bound, self.held = most, 1 << 64, 0
        self._kept: list[tuple[int, str]] = []

    def add(self, key: int, text: str) -> None:
        if key >= self.bound:
            return
        self._kept.append((key, text))
        self.held += len(text)
        while self.held > self.most and len(self._kept) > 1:
            self.bound //= 2
            self._kept = [(key, text) for key, text in self._kept if key < self.bound]
            self.held = sum(len(text) for _, text in self._kept)

    def texts(self) -> Iterator[str]:
        return (text for _, text in self._kept)


def train_tokenizer(texts: Iterable[str], size: int, chats: bool) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `size` tokens (arXiv 1508.07909; bytes as in GPT-2): every text can be said
    with it, and the same texts give the same tokenizer.

    chats: whether it gets the marks of ChatML and its template; then a turn's end is its `eos_token`.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"), bytes_of])
    backend.decoder = decoders.ByteLevel()
    special = [END, TURN, TURN_END] if chats else [END]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    names = {"bos_token": END, "eos_token": special[-1], "pad_token": END}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)
    if chats:
        tokenizer.chat_template = CHATML
    return tokenizer
