"""How far the gradients of tasks agree: measurements, and their averages with the noise of the batches taken out. Pure.

The gradient g_a of task a on one batch is its true gradient G_a plus noise, and noise is most of it: two halves of one
task's batch have a cosine near 0 themselves. So the cosine of g_a and g_b is near 0 whatever the tasks are. But dot
products are without bias where their two sides are of different examples: E[g_a . g_b] = G_a . G_b, and of the halves
h_1, h_2 of one task's batch E[h_1 . h_2] = |G_a|^2 (the gradient noise scale is estimated so: McCandlish et al. 2018,
arXiv 1812.06162, appendix A.1). Their sums over measurements give the noise-corrected cosine

    sum g_a . g_b / sqrt(sum |G_a|^2 * sum |G_b|^2)

which is Spearman's correction for attenuation (1904, Am. J. Psychol. 15, 72-101) with the reliability of split halves.
It is consistent, not without bias; its standard error is the jackknife's over measurements (Efron and Stein 1981, Ann.
Statist. 9, 586-596). A negative cosine is a conflict as in PCGrad (Yu et al. 2020, arXiv 2001.06782).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

LEAST = 5
"""Measurements of a pair from which on its standard error is given."""


@dataclass(frozen=True)
class Measurement:
    """Of the step numbered `step` (from 1), before its update, of tasks that it held two examples of or more.

    examples: of each task. norms: of each task's gradient. within: cosine of the gradients of its two halves. signal:
    estimate of its true gradient's squared norm, negative where noise wins. dots: of the gradients of two tasks,
    dots[a][b] where a comes before b in the recipe. A number that was not finite is left out.
    """

    step: int
    seconds: float
    examples: dict[str, int]
    norms: dict[str, float]
    within: dict[str, float]
    signal: dict[str, float]
    dots: dict[str, dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def cosines(self) -> dict[tuple[str, str], float]:
        """Of each pair of tasks, noise and all."""
        return {
            (a, b): dot / (self.norms[a] * self.norms[b])
            for a, found in self.dots.items() for b, dot in found.items() if self.norms[a] and self.norms[b]
        }  # fmt: skip


@dataclass
class Sums:
    """Sums over measurements. pairs[a][b]: how many, then of these the sums of g_a . g_b, |G_a|^2, |G_b|^2 and of the
    plain cosine; within[a]: how many, and the sum of the halves' cosine. JSON-ready, and saved in checkpoints."""

    pairs: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    within: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    count: int = 0

    def add(self, found: Measurement, sign: int = 1) -> None:
        """One measurement more, or with sign -1 one less."""
        for (a, b), cosine in found.cosines().items():
            sums = self.pairs.setdefault(a, {}).setdefault(b, [0.0] * 5)
            for at, value in enumerate((1, found.dots[a][b], found.signal[a], found.signal[b], cosine)):
                sums[at] += sign * value
        for task, cosine in found.within.items():
            sums = self.within.setdefault(task, [0.0] * 2)
            sums[0] += sign
            sums[1] += sign * cosine
        self.seconds += sign * found.seconds
        self.count += sign

    def corrected(self, a: str, b: str) -> float | None:
        """The noise-corrected cosine; None where a task's own signal is not above its noise yet."""
        _, dot, one, other, _ = self._pair(a, b)
        return dot / math.sqrt(one * other) if one > 0 and other > 0 else None

    def plain(self, a: str, b: str) -> float | None:
        """The mean cosine; of a task with itself that of its halves."""
        if a == b:
            count, total = self.within.get(a, (0, 0.0))
            return total / count if count else None
        count, *_, total = self._pair(a, b)
        return total / count if count else None

    def _pair(self, a: str, b: str) -> Sequence[float]:
        """The sums of a pair, in the order of its tasks as named."""
        if (found := self.pairs.get(a, {}).get(b)) is not None:
            return found
        count, dot, one, other, total = self.pairs.get(b, {}).get(a, [0.0] * 5)
        return count, dot, other, one, total


def sums_of(measurements: Sequence[Measurement]) -> Sums:
    """Over all of them."""
    sums = Sums()
    for found in measurements:
        sums.add(found)
    return sums


def standard_error(measurements: Sequence[Measurement], a: str, b: str) -> float | None:
    """Of the noise-corrected cosine of a pair, by leaving out one measurement at a time; None of fewer than LEAST, and
    where one of these is not known."""
    kept = [found for found in measurements if {(a, b), (b, a)} & found.cosines().keys()]
    sums, values = sums_of(kept), []
    for found in kept:
        sums.add(found, -1)
        values.append(sums.corrected(a, b))
        sums.add(found)
    known = [value for value in values if value is not None]
    if len(known) < max(LEAST, len(kept)):
        return None
    mean = sum(known) / len(known)
    return math.sqrt((len(known) - 1) / len(known) * sum((value - mean) ** 2 for value in known))


def measured(rows: Sequence[Mapping[str, Any]]) -> list[Measurement]:
    """The lines of a `cosines.jsonl`."""
    return [Measurement(**row) for row in rows]


def lowest(sums: Sums) -> tuple[str, str, float] | None:
    """The pair with the smallest noise-corrected cosine."""
    tasks = list(dict.fromkeys([*sums.pairs, *(b for found in sums.pairs.values() for b in found)]))
    known = [(a, b, value) for a, b in combinations(tasks, 2) if (value := sums.corrected(a, b)) is not None]
    return min(known, key=lambda found: found[2], default=None)
