"""Encoded examples: every task tokenised once into memory-mapped arrays, keyed by a hash of all that decides them.

A task's folder holds, for each split, `<split>.tokens.npy` (int32, all texts end to end), `<split>.offsets.npy` (int64
[n + 1]), `<split>.targets.npy` and, for text pairs, `<split>.types.npy` (uint8 segment of each token); `meta.json` says
the labels and counts. The folder is written under a temporary name and renamed: it is complete or absent. Rows stream
through: one block is read and checked while the one before is tokenised on all cores and appended to the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lmrecipes.assets import cache_root, resolve_model
from lmrecipes.data.duplicates import DuplicateCounter
from lmrecipes.data.encoded import EncodedSplit, EncodedTask
from lmrecipes.data.sources import SPLITS, open_rows, source_state
from lmrecipes.data.targets import CheckedRows, Piece, TaskData, collect
from lmrecipes.data.writer import SplitWriter, Tokenised
from lmrecipes.files import sync_folder, sync_tree
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe, Task

ENCODING_VERSION = 3
"""Part of every fingerprint: raise it when other files come of the same input."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
Tokenizer = Any


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


def task_texts(recipe: Recipe) -> dict[str, TaskData]:
    """The checked texts and targets of every task, before tokenising (for baselines that read text)."""
    return {name: collect(name, task, open_rows(name, task)) for name, task in recipe.tasks.items()}


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
    state = source_state(task.source)
    decides = [ENCODING_VERSION, state, task.kind, task.labels, max_length, tokenizer_state]
    fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_root() / "encoded" / fingerprint
    if not (folder / "meta.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "meta.json").exists():
                checked = CheckedRows(name, task, open_rows(name, task))
                _check_max_length(f"tasks.{name}" if task.max_length else "model", max_length, load.tokenizer)
                with _written_at_once(folder) as partial:
                    _write_task(partial, name, checked, load.tokenizer, max_length, progress)
                    if source_state(task.source) != state:
                        what = "its files changed while they were read"
                        raise InputError(Problem(f"tasks.{name}.source", what, "start again", "source-changed"))
    meta = json.loads((folder / "meta.json").read_text())
    splits = {split: EncodedSplit(folder, split) for split in SPLITS}
    labels = tuple(meta["labels"])
    return EncodedTask(name, task, labels, meta["skipped"], meta["counts"], meta["duplicates"], splits)


def _check_max_length(where: str, max_length: int, tokenizer: Tokenizer) -> None:
    if max_length > tokenizer.model_max_length:  # 1e30 where the tokenizer does not say
        what = f"{max_length} tokens, but the model reads {tokenizer.model_max_length}"
        fix = f"set it to at most {tokenizer.model_max_length}"
        raise InputError(Problem(f"{where}.max_length", what, fix, "max-length"))


@contextmanager
def _written_at_once(folder: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `folder` if no error comes. The caller holds the folder's lock.

    What a killed process left is no one's, and removed first.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    for left in (partial, folder):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_task(
    folder: Path, name: str, checked: CheckedRows, tokenizer: Tokenizer, max_length: int, progress: bool
) -> None:
    source = checked.task.source
    writers = {split: SplitWriter(folder, split, checked.task.kind, source.text_pair is not None) for split in SPLITS}
    duplicates = DuplicateCounter(folder, SPLITS)
    tokenless = _Tokenless()

    def write(pieces: dict[str, Piece]) -> None:
        for split, piece in pieces.items():
            texts = tokenise(tokenizer, piece.texts, piece.pairs, max_length)
            tokenless.look(split, piece, texts)
            writers[split].append(texts, piece.values)
            duplicates.add(split, piece.keys)

    bar = progress_in_rows(f"encoding {name}", checked.total, progress)
    with bar as advance, _all_cores(), ThreadPoolExecutor(1, "tokenise") as pool:
        writing = pool.submit(write, {})
        for rows, pieces in checked.blocks():  # in this thread: a user's function may depend on where it runs
            writing.result()
            writing = pool.submit(write, pieces)
            advance(rows)
        writing.result()
    checked.finish()
    tokenless.finish(f"{checked.where}.text")
    final = checked.reader.final
    meta = {
        "task": name,
        "labels": checked.reader.names,
        "skipped": checked.skipped,
        "counts": {split: writer.close(final) for split, writer in writers.items()},
        "duplicates": duplicates.count(),
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def tokenise(tokenizer: Tokenizer, texts: list[str], pairs: list[str] | None, max_length: int) -> Tokenised:
    """Tokens of some texts (or pairs of texts), each cut to `max_length`.

    The same ids as `tokenizer(texts, pairs, truncation=True, max_length=max_length)`, at half the cost for short texts:
    that call also makes Python lists of masks, and notes where in the text each token stands.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    encodings = backend.encode_batch_fast(texts if pairs is None else list(zip(texts, pairs, strict=True)))
    ids = [encoding.ids for encoding in encodings]
    types = None if pairs is None else chain.from_iterable(encoding.type_ids for encoding in encodings)
    return Tokenised(
        np.fromiter(chain.from_iterable(ids), np.int32),
        np.fromiter(map(len, ids), np.int64, len(ids)),
        None if types is None else np.fromiter(types, np.uint8),
        sum(bool(encoding.overflowing) for encoding in encodings),
    )


class _Tokenless:
    """Texts in which the tokenizer finds no token: how many in each split, and one of them."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, str]] = {}

    def look(self, split: str, piece: Piece, texts: Tokenised) -> None:
        """Note those of a piece."""
        empty = np.flatnonzero(texts.lengths == 0)
        if len(empty):
            first = piece.texts[empty[0]] + (f" {piece.pairs[empty[0]]}" if piece.pairs is not None else "")
            count, example = self.found.get(split, (0, first))
            self.found[split] = count + len(empty), example

    def finish(self, where: str) -> None:
        """Raise InputError where there are any."""
        for split, (count, text) in self.found.items():
            what = f"the tokenizer finds no token in {count} text(s) of the {split} split, such as {text!r}"
            raise InputError(Problem(where, what, "leave these rows out of the source", "text-no-token"))


@contextmanager
def _all_cores() -> Iterator[None]:
    """Tokenise on all cores (or RAYON_NUM_THREADS) meanwhile. TOKENIZERS_PARALLELISM=false, which says otherwise, is
    there for processes that fork afterwards."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


@contextmanager
def progress_in_rows(title: str, total: int | None, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, in rows; yields the function that moves it."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.advance(task, n)
