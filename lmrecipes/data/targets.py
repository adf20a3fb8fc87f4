"""Rows -> checked texts and numeric targets, split by group. Bad rows are named, or left out with a count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.conversations import BadRow, Conversation, read_conversation
from lmrecipes.data.duplicates import text_key
from lmrecipes.data.inputs import Specs
from lmrecipes.data.labels import LabelReader, missing, plain, short
from lmrecipes.data.media_cells import ReadMedia, lacks
from lmrecipes.data.media_readers import MediaReaders
from lmrecipes.data.permutation import hash_key
from lmrecipes.data.rows import Place, Rows, RowStream
from lmrecipes.data.sources import SPLITS, WHOLE
from lmrecipes.machine import cores
from lmrecipes.problems import InputError, Problem, listing
from lmrecipes.recipe import Task, TaskKind
from lmrecipes.recipe_inputs import Modality

EXAMPLES_SHOWN = 3
"""Bad rows quoted in a message; the rest are counted."""
FEWEST_LABELS: dict[TaskKind, int] = {"classification": 2, "multi_label": 1}


class Rendered(NamedTuple):
    """A conversation as one text. spans: first and last + 1 character of what carries loss, in order."""

    text: str
    spans: list[tuple[int, int]]


Render = Callable[[Conversation], Rendered]
"""Raises BadRow for a conversation that it cannot say."""


ReadIds = Callable[[Any], NDArray[np.int32]]
"""A cell -> the ids in it. Raises BadRow."""


def contents_only(conversation: Conversation) -> Rendered:
    """What the turns say, without the marks of any template."""
    return Rendered("\n".join(conversation.contents()), [])


@dataclass
class Piece:
    """The good rows of one block that belong to one split, in order.

    texts: strings, or of a source of ids int32 arrays; None of a row of media without a text. media: images or clips as
    `ReadMedia.values`, None where a row has none. values: a label's value as `LabelReader` gives it, or the spans of a
    conversation. keys: `text_key` of each row. groups: hash of what is never divided between splits, of each row: its
    group, or without one its text. place(i) tells a person where row i stands.
    """

    texts: list[Any] = field(default_factory=list)
    pairs: list[str] | None = None
    values: list[Any] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    origin: Place = str
    media: dict[Modality, list[NDArray[Any] | None]] = field(default_factory=dict)
    groups: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def place(self, i: int) -> str:
        """Where row i stands."""
        return self.origin(self.numbers[i])


class BadRows:
    """How many rows cannot be used, and the first few of them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.count = 0
        self.first: list[str] = []

    def add(self, place: str, reason: str) -> None:
        """One row more."""
        self.count += 1
        if len(self.first) < EXAMPLES_SHOWN:
            self.first.append(f"{place}: {reason}")

    def refuse(self) -> None:
        """Raise InputError where there are any."""
        if self.count:
            more = f"; and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
            fix = f"repair them, or set {self.where}.on_bad_row to `skip` to leave them out with a count"
            what = f"{self.count} bad row(s): {'; '.join(self.first)}{more}"
            raise InputError(Problem(self.where, what, fix, "bad-rows"))


class CheckedRows:
    """Checks every row of a task, block by block, and says at the end what was found.

    render: how a chat task's conversations become texts. ids: of a source of ids, what reads a row's. inputs: how media
    are read, see `MediaReaders`.
    """

    def __init__(
        self, name: str, task: Task, by_split: Mapping[str, RowStream], render: Render = contents_only,
        ids: ReadIds | None = None, inputs: Specs | None = None,
    ) -> None:  # fmt: skip
        self.task, self.by_split, self.render, self.ids = task, by_split, render, ids
        self.where = f"tasks.{name}.source"
        self.reader = LabelReader(task)
        self.media = MediaReaders(task.source, inputs)
        self.to_cut = [split for split in ("test", "validation") if split not in by_split]
        self.rows = dict.fromkeys(SPLITS, 0)
        self.bad = BadRows(self.where)

    @property
    def skipped(self) -> int:
        """Bad rows so far."""
        return self.bad.count

    @property
    def total(self) -> int | None:
        """Rows to read, where all streams know it."""
        totals = [stream.total for stream in self.by_split.values()]
        return None if None in totals else sum(total for total in totals if total is not None)

    def blocks(self) -> Iterator[tuple[int, dict[str, Piece]]]:
        """Of each block: how many rows were read, and the good ones by split.

        After a bad row that is an error, rows are still counted but no longer given out.
        """
        with ThreadPoolExecutor(cores(), "media") as pool:
            for split, stream in self.by_split.items():
                for rows, part in self._parts(stream):
                    pieces = self._check(split, rows, part, pool)
                    yield len(part), {} if self.bad.count and self.task.source.on_bad_row == "error" else pieces

    def finish(self) -> None:
        """After the last block: raises InputError for bad rows, too few labels or an empty split."""
        if self.task.source.on_bad_row == "error":
            self.bad.refuse()
        kind, names = self.task.kind, self.reader.names
        if len(names) < FEWEST_LABELS.get(kind, 0):
            fewest = f"{kind} needs {FEWEST_LABELS[kind]} or more"
            what = f"the rows have {len(names)} label(s) ({listing(names)}), {fewest}"
            fix = "name another column, or another kind"
            raise InputError(Problem(f"{self.where}.label", what, fix, "labels-too-few"))
        if empty := [split for split, rows in self.rows.items() if rows == 0]:
            total = sum(self.rows.values()) + self.skipped
            what = f"no rows in the split(s) {', '.join(empty)} ({total} rows were read, {self.skipped} of them bad)"
            fix = (
                "give more rows, a split file, or another validation_fraction / test_fraction; "
                "groups are never divided, so a source needs at least a few of them"
            )
            raise InputError(Problem(self.where, what, fix, "split-empty"))

    def _parts(self, stream: RowStream) -> Iterator[tuple[Rows, range]]:
        """Blocks, and numbers of their rows: those whose media are held at once."""
        for rows in stream.blocks:
            for start in range(0, len(rows), self.media.at_once):
                yield rows, range(start, min(start + self.media.at_once, len(rows)))

    def _check(self, split: str, rows: Rows, part: range, pool: Executor) -> dict[str, Piece]:
        pieces: dict[str, Piece] = {}
        modalities = self.task.source.media
        by_row: Iterable[Any] = repeat({})
        if modalities:  # decoding releases the interpreter's lock
            by_row = pool.map(lambda i: self.media(rows.row(i), rows.folder), part)
        for i, media in zip(part, by_row, strict=False):
            row = rows.row(i)
            try:
                texts, value, said = self._read(row, media)
            except BadRow as reason:
                self.bad.add(rows.origin(i), str(reason))
                continue
            key = text_key(said)
            group = _group_key(row.get("group"), key)
            home = self._cut(group) if split in (WHOLE, "train") else split
            if home not in pieces:
                pieces[home] = Piece(pairs=None if len(texts) == 1 else [], origin=rows.origin)
                pieces[home].media = {modality: [] for modality in modalities}
            piece = pieces[home]
            piece.texts.append(texts[0])
            piece.values.append(value)
            piece.keys.append(key)
            piece.groups.append(group)
            piece.numbers.append(i)
            for modality in modalities:
                piece.media[modality].append(media[modality].values if modality in media else None)
            if piece.pairs is not None:
                piece.pairs.append(texts[1])
        for home, piece in pieces.items():
            self.rows[home] += len(piece)
        return pieces

    def _read(
        self, row: Mapping[str, Any], media: dict[Modality, ReadMedia] | BadRow
    ) -> tuple[list[Any], Any, list[str]]:
        """The text or pair of texts of a row (or its ids), its value, and what makes it another row than others."""
        source = self.task.source
        if source.media:
            return self._read_media(row, media)
        if self.ids is not None:
            ids = self.ids(row["ids"])
            return [ids], None if self.task.of_tokens else self._label(row), [ids.tobytes().hex()]
        if self.task.kind == "chat":
            conversation = read_conversation(row, source.chat.system_prompt)
            text, spans = self.render(conversation)
            return [text], spans, conversation.contents()
        texts = self._texts(row)
        if self.task.of_tokens:
            return texts, None, texts
        return texts, self._label(row), texts

    def _read_media(
        self, row: Mapping[str, Any], media: dict[Modality, ReadMedia] | BadRow
    ) -> tuple[list[Any], Any, list[str]]:
        """The same of a row with media: it may lack its text, or some of its media, but not all."""
        if isinstance(media, BadRow):
            raise media
        source = self.task.source
        texts: list[Any] = [None] if source.text_pair is None else [None, None]
        if source.text_column is not None and not (lacks(row["text"]) and lacks(row.get("text_pair"))):
            texts = self._texts(row)
        elif not media:
            columns = [repr(column) for role in ("text", *source.media) if (column := getattr(source, role))]
            raise BadRow(f"{listing(columns)} {'is' if len(columns) == 1 else 'are all'} missing")
        said = [text or "" for text in texts] + [media[m].digest if m in media else "" for m in source.media]
        return texts, self._label(row), said

    def _texts(self, row: Mapping[str, Any]) -> list[Any]:
        """The text or the two texts of a row. Raises BadRow."""
        source = self.task.source
        texts = [row["text"]] if source.text_pair is None else [row["text"], row["text_pair"]]
        for text, column in zip(texts, (source.text_column, source.text_pair), strict=False):
            require_text(text, column or "")
        return texts

    def _label(self, row: Mapping[str, Any]) -> Any:
        """The value of a row's label. Raises BadRow."""
        value, reason = self.reader(row["label"])
        if reason is not None:
            raise BadRow(reason)
        return value

    def _cut(self, group: int) -> str:
        """The split of a row by the hash of its group."""
        u = group / 2**64
        for split in self.to_cut:
            share = self.task.source.test_fraction if split == "test" else self.task.source.validation_fraction
            if u < share:
                return split
            u -= share
        return "train"


def _group_key(cell: Any, key: int) -> int:
    """A hash of a row's group; without one, of its text whatever the case and spacing."""
    group = plain(cell)
    return key if missing(group) or group == "" else hash_key("split", str(group))


def require_text(text: Any, column: str) -> None:
    """Raise BadRow for what is no text, or an empty one."""
    if not isinstance(text, str):
        raise BadRow(f"{column!r} is {short(text)}, not a text")
    if not text or text.isspace():
        raise BadRow(f"{column!r} is empty")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRow(f"{column!r} holds half a surrogate pair, which is no character") from None


def targets_array(kind: TaskKind, values: list[Any], final: NDArray[np.int32]) -> NDArray[Any]:
    """Values of good rows as float32 [n] (regression), int32 [n] (classification) or uint8 [n, labels]."""
    if kind == "regression":
        return np.array(values, np.float32)
    if kind == "classification":
        return final[np.array(values, np.int64)]
    counts = np.fromiter(map(len, values), np.int64, len(values))
    return label_matrix(np.fromiter((n for row in values for n in row), np.int32, counts.sum()), counts, final)


def label_matrix(numbers: NDArray[np.int32], counts: NDArray[np.int64], final: NDArray[np.int32]) -> NDArray[np.uint8]:
    """uint8 [n, labels] from the numbers of all rows end to end, `counts` of them in each row."""
    matrix = np.zeros((len(counts), len(final)), np.uint8)
    matrix[np.repeat(np.arange(len(counts)), counts), final[numbers]] = 1
    return matrix


@dataclass(frozen=True)
class Examples:
    """One split of a task; a text that a row lacks is empty. targets: float32 [n] (regression), int32 [n]
    (classification), uint8 [n, labels]."""

    texts: list[str]
    pairs: list[str] | None
    targets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.texts)

    def joined(self, i: int) -> str:
        """Text i, a pair joined by a space."""
        return self.texts[i] if self.pairs is None else f"{self.texts[i]} {self.pairs[i]}"

    def all_joined(self) -> list[str]:
        """Every text, for models that read one."""
        return [self.joined(i) for i in range(len(self))]


@dataclass(frozen=True)
class TaskData:
    """A task's splits in memory, its label names (empty for regression) and how many bad rows were left out."""

    splits: dict[str, Examples]
    labels: tuple[str, ...]
    skipped: int


def collect(name: str, task: Task, by_split: Mapping[str, RowStream]) -> TaskData:
    """All checked rows of a task, in memory. Raises InputError with all problems found."""
    checked = CheckedRows(name, task, by_split)
    whole = {split: Piece(pairs=[] if task.source.text_pair else None) for split in SPLITS}
    for _, pieces in checked.blocks():
        for split, piece in pieces.items():
            whole[split].texts += [text or "" for text in piece.texts]
            whole[split].values += piece.values
            if piece.pairs is not None:
                whole[split].pairs = (whole[split].pairs or []) + [text or "" for text in piece.pairs]
    checked.finish()
    final = checked.reader.final
    splits = {
        split: Examples(part.texts, part.pairs, targets_array(task.kind, part.values, final))
        for split, part in whole.items()
    }
    return TaskData(splits, checked.reader.names, checked.skipped)
