"""Files of one JSON object per line that a run appends to, and that a resumed run continues.

`metrics.jsonl` is the record of a run, one object per logged step: trackers and the report are views of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lmrecipes.files import json_text, write_text_atomically
from lmrecipes.problems import InputError, Problem


class RecordFile:
    """Append-only writer of such a file, whose objects all have a `step`.

    path: the file; its folder is made where it is missing.
    resumed_at: the step of the checkpoint that the run continues from. Later lines, written by the attempt that was cut
        off, are dropped, so that the record never holds a step twice. None: a new run, the file starts empty.
    """

    def __init__(self, path: Path, resumed_at: int | None = None) -> None:
        self.path = path
        kept = [] if resumed_at is None else [line for line, row in _lines(path) if row.get("step", 0) <= resumed_at]
        write_text_atomically(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append lines and flush them. NaN and infinity become null. A full disk raises OSError."""
        self._file.write("".join(f"{json_text(row)}\n" for row in rows))
        self._file.flush()

    def close(self) -> None:
        """Sync and close; closing twice is fine."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MetricsFile(RecordFile):
    """Append-only writer of `metrics.jsonl`."""

    def write(self, step: int, metrics: Mapping[str, float | int | None]) -> None:
        """Append the metrics of a step and flush them."""
        self.append([{"step": step, **metrics}])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of such a file as dictionaries, oldest first; none where there is no file.

    A last line without its end, as a killed run or a run that is writing just now leaves it, is left out.
    Raises InputError for any other line that is not a JSON object.
    """
    return [row for _, row in _lines(path)]


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if not path.exists():
        return []
    # Split at "\n" alone: str.splitlines would also split at U+2028, which JSON strings may hold.
    lines = path.read_bytes().split(b"\n")
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            line = raw.decode("utf-8")
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            if number == len(lines):
                break
            fix = "restore the file, or delete that line"
            raise InputError(
                Problem(f"{path}: line {number}", f"cannot be read ({error})", fix, "bad-metrics")
            ) from error
        rows.append((line, row))
    return rows
