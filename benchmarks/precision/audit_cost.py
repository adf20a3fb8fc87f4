"""What an audited step costs over a plain one, on the shipped recipes: both in one process, in turn, in fp32.

python benchmarks/precision/audit_cost.py            both recipes
python benchmarks/precision/audit_cost.py --write    the table into README.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from pairs import Pairs, in_turn, markdown_table, measured_on  # noqa: E402

from lmrecipes.launching import quieten  # noqa: E402
from lmrecipes.precision.audit.live import audited_step, exact, plain_step, rate_of  # noqa: E402
from lmrecipes.precision.audit.measure import Audit, Sampling  # noqa: E402
from lmrecipes.recipe import Recipe  # noqa: E402
from lmrecipes.recipe_files import find_recipe  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402
from lmrecipes.training.loop import Start, Training  # noqa: E402

MOST = 3.0
"""Largest cost of an audited step over a plain one."""
RECIPES = ("bert_multitask", "gpt_mixture")


@dataclass(frozen=True)
class Cost:
    """Seconds of steps that were taken in turn, and of one look at all weights, which an audit takes once."""

    recipe: str
    steps: Pairs
    weights: float


def main() -> int:
    """Measure. Exit code 1 where an audited step costs too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=Sampling.rows, help="sampled rows, as `lmrecipes audit --rows`")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    quieten()
    costs = [cost_of(find_recipe(name).build(), args.rounds, Sampling(rows=args.rows)) for name in args.recipes]
    measured = f"{measured_on(('torch', 'transformers'))} {args.rounds} rounds, {args.rows} sampled rows."
    text = f"{table(costs)}\n\n{measured}"
    say(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text, "audit_cost")
    return 1 if any(cost.steps.ratio > MOST for cost in costs) else 0


def cost_of(recipe: Recipe, rounds: int, sampling: Sampling) -> Cost:
    """Plain and audited steps of a recipe in turn, after one of each that does not count."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        training = Training(exact(recipe), Start(run=Path(folder) / "run"))
        audit = Audit(training.engine.module, sampling)
        weights = seconds(audit.weights)

        def plain(at: int) -> None:
            plain_step(training, training.stream.step(at), at, rate_of(training.recipe, at))

        def audited(at: int) -> None:
            audited_step(training, audit, training.stream.step(at), at)

        plain(0), audited(0)
        taken: dict[str, list[float]] = {"audited": [], "plain": []}
        for at in range(1, rounds + 1):  # both sides compute the same texts
            of_round = in_turn(
                1,
                {"plain": partial(seconds, partial(plain, at)), "audited": partial(seconds, partial(audited, at))},
                say,
            )
            for name, values in of_round.items():
                taken[name] += values
        training.engine.close()
    return Cost(recipe.name, Pairs(tuple(taken["audited"]), tuple(taken["plain"])), weights)


def seconds(action: Callable[[], None]) -> float:
    """How long an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def table(costs: Sequence[Cost]) -> str:
    """Seconds and ratios, as Markdown."""
    head = ["recipe", "plain step, s", "audited step, s", "ratio", "ratios of the rounds", "at most", "weights once, s"]
    rows = [
        [
            cost.recipe,
            f"{statistics.median(cost.steps.bare):.2f}",
            f"{statistics.median(cost.steps.ours):.2f}",
            f"{cost.steps.ratio:.2f}",
            f"{min(cost.steps.ratios):.2f} to {max(cost.steps.ratios):.2f}",
            f"{MOST:g} ({'met' if cost.steps.ratio <= MOST else 'missed'})",
            f"{cost.weights:.2f}",
        ]
        for cost in costs
    ]
    return markdown_table(head, rows)


def say(line: str) -> None:
    """A line of progress, or of the result."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
