"""Useful tokens a second of gpt_mixture, beside a loop written by hand on the same batches.

python benchmarks/training/gpt_mixture.py                      rounds of all, and how far the losses lie apart
python benchmarks/training/gpt_mixture.py --profile --write    also where a step of ours goes; tables into README.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from pairs import Pairs, Target, markdown_table, measured_on, targets_table  # noqa: E402
from run import profile_table  # noqa: E402
from sides import start  # noqa: E402
from turns import Rounds, Side, largest_difference, take_turns, warm_up  # noqa: E402

from lmrecipes.assets import resolve_model  # noqa: E402
from lmrecipes.recipe import Recipe  # noqa: E402
from lmrecipes.recipe_files import find_recipe  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402

OURS, BARE, EAGER, PLAIN = "ours", "bare", "bare eager", "bare plain"
TITLES = {
    OURS: "lmrecipes",
    BARE: "by hand, texts isolated, sdpa attention",
    EAGER: "by hand, texts isolated, eager attention",
    PLAIN: "by hand, texts that share a row see each other, sdpa attention",
}
CLOSE = 0.02
"""Nats by which the losses of a step may differ: sums of bf16 products in another order."""


def main() -> int:
    """Measure; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="gpt_mixture")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps of each side in a round")
    parser.add_argument("--warmup", type=int, default=1, help="steps before those that count")
    known = "loops by hand; each keeps 3 to 8 GB of memory"
    parser.add_argument("--sides", nargs="+", choices=[BARE, EAGER, PLAIN], default=[BARE, EAGER], help=known)
    parser.add_argument("--profile", action="store_true", help="also say where a step of ours goes")
    parser.add_argument("--write", action="store_true", help="write the tables into README.md")
    args = parser.parse_args()
    recipe = quiet(find_recipe(args.recipe).build())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = args.warmup + args.rounds * args.steps
        with ExitStack() as stack:
            sides = {OURS: stack.enter_context(our_side(recipe, folder, count))}
            warm_up(OURS, sides[OURS], args.warmup, say)  # the batches are written by then
            for name in args.sides:
                sides[name] = stack.enter_context(bare_side(recipe, folder, name))
                warm_up(name, sides[name], args.warmup, say)
            rounds = take_turns(sides, args.rounds, args.steps, say)
            apart = {name: largest_difference(sides[OURS].taken, side.taken) for name, side in sides.items()}
        if far := [name for name in (BARE, EAGER) if apart.get(name, 0.0) > CLOSE]:
            raise RuntimeError(f"{far} and ours do not compute the same: their losses lie {apart} nats apart")
        text, targets = report(rounds, apart)
        if args.profile:
            text += "\n\n" + profile_table(profile(recipe, folder))
    measured = f"{measured_on(('torch', 'transformers'))} {args.rounds} rounds of {args.steps} step(s)."
    text = "\n\n".join([targets_table(targets), text, measured])
    say(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text, "gpt_mixture")
    return 0 if all(target.met for target in targets) else 1


def quiet(recipe: Recipe) -> Recipe:
    """The recipe without trackers: they would talk to a server and write files."""
    silent = recipe.tracking.model_copy(update={"wandb": "off", "tensorboard": False})
    return recipe.model_copy(update={"tracking": silent})


def our_side(recipe: Recipe, folder: Path, steps: int, name: str = OURS) -> Side:
    """Ours; its first step's answer comes after `folder` holds the batches of all `steps`."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    return Side([str(HERE / "ours.py"), str(file), str(folder), str(steps)], folder / f"{name}.log")


def bare_side(recipe: Recipe, folder: Path, name: str) -> Side:
    """The loop by hand, on the batches in `folder`."""
    optimizer = recipe.optimizer
    if optimizer.name != "adamw" or recipe.model.from_scratch or recipe.model.lora.rank or recipe.model.freeze:
        raise SystemExit("the loop by hand trains all of a pretrained model's weights by AdamW")
    settings = {
        "model": resolve_model(recipe.model.pretrained),
        "batches": str(folder / "micros.pt"),
        "attention": "eager" if name == EAGER else "sdpa",
        "isolated": name != PLAIN,
        "optimizer": {"betas": optimizer.betas, "eps": optimizer.eps, "weight_decay": optimizer.weight_decay},
        "clip": optimizer.gradient_clipping,
        "compute": recipe.precision.compute,
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    return Side([str(HERE / "bare.py"), str(file)], folder / f"{name}.log")


def report(rounds: Rounds, apart: dict[str, float]) -> tuple[str, list[Target]]:
    """The table, and the target: over the faster of the loops that compute what we do. apart: largest distance of
    each side's losses from ours, nats."""
    same = [name for name in (BARE, EAGER) if name in rounds.taken]
    best = max(same, key=lambda name: statistics.median(rounds.rates(name)), default=None)
    pairs = {name: Pairs(rounds.rates(OURS), rounds.rates(name)) for name in rounds.taken if name != OURS}
    rows = [
        [
            TITLES[name],
            f"{statistics.median(rounds.rates(name)):,.0f}",
            f"{rounds.seconds(name):.2f}",
            f"{rounds.peak(name) / 1e9:.1f}",
            "" if name == OURS else f"{pairs[name].ratio:.2f}",
            "" if name == OURS else f"{min(pairs[name].ratios):.2f} to {max(pairs[name].ratios):.2f}",
            "" if name == OURS else f"{apart[name]:.4f}",
        ]
        for name in rounds.taken
    ]
    head = [
        "", "useful tokens/s", "step, s", "peak memory, GB", "ours over it", "ratios of the rounds",
        "losses apart by at most, nats",
    ]  # fmt: skip
    tokens = statistics.mean(step.tokens for step in rounds.steps(OURS))
    note = f"{tokens:,.0f} tokens a step on average, {rounds.padding(OURS):.1%} padding."
    targets = []
    if best is not None:
        targets.append(Target(f"useful tokens/s over the loop {TITLES[best]}", pairs[best].ratio, 0.97))
    return f"{markdown_table(head, rows)}\n\n{note}", targets


def profile(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Shares of a step of ours by kind of operation, by profiled.py."""
    answer = folder / "shares.json"
    start([sys.executable, str(HERE / "profiled.py"), str(folder / "ours.yaml"), str(folder / "profiled"), str(answer)])
    shares: dict[str, float] = json.loads(answer.read_text(encoding="utf-8"))
    return shares


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
