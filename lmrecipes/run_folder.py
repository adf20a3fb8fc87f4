"""The run folder: what happened. Its layout is a contract (see the README)."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from lmrecipes.files import sync_folder, sync_tree, write_json, write_text_atomically
from lmrecipes.problems import InputError, Problem, did_you_mean
from lmrecipes.recipe import Recipe

PACKAGES = ("torch", "deepspeed", "accelerate", "transformers", "datasets", "wandb", "numpy", "lmrecipes")

FREE_ON_RESUME = (
    "description",
    "batch.micro_examples",
    "batch.length_buckets",
    "batch.layout",
    "model.activation_checkpointing",
    "model.compile",
    "model.liger",
    "precision.most_skipped",
    "loader.",
    "evaluation.",
    "checkpoint.",
    "tracking.",
)
"""Fields that a resumed run may change: none of them touches what a step is."""

INT8_FOLDER = "model-int8"
"""Beside an exported model, or a member of a combination: the same in int8, see `lmrecipes.inference.int8_graph`."""
DERIVED = (f"{INT8_FOLDER}*", f".{INT8_FOLDER}*")
"""What is made of a model for this machine and goes nowhere with it."""


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
    def samples(self) -> Path:
        """Held-out texts as the model continued them, where the recipe asks for samples."""
        return self.path / "samples.jsonl"

    @property
    def mixture(self) -> Path:
        """What the run was to draw of each task, as it was known at the start."""
        return self.path / "mixture.json"

    @property
    def plan(self) -> Path:
        """Changes of weights and loss factors, where the run makes any."""
        return self.path / "plan.jsonl"

    @property
    def precision(self) -> Path:
        """Layers whose number format changed during training, where any can."""
        return self.path / "precision.jsonl"

    @property
    def cosines(self) -> Path:
        """How far the gradients of tasks agreed, where the recipe asks for it."""
        return self.path / "cosines.jsonl"

    @property
    def alone(self) -> Path:
        """What each task reaches alone, where `--each-task-alone` has trained them."""
        return self.path / "alone.json"

    @property
    def audit(self) -> Path:
        """Where precision hurts, layer by layer, where `lmrecipes audit` has looked."""
        return self.path / "audit.json"

    @property
    def start(self) -> Path:
        """Metrics per task before the first step, where the recipe asks for them."""
        return self.path / "start.json"

    @property
    def evaluation(self) -> Path:
        """Final metrics per task."""
        return self.path / "evaluation.json"

    @property
    def gates(self) -> Path:
        """Verdicts on the recipe's gates, where they have been measured."""
        return self.path / "gates.json"

    @property
    def precisions(self) -> Path:
        """Accuracy and time of the model in each precision, where they have been compared."""
        return self.path / "precisions.json"

    @property
    def latency(self) -> Path:
        """Latency and accuracy as served in each precision, where `lmrecipes latency` has measured them."""
        return self.path / "latency.json"

    @property
    def combined(self) -> Path:
        """Members and combinations beside each other, of a run that `lmrecipes combine` has made."""
        return self.path / "combination.json"

    @property
    def lm_eval(self) -> Path:
        """Scores on benchmark tasks of lm-eval, where they have been asked for."""
        return self.path / "lm_eval.json"

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


def claim_run(path: Path) -> RunFolder:
    """The folder for a run that starts from step 0. Raises InputError where a run lives there already."""
    if (path / "recipe.yaml").exists() or (path / "metrics.jsonl").exists():
        raise InputError(
            Problem("--run-folder", f"{path} holds a run already", "add --resume, or name a new folder", "run-exists")
        )
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path)


def resumable_run(path: Path | None, recipe: Recipe) -> RunFolder:
    """The run to continue: the folder `path`, or the newest unfinished run of the recipe.

    Raises InputError where there is none, where it has ended, or where it trains something else.
    """
    run = open_run(path) if path is not None else latest_run(recipe.name)
    if run is None:
        problem = f"no unfinished run of {recipe.name!r} under runs/"
        raise InputError(Problem("--resume", problem, "name one with --run-folder", "resume-nothing"))
    if run.evaluation.exists():
        problem = f"{run.path} has been finished: it holds evaluation.json"
        raise InputError(Problem("--resume", problem, "start a new run without --resume", "resume-finished"))
    saved = yaml.safe_load(run.recipe.read_text())
    if problems := mismatches(saved, _content(recipe), FREE_ON_RESUME, f"the run {run.path} was started with"):
        fix = "repeat the flags of the start, or start a new run without --resume"
        raise InputError([Problem(field, what, fix, "resume-mismatch") for field, what in problems.items()])
    return run


def mismatches(before: dict[str, Any], now: dict[str, Any], free: tuple[str, ...], begun: str) -> dict[str, str]:
    """What differs between the settings of the start and those of now, by dotted path. free: paths that may."""
    saved, given = leaves(before), leaves(now)
    changed = [key for key in {**saved, **given} if saved.get(key) != given.get(key) and not key.startswith(free)]
    return {key: f"{begun} {saved.get(key)}, now it is {given.get(key)}" for key in changed}


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree's values by dotted path."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


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


def replace_folder(new: Path, final: Path) -> None:
    """Put the folder `new` in the place of `final`, which may exist: synced, then exchanged in one system call.

    Where the system cannot exchange, the old folder is moved away first, so that a reader may see none for a moment,
    but never a mixture.
    """
    sync_tree(new)
    if not final.exists():
        new.rename(final)
    else:
        if not _exchange(new, final):
            old = final.with_name(f"{final.name}.old.tmp")
            final.rename(old)
            new.rename(final)
            old.rename(new)
        shutil.rmtree(new)
    sync_folder(final.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Linux's renameat2 with RENAME_EXCHANGE (2); False where the C library or the file system has none."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    here = -100  # AT_FDCWD
    return int(renameat2(here, os.fsencode(one), here, os.fsencode(other), 2)) == 0


def write_recipe(run: RunFolder, recipe: Recipe) -> None:
    """The resolved recipe as YAML."""
    write_text_atomically(run.recipe, recipe_yaml(recipe))


def recipe_yaml(recipe: Recipe) -> str:
    """A recipe as YAML that is itself the same recipe."""
    return yaml.safe_dump(_content(recipe), sort_keys=False, allow_unicode=True, width=120)


def _content(value: Any) -> Any:
    """Plain values; a setting at None is omitted where None is its default."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {name: _content(v) for name, v in value if v is not None or fields[name].default is not None}
    if isinstance(value, dict):
        return {key: _content(v) for key, v in value.items()}
    return [_content(v) for v in value] if isinstance(value, (list, tuple)) else value


def write_environment(run: RunFolder, facts: dict[str, Any]) -> None:
    """What the run ran on. `facts` adds what the engine knows: world_size, zero, precision, device, command, launcher.

    A resumed run keeps what it ran on before, oldest first, under `before`.
    """
    before = []
    if facts.get("from_step") and run.environment.exists():
        former = json.loads(run.environment.read_text(encoding="utf-8"))
        before = [*former.pop("before", []), former]
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
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **facts,
            **({"before": before} if before else {}),
        },
    )


def write_dtypes(run: RunFolder, dtypes: Any) -> None:
    """Put into what the run runs on how its numbers were found to be kept."""
    write_json(run.environment, {**json.loads(run.environment.read_text(encoding="utf-8")), "dtypes": dtypes})


def write_mixture(run: RunFolder, facts: Mapping[str, Mapping[str, Any]], step: int) -> None:
    """What the run is to draw of each task. A run resumed at a step keeps what was known at its start."""
    if not (step and run.mixture.exists()):
        write_json(run.mixture, facts)


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


def cpu_name() -> str:
    """This machine's processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
