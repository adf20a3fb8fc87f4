"""`samples.jsonl`: how the model continued held-out texts, one JSON object for each text and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lmrecipes.tracking.record import RecordFile, read_metrics


@dataclass(frozen=True)
class Sample:
    """One text: what the model was given, how it went on after a step, and how the text itself goes on."""

    step: int
    task: str
    prompt: str
    continuation: str
    reference: str


COLUMNS = tuple(field.name for field in fields(Sample))


class SamplesFile(RecordFile):
    """Append-only writer of `samples.jsonl`; a resumed run drops samples of later steps than its checkpoint."""

    def write(self, samples: Sequence[Sample]) -> None:
        """Append a line for each sample and flush them."""
        self.append(asdict(sample) for sample in samples)


def read_samples(path: Path) -> list[Sample]:
    """The samples of a run, oldest first; none where there is no file. Raises InputError as `read_metrics` does."""
    return [Sample(**{name: row.get(name, "") for name in COLUMNS}) for row in read_metrics(path)]
