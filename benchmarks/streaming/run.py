"""Data larger than memory: encode millions of rows, then stream shuffled batches from all of them, beside `datasets`.

python benchmarks/streaming/run.py --rows 1000000    a look
python benchmarks/streaming/run.py --write           20 million rows, and the table into README.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from pairs import Pairs, interleave, markdown_table, measured_on  # noqa: E402

from lmrecipes.tracking.results import write_results_into  # noqa: E402

BATCH = 256
BOUNDS = {"encode": 350.0, "stream": 100.0}
"""MB of memory without a file behind it that each may add to the process, whatever the number of rows."""
BYTES_A_ROW = 400
"""Disk that a row takes at the most, in all files together."""

Numbers = dict[str, float]


def main() -> int:
    """Run all parts; exit code 1 where memory grows beyond the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--steps", type=int, default=4000, help=f"batches of {BATCH} rows, of each round")
    parser.add_argument("--rounds", type=int, default=3, help="how often the two ways to read are measured in turn")
    parser.add_argument("--folder", type=Path, help="make the files here, and remove them")
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        needed, free = args.rows * BYTES_A_ROW, shutil.disk_usage(folder).free
        if free < needed:
            parser.error(f"{folder} has {free / 2**30:.0f} GB free, {args.rows:,} rows need {needed / 2**30:.0f} GB")
        results = {part: measure(part, folder, args.rows) for part in ("corpus", "encode", "prepare")}
        latest: dict[str, Numbers] = {}

        def rate(part: str) -> float:
            latest[part] = worst(latest.get(part), measure(part, folder, args.rows, args.steps))
            return args.steps * BATCH / latest[part]["seconds"]

        pairs = interleave(args.rounds, lambda: rate("stream"), lambda: rate("read"), print)
    text = f"{table(args.rows, results | latest, pairs)}\n\n{conditions(args.rows, args.steps, args.rounds)}"
    print(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text)
    problems = too_much(results | latest)
    print("\n".join(problems))
    return 1 if problems else 0


def measure(part: str, folder: Path, *counts: int) -> Numbers:
    """One part in a process of its own."""
    command = [sys.executable, str(HERE / "measured.py"), part, str(folder), *map(str, counts)]
    env = {**os.environ, "LMRECIPES_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{command} ended with {result.returncode}")
    numbers: Numbers = json.loads(result.stdout.splitlines()[-1])
    print(f"{part}: {', '.join(f'{name} {value:,.1f}' for name, value in numbers.items())}", flush=True)
    return numbers


def worst(former: Numbers | None, now: Numbers) -> Numbers:
    """The numbers of now, with the largest memory of all rounds."""
    return now if former is None else now | {name: max(former[name], now[name]) for name in ("peak", "mapped")}


def grown(numbers: Numbers) -> float:
    """MB that a part added to its process."""
    return numbers["peak"] - numbers["before"]


def too_much(results: dict[str, Numbers]) -> list[str]:
    """One line for each part that takes more memory than its bound."""
    return [
        f"{part} took {grown(results[part]):.0f} MB, more than {bound:.0f}"
        for part, bound in BOUNDS.items()
        if grown(results[part]) > bound
    ]


def table(rows: int, results: dict[str, Numbers], pairs: Pairs) -> str:
    """The results as Markdown; rates of reading are medians of the rounds."""

    def line(title: str, part: str, rate: float, size: float, opened: str = "") -> list[str]:
        found = results[part]
        return [title, f"{rate:,.0f}", opened, f"{size:,.0f}", f"{grown(found):,.0f}", f"{found['mapped']:,.0f}"]

    middle = {"stream": sorted(pairs.ours), "read": sorted(pairs.bare)}
    reading = {part: rates[len(rates) // 2] for part, rates in middle.items()}
    ours, theirs = results["encode"], results["prepare"]
    head = ["", "rows/s", "first batch after, s", "data, MB", "memory added, MB", "mapped from files, MB"]
    return markdown_table(
        head,
        [
            line("encode (read, check, split, tokenise)", "encode", rows / ours["seconds"], ours["size"]),
            line("`datasets`: Arrow cache and shuffle, no tokens", "prepare", rows / theirs["seconds"], theirs["size"]),
            line("stream, shuffled: batches of token tensors", "stream", reading["stream"], ours["size"],
                 f"{results['stream']['opened']:.1f}"),
            line("`datasets`, shuffled: batches of texts", "read", reading["read"], theirs["size"],
                 f"{results['read']['opened']:.1f}"),
        ],
    )  # fmt: skip


def conditions(rows: int, steps: int, rounds: int) -> str:
    """On what, and of how much."""
    version = importlib.metadata.version("datasets")
    return (
        f"{measured_on()} datasets {version}. {rows:,} rows; {steps:,} batches of {BATCH} in each of {rounds} rounds, "
        "the two ways to read in turn."
    )


if __name__ == "__main__":
    sys.exit(main())
