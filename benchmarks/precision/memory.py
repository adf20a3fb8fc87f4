"""Bytes held for each parameter just before an update, by engine and precision, beside the formula.

python benchmarks/precision/memory.py            all
python benchmarks/precision/memory.py --write    the table into README.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from pairs import Target, markdown_table, measured_on, targets_table  # noqa: E402

from lmrecipes.planning.launch_pair import launch_pair  # noqa: E402
from lmrecipes.planning.pair_precision import pair_word  # noqa: E402
from lmrecipes.recipe import Precision, Recipe  # noqa: E402
from lmrecipes.recipe_files import find_recipe  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402

RANKS = 2
BUCKET = 500_000
"""Elements of DeepSpeed's buckets: of this size they do not hide the terms, as they do not on a large model."""
STATES = {"adamw": 2, "rmsprop": 1, "sgd": 1}
"""Numbers that each optimizer keeps for a parameter."""
CLASSES = ("weights", "masters", "gradients", "optimizer")


@dataclass(frozen=True, eq=False)
class Case:
    """zero: None for plain torch in one process; else a ZeRO stage on RANKS ranks."""

    title: str
    precision: Precision
    zero: Literal[1, 2, 3] | None = None
    optimizer: str = "adamw"

    @property
    def formula(self) -> float:
        """Bytes for each parameter on one rank; arXiv 1910.02054, section 3, with the dtypes of this precision.

        Under ZeRO-1 gradients are summed whole in fp32 beside those that the backward pass leaves in bf16.
        """
        kept = 2 if self.precision.pure else 4
        owned = kept + kept * (STATES[self.optimizer] + (self.precision.rounding == "kahan"))
        if self.zero is None:
            return kept + owned
        gradients = {1: 2 / RANKS if self.precision.pure else 6, 2: kept / RANKS, 3: kept / RANKS}[self.zero]
        return (2 / RANKS if self.zero == 3 else 2) + gradients + owned / RANKS


PURE = Precision(master_weights="none", rounding="stochastic")
KAHAN = Precision(master_weights="none", rounding="kahan")
CASES = (
    Case("fp32", Precision(compute="fp32")),
    Case("mixed bf16 (autocast)", Precision()),
    Case("pure bf16, stochastic", PURE),
    Case("pure bf16, Kahan", KAHAN),
    Case("pure bf16, stochastic, RMSprop", PURE, optimizer="rmsprop"),
    Case("pure bf16, stochastic, SGD with momentum", PURE, optimizer="sgd"),
    *(Case(f"ZeRO {stage}, mixed bf16", Precision(), stage) for stage in (1, 2, 3)),
    *(Case(f"ZeRO {stage}, pure bf16, stochastic", PURE, stage) for stage in (1, 2, 3)),
)


def main() -> int:
    """Measure; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="bert_multitask")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="cases whose title holds one of these words")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    recipe = find_recipe(args.recipe).build()
    cases = [case for case in CASES if not args.only or any(word in case.title for word in args.only)]
    found: dict[Case, dict[str, float]] = {}
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            found[case] = measure(recipe_of(recipe, case), case, Path(folder))
        print(f"{case.title}: {found[case]}, formula {case.formula:.2f}", flush=True)
    promised = targets(found)
    note = f"{measured_on()} ZeRO on {RANKS} ranks, bytes of rank 0."
    text = "\n\n".join([targets_table(promised), table(found), note])
    print(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text, "memory")
    return 0 if all(target.met for target in promised) else 1


def recipe_of(recipe: Recipe, case: Case) -> Recipe:
    """The recipe with all weights trained, by small steps: activations are gone before the update anyway."""
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"freeze": ()}),
            "precision": case.precision,
            "optimizer": recipe.optimizer.model_copy(update={"name": case.optimizer}),
            "batch": recipe.batch.model_copy(update={"examples": 16, "micro_examples": 8}),
            "tracking": recipe.tracking.model_copy(update={"wandb": "off", "tensorboard": False}),
        }
    )


def measure(recipe: Recipe, case: Case, folder: Path) -> dict[str, float]:
    """Bytes for each parameter, by class and in all."""
    file, settings = folder / "recipe.yaml", "-"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    start = [sys.executable]
    if case.zero is not None:
        pair = launch_pair(recipe, case.zero, pair_word(case.precision), RANKS, "cpu")
        zero = pair.deepspeed["zero_optimization"]
        zero |= {key: BUCKET for key, value in zero.items() if "bucket_size" in key and isinstance(value, int)}
        settings = str(folder / "deepspeed.json")
        Path(settings).write_text(json.dumps(pair.deepspeed), encoding="utf-8")
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]
    command = [*start, str(HERE / "held.py"), str(file), settings, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{case.title} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    bytes_: dict[str, float] = json.loads((folder / "held.json").read_text(encoding="utf-8"))
    parameters = bytes_.pop("parameters")
    return {key: round(value / parameters, 3) for key, value in bytes_.items()}


def held(found: Mapping[str, float]) -> float:
    """Of all classes."""
    return sum(found[name] for name in CLASSES)


def targets(found: Mapping[Case, Mapping[str, float]]) -> list[Target]:
    """What is promised."""
    titles = {case.title: held(values) for case, values in found.items()}
    promised = [
        Target(f"memory of mixed bf16 over {title}", titles["mixed bf16 (autocast)"] / titles[title], 1.99)
        for title in ("pure bf16, stochastic",)
        if {title, "mixed bf16 (autocast)"} <= set(titles)
    ]
    worst = max(abs(held(values) / case.formula - 1) for case, values in found.items())
    return [*promised, Target("agreement with the formula, all cases", 1 - worst, 0.95)]


def table(found: Mapping[Case, Mapping[str, float]]) -> str:
    """Bytes for each parameter, as Markdown."""
    rows = []
    for case, values in found.items():
        parts = [f"{values[name]:.2f}" for name in CLASSES]
        rest = [f"{held(values):.2f}", f"{case.formula:.2f}", f"{values['live']:.2f}", f"{values['resident']:.1f}"]
        rows.append([case.title, *parts, *rest])
    return markdown_table(["", *CLASSES, "held", "formula", "all live tensors", "given back"], rows)


if __name__ == "__main__":
    sys.exit(main())
