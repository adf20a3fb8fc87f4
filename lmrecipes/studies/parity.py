"""The test of a gate: is a metric no worse than the reference's by more than a margin, over seeds? Pure.

Non-inferiority by a one-sided paired t-test: with d_i how much worse the recipe is than its reference with seed i, the
bound  mean(d) + t(confidence, n - 1) * sd(d) / sqrt(n)  must lie below the margin. That d is on average the margin or
more is then refuted at level 1 - confidence (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657-680: one side of it).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lmrecipes.recipe import Gate
from lmrecipes.studies.record import CellResult
from lmrecipes.tracking.results import lower_is_better, number, words


@dataclass(frozen=True)
class TaskVerdict:
    """One task of a gate. own, reference: means of its headline metric; worse: mean of the differences, positive where
    the recipe is worse than its reference, of a perplexity as a share of the reference's; bound: its upper confidence
    bound; p: of the test. None where a run gave no number. pairs: by seed, own and reference."""

    metric: str
    own: float | None
    reference: float | None
    worse: float | None
    bound: float | None
    p: float | None
    margin: float
    met: bool
    pairs: list[tuple[float | None, float | None]]

    def in_words(self, task: str, gate: Gate) -> str:
        """What was found, as a sentence."""
        name = f"{task}, {words(self.metric)}"
        if self.worse is None or self.bound is None:
            return f"{name}: not met, a run gave no number"
        share = "% of the reference's" if is_relative(self.metric) else ""
        scale = 100 if share else 1

        def said(value: float) -> str:
            return f"{scale * abs(value):.2g}{share}"

        found = f"{'worse' if self.worse > 0 else 'better'} by {said(self.worse)}" if self.worse else "the same"
        at_most = f"at most {said(self.bound)} worse" if self.bound > 0 else "no worse"
        verdict = "met" if self.met else "not met"
        return (
            f"{name}: {verdict}. {number(self.own)} against {number(self.reference)}: on average {found}, with "
            f"{gate.confidence:.0%} confidence {at_most}; allowed is {said(self.margin)}"
        )


@dataclass(frozen=True)
class Verdict:
    """One gate: it is met where all its tasks are."""

    gate: Gate
    tasks: dict[str, TaskVerdict]

    @property
    def met(self) -> bool:
        """Whether all tasks are."""
        return all(task.met for task in self.tasks.values())

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with what was tested in words."""
        return {
            "met": self.met,
            "tested": self.tested,
            "gate": self.gate.model_dump(mode="json"),
            "tasks": {name: asdict(task) for name, task in self.tasks.items()},
        }

    @property
    def tested(self) -> str:
        """What was tested, as a sentence."""
        relative = any(is_relative(task.metric) for task in self.tasks.values())
        share = ", of a perplexity as a share of the reference's" if relative else ""
        return (
            f"Non-inferiority to the recipe with {precision_words(self.gate)}, by a one-sided paired t-test on the "
            f"differences over {self.gate.seeds} seeds at {self.gate.confidence:.0%} confidence; the margin is "
            f"{self.gate.margin:g}{share}"
        )


def precision_words(gate: Gate) -> str:
    """The reference's precision in a few words."""
    precision = gate.reference
    parts = [precision.compute, "no master weights" if precision.pure else ""]
    parts += ["formats by layer"] if precision.by_layer else []
    return ", ".join(part for part in parts if part)


def judge(gate: Gate, own: Mapping[int, CellResult], reference: Mapping[int, CellResult]) -> Verdict:
    """The verdict on a gate. own, reference: finished cells by seed; the gate's seeds are the first of `own`."""
    seeds = list(own)[: gate.seeds]
    tasks = {}
    for task, scores in own[seeds[0]].tasks.items():
        if not gate.tasks or task in gate.tasks:
            pairs = [(own[seed].headline(task), reference[seed].headline(task)) for seed in seeds]
            tasks[task] = t_test(str(scores["headline"]), pairs, gate.margin, gate.confidence)
    return Verdict(gate, tasks)


def t_test(
    metric: str, pairs: Sequence[tuple[float | None, float | None]], margin: float, confidence: float
) -> TaskVerdict:
    """The t-test on pairs of own and reference values, two or more. Without any spread the mean difference decides."""
    from scipy import stats

    known = [(own, reference) for own, reference in pairs if own is not None and reference is not None]
    if len(known) < len(pairs):
        return TaskVerdict(metric, None, None, None, None, None, margin, False, list(pairs))
    worse = [_worse(metric, own, reference) for own, reference in known]
    mean, error = statistics.fmean(worse), statistics.stdev(worse) / math.sqrt(len(worse))
    bound = mean + float(stats.t.ppf(confidence, len(worse) - 1)) * error
    p = float(stats.t.cdf((mean - margin) / error, len(worse) - 1)) if error > 0 else float(mean >= margin)
    own, reference = (statistics.fmean(side) for side in zip(*known, strict=True))
    return TaskVerdict(metric, own, reference, mean, bound, p, margin, bound < margin, list(pairs))


def is_relative(metric: str) -> bool:
    """Whether differences of this metric are shares of the reference's: a perplexity has no scale of its own."""
    return metric == "perplexity"


def difference(metric: str, value: float | None) -> str:
    """A difference for people: two digits, of a metric with relative ones in per cent."""
    if value is None:
        return number(None)
    return f"{100 * value:.2g}%" if is_relative(metric) else f"{value:.2g}"


def _worse(metric: str, own: float, reference: float) -> float:
    if is_relative(metric):
        return own / reference - 1
    return own - reference if lower_is_better(metric) else reference - own
