"""What the service answers when it does not answer the question: a status, and one JSON that says what to change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmrecipes.problems import Problem


class Refused(Exception):
    """A request that is not served. retry: seconds after which it may be sent again (the Retry-After header)."""

    def __init__(self, status: int, problems: Problem | Sequence[Problem], retry: int | None = None) -> None:
        self.status, self.retry = status, retry
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__(f"{status} {self.problems[0]}")

    @property
    def body(self) -> dict[str, Any]:
        """{"error": {where, what, fix}}; of several mistakes the others under "more"."""
        first, *more = ({"where": one.where, "what": one.what, "fix": one.fix} for one in self.problems)
        return {"error": first, **({"more": more} if more else {})}

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {} if self.retry is None else {"retry-after": str(self.retry)}


def refused(status: int, where: str, what: str, fix: str, retry: int | None = None) -> Refused:
    """A refusal with one mistake."""
    return Refused(status, Problem(where, what, fix, f"http-{status}"), retry)
