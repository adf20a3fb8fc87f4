"""The sides that are compared: each runs in a process of its own, on all cores."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from lmrecipes.assets import resolve_model
from lmrecipes.data.encode import encode_tasks
from lmrecipes.machine import cores
from lmrecipes.recipe import Recipe
from lmrecipes.training.flops import measured_peak

HERE = Path(__file__).resolve().parent
WARMUP = 5
"""Steps of ours before those that count (trainer.py has as many)."""
PEAKS = 5
"""Measurements of the limit of which the median counts."""


@dataclass(frozen=True)
class Measured:
    """Useful tokens (padding not counted), all positions computed (0: not known), seconds and optimizer steps."""

    tokens: float
    computed: float
    seconds: float
    steps: int

    @property
    def rate(self) -> float:
        """Useful tokens a second."""
        return self.tokens / self.seconds


def only(recipe: Recipe, task: str) -> Recipe:
    """The recipe with one of its tasks, without wandb (it would talk to a server)."""
    content = recipe.model_dump(mode="json")
    content["tasks"] = {task: content["tasks"][task]}
    content["tracking"] |= {"wandb": "off", "log_every": 1}
    return Recipe.model_validate(content)


@dataclass(frozen=True)
class Work:
    """A recipe of one task, a folder for files, and about how many examples count in each measurement."""

    recipe: Recipe
    folder: Path
    examples: int

    @cached_property
    def data(self) -> str:
        """Folder of the encoded task."""
        (task,) = encode_tasks(self.recipe).values()
        return str(task.train.folder)

    def ours(self) -> Measured:
        """`lmrecipes train`; the numbers are those of its metrics.jsonl."""
        steps = -(-self.examples // self.recipe.batch.examples)
        # Ended one step before the last: without export and evaluation.
        changed = {"schedule": self.recipe.schedule.model_copy(update={"steps": WARMUP + steps + 1})}
        file = self._recipe_file(self.recipe.model_copy(update=changed))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            run = Path(folder) / "run"
            flags = ["--processes", "1", "--until", str(WARMUP + steps), "--run-folder", str(run)]
            start([str(Path(sys.executable).parent / "lmrecipes"), "train", str(file), *flags])
            lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return counted([json.loads(line) for line in lines])

    def trainer(self, arguments: dict[str, Any]) -> Measured:
        """`transformers.Trainer` on the model as it comes. Without arguments it is slow: then on fewer examples."""
        return self._trainer(arguments, None, None, (), self.examples if arguments else self.examples // 4)

    def tuned_trainer(self, arguments: dict[str, Any], attention: str) -> Measured:
        """The Trainer on what we train: the same parameters frozen, the same dropout."""
        model = self.recipe.model
        return self._trainer(arguments, attention, model.dropout, model.freeze, self.examples)

    def limit(self) -> float:
        """FLOP/s of matrix products in the recipe's compute dtype, with as many threads as all others have."""
        torch.set_num_threads(cores())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return statistics.median(measured_peak(device, self.recipe.precision.compute) for _ in range(PEAKS))

    def profile(self) -> dict[str, float]:
        """Shares of a step of ours by kind of operation, by profiled.py."""
        answer = self.folder / "shares.json"
        file = self._recipe_file(self.recipe)
        start([sys.executable, str(HERE / "profiled.py"), str(file), str(self.folder / "profiled"), str(answer)])
        shares: dict[str, float] = json.loads(answer.read_text(encoding="utf-8"))
        return shares

    def _recipe_file(self, recipe: Recipe) -> Path:
        file = self.folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
        return file

    def _trainer(
        self,
        arguments: dict[str, Any],
        attention: str | None,
        dropout: float | None,
        freeze: tuple[str, ...],
        examples: int,
    ) -> Measured:
        settings = {
            "model": resolve_model(self.recipe.model.pretrained),
            "data": self.data,
            "arguments": arguments,
            "attention": attention,
            "dropout": dropout,
            "freeze": freeze,
            "examples": examples,
        }
        asked, answer = self.folder / "settings.json", self.folder / "result.json"
        asked.write_text(json.dumps(settings), encoding="utf-8")
        start([sys.executable, str(HERE / "trainer.py"), str(asked), str(answer)])
        return Measured(**json.loads(answer.read_text(encoding="utf-8")))


def counted(lines: list[dict[str, float]]) -> Measured:
    """What the lines of metrics.jsonl, one a step, say of the steps after the first WARMUP."""
    seen = [sum(value for name, value in line.items() if name.startswith("tokens/")) for line in lines]
    seconds = sum(line["time/step"] for line in lines[WARMUP:])
    return Measured(seen[-1] - seen[WARMUP - 1], 0.0, seconds, len(lines) - WARMUP)


def start(command: list[str]) -> None:
    """Run a process to its end, with a thread for each core."""
    environment = {"OMP_NUM_THREADS": str(cores()), **os.environ}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{command} ended with {result.returncode}:\n{result.stderr[-3000:]}")
