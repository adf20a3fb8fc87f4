"""What training all weights, LoRA and activation checkpointing cost in time and memory, on gpt_chat.

python benchmarks/training/memory_savers.py            rounds of all four
python benchmarks/training/memory_savers.py --write    the table into README.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from gpt_mixture import our_side, quiet, say  # noqa: E402
from pairs import Pairs, markdown_table, measured_on  # noqa: E402
from turns import Rounds, take_turns, warm_up  # noqa: E402

from lmrecipes.recipe import Lora, Recipe  # noqa: E402
from lmrecipes.recipe_files import find_recipe  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402

FULL, FULL_LIGHT, LORA, LORA_LIGHT = "all weights", "all weights, checkpointing", "LoRA", "LoRA, checkpointing"


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="gpt_chat")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps of each side in a round")
    parser.add_argument("--warmup", type=int, default=1, help="steps before those that count")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    recipe = quiet(find_recipe(args.recipe).build())
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        sides = {}
        for number, (name, changed) in enumerate(variants(recipe, args.rank).items()):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            count = args.warmup + args.rounds * args.steps
            sides[name] = stack.enter_context(our_side(changed, folder, count))
            warm_up(name, sides[name], args.warmup, say)
        rounds = take_turns(sides, args.rounds, args.steps, say)
    measured = f"{measured_on(('torch', 'transformers', 'peft'))} {args.rounds} rounds of {args.steps} step(s)."
    text = f"{table(rounds)}\n\n{measured}"
    say(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text, "memory_savers")
    return 0


def variants(recipe: Recipe, rank: int) -> dict[str, Recipe]:
    """The recipe in its four forms."""

    def form(rank: int, checkpointing: bool) -> Recipe:
        changes = {"lora": Lora(rank=rank, alpha=2.0 * max(1, rank)), "activation_checkpointing": checkpointing}
        return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})

    return {FULL: form(0, False), FULL_LIGHT: form(0, True), LORA: form(rank, False), LORA_LIGHT: form(rank, True)}


def table(rounds: Rounds) -> str:
    """Time and memory, as Markdown."""
    rows = []
    for name in rounds.taken:
        slower = Pairs(rounds.rates(FULL), rounds.rates(name))
        rows.append(
            [
                name,
                f"{statistics.median(rounds.rates(name)):,.0f}",
                f"{rounds.seconds(name):.2f}",
                "" if name == FULL else f"{slower.ratio:.2f}",
                "" if name == FULL else f"{min(slower.ratios):.2f} to {max(slower.ratios):.2f}",
                f"{rounds.peak(name) / 1e9:.2f}",
            ]
        )
    head = ["", "useful tokens/s", "step, s", f"time over {FULL}", "ratios of the rounds", "peak memory, GB"]
    return markdown_table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
