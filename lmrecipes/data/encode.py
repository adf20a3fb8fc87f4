"""Encoded examples: every task tokenised once into memory-mapped arrays, keyed by a hash of all that decides them.

A task's folder holds, for each split, `<split>.tokens.npy` (int32, all texts end to end), `<split>.offsets.npy` (int64
[n + 1]), `<split>.targets.npy`; for text pairs `<split>.types.npy` (uint8 segment of each token); for kinds whose loss
is of tokens `<split>.supervised.npy` (int32 predicted tokens of each text), and for chat `<split>.loss.npy` (uint8,
whether a token is predicted). Images and clips are in `<split>.image.npy` and `<split>.audio.npy`, where each row's are
in `<split>.image_rows.npy` and `<split>.audio_rows.npy` (see `MediaArrays`). Where labelled rows come in groups, those
of validation and test are in `<split>.groups.npy` (uint64, a hash for each row). `meta.json` says the labels and the
counts. The folder is written under a temporary name and renamed: it is complete or absent. Rows stream through: one
block is read and checked, and its media are decoded on all cores, while the one before is tokenised on all cores and
appended to the files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from lmrecipes.assets import cache_root
from lmrecipes.data.chat import ChatEncoder, ChatRenderer
from lmrecipes.data.documents import DocumentEncoder
from lmrecipes.data.duplicates import DuplicateCounter
from lmrecipes.data.encoded import EncodedSplit, EncodedTask
from lmrecipes.data.ids import IdsDocumentEncoder, IdsEncoder, IdsRule, ids_rule
from lmrecipes.data.inputs import Specs, reads_texts
from lmrecipes.data.media_rows import Encoder, MediaEncoder
from lmrecipes.data.progress import progress_in_rows
from lmrecipes.data.sources import SPLITS, open_rows, source_state
from lmrecipes.data.targets import CheckedRows, Piece, TaskData, collect, contents_only
from lmrecipes.data.texts import TextEncoder
from lmrecipes.data.tokenizer import (
    load_tokenizer,
    read_template,
    tokenizer_field,
    tokenizer_of,
    tokenizer_state,
    vocabulary_of,
)
from lmrecipes.data.writer import SplitWriter
from lmrecipes.files import written_at_once
from lmrecipes.models.inputs import input_specs, modalities_of
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe, Task

ENCODING_VERSION = 5
"""Part of every fingerprint: raise it when other files come of the same input."""
Tokenizer = Any


def encode_tasks(recipe: Recipe, progress: bool = True) -> dict[str, EncodedTask]:
    """Every task of the recipe, from the cache or encoded now. Problems of all tasks are collected, then raised.

    Safe for processes that race: the first encodes under a file lock, the others wait and read.
    """
    name_of_tokenizer = tokenizer_of(recipe, progress)
    where = tokenizer_field(recipe.model)
    load = _LazyTokenizer(name_of_tokenizer, recipe.model.chat_template, where)
    state = [] if name_of_tokenizer is None else tokenizer_state(name_of_tokenizer, where)
    inputs = input_specs(recipe.model, modalities_of(recipe))
    vocabulary = vocabulary_of(recipe) if any(task.source.ids for task in recipe.tasks.values()) else None
    encoded, problems = {}, []
    for name, task in recipe.tasks.items():
        rule = ids_rule(recipe, name, vocabulary)
        try:
            own = {modality: inputs[modality] for modality in task.source.media}
            encoded[name] = _encode_task(name, task, recipe, state, load, rule, own, progress)
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(dict.fromkeys(problems))  # a model that does not load is said once
    return encoded


def check_tokenizer(recipe: Recipe) -> None:
    """Raise InputError for each task that the recipe's tokenizer, which must exist, cannot serve."""
    tokenizer_name = tokenizer_of(recipe)
    assert tokenizer_name is not None
    tokenizer = load_tokenizer(tokenizer_name, recipe.model.chat_template, tokenizer_field(recipe.model))
    problems = []
    for name, task in recipe.tasks.items():
        try:
            if task.needs_tokenizer:
                _check_max_length(name, task, task.max_length or recipe.model.max_length, tokenizer)
            if task.kind == "chat":
                ChatRenderer(tokenizer, name, task)
            if task.kind == "language_modelling" and task.source.ids is None:
                DocumentEncoder(tokenizer, 2, f"tasks.{name}.source", skip=False)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(dict.fromkeys(problems))


def task_texts(recipe: Recipe) -> dict[str, TaskData]:
    """The checked texts and targets of every task that labels texts, before tokenising (for baselines)."""
    labelled = {name: task for name, task in recipe.tasks.items() if task.labels_texts}
    return {name: collect(name, task, open_rows(name, task)) for name, task in labelled.items()}


class _LazyTokenizer:
    """Loads the tokenizer at its first use: a run on cached data never needs it."""

    def __init__(self, name: str | None, chat_template: str | None, where: str) -> None:
        self.name, self.chat_template, self.where = name, chat_template, where

    @cached_property
    def tokenizer(self) -> Tokenizer:
        assert self.name is not None, "asked for only by tasks that need one"
        return load_tokenizer(self.name, self.chat_template, self.where)


def _encode_task(
    name: str, task: Task, recipe: Recipe, of_tokenizer: list[Any], load: _LazyTokenizer, rule: IdsRule | None,
    inputs: Specs, progress: bool,
) -> EncodedTask:  # fmt: skip
    max_length = task.max_length or recipe.model.longest
    state = source_state(task.source)
    decides: list[Any] = [ENCODING_VERSION, state, task.kind, task.labels]
    decides += [max_length] if reads_texts(task) else []
    decides += [[modality, astuple(spec)] for modality, spec in inputs.items()]
    decides += [of_tokenizer] if task.needs_tokenizer else []
    decides += [] if rule is None else [astuple(rule)]
    if task.kind == "chat":
        template = recipe.model.chat_template
        decides += [task.supervise, None if template is None else read_template(template)]
    fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_root() / "encoded" / fingerprint
    if not (folder / "meta.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "meta.json").exists():
                rows = open_rows(name, task)
                render = ChatRenderer(load.tokenizer, name, task) if task.kind == "chat" else contents_only
                checked = CheckedRows(name, task, rows, render, rule, inputs)
                tokenizer = load.tokenizer if task.needs_tokenizer else None
                _check_max_length(name, task, max_length, tokenizer)
                with written_at_once(folder) as partial:
                    _write_task(partial, name, checked, tokenizer, max_length, inputs, progress)
                    if source_state(task.source) != state:
                        what = "its files changed while they were read"
                        raise InputError(Problem(f"tasks.{name}.source", what, "start again", "source-changed"))
    meta = json.loads((folder / "meta.json").read_text())
    _refuse_masked(name, task, max_length, meta)
    splits = {split: EncodedSplit(folder, split, inputs) for split in SPLITS}
    return EncodedTask(
        name, task, tuple(meta["labels"]), meta["skipped"], meta["counts"], meta["duplicates"], splits, meta["unigram"],
        tuple(meta.get("masked_places", ())),
    )  # fmt: skip


def _check_max_length(name: str, task: Task, max_length: int, tokenizer: Tokenizer) -> None:
    field = f"tasks.{name}.max_length" if task.max_length else "model.max_length"
    if tokenizer is not None and max_length > tokenizer.model_max_length:  # 1e30 where the tokenizer does not say
        what = f"{max_length} tokens, but the model reads {tokenizer.model_max_length}"
        fix = f"set it to at most {tokenizer.model_max_length}"
        raise InputError(Problem(field, what, fix, "max-length"))
    if task.of_tokens and max_length < 2:
        what = "a text of one token predicts none"
        raise InputError(Problem(field, what, "set it to 2 or more", "max-length"))


def _refuse_masked(name: str, task: Task, max_length: int, meta: dict[str, Any]) -> None:
    """Raise InputError where too many rows of a chat task, or all of a split, lose all their loss to `max_length`."""
    counts = meta["counts"]
    masked = {split: found["masked"] for split, found in counts.items() if found["masked"]}
    every = sum(found["rows"] + found["masked"] for found in counts.values())
    empty = [split for split, found in counts.items() if not found["rows"]]
    if not masked or (sum(masked.values()) <= task.max_masked_fraction * every and not empty):
        return
    needed = meta["needed_length"]
    of_each = ", ".join(f"{rows:,} of {split}" for split, rows in masked.items())
    what = (
        f"{sum(masked.values()):,} of {every:,} rows have no token of the assistant within {max_length:,} tokens "
        f"({of_each}): {'; '.join(meta['masked_places'])}"
    )
    least = math.ceil(100 * (1 - task.max_masked_fraction))
    fix = f"set it to {needed[least]:,} for {least}% of the rows ({needed[100]:,} for all)"
    if not empty:
        fix += f", or raise tasks.{name}.max_masked_fraction ({task.max_masked_fraction:g}) to leave more rows out"
    raise InputError(Problem(f"tasks.{name}.max_length", what, fix, "masked-rows"))


def _encoder(checked: CheckedRows, tokenizer: Tokenizer, max_length: int, inputs: Specs) -> Encoder:
    task = checked.task
    if inputs:
        texts = TextEncoder(tokenizer, max_length, checked.where) if task.source.text_column is not None else None
        return MediaEncoder(texts, inputs)
    if task.source.ids is not None:
        return IdsDocumentEncoder(tokenizer, max_length) if task.of_tokens else IdsEncoder(max_length)
    if task.kind == "language_modelling":
        return DocumentEncoder(tokenizer, max_length, checked.where, task.source.on_bad_row == "skip")
    if task.kind == "chat":
        return ChatEncoder(tokenizer, max_length)
    return TextEncoder(tokenizer, max_length, checked.where)


def _write_task(
    folder: Path, name: str, checked: CheckedRows, tokenizer: Tokenizer, max_length: int, inputs: Specs, progress: bool
) -> None:
    task, source = checked.task, checked.task.source
    grouped = source.group is not None and not task.of_tokens
    writers = {
        split: SplitWriter(folder, split, task.kind, source.text_pair is not None, inputs, grouped and split != "train")
        for split in SPLITS
    }
    duplicates = DuplicateCounter(folder, SPLITS)
    encode = _encoder(checked, tokenizer, max_length, inputs)

    def write(pieces: dict[str, Piece]) -> None:
        for split, piece in pieces.items():
            writers[split].append(encode(split, piece), piece.groups)
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
    more = encode.finish()
    final = checked.reader.final
    meta = {
        "task": name,
        "labels": checked.reader.names,
        "skipped": checked.skipped + more.pop("skipped", 0),
        "counts": {split: writer.close(final) for split, writer in writers.items()},
        "duplicates": duplicates.count(),
        "unigram": writers["train"].unigram,
        **more,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


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
