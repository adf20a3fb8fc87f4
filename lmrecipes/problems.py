"""Errors as part of the product: every problem names the field, the value, the rule and the fix.

Problems are collected, then shown together; the command line turns an `InputError` into exit code 2, with no traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what the user gave.

    where: file and field, for example `zero2_bf16.json: bf16.enabled` or `tasks.icd10.label`.
    what: the rule that is broken, with the value found.
    fix: the exact thing to change.
    id: the rule's stable name, for example `ds-unknown-key`.
    """

    where: str
    what: str
    fix: str
    id: str = "input"
    severity: Severity = "error"

    def as_dict(self) -> dict[str, str]:
        """The problem as a JSON-ready dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.where}: {self.what.rstrip('.')}. Fix: {self.fix}"


class InputError(Exception):
    """Bad input: a list of problems to show together, each once (exit code 2)."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        found = [problems] if isinstance(problems, Problem) else problems
        self.problems: list[Problem] = list(dict.fromkeys(found))
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[InputError], tuple[list[Problem]]]:
        return InputError, (self.problems,)


class RunFailed(Exception):
    """The run itself failed (exit code 3): the message names the cause and what was kept."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean `x`?' for the nearest of the known words, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean `{near[0]}`?" if near else ""


def listing(words: Sequence[str], most: int = 12) -> str:
    """Comma-separated words, shortened to the first `most`."""
    return ", ".join(words[:most]) + (f", ... ({len(words)} in all)" if len(words) > most else "")
