"""The answer of a search: a table, the weights as YAML and as flags, or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lmrecipes.recipe import Recipe
from lmrecipes.search.plan import Answer, Floats, Question, drawn_tasks, own_shares, target_tasks
from lmrecipes.tracking.progress import clock


def weights(base: Recipe, answer: Answer) -> dict[str, float]:
    """The weights to train with: the found ones where they are better, else the recipe's own. Undrawn tasks keep 0."""
    own = {name: task.weight for name, task in base.tasks.items()}
    return own | dict(zip(drawn_tasks(base), answer.found.shares.tolist(), strict=True)) if answer.better else own


def weights_yaml(base: Recipe, answer: Answer) -> str:
    """`weights` as a part of a recipe, ready to paste."""
    content = {"tasks": {name: {"weight": weight} for name, weight in weights(base, answer).items()}}
    said = "found by" if answer.better else "the recipe's own, kept by"
    text: str = yaml.safe_dump(content, sort_keys=False)
    return f"# {said} `lmrecipes search`: {verdict(answer)}\n{text}"


def flags(base: Recipe, answer: Answer) -> str:
    """`weights` as flags of `lmrecipes train`."""
    return " ".join(f"--tasks.{name}.weight {weight:g}" for name, weight in weights(base, answer).items())


def verdict(answer: Answer) -> str:
    """What to do, and why, in one line."""
    if answer.measured is None:
        return (
            f"keep your weights: the best predicted gain, {_pm(answer.found.gain, answer.found.gain_error)}, "
            "is within the uncertainty of the fit"
        )
    gain = f"the measured gain, {_pm(answer.gain, answer.gain_error)} ({answer.repeats} seeds),"
    if answer.better:
        return f"take the found weights: {gain} is above the noise"
    return f"keep your weights: {gain} is not above the noise"


def _pm(value: float, error: float) -> str:
    return f"{value:.4f} ± {error:.4f}"


def as_json(base: Recipe, question: Question, answer: Answer) -> dict[str, Any]:
    """The answer for programs. Costs: lower is better."""
    tasks, targets, found = drawn_tasks(base), target_tasks(base, question), answer.found
    return {
        "better": answer.better,
        "verdict": verdict(answer),
        "weights": weights(base, answer),
        "own_shares": dict(zip(tasks, own_shares(base).tolist(), strict=True)),
        "found_shares": dict(zip(tasks, found.shares.tolist(), strict=True)),
        "metric": question.metric,
        "proxies": answer.proxies,
        "seconds": answer.seconds,
        "own": dict(zip(targets, answer.own.tolist(), strict=True)),
        "predicted_own": dict(zip(targets, found.own_costs.tolist(), strict=True)),
        "predicted": dict(zip(targets, found.costs.tolist(), strict=True)),
        "measured": None if answer.measured is None else dict(zip(targets, answer.measured.tolist(), strict=True)),
        "predicted_gain": [found.gain, found.gain_error],
        "measured_gain": None if answer.measured is None else [answer.gain, answer.gain_error],
        "rank_correlation": found.rank_correlation,
    }


def print_answer(base: Recipe, question: Question, answer: Answer, written: Path | None) -> None:
    """The answer for people."""
    console = Console(highlight=False)
    found = answer.found
    what = "validation loss (1: best constant)" if question.metric == "loss" else "headline metrics (1: perfect)"
    console.print(f"{base.name} after {base.schedule.steps} steps: {what}", soft_wrap=True)
    console.print(_table(base, question, answer))
    console.print(f"{answer.proxies} proxies in {clock(answer.seconds)}")
    console.print(f"fit: rank correlation with proxies that it has not seen {found.rank_correlation:.2f}")
    console.print(f"predicted gain: {_pm(found.gain, found.gain_error)}")
    console.print(f"[bold {'green' if answer.better else 'yellow'}]{verdict(answer)}[/]")
    if answer.better:
        console.print("\n" + weights_yaml(base, answer).partition("\n")[2], markup=False)
        console.print(flags(base, answer), markup=False, soft_wrap=True)
    if written is not None:
        console.print(f"written to {written}", markup=False, soft_wrap=True)


def _table(base: Recipe, question: Question, answer: Answer) -> Table:
    """One line a task; a task that is drawn but does not count has no cost."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("task", "your share", "found", "yours", "predicted", "measured"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    targets = {name: place for place, name in enumerate(target_tasks(base, question))}
    columns = (answer.own, answer.found.costs, answer.measured)

    def shown(costs: Floats | None) -> str:
        if costs is None:
            return "-"
        mean = float(costs.mean())
        return f"{mean if question.metric == 'loss' else 1 - mean:.4f}"

    for name, own, found in zip(drawn_tasks(base), own_shares(base), answer.found.shares, strict=True):
        at = targets.get(name)
        costs = ["-" if at is None else shown(None if c is None else c[at : at + 1]) for c in columns]
        table.add_row(name, f"{own:.1%}", f"{found:.1%}", *costs)
    table.add_row("mean", "", "", *map(shown, columns), style="bold")
    return table
