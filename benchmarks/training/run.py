"""Useful tokens a second of training on one task, beside `transformers.Trainer` at its defaults and at its best.

python benchmarks/training/run.py                      rounds of all, and the share of the machine's matrix products
python benchmarks/training/run.py --profile --write    also where a step of ours goes; the tables into README.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from pairs import Pairs, Target, in_turn, markdown_table, measured_on, targets_table  # noqa: E402
from sides import PEAKS, Measured, Work, only  # noqa: E402

from lmrecipes.models.loading import load_trunk  # noqa: E402
from lmrecipes.models.multitask import MultiTaskModel  # noqa: E402
from lmrecipes.recipe_files import find_recipe  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402
from lmrecipes.training.flops import training_flops_per_token  # noqa: E402

BATCHES = (16, 32, 64, 128)
"""Examples a step among which the Trainer's best is looked for."""
ATTENTION = ("sdpa", "eager")
OURS, DEFAULTS, ARGUMENTS, BEST, SAME_BATCH, LIMIT = "ours", "defaults", "arguments", "best", "our batch", "limit"


def main() -> int:
    """Measure; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="bert_multitask")
    parser.add_argument("--task", default="valence", help="the one task that is trained: a regression")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=3200, help="examples that count in each measurement, about")
    known = "the Trainer's best as found before, for example `--best 128 eager`: it is not looked for again"
    parser.add_argument("--best", nargs=2, metavar=("EXAMPLES", "ATTENTION"), help=known)
    parser.add_argument("--profile", action="store_true", help="also say where a step of ours goes")
    parser.add_argument("--write", action="store_true", help="write the tables into README.md")
    args = parser.parse_args()
    targets: list[Target] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Work(only(find_recipe(args.recipe).build(), args.task), Path(folder), args.examples)
        parts = [compare(work, args.rounds, args.best, targets)]
        if args.profile:
            parts.append(profile_table(work.profile()))
    measured = f"{measured_on(('torch', 'transformers'))} {args.rounds} rounds."
    text = "\n\n".join([targets_table(targets), *parts, measured])
    print(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text)
    return 0 if all(target.met for target in targets) else 1


def compare(work: Work, rounds: int, known: Sequence[str] | None, targets: list[Target]) -> str:
    """All sides in turn, and the limit beside them. known: the Trainer's best examples a step and attention."""
    size, attention, found = (int(known[0]), known[1], "as found before") if known else best_settings(work)
    best, ours = {**arguments(work), "per_device_train_batch_size": size}, work.recipe.batch.examples
    at_once = min(size, ours)
    same = {**best, "per_device_train_batch_size": at_once, "gradient_accumulation_steps": ours // at_once}
    seen: dict[str, list[Measured]] = {}

    def kept(name: str, measure: Callable[[], Measured]) -> Callable[[], float]:
        def rate() -> float:
            seen.setdefault(name, []).append(measure())
            return seen[name][-1].rate

        return rate

    say("in turn: useful tokens/s (limit: FLOP/s)")
    sides: dict[str, Callable[[], Measured]] = {
        OURS: work.ours,
        DEFAULTS: lambda: work.trainer({}),
        ARGUMENTS: lambda: work.trainer(best),
        BEST: lambda: work.tuned_trainer(best, attention),
    }
    if size != ours:
        sides[SAME_BATCH] = lambda: work.tuned_trainer(same, attention)
    measures = {name: kept(name, measure) for name, measure in sides.items()}
    rates = in_turn(rounds, {**measures, LIMIT: work.limit}, say)
    flops = training_flops_per_token(MultiTaskModel(load_trunk(work.recipe.model, work.recipe.seed), {}))
    titles = {
        OURS: f"lmrecipes ({ours} examples a step)",
        DEFAULTS: "`Trainer`, defaults (fp32, 8 examples a step, random order)",
        ARGUMENTS: f"`Trainer`, its best arguments (bf16, {size} a step, grouped by length)",
        BEST: f"`Trainer`, the same on a model tuned by hand (no dropout, {attention} attention, word table frozen)",
        SAME_BATCH: f"`Trainer`, its best at our batch ({ours} a step, {at_once} at once)",
    }
    shares = {
        name: statistics.median(rate * flops / peak for rate, peak in zip(rates[name], rates[LIMIT], strict=True))
        for name in sides
    }
    pairs = {name: Pairs(rates[OURS], rates[name]) for name in sides}
    targets += [
        Target("useful tokens/s over `Trainer` at its defaults", pairs[DEFAULTS].ratio, 4),
        Target("useful tokens/s over `Trainer` with its best arguments", pairs[ARGUMENTS].ratio, 1.5),
        Target("share of the limit of matrix products", shares[OURS], 0.5),
    ]
    rows = [
        [
            titles[name],
            f"{statistics.median(rates[name]):,.0f}",
            _padding(seen[name]),
            f"{1000 * statistics.median(one.seconds / one.steps for one in seen[name]):,.0f}",
            f"{shares[name]:.0%}",
            "" if name == OURS else f"{pairs[name].ratio:.2f}",
            "" if name == OURS else f"{min(pairs[name].ratios):.2f} to {max(pairs[name].ratios):.2f}",
        ]
        for name in sides
    ]
    head = ["", "useful tokens/s", "padding", "step, ms", "share of the limit", "ours over it", "ratios of the rounds"]
    peaks = ", ".join(f"{peak / 1e9:.0f}" for peak in rates[LIMIT])
    note = (
        f"Limit: matrix products in {work.recipe.precision.compute} at {peaks} GFLOP/s (the median of {PEAKS} in each "
        f"round), {flops / 1e6:.1f} MFLOP a token. The best of the Trainer: {found}."
    )
    return f"{markdown_table(head, rows)}\n\n{note}"


def arguments(work: Work) -> dict[str, Any]:
    """`TrainingArguments` that make the Trainer fast, but for the number of examples."""
    return {
        "bf16": work.recipe.precision.compute == "bf16",
        "train_sampling_strategy": "group_by_length",
        "optim": "adamw_torch_fused",
        "learning_rate": work.recipe.optimizer.lr,
        "weight_decay": work.recipe.optimizer.weight_decay,
    }


def best_settings(work: Work) -> tuple[int, str, str]:
    """Examples a step and attention with which the Trainer is fastest, and what was found on the way."""
    rates: dict[tuple[int, str], float] = {}
    say("looking for the Trainer's best")

    def measure(size: int, attention: str) -> None:
        chosen = {**arguments(work), "per_device_train_batch_size": size}
        rates[size, attention] = work.tuned_trainer(chosen, attention).rate
        say(f"  {size} examples, {attention}: {rates[size, attention]:,.0f} tokens/s")

    for attention in ATTENTION:
        measure(32, attention)
    attention = max(ATTENTION, key=lambda name: rates[32, name])
    for size in BATCHES:
        if (size, attention) not in rates:
            measure(size, attention)
    size, attention = max(rates, key=rates.__getitem__)
    found = ", ".join(f"{count} with {name} {rate:,.0f}" for (count, name), rate in sorted(rates.items()))
    return size, attention, f"tokens/s by examples a step: {found}"


def profile_table(shares: dict[str, float]) -> str:
    """Where a step goes, as Markdown."""
    rows = [[part, f"{share:.1%}"] for part, share in shares.items()]
    return markdown_table(["where a step of ours goes (`torch.profiler`)", "share"], rows)


def _padding(taken: list[Measured]) -> str:
    known = [1 - one.tokens / one.computed for one in taken if one.computed]
    return f"{statistics.median(known):.0%}" if known else ""


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
