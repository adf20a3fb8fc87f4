"""Whether a served model keeps its latency budgets. Pure: measured numbers in, verdicts out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from lmrecipes.recipe import LatencyBudget
from lmrecipes.serving.load import Measured

MOST_TRIALS = 8
CLOSE = 1.08
"""The search ends where the rate that is kept and the one that is not are as close as this factor."""
STEP = 1.5
"""Factor between two rates before there is one of each kind."""


class Accuracy(Protocol):
    """A task in one precision, on the test split: see `lmrecipes.inference.precisions.TaskPrecision`. bound: how much
    worse than in fp32 the metric may be, at some confidence."""

    @property
    def metric(self) -> str: ...
    @property
    def bound(self) -> float: ...


@dataclass(frozen=True)
class Served:
    """What was measured of one precision. closed: one request after the other; most: the largest rate whose p99 stayed
    within the limit of the search, None: there is none; budgets: under the load of each budget, by name."""

    kind: str
    megabytes: float
    closed: Measured
    most: Measured | None
    budgets: Mapping[str, Measured]
    tasks: Mapping[str, Accuracy]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """One condition of a budget. unit: `ms`, or the metric's name."""

    what: str
    found: float
    limit: float
    unit: str
    met: bool
    note: str = ""


def judge(name: str, budget: LatencyBudget, served: Served) -> list[Check]:
    """The conditions of a budget in one precision."""
    closed, loaded = served.closed, served.budgets[name]
    checks = [
        Check("p99, one request after the other", closed.p99, budget.p99_ms, "ms", closed.keeps(budget.p99_ms),
              _failed(closed)),
        Check(f"p99 at {budget.requests_per_second:g} requests/s", loaded.p99, budget.loaded_p99_ms, "ms",
              loaded.keeps(budget.loaded_p99_ms), _failed(loaded)),
    ]  # fmt: skip
    for task, found in served.tasks.items():
        what = f"{task}, worse than fp32 by at most"
        checks.append(Check(what, found.bound, budget.margin, found.metric, found.bound <= budget.margin))
    return checks


def largest_rate(measure: Callable[[float], Measured], start: float, p99_ms: float) -> Measured | None:
    """The largest rate whose p99 stays within the limit, as measured; None where none does.

    measure: of a rate, in requests/s. start: the first that is tried; then larger and smaller ones, by `STEP` until the
    answer is enclosed, halving (in logarithms) after that.
    """
    kept: tuple[float, Measured] | None = None
    broken, rate = None, start
    for _ in range(MOST_TRIALS):
        found = measure(rate)
        if found.keeps(p99_ms):
            kept = (rate, found)
        else:
            broken = rate
        if kept is None:
            rate /= STEP
        elif broken is None:
            rate *= STEP
        elif broken / kept[0] < CLOSE:
            break
        else:
            rate = (kept[0] * broken) ** 0.5
    return kept[1] if kept else None


def _failed(found: Measured) -> str:
    """Why a load was not borne, where latency does not say it."""
    if found.overloaded:
        return "the service could not follow"
    return ", ".join(f"{count} x {what}" for what, count in found.errors.items())
