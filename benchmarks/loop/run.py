"""What the training loop costs: the share of a step that is not forward, backward or optimizer.

python benchmarks/loop/run.py                     the default recipe: one process bf16 and fp32, two with ZeRO-2
python benchmarks/loop/run.py --steps 100 --write  and the table into README.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import yaml  # noqa: E402
from pairs import markdown_table, measured_on, quantile  # noqa: E402

from lmrecipes.machine import cores, this_machine  # noqa: E402
from lmrecipes.planning.launch_pair import launch_pair  # noqa: E402
from lmrecipes.recipe_files import find_recipe  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402

TARGET = 0.03
"""Share of the median step that is not to be exceeded."""
BLOCK = 11
"""Steps of a block, of which the first (a new stream's first batch) is left out."""

Row = dict[str, float]


@dataclass(frozen=True)
class Case:
    """One way to run."""

    title: str
    processes: int
    zero: Literal[2] | None
    compute: Literal["bf16", "fp32"]


CASES = {
    "bf16": Case("1 process, bf16", 1, None, "bf16"),
    "fp32": Case("1 process, fp32", 1, None, "fp32"),
    "zero2": Case("2 processes, ZeRO-2, bf16", 2, 2, "bf16"),
}


@dataclass(frozen=True)
class Summary:
    """Seconds of a median step; the others are shares of a step. `longer`: a real step over a bare one, less 1."""

    step: float
    median: float
    p95: float
    data: float
    all_reduce: float
    longer: float


def summarize(real: Sequence[Row], bare: Sequence[Row]) -> Summary:
    """real[i] and bare[i] computed the same batch. A row: `whole`, and within it `compute`, `all-reduce`, `data`."""
    shares = [1 - row["compute"] / row["whole"] for row in real]
    pairs = zip(real, bare, strict=True)
    return Summary(
        step=statistics.median(row["whole"] for row in real),
        median=statistics.median(shares),
        p95=quantile(shares, 0.95),
        data=statistics.median(row["data"] / row["whole"] for row in real),
        all_reduce=statistics.median(row.get("all-reduce", 0.0) / row["whole"] for row in real),
        longer=statistics.median(ours["whole"] / theirs["whole"] - 1 for ours, theirs in pairs),
    )


def main() -> int:
    """Measure the chosen cases; exit code 1 where a median share is above the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="bert_multitask")
    parser.add_argument("--steps", type=int, default=60, help="steps that count, of each case")
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--case", choices=CASES, help="one case only")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    results = {}
    for name in [args.case] if args.case else CASES:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(args.recipe, CASES[name], args.warmup, args.steps, Path(folder))
        print(f"{CASES[name].title}: {results[name]}", flush=True)
    text = f"{table(results)}\n\n{measured_on()} {args.steps} steps."
    print(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text)
    return 1 if max(result.median for result in results.values()) > TARGET else 0


def measure(reference: str, case: Case, warmup: int, steps: int, folder: Path) -> Summary:
    """Run one case in processes of its own."""
    recipe = find_recipe(reference).build()
    content = recipe.model_dump(mode="json")
    content["precision"]["compute"] = case.compute
    content["tracking"] |= {"wandb": "offline", "tensorboard": True, "log_every": 1}
    blocks = -(-steps // (BLOCK - 1))
    content["schedule"]["steps"] = warmup + blocks * BLOCK + 1
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    deepspeed = "-"
    if case.zero is not None:
        pair = launch_pair(recipe, case.zero, case.compute, case.processes, this_machine().device)
        deepspeed = str(folder / "deepspeed.json")
        Path(deepspeed).write_text(json.dumps(pair.deepspeed), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={case.processes}"]
    files = [str(folder / "recipe.yaml"), deepspeed, str(folder / "run"), str(folder / "result.json")]
    command = [sys.executable, *(launcher if case.processes > 1 else []), str(HERE / "measured.py"), *files]
    threads = str(max(1, cores() // case.processes))
    result = subprocess.run(
        [*command, str(warmup), str(blocks), str(BLOCK)],
        env={"OMP_NUM_THREADS": threads, **os.environ, "WANDB_MODE": "offline"}, capture_output=True, text=True,
    )  # fmt: skip
    if result.returncode != 0:
        raise RuntimeError(f"{command} ended with {result.returncode}:\n{result.stderr[-3000:]}")
    rows = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return summarize(rows["real"], rows["bare"])


def table(results: dict[str, Summary]) -> str:
    """The results as Markdown."""
    head = ["", "step, ms", "loop, median", "loop, p95", "of it: data", "of it: all-reduce", "longer than bare"]
    rows = [
        [CASES[name].title, f"{1000 * s.step:.0f}", *(f"{x:.1%}" for x in (s.median, s.p95, s.data, s.all_reduce)),
         f"{s.longer:+.1%}"]
        for name, s in results.items()
    ]  # fmt: skip
    return markdown_table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
