"""The run folder: what happened. Its layout is a contract (see the README)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmrecipes.files import write_json, write_text_atomically
from lmrecipes.problems import InputError, Problem, did_you_mean
from lmrecipes.recipe import Recipe

PACKAGES = ("torch", "deepspeed", "accelerate", "transformers", "datasets", "wandb", "numpy", "lmrecipes")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe; training it again repeats the run."""
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions, commit, hardware, world size, launch command."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One object per logged step: the record."""
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        """Final metrics per task."""
        return self.path / "evaluation.json"

    @property
    def checkpoints(self) -> Path:
        """Folders `step-N`, complete or absent."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The exported final model."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.path / "report.html"


def new_run(name: str, parent: Path = Path("runs")) -> RunFolder:
    """A new folder `runs/<name>-<date>-<time>`, made now; a number is added where two start in the same second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        path = parent / (f"{name}-{stamp}" if number == 1 else f"{name}-{stamp}-{number}")
        try:
            path.mkdir(parents=True)
            return RunFolder(path)
        except FileExistsError:
            continue
    raise RuntimeError(f"too many runs named {name}-{stamp}")


def open_run(path: str | Path) -> RunFolder:
    """An existing run. Raises InputError where the folder is none."""
    folder = Path(path)
    if not (folder / "recipe.yaml").is_file():
        siblings = [p.name for p in folder.parent.glob("*")] if folder.parent.is_dir() else []
        raise InputError(
            Problem(
                str(path),
                f"not a run folder: it has no recipe.yaml.{did_you_mean(folder.name, siblings)}",
                "name a folder under runs/",
                "run-missing",
            )
        )
    return RunFolder(folder)


def latest_run(name: str, parent: Path = Path("runs")) -> RunFolder | None:
    """The newest run of a recipe that has no final evaluation yet."""
    pattern = re.compile(re.escape(name) + r"-\d{8}-\d{6}(-\d+)?")
    runs = sorted((p for p in parent.glob(f"{name}-*") if pattern.fullmatch(p.name)), key=lambda p: p.stat().st_mtime)
    unfinished = [p for p in runs if (p / "recipe.yaml").is_file() and not (p / "evaluation.json").exists()]
    return RunFolder(unfinished[-1]) if unfinished else None


def write_recipe(run: RunFolder, recipe: Recipe) -> None:
    """The resolved recipe as YAML."""
    write_text_atomically(run.recipe, recipe_yaml(recipe))


def recipe_yaml(recipe: Recipe) -> str:
    """A recipe as YAML that is itself a recipe; settings left at None are omitted."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True, width=120
    )


def write_environment(run: RunFolder, facts: dict[str, Any]) -> None:
    """What the run ran on. `facts` adds what the engine knows: world_size, zero, precision, device, command, launcher."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    write_json(
        run.environment,
        {
            "versions": versions,
            "python": platform.python_version(),
            "commit": _commit(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **facts,
        },
    )


def _commit() -> str | None:
    here = Path(__file__).resolve().parent.parent
    try:
        head = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() or None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
