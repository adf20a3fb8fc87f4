"""The course of a search: which proxy comes next, and what the finished ones say. Pure: all of it follows from results.

First the recipe's own weights with several seeds, then the design, then the found weights with the same seeds: what the
fit promises is measured before it is recommended. The fit sees the design alone, so that neither side of that
comparison was chosen by its luck. Nothing is stored but results: a search that is cut goes on where it was, one with
more runs extends it, and for another metric only the found weights are run anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.permutation import hash_key
from lmrecipes.recipe import Recipe
from lmrecipes.search.design import design
from lmrecipes.search.fit import Found, find, rounded
from lmrecipes.series import unattended
from lmrecipes.tracking.results import lower_is_better

Metric = Literal["loss", "headline"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """What is asked. Results of one search serve every question about it."""

    runs: int = 24
    """Proxy runs of the design: mixtures around the recipe's own. More can be added later."""
    repeats: int = 4
    """Seeds with which the recipe's own and the found weights are run: they measure the noise and the gain."""
    metric: Metric = "loss"
    """loss: the validation loss over that of the best constant prediction, averaged over the tasks. headline: each
    task's first metric."""
    targets: tuple[str, ...] = ()
    """Tasks whose metric counts. None: all that are drawn."""


@dataclass(frozen=True)
class Proxy:
    """One short run. shares: of the drawn tasks, in the recipe's order and unit."""

    kind: Literal["own", "design", "found"]
    number: int
    shares: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Result:
    """A finished proxy. scores: {task: {loss, constant_loss, headline, metrics}} on the validation split."""

    proxy: Proxy
    seconds: float
    scores: dict[str, dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Result:
        """Inverse of `as_dict`."""
        proxy = {**saved["proxy"], "shares": tuple(saved["proxy"]["shares"])}
        return cls(**{**saved, "proxy": Proxy(**proxy)})


@dataclass(frozen=True)
class Answer:
    """What a finished search says. own, measured: mean costs of the proxies at the recipe's and at the found weights,
    [targets]; measured is None where the fit promised too little to measure. gain: by how much the mean cost fell;
    gain_error: its standard error, from its differences between `repeats` seeds. proxies, seconds: what it all took."""

    found: Found
    own: Floats
    measured: Floats | None
    gain: float
    gain_error: float
    repeats: int
    proxies: int
    seconds: float

    @property
    def better(self) -> bool:
        """Whether the measured gain is above the noise: by Student's t, 1 in 20 where there is none."""
        return self.measured is not None and self.gain > student_t(self.repeats - 1) * self.gain_error


def student_t(freedom: int) -> float:
    """95% quantile of Student's t with so many degrees of freedom (from 10 on: that of 10)."""
    return (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812)[min(freedom, 10) - 1]


def drawn_tasks(recipe: Recipe) -> list[str]:
    """The tasks whose weight is not 0: only their shares are searched."""
    return [name for name, task in recipe.tasks.items() if task.weight]


def own_shares(recipe: Recipe) -> Floats:
    """The recipe's shares of the drawn tasks."""
    weights = np.array([recipe.tasks[name].weight for name in drawn_tasks(recipe)])
    out: Floats = weights / weights.sum()
    return out


def proxy_base(recipe: Recipe, steps: int, rows: int) -> Recipe:
    """The recipe that all proxies of a search share: short, evaluated on `rows` rows of each task, not tracked."""
    short = unattended(recipe)
    return short.model_copy(
        update={
            "mixture": recipe.mixture.model_copy(update={"law": "explicit"}),
            "schedule": recipe.schedule.model_copy(update={"steps": steps}),
            "evaluation": short.evaluation.model_copy(update={"examples": rows}),
        }
    )


def proxy_recipe(base: Recipe, proxy: Proxy) -> Recipe:
    """The recipe of one proxy."""
    weights = dict(zip(drawn_tasks(base), proxy.shares, strict=True))
    tasks = {name: task.model_copy(update={"weight": weights.get(name, 0.0)}) for name, task in base.tasks.items()}
    return base.model_copy(update={"tasks": tasks, "seed": proxy.seed})


def next_proxy(base: Recipe, question: Question, results: Sequence[Result]) -> Proxy | None:
    """The proxy to run after `results`; None where the question is answered."""
    done = {result.proxy for result in results}
    for proxy in _first(base, question):
        if proxy not in done:
            return proxy
    found = _found(base, question, results)
    if not found.promising:
        return None
    return next((proxy for proxy in _repeats(base, question, "found", found.shares) if proxy not in done), None)


def answer(base: Recipe, question: Question, results: Sequence[Result]) -> Answer:
    """What the results say, all proxies of the question being among them."""
    found, of = _found(base, question, results), {result.proxy: result for result in results}
    own = _costs(base, question, [of[proxy] for proxy in _repeats(base, question, "own", own_shares(base))])
    used = _first(base, question)
    if not found.promising:
        seconds = sum(of[proxy].seconds for proxy in used)
        return Answer(found, own.mean(axis=0), None, 0.0, 0.0, question.repeats, len(used), seconds)
    used += _repeats(base, question, "found", found.shares)
    then = _costs(base, question, [of[proxy] for proxy in _repeats(base, question, "found", found.shares)])
    gains = own.mean(axis=1) - then.mean(axis=1)
    error = float(gains.std(ddof=1)) / math.sqrt(question.repeats)
    seconds = sum(of[proxy].seconds for proxy in used)
    own_costs, costs = own.mean(axis=0), then.mean(axis=0)
    return Answer(found, own_costs, costs, float(gains.mean()), error, question.repeats, len(used), seconds)


def target_tasks(base: Recipe, question: Question) -> list[str]:
    """The tasks that count."""
    return [name for name in drawn_tasks(base) if not question.targets or name in question.targets]


def cost(score: dict[str, Any], metric: Metric) -> float:
    """What the search makes small, of one task: 1 is as good as the best constant prediction, 0 is perfect."""
    constant = score["constant_loss"]
    if metric == "loss":
        return float(score["loss"] / constant)
    name = score["headline"]
    value = score["metrics"][name]
    if value is None or math.isnan(value):  # the correlation of a constant prediction
        return 1.0
    if lower_is_better(name):
        return float(value / (math.sqrt(constant) if name == "mean_absolute_error" else constant))
    return 1.0 - float(value)


def _first(base: Recipe, question: Question) -> list[Proxy]:
    """All proxies that do not depend on results."""
    return [*_repeats(base, question, "own", own_shares(base)), *_tried(base, question)]


def _tried(base: Recipe, question: Question) -> list[Proxy]:
    """The design, all with the recipe's seed."""
    points = design(own_shares(base), question.runs, base.seed)
    return [Proxy("design", i, _shares(point), base.seed) for i, point in enumerate(points)]


def _repeats(base: Recipe, question: Question, kind: Literal["own", "found"], shares: Floats) -> list[Proxy]:
    """One mixture with several seeds, the recipe's own first."""
    seeds = [base.seed, *(hash_key(base.seed, "search", "repeat", i) % 2**32 for i in range(1, question.repeats))]
    return [Proxy(kind, i, _shares(shares), seed) for i, seed in enumerate(seeds)]


def _shares(shares: Floats) -> tuple[float, ...]:
    return tuple(rounded(shares).tolist())


def _found(base: Recipe, question: Question, results: Sequence[Result]) -> Found:
    """What the fit to the design says."""
    of = {result.proxy: result for result in results}
    used = [of[proxy] for proxy in _tried(base, question)]
    tasks = drawn_tasks(base)
    targets = np.array([tasks.index(name) for name in target_tasks(base, question)])
    shares = np.array([result.proxy.shares for result in used])
    return find(shares, _costs(base, question, used), targets, rounded(own_shares(base)), base.seed)


def _costs(base: Recipe, question: Question, results: Sequence[Result]) -> Floats:
    """[results, targets]."""
    names = target_tasks(base, question)
    return np.array([[cost(result.scores[name], question.metric) for name in names] for result in results])
