"""Seconds from the start of the command to the end of the first optimizer step, against a bare script.

python benchmarks/startup/run.py                     pairs of both cases, the medians and the ratio
python benchmarks/startup/run.py --rounds 9 --write  and the table into README.md
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
from pairs import Pairs, interleave, markdown_table, measured_on  # noqa: E402

from lmrecipes.assets import resolve_model  # noqa: E402
from lmrecipes.data.encode import encode_tasks  # noqa: E402
from lmrecipes.data.facts import mixture_of  # noqa: E402
from lmrecipes.data.layout import Arrangement, lay_out  # noqa: E402
from lmrecipes.machine import cores, this_machine  # noqa: E402
from lmrecipes.planning.batch import plan_batch  # noqa: E402
from lmrecipes.planning.launch_pair import launch_pair  # noqa: E402
from lmrecipes.planning.pair_precision import pair_word  # noqa: E402
from lmrecipes.recipe import Recipe  # noqa: E402
from lmrecipes.recipe_files import find_recipe  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402

TARGET = 1.3
"""Ratio to the bare script that is not to be exceeded."""


@dataclass(frozen=True)
class Case:
    """One way to start. zero: ZeRO stage, None for plain torch."""

    title: str
    processes: int
    zero: Literal[2] | None


CASES = {"zero2": Case("2 processes, ZeRO-2", 2, 2), "single": Case("1 process", 1, None)}


def main() -> int:
    """Measure the chosen cases; exit code 1 where a ratio is above the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="bert_multitask")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of each case, after one that is not counted")
    parser.add_argument("--case", choices=CASES, help="one case only")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in [args.case] if args.case else CASES:
            results[name] = measure(args.recipe, CASES[name], args.rounds, Path(folder))
    text = f"{table(results)}\n\n{measured_on()} {args.rounds} pairs."
    print(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text)
    return 1 if max(pairs.ratio for pairs in results.values()) > TARGET else 0


def measure(reference: str, case: Case, rounds: int, folder: Path) -> Pairs:
    """Pairs of one case; the first one fills the page cache and is left out."""
    recipe = find_recipe(reference).build()
    work = folder / "work.json"
    work.write_text(json.dumps(first_step(recipe, case, folder)))
    ours, bare = our_command(reference, case, folder / "run"), bare_command(case, work)
    done = Path(json.loads(work.read_text())["done"])

    def time_ours() -> float:
        shutil.rmtree(folder / "run", ignore_errors=True)
        return seconds_until(folder / "run" / "metrics.jsonl", ours, case)

    def time_bare() -> float:
        done.unlink(missing_ok=True)
        return seconds_until(done, bare, case)

    print(case.title, flush=True)
    time_ours()
    time_bare()
    return interleave(rounds, time_ours, time_bare, lambda line: print(f"  {line}", flush=True))


def seconds_until(mark: Path, command: list[str], case: Case) -> float:
    """Run a command to its end; seconds from its start to the last change of `mark`, made at the end of step 1."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # DeepSpeed calls ninja
    environment = {**surroundings(case), **os.environ, "PATH": path}
    began = time.time()
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0 or not mark.exists():
        raise RuntimeError(f"{command} ended with {result.returncode}:\n{result.stderr[-3000:]}")
    return mark.stat().st_mtime - began


def surroundings(case: Case) -> dict[str, str]:
    """What `lmrecipes train` sees to by itself and the bare script needs: threads, DeepSpeed's device and operators."""
    found = {"OMP_NUM_THREADS": str(max(1, cores() // case.processes)), "TOKENIZERS_PARALLELISM": "false"}
    extensions = Path(sys.prefix) / "torch_extensions"
    if extensions.is_dir():
        found["TORCH_EXTENSIONS_DIR"] = str(extensions)
    if this_machine().device == "cpu":
        found["DS_ACCELERATOR"] = "cpu"
    return found


def our_command(reference: str, case: Case, run: Path) -> list[str]:
    """`lmrecipes train` for one step, without wandb (it would talk to a server)."""
    zero = ["--zero", str(case.zero)] if case.zero is not None else []
    flags = ["--tracking.wandb", "off", "--until", "1", "--run-folder", str(run)]
    program = str(Path(sys.executable).parent / "lmrecipes")
    return [program, "train", reference, "--processes", str(case.processes), *zero, *flags]


def bare_command(case: Case, work: Path) -> list[str]:
    """The bare script under the same launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={case.processes}"]
    return [sys.executable, *(launcher if case.processes > 1 else []), str(HERE / "bare.py"), str(work)]


def first_step(recipe: Recipe, case: Case, folder: Path) -> dict[str, Any]:
    """The content of WORK.json (see bare.py): the same model, data, engine settings and first batch."""
    tasks = encode_tasks(recipe)
    plan = plan_batch(recipe.batch.examples, recipe.batch.micro_examples, case.processes)
    drawn, rows = mixture_of(recipe, tasks).at(np.arange(plan.examples))
    splits = [task.train for task in tasks.values()]
    lengths = np.array([int(splits[t].lengths_of(rows[i : i + 1])[0]) for i, t in enumerate(drawn)])
    layout = lay_out(lengths, plan, Arrangement("buckets", recipe.batch.length_buckets))
    deepspeed = None
    if case.zero is not None:
        device = this_machine().device
        pair = launch_pair(recipe, case.zero, pair_word(recipe.precision), case.processes, device, False)
        deepspeed = folder / "deepspeed.json"
        deepspeed.write_text(json.dumps(pair.deepspeed))
    return {
        "model": resolve_model(recipe.model.pretrained),
        "freeze": recipe.model.freeze,
        "examples": recipe.batch.examples,
        "attention": "eager" if this_machine().device == "cpu" else "sdpa",
        "lr": recipe.optimizer.lr,
        "precision": recipe.precision.compute,
        "clipping": recipe.optimizer.gradient_clipping,
        "deepspeed": str(deepspeed) if deepspeed else None,
        "done": str(folder / "done"),
        "tasks": [
            {"folder": str(task.train.folder), "kind": task.task.kind, "outputs": max(1, len(task.labels))}
            for task in tasks.values()
        ],
        "ranks": [
            [[[[int(drawn[p]), int(rows[p])] for p in bucket] for bucket in micro if len(bucket)] for micro in rank]
            for rank in layout.positions
        ],
    }


def table(results: dict[str, Pairs]) -> str:
    """The results as Markdown."""
    rows = [
        [
            CASES[name].title,
            f"{statistics.median(pairs.ours):.1f}",
            f"{statistics.median(pairs.bare):.1f}",
            f"{pairs.ratio:.2f}",
            f"{min(pairs.ratios):.2f} to {max(pairs.ratios):.2f}",
        ]
        for name, pairs in results.items()
    ]
    return markdown_table(["", "lmrecipes, s", "bare, s", "ratio (median of pairs)", "ratios"], rows)


if __name__ == "__main__":
    sys.exit(main())
