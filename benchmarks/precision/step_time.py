"""How long a step takes at each precision, beside bf16 products on fp32 weights: one recipe, the same batches, in turn.

python benchmarks/precision/step_time.py                   rounds of all, fp16 left out where it is emulated
python benchmarks/precision/step_time.py --write           the table into README.md
python benchmarks/precision/step_time.py --sides fp32      only that beside bf16
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "training")]

from pairs import Pairs, Target, markdown_table, measured_on, targets_table  # noqa: E402
from turns import Rounds, Side, take_turns, warm_up  # noqa: E402

from lmrecipes.recipe import Precision, Recipe  # noqa: E402
from lmrecipes.recipe_files import find_recipe  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402

REFERENCE, BY_LAYER = "bf16", "bf16 by layer"
FP8 = {"*": "fp8", "heads.*": "fp32"}
PRECISIONS = {
    REFERENCE: Precision(),
    BY_LAYER: Precision(layers={"*": "bf16"}),
    "fp32": Precision(compute="fp32"),
    "fp16": Precision(compute="fp16"),
    "pure bf16, nearest": Precision(master_weights="none"),
    "pure bf16, stochastic": Precision(master_weights="none", rounding="stochastic"),
    "pure bf16, kahan": Precision(master_weights="none", rounding="kahan"),
    "fp8, emulated": Precision(layers=FP8, fp8="emulated"),
    "fp8, native": Precision(layers=FP8, fp8="native"),
}
TITLES = {
    REFERENCE: "bf16 products, fp32 weights",
    BY_LAYER: "the same said layer by layer, no statistics",
    "fp8, emulated": "fp8, emulated, heads fp32",
    "fp8, native": "fp8, native, heads fp32",
}
NOTHING = 0.95
"""What formats by layer that measure nothing must reach of the speed of uniform bf16."""


def main() -> int:
    """Measure; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="bert_multitask")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps of each side in a round")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those that count")
    parser.add_argument("--sides", nargs="+", choices=list(PRECISIONS), default=here(), help="beside bf16")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    recipe = find_recipe(args.recipe).build()
    names = dict.fromkeys([REFERENCE, *args.sides])
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        sides = {}
        for name in names:
            side = begin(at(recipe, PRECISIONS[name]), Path(temporary), name, args.warmup + args.rounds * args.steps)
            sides[name] = stack.enter_context(side)
            warm_up(name, sides[name], args.warmup, say)
        rounds = take_turns(sides, args.rounds, args.steps, say)
    promised = targets(rounds)
    measured = f"{measured_on(('torch', 'transformers'))} {args.rounds} rounds of {args.steps} step(s)."
    blocks = [*([targets_table(promised)] if promised else []), table(rounds), measured]
    text = "\n\n".join(blocks)
    say(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text, "step_time")
    return 0 if all(target.met for target in promised) else 1


def here() -> list[str]:
    """The sides that this machine's hardware has, and what is emulated in bearable time."""
    native = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
    left_out = {"fp8, native"} if not native else set()
    return [name for name in PRECISIONS if name not in left_out]


def at(recipe: Recipe, precision: Precision) -> Recipe:
    """The recipe at another precision, without trackers."""
    silent = recipe.tracking.model_copy(update={"wandb": "off", "tensorboard": False})
    return recipe.model_copy(update={"precision": precision, "tracking": silent})


def begin(recipe: Recipe, folder: Path, name: str, steps: int) -> Side:
    """A process that trains it."""
    place = folder / name.replace(", ", "_").replace(" ", "_")
    place.mkdir()
    file = place / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    return Side([str(HERE / "taking_turns.py"), str(file), str(place / "run"), str(steps)], place / "log")


def targets(rounds: Rounds) -> list[Target]:
    """What is promised."""
    if BY_LAYER not in rounds.taken:
        return []
    speed = Pairs(rounds.rates(BY_LAYER), rounds.rates(REFERENCE)).ratio
    return [Target("speed of formats by layer, all bf16 and nothing measured, over uniform bf16", speed, NOTHING)]


def table(rounds: Rounds) -> str:
    """Time, its ratio to bf16, memory and loss, as Markdown."""
    rows = []
    for name in rounds.taken:
        slower = Pairs(rounds.rates(REFERENCE), rounds.rates(name))
        reference = name == REFERENCE
        rows.append([
            TITLES.get(name, name),
            f"{1000 * rounds.seconds(name):,.0f}",
            "" if reference else f"{slower.ratio:.2f}",
            "" if reference else f"{min(slower.ratios):.2f} to {max(slower.ratios):.2f}",
            f"{rounds.peak(name) / 1e9:.2f}",
            f"{statistics.mean(step.loss for step in rounds.steps(name)):.4f}",
        ])  # fmt: skip
    head = ["", "step, ms", "time over bf16", "ratios of the rounds", "peak memory, GB", "mean loss of the steps"]
    return markdown_table(head, rows)


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
