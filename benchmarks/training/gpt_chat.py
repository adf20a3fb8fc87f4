"""Useful tokens a second of gpt_chat, beside TRL's `SFTTrainer` on the same conversations.

python benchmarks/training/gpt_chat.py                  rounds of ours, of SFTTrainer, and of it without checkpointing
python benchmarks/training/gpt_chat.py --all --write    also of its packing and grouping; the tables into README.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from gpt_mixture import CLOSE, OURS, our_side, quiet, say  # noqa: E402
from pairs import Pairs, Target, markdown_table, measured_on, targets_table  # noqa: E402
from turns import Rounds, Side, largest_difference, take_turns, warm_up  # noqa: E402

from lmrecipes.assets import resolve_model  # noqa: E402
from lmrecipes.recipe import Recipe  # noqa: E402
from lmrecipes.recipe_files import find_recipe  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402

DEFAULTS, PLAIN, GROUPED, PACKED, WRAPPED = "defaults", "no checkpointing", "grouped", "packed", "wrapped"
TITLES = {
    OURS: "lmrecipes",
    DEFAULTS: "`SFTTrainer` (activation checkpointing on, its default)",
    PLAIN: "`SFTTrainer`, activation checkpointing off",
    GROUPED: "the same, grouped by length",
    PACKED: "the same, `packing` (texts isolated)",
    WRAPPED: "the same, `packing` wrapped (texts see each other and are cut anywhere)",
}
SAME = (DEFAULTS, PLAIN)
"""Sides that train on exactly the conversations of our steps, one by one."""


def main() -> int:
    """Measure; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="gpt_chat")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps of each side in a round")
    parser.add_argument("--warmup", type=int, default=1, help="steps before those that count")
    known = "conversations that SFTTrainer computes at once; 8 is its default"
    parser.add_argument("--at-once", type=int, default=8, help=known)
    parser.add_argument("--all", action="store_true", help="also SFTTrainer with grouping and with packing")
    parser.add_argument("--write", action="store_true", help="write the tables into README.md")
    args = parser.parse_args()
    recipe = plain_mean(quiet(find_recipe(args.recipe).build()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = args.warmup + args.rounds * args.steps
        with ExitStack() as stack:
            sides = {OURS: stack.enter_context(our_side(recipe, folder, count))}
            warm_up(OURS, sides[OURS], args.warmup, say)  # the texts are written by then
            for name in (*SAME, GROUPED, PACKED, WRAPPED) if args.all else SAME:
                sides[name] = stack.enter_context(trl_side(recipe, folder, name, args.at_once))
                warm_up(name, sides[name], args.warmup, say)
            rounds = take_turns(sides, args.rounds, args.steps, say)
            apart = {name: largest_difference(sides[OURS].taken, sides[name].taken) for name in SAME}
    if max(apart.values()) > CLOSE:
        raise RuntimeError(f"TRL and ours do not compute the same: their losses lie {apart} nats apart")
    text, targets = report(recipe, args.at_once, rounds, apart)
    measured = f"{measured_on(('torch', 'transformers', 'trl'))} {args.rounds} rounds of {args.steps} step(s)."
    text = "\n\n".join([targets_table(targets), text, measured])
    say(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text, "gpt_chat")
    return 0 if all(target.met for target in targets) else 1


def plain_mean(recipe: Recipe) -> Recipe:
    """The recipe with the mean over tokens as the loss, as TRL's: in other units gradients are clipped elsewhere."""
    return recipe.model_copy(update={"loss_normalization": "none"})


def trl_side(recipe: Recipe, folder: Path, name: str, at_once: int = 8) -> Side:
    """SFTTrainer on the texts in `folder`."""
    optimizer = recipe.optimizer
    if optimizer.name != "adamw" or recipe.model.from_scratch or recipe.model.lora.rank or recipe.model.freeze:
        raise SystemExit("SFTTrainer is set to train all of a pretrained model's weights by AdamW here")
    settings = {
        "model": resolve_model(recipe.model.pretrained),
        "batches": str(folder / "texts.pt"),
        "arguments": arguments(recipe, name, at_once),
        "optimizer": {"betas": optimizer.betas, "eps": optimizer.eps, "weight_decay": optimizer.weight_decay},
        "compute": recipe.precision.compute,
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    return Side([str(HERE / "sft.py"), str(file)], folder / f"{name.replace(' ', '_')}.log")


def arguments(recipe: Recipe, name: str, at_once: int) -> dict[str, Any]:
    """Of `SFTConfig`: our batch, in our order but for the grouped one, so many texts at once; of packed rows, which are
    full, half as many."""
    examples, packs = recipe.batch.examples, name in (PACKED, WRAPPED)
    at_once = max(1, min(at_once, examples) // (2 if packs else 1))
    found: dict[str, Any] = {
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": max(1, examples // (2 * at_once if packs else at_once)),
        "max_grad_norm": recipe.optimizer.gradient_clipping,
        "max_length": recipe.model.max_length,
        "train_sampling_strategy": "group_by_length" if name == GROUPED else "sequential",
    }
    if name != DEFAULTS:
        found["gradient_checkpointing"] = False
    if packs:
        found |= {"packing": True, "packing_strategy": "bfd" if name == PACKED else "wrapped"}
    return found


def report(recipe: Recipe, at_once: int, rounds: Rounds, apart: dict[str, float]) -> tuple[str, list[Target]]:
    """The table, and the targets. apart: largest distance of a side's losses from ours, nats."""
    pairs = {name: Pairs(rounds.rates(OURS), rounds.rates(name)) for name in rounds.taken if name != OURS}
    rows = [
        [
            TITLES[name],
            f"{statistics.median(rounds.rates(name)):,.0f}",
            f"{rounds.padding(name):.0%}",
            f"{rounds.seconds(name):.2f}",
            f"{rounds.peak(name) / 1e9:.1f}",
            "" if name == OURS else f"{pairs[name].ratio:.2f}",
            "" if name == OURS else f"{min(pairs[name].ratios):.2f} to {max(pairs[name].ratios):.2f}",
            f"{apart[name]:.4f}" if name in apart else "",
        ]
        for name in rounds.taken
    ]
    head = [
        "", "useful tokens/s", "padding", "step, s", "peak memory, GB", "ours over it", "ratios of the rounds",
        "losses apart by at most, nats",
    ]  # fmt: skip
    tokens = statistics.mean(step.tokens for step in rounds.steps(OURS))
    note = (
        f"{recipe.batch.examples} conversations, {tokens:,.0f} tokens a step on average; of `SFTTrainer` {at_once} "
        "conversations at once."
    )
    goal = "useful tokens/s over `SFTTrainer` without packing, activation checkpointing"
    targets = [
        Target(f"{goal} on (its default)", pairs[DEFAULTS].ratio, 1.5),
        Target(f"{goal} off", pairs[PLAIN].ratio, 1.5),
    ]
    return f"{markdown_table(head, rows)}\n\n{note}", targets


if __name__ == "__main__":
    sys.exit(main())
