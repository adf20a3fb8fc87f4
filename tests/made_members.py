"""Finished runs to combine, trained once in one process: three seeds of a tiny BERT, the first with checkpoints, and a
tiny Llama with the same heads and a language-modelling task beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from tiny import make_data, make_model, make_recipe
from tiny_gpt import make_documents, make_gpt

ROOT = Path(__file__).resolve().parents[1]
BERTS = ("bert0", "bert1", "bert2")
GPT = "gpt"
STEPS = 12


@cache
def made_members(folder: Path) -> Path:
    """The folder that holds the runs. All evaluate every row of a split."""
    make_model(folder / "model")
    files = make_data(folder / "data")
    rows = [json.loads(line) | {"who": f"w{at // 4}"} for at, line in enumerate(files["long"].read_text().splitlines())]
    files["long"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_gpt(folder / "gpt_model")
    law = make_documents(60, 30, "law")
    (folder / "data" / "law.jsonl").write_text("".join(json.dumps(row) + "\n" for row in law))
    common: dict[str, Any] = {
        "schedule.steps": STEPS, "evaluation.examples": None, "optimizer.lr": 0.003, "mixture": {},
        "tasks.long.source.group": "who",
    }  # fmt: skip
    cases = [case(name, make_recipe(folder, **common, seed=seed)) for seed, name in enumerate(BERTS)]
    cases[0]["recipe"]["checkpoint"] = {"every": 4, "keep": 3}
    reads = {"pretrained": str(folder / "gpt_model"), "max_length": 48, "pooling": "last"}
    recipe = make_recipe(folder, **common, model=reads, name="gpt")
    source = {"files": str(folder / "data" / "law.jsonl")}
    recipe["tasks"]["law"] = {"kind": "language_modelling", "weight": 0.2, "source": source}
    cases.append(case(GPT, recipe))
    train(folder, cases)
    return folder


def case(name: str, recipe: dict[str, Any], deepspeed: dict[str, Any] | None = None) -> dict[str, Any]:
    """One run for `runs_worker`."""
    return {"name": name, "run": name, "recipe": recipe, "deepspeed": deepspeed}


def train(folder: Path, cases: list[dict[str, Any]], world: int = 1) -> None:
    """Train the cases one after the other on so many processes."""
    worker = ROOT / "tests" / "training" / "runs_worker.py"
    order = folder / f"order{world}.json"
    order.write_text(json.dumps({"cases": cases, "out": str(folder)}))
    launch = [sys.executable, str(worker), str(order)]
    if world > 1:
        torchrun = str(Path(sys.executable).parent / "torchrun")
        launch = [torchrun, "--standalone", f"--nproc_per_node={world}", str(worker), str(order)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
