"""A user's own files, and one short run of `docs/own_data.yaml` on them that several tests look at."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from tiny import make_rows

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "docs" / "own_data.yaml"
LMRECIPES = str(Path(sys.executable).parent / "lmrecipes")


def rows_of(task: str) -> list[dict[str, Any]]:
    """The rows of one of the recipe's tasks, with the columns that it names."""
    made, count = {"urgency": ("short", 120), "topic": ("long", 120), "tags": ("rare", 80)}[task]
    rows = [{"message": row["text"], task: row["label"]} for row in make_rows(made, count)]
    return [{**row, "customer": f"c{i // 2}"} for i, row in enumerate(rows)] if task == "topic" else rows


def write_data(folder: Path) -> None:
    """`data/` as the recipe names it: a JSONL, a CSV and a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    data = folder / "data"
    data.mkdir(parents=True)
    (data / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of("urgency")))
    write_csv(data / "topics.csv", rows_of("topic"))
    parquet.write_table(pa.Table.from_pylist(rows_of("tags")), data / "tags.parquet")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows with a header."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def tiny_flags(model: Path) -> list[str]:
    """What makes the recipe small enough for a test."""
    return ["--model.pretrained", str(model), "--model.max-length", "48", "--schedule.steps", "3",
            "--precision.compute", "fp32", "--tracking.wandb", "off", "--tracking.no-tensorboard"]  # fmt: skip


@cache
def own_run(tiny: Path) -> Path:
    """The folder of a finished run of the recipe; the user's working directory is two levels up."""
    folder = tiny / "own"
    write_data(folder)
    command = [LMRECIPES, "train", str(RECIPE), "--processes", "1", *tiny_flags(tiny / "model")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # the order of sums depends on it
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").glob("support-*")
    return run
