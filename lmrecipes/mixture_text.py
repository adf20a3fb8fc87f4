"""The mixture as people read it: tables for the terminal, and the lines at the start of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrecipes.data.duplicates import duplicate_warnings
from lmrecipes.data.encoded import EncodedTask
from lmrecipes.data.facts import MANY_EPOCHS, mixture_facts, mixture_warnings
from lmrecipes.data.mixture import Mixture
from lmrecipes.problems import Problem, listing
from lmrecipes.recipe import TOKEN_KINDS, Recipe
from lmrecipes.recipe_inputs import MEDIA

log = logging.getLogger(__name__)

Fact = Mapping[str, Any]
Facts = Mapping[str, Fact]

MOST_MOMENTS = 8
"""Columns of the table of shares over the run; of more changes, so many are shown, the first and the last included."""
_UNLIMITED = 10_000


def title(recipe: Recipe) -> str:
    """How long the run is, what shares count, and where they come from: one line."""
    mixture, drawn = recipe.mixture, recipe.schedule.steps * recipe.batch.examples
    laws = {
        "explicit": "by weight",
        "proportional": "by weight x size",
        "temperature": f"by weight x size ^ (1/{mixture.temperature or 1:g})",
        "unimax": f"unimax, at most {mixture.max_epochs or 0:g} epochs",
    }
    change = ""
    if mixture.schedule:
        change = ", by schedule" + (" in straight lines" if mixture.between == "linear" else "")
    elif mixture.adaptive.method != "off":
        change = f" at first, then {mixture.adaptive.method} every {mixture.adaptive.every} steps"
    elif mixture.replay:
        change = f", then as {mixture.replay} says"
    return (
        f"mixture: {recipe.schedule.steps:,} steps x {recipe.batch.examples:,} = {drawn:,} examples; "
        f"shares of {mixture.unit.replace('_', ' ')} {laws[mixture.resolved_law]}{change}"
    )


def lines(recipe: Recipe, facts: Facts) -> list[str]:
    """The mixture in two lines, for the start of a run."""
    each = [f"{name} {fact['share']:.1%} ({_epochs(fact)} epochs{_of_what(fact)})" for name, fact in facts.items()]
    return [title(recipe), f"  {listing(each)}"]


def _of_what(fact: Fact) -> str:
    """What a pass over a task of tokens is: ` of 1,204 documents, 12.3 M tokens`; of another, the rows that lack an
    input."""
    if fact["kind"] not in TOKEN_KINDS:
        lacking = {name: rows for name in ("text", *MEDIA) if (rows := fact.get(f"without_{name}", 0))}
        each = (f"{rows:,} without {name}" for name, rows in lacking.items())
        return f" of {fact['rows']:,} rows, {listing(list(each))}" if lacking else ""
    if fact["kind"] == "chat":
        return f" of {_number(fact['rows'])} conversations, {_with_loss(fact)} of their tokens with loss"
    return f" of {_number(fact['documents'])} documents, {_number(fact['tokens'])} tokens"


def announce(recipe: Recipe, tasks: Mapping[str, EncodedTask], mixture: Mixture) -> Facts:
    """Log the mixture and what is surprising about it. Returns its facts."""
    facts = mixture_facts(recipe, tasks, mixture)
    for line in lines(recipe, facts):
        log.info(line)
    for problem in mixture_warnings(recipe, facts) + duplicate_warnings(tasks):
        log.warning("warning: %s", problem)
    return facts


@dataclass(frozen=True)
class _Column:
    """head, what stands in a task's row, and in the last one; wanted: whether any task has something to say."""

    head: str
    cell: Callable[[Fact], str | Text]
    total: str = ""
    wanted: bool = True


def print_mixture(recipe: Recipe, facts: Facts, problems: Sequence[Problem], console: Console) -> None:
    """What there is of each task, what the run draws of it, how shares change, and what is surprising."""
    console.print(Text(title(recipe), style="bold"), soft_wrap=True)
    rows, plan = _of_rows(facts), _of_plan(facts)
    whole = _table(facts, [*rows, *plan])
    if console.measure(whole, options=console.options.update(max_width=_UNLIMITED)).maximum <= console.width:
        console.print(whole)
    else:
        console.print(_table(facts, rows))
        console.print(_table(facts, plan))
    moments = next(iter(facts.values()))["shares"]
    if len(moments) > 1:
        console.print(_over_the_run(facts, [step for step, _ in moments]))
    for problem in problems:
        text = Text.assemble(("warning ", "bold yellow"), (f"{problem.where}: {problem.what}", "yellow"))
        console.print(text, soft_wrap=True)
        console.print(Text(f"        fix: {problem.fix}", style="dim"), soft_wrap=True)


def _of_rows(facts: Facts) -> list[_Column]:
    """Columns about the data."""
    every = facts.values()

    def count(head: str, value: Callable[[Fact], int]) -> _Column:
        """A column of counts that is only wanted where one of them is not 0."""
        found = [value(fact) for fact in every]
        return _Column(head, lambda fact: _number(value(fact)), _number(sum(found)), any(found))

    def lacking(name: str) -> _Column:
        return count(f"no {name}", lambda fact: fact.get(f"without_{name}", 0))

    documents = sum(fact.get("documents", 0) for fact in every)
    return [
        _Column(
            "documents",
            lambda fact: _number(fact["documents"]) if "documents" in fact else "",
            _number(documents),
            documents > 0,
        ),
        count(_rows_are({fact["kind"] for fact in every}), lambda fact: fact["rows"]),
        _Column("tokens/row", lambda fact: f"{fact['tokens_per_row']:.1f}"),
        _Column("with loss", _with_loss, wanted=any(fact["kind"] in TOKEN_KINDS for fact in every)),
        count("cut", lambda fact: fact["truncated"]),
        count("masked", lambda fact: fact["masked"]),
        *map(lacking, ("text", *MEDIA)),
        count("bad", lambda fact: fact["skipped"]),
        count("in 2 splits", lambda fact: sum(fact["duplicates"].values())),
    ]


def _rows_are(kinds: set[str]) -> str:
    """What a row is, in one word for all tasks of a recipe: documents of language modelling are cut into texts."""
    if kinds <= {"chat"}:
        return "conversations"
    return "texts" if kinds <= {"chat", "language_modelling"} else "rows"


def _with_loss(fact: Fact) -> str:
    """Share of a task's tokens that carry loss; empty where the loss is of whole texts."""
    return f"{fact['supervised'] / fact['tokens']:.1%}" if fact["kind"] in TOKEN_KINDS else ""


def _of_plan(facts: Facts) -> list[_Column]:
    """Columns about the run."""
    every = facts.values()
    return [
        _Column("target", lambda fact: Text(f"{fact['share']:.1%}", style="bold cyan")),
        _Column("examples", lambda fact: _number(fact["examples"]), _number(sum(f["examples"] for f in every))),
        _Column("share", lambda fact: f"{fact['example_share']:.1%}"),
        _Column("tokens", lambda f: _number(f["planned_tokens"]), _number(sum(f["planned_tokens"] for f in every))),
        _Column("share", lambda fact: f"{fact['token_share']:.1%}"),
        _Column("epochs", lambda fact: Text(_epochs(fact), style="yellow" if fact["epochs"] >= MANY_EPOCHS else "")),
        _Column(
            "used up",
            lambda fact: Text(f"step {fact['exhausted_at']:,}" if fact["exhausted_at"] else "", style="yellow"),
            wanted=any(fact["exhausted_at"] for fact in every),
        ),
    ]


def _table(facts: Facts, columns: Sequence[_Column]) -> Table:
    chosen = [column for column in columns if column.wanted]
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_footer=len(facts) > 1)
    table.add_column("task", "all", overflow="fold", min_width=6)
    for column in chosen:
        table.add_column(column.head, column.total, justify="right", no_wrap=True)
    for name, fact in facts.items():
        table.add_row(name, *(column.cell(fact) for column in chosen))
    return table


def _over_the_run(facts: Facts, steps: Sequence[int]) -> Table:
    """Shares in force from some steps on, at most MOST_MOMENTS of them."""
    last, most = len(steps) - 1, MOST_MOMENTS - 1
    moments = range(last + 1) if last <= most else sorted({round(i * last / most) for i in range(most + 1)})
    note = "" if len(moments) == last + 1 else f" ({len(moments)} of {last + 1} changes)"
    table = Table(title=f"share from a step on{note}", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("task", overflow="fold", min_width=6)
    for moment in moments:
        table.add_column(f"step {steps[moment] + 1:,}", justify="right", no_wrap=True)
    for name, fact in facts.items():
        shares = [fact["shares"][moment][1] for moment in moments]
        table.add_row(name, *(Text(f"{share:.1%}", style="" if share else "dim") for share in shares))
    return table


def _epochs(fact: Fact) -> str:
    """0.004, 0.41, 12.3."""
    epochs = fact["epochs"]
    return f"{epochs:.3f}" if epochs < 0.1 else f"{epochs:.2f}" if epochs < 10 else f"{epochs:,.1f}"


def _number(value: float) -> str:
    """12,345,678 -> `12.3 M`; smaller ones in full."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= 10 * size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f}"
