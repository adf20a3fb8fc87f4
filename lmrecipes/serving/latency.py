"""`lmrecipes latency`: a finished run served in each precision, under real load, against the recipe's budgets."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.progress import Progress

from lmrecipes.files import json_text, write_json
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import LatencyBudget, Recipe
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.recipe_serving import SERVED, ServedPrecision
from lmrecipes.run_folder import RunFolder, cpu_name, open_run
from lmrecipes.serving.budgets import Check, Served, judge, largest_rate
from lmrecipes.serving.latency_text import markdown_latency, print_latency
from lmrecipes.serving.load import Load, Measured, measure
from lmrecipes.serving.options import ServeOptions
from lmrecipes.serving.process import service

if TYPE_CHECKING:
    from lmrecipes.inference.precisions import PrecisionResult

MOST_ROWS = 500
"""Rows of each task's test split that requests are made of."""
LATE = 5
"""A load is given up where a request is sent so many times the limit too late: the service cannot follow."""


@dataclass(frozen=True)
class LatencyOptions:
    """Arguments of `lmrecipes latency`."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a finished run."""
    precision: tuple[ServedPrecision, ...] = SERVED
    """Precisions to measure."""
    budget: str | None = None
    """Only this one of the recipe's budgets. None: all."""
    seconds: float = 8.0
    """Length of each load; p99 needs some hundred requests."""
    threads: int = 1
    """Threads of one forward pass."""
    examples: int = 1500
    """Most rows of each task's test split that accuracy is measured on."""
    readme: Path | None = None
    """Also write the table between the markers `<!-- latency -->` of this README."""
    json: bool = False
    """Machine-readable output."""


def latency(options: LatencyOptions) -> int:
    """Measure, store `latency.json`, and say what was found; 1 where a budget is not kept. Raises InputError."""
    run = open_run(options.run)
    recipe = recipe_from_yaml(run.recipe)
    budgets = _budgets(recipe, options)
    served = _measured(run, recipe, budgets, options)
    content: dict[str, Any] = {
        "run": run.path.resolve().name,
        "measured": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "seconds": options.seconds,
        "limit_ms": _limit(budgets),
        "precisions": {name: found.as_dict() for name, found in served.items()},
        "budgets": {name: _verdict(name, budget, served) for name, budget in budgets.items()},
    }
    write_json(run.latency, content)
    if run.evaluation.is_file():
        from lmrecipes.tracking.report import write_report

        write_report([run.path], run.report)
    if options.readme is not None:
        from lmrecipes.tracking.results import write_results_into

        write_results_into(options.readme, markdown_latency(content), "latency")
    if options.json:
        print(json_text(content, indent=1))  # noqa: T201
    else:
        print_latency(content, run.latency)
    return 0 if all(verdict["met"] for verdict in content["budgets"].values()) else 1


def _budgets(recipe: Recipe, options: LatencyOptions) -> dict[str, LatencyBudget]:
    """The budgets to check. Raises InputError for arguments that do not fit them."""
    problems, known = [], list(recipe.latency)
    if options.budget is not None and options.budget not in known:
        what = f"no budget {options.budget!r}.{did_you_mean(options.budget, known)}"
        fix = f"use one of {listing(known)}" if known else "the recipe has none: leave it out"
        problems.append(Problem("--budget", what, fix, "latency-budget"))
    chosen = {name: budget for name, budget in recipe.latency.items() if options.budget in (None, name)}
    for name, budget in chosen.items():
        if budget.precision not in options.precision:
            what = f"the budget {name!r} is of {budget.precision}, which is not among {listing(options.precision)}"
            problems.append(Problem("--precision", what, f"add {budget.precision}", "latency-precision"))
    for flag, value in (
        ("--seconds", options.seconds),
        ("--threads", options.threads),
        ("--examples", options.examples),
    ):
        if value <= 0:
            problems.append(Problem(flag, f"must be above 0, found {value:g}", f"raise {flag}", "latency-numbers"))
    if problems:
        raise InputError(problems)
    return chosen


def _measured(
    run: RunFolder, recipe: Recipe, budgets: Mapping[str, LatencyBudget], options: LatencyOptions
) -> dict[str, Served]:
    """Accuracy first, with nothing else running; then one service after the other."""
    from lmrecipes.inference.precisions import compare
    from lmrecipes.serving.requests import questions_of
    from lmrecipes.tracking.progress import terminal

    questions = questions_of(recipe, MOST_ROWS)
    console = terminal()
    served: dict[str, Served] = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("accuracy", total=1 + len(options.precision))
        found = compare(run, options.precision, options.examples, *_strictest(budgets))
        bar.advance(task)
        for result in (result for result in found if result.precision in options.precision):
            bar.update(task, description=f"service in {result.precision}")
            served[result.precision] = _served(run, result, questions, budgets, options)
            bar.advance(task)
    return served


def _strictest(budgets: Mapping[str, LatencyBudget]) -> tuple[float, float]:
    """The smallest margin and the highest confidence that any budget asks for."""
    chosen = list(budgets.values()) or [LatencyBudget()]
    return min(budget.margin for budget in chosen), max(budget.confidence for budget in chosen)


def _served(
    run: RunFolder,
    result: PrecisionResult,
    questions: Sequence[Mapping[str, Any]],
    budgets: Mapping[str, LatencyBudget],
    options: LatencyOptions,
) -> Served:
    """One precision under load."""
    serving = ServeOptions(threads=options.threads)
    with service(run.path, result.precision, serving) as port:

        def under(rate: float | None, limit: float) -> Measured:
            late = LATE * limit
            return measure(Load(serving.host, port, options.seconds, rate, late), questions)

        limit = _limit(budgets)
        closed = under(None, limit)
        loaded = {name: under(one.requests_per_second, one.loaded_p99_ms) for name, one in budgets.items()}
        most = largest_rate(lambda rate: under(rate, limit), max(1.0, 0.8 * closed.rate), limit)
    return Served(result.kind, result.megabytes, closed, most, loaded, result.tasks)


def _limit(budgets: Mapping[str, LatencyBudget]) -> float:
    """The p99 that the search for the largest rate keeps: the strictest of the budgets."""
    return min((budget.loaded_p99_ms for budget in budgets.values()), default=LatencyBudget().loaded_p99_ms)


def _verdict(name: str, budget: LatencyBudget, served: Mapping[str, Served]) -> dict[str, Any]:
    """A budget in each precision; its own decides."""
    found = {precision: judge(name, budget, one) for precision, one in served.items()}
    return {
        "budget": budget.model_dump(),
        "met": _all_met(found[budget.precision]),
        "precisions": {
            precision: {"met": _all_met(checks), "checks": [asdict(check) for check in checks]}
            for precision, checks in found.items()
        },
    }


def _all_met(checks: Sequence[Check]) -> bool:
    return all(check.met for check in checks)
