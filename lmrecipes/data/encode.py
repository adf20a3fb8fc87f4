"""Encoded examples: every task tokenised once into memory-mapped arrays, keyed by a hash of all that decides them.

A task's folder holds, for each split, `<split>.tokens.npy` (int32, all texts end to end), `<split>.offsets.npy` (int64
[n + 1]), `<split>.targets.npy` and, for text pairs, `<split>.types.npy` (uint8 segment of each token); `meta.json` says
the labels and counts. The folder is written under a temporary name and renamed: it is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from lmrecipes.assets import cache_root, resolve_model
from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.data.sources import SPLITS, read_rows, source_state
from lmrecipes.data.targets import Examples, TaskData, build_task_data
from lmrecipes.files import sync_folder
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe, Task

ENCODING_VERSION = 2
"""Part of every fingerprint: raise it when this module or `targets` writes something else from the same input."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
CHUNK = 2000
"""Texts tokenised at once, between two moves of the progress bar."""

Tokenizer = Any


@dataclass(frozen=True)
class EncodedSplit:
    """One split of one task, memory-mapped."""

    folder: Path
    split: str

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """All token ids, end to end."""
        return self._load("tokens")

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """[n + 1]: text i is tokens[offsets[i]:offsets[i + 1]]."""
        return self._load("offsets")

    @cached_property
    def targets(self) -> NDArray[Any]:
        """float32 [n], int32 [n] or uint8 [n, labels]."""
        return self._load("targets")

    @cached_property
    def types(self) -> NDArray[np.uint8] | None:
        """Segment of each token, for text pairs."""
        return self._load("types") if (self.folder / f"{self.split}.types.npy").exists() else None

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, [n]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sample(self, most: int | None, purpose: str) -> NDArray[np.int64]:
        """Row numbers in order: all, or the `most` of smallest hash; the same rows for every recipe and seed."""
        rows = np.arange(len(self), dtype=np.int64)
        if most is None or most >= len(rows):
            return rows
        return np.sort(np.argsort(hash_uniform(hash_key(purpose, self.split), rows), kind="stable")[:most])

    def _load(self, part: str) -> NDArray[Any]:
        return np.asarray(np.load(self.folder / f"{self.split}.{part}.npy", mmap_mode="r"))  # slices faster than memmap


@dataclass(frozen=True)
class EncodedTask:
    """A task ready to be trained on. counts[split]: rows, tokens, truncated."""

    name: str
    task: Task
    labels: tuple[str, ...]
    skipped: int
    counts: dict[str, dict[str, int]]
    splits: dict[str, EncodedSplit]

    @property
    def train(self) -> EncodedSplit:
        """The training split."""
        return self.splits["train"]


def encode_tasks(recipe: Recipe, progress: bool = True) -> dict[str, EncodedTask]:
    """Every task of the recipe, from the cache or encoded now. Problems of all tasks are collected, then raised.

    Safe for processes that race: the first encodes under a file lock, the others wait and read.
    """
    tokenizer_at = resolve_model(recipe.model.pretrained)
    fingerprint_of_tokenizer = _tokenizer_state(tokenizer_at)
    load = _LazyTokenizer(tokenizer_at)
    encoded, problems = {}, []
    for name, task in recipe.tasks.items():
        try:
            encoded[name] = _encode_task(name, task, recipe, fingerprint_of_tokenizer, load, progress)
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(dict.fromkeys(problems))  # a model that does not load is said once
    return encoded


def training_rows(tasks: dict[str, EncodedTask]) -> dict[str, int]:
    """Rows of each task's training split."""
    return {name: len(task.train) for name, task in tasks.items()}


def task_texts(recipe: Recipe) -> dict[str, TaskData]:
    """The checked texts and targets of every task, before tokenising (for baselines that read text)."""
    return {name: build_task_data(name, task, read_rows(name, task)) for name, task in recipe.tasks.items()}


class _LazyTokenizer:
    """Loads the tokenizer at its first use: a run on cached data never needs it."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.name)


def load_tokenizer(name: str) -> Tokenizer:
    """The fast tokenizer of an asset's folder, a local folder or a hub name."""
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(model_problem(name, error)) from None
    if not tokenizer.is_fast:
        raise InputError(model_problem(name, ValueError("it has no fast tokenizer (tokenizer.json)")))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_problem(name: str, error: Exception) -> Problem:
    """A model or tokenizer that does not load, as a problem with a fix."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True") else ""
    return Problem(
        "model.pretrained",
        f"{name!r} could not be loaded{offline}: {first}",
        "use an asset (`lmrecipes assets`), a local folder, or a hub name on a machine with a network",
        "model-missing",
    )


def _tokenizer_state(name: str) -> list[Any]:
    folder = Path(name)
    if not folder.is_dir():
        return [name]
    files = [folder / file for file in TOKENIZER_FILES]
    state = [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files if file.is_file()]
    if not state:  # transformers would make a tokenizer without a vocabulary from config.json
        raise InputError(model_problem(name, FileNotFoundError("the folder holds no tokenizer")))
    return state


def _encode_task(
    name: str, task: Task, recipe: Recipe, tokenizer_state: list[Any], load: _LazyTokenizer, progress: bool
) -> EncodedTask:
    max_length = task.max_length or recipe.model.max_length
    decides = [ENCODING_VERSION, source_state(task.source), task.kind, task.labels, max_length, tokenizer_state]
    fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_root() / "encoded" / fingerprint
    if not (folder / "meta.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "meta.json").exists():
                data = build_task_data(name, task, read_rows(name, task))
                _check_max_length(f"tasks.{name}" if task.max_length else "model", max_length, load.tokenizer)
                _write_task(folder, name, data, load.tokenizer, max_length, progress)
    meta = json.loads((folder / "meta.json").read_text())
    splits = {split: EncodedSplit(folder, split) for split in SPLITS}
    return EncodedTask(name, task, tuple(meta["labels"]), meta["skipped"], meta["counts"], splits)


def _check_max_length(where: str, max_length: int, tokenizer: Tokenizer) -> None:
    if max_length > tokenizer.model_max_length:  # 1e30 where the tokenizer does not say
        what = f"{max_length} tokens, but the model reads {tokenizer.model_max_length}"
        fix = f"set it to at most {tokenizer.model_max_length}"
        raise InputError(Problem(f"{where}.max_length", what, fix, "max-length"))


def _write_task(folder: Path, name: str, data: TaskData, tokenizer: Tokenizer, max_length: int, progress: bool) -> None:
    """Called under the folder's lock: what a killed process left is no one's."""
    partial = folder.with_name(f".{folder.name}.partial")
    for left in (partial, folder):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    try:
        counts = {}
        with _progress_bar(f"encoding {name}", sum(len(s) for s in data.splits.values()), progress) as advance:
            for split, examples in data.splits.items():
                where = f"tasks.{name}.source"
                counts[split] = _write_split(partial, where, split, examples, tokenizer, max_length, advance)
        meta = {"labels": data.labels, "skipped": data.skipped, "counts": counts, "task": name}
        (partial / "meta.json").write_text(json.dumps(meta, indent=1))
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_split(
    folder: Path, where: str, split: str, examples: Examples, tokenizer: Tokenizer, max_length: int,
    advance: Callable[[int], None],
) -> dict[str, int]:  # fmt: skip
    lengths, truncated = [0], 0
    ids: list[NDArray[np.int32]] = []
    types: list[NDArray[np.uint8]] = []
    for start in range(0, len(examples), CHUNK):
        texts = examples.texts[start : start + CHUNK]
        pairs = examples.pairs[start : start + CHUNK] if examples.pairs is not None else None
        encoding = tokenizer(
            texts, pairs, truncation=True, max_length=max_length, return_token_type_ids=pairs is not None
        )
        ids.append(np.fromiter(chain.from_iterable(encoding["input_ids"]), np.int32))
        lengths.extend(map(len, encoding["input_ids"]))
        if pairs is not None:
            types.append(np.fromiter(chain.from_iterable(encoding["token_type_ids"]), np.uint8))
        truncated += sum(bool(one.overflowing) for one in encoding.encodings)
        advance(len(texts))
    if 0 in lengths[1:]:
        text = examples.joined(lengths.index(0, 1) - 1)
        what = f"the tokenizer finds no token in {lengths[1:].count(0)} text(s) of the {split} split, such as {text!r}"
        raise InputError(Problem(f"{where}.text", what, "leave these rows out of the source", "text-no-token"))
    np.save(folder / f"{split}.tokens.npy", np.concatenate(ids))
    np.save(folder / f"{split}.offsets.npy", np.cumsum(lengths, dtype=np.int64))
    np.save(folder / f"{split}.targets.npy", examples.targets)
    if types:
        np.save(folder / f"{split}.types.npy", np.concatenate(types))
    return {"rows": len(examples), "tokens": sum(lengths), "truncated": truncated}


@contextmanager
def _progress_bar(title: str, total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; yields the function that moves it."""
    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)
