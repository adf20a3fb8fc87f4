"""What all series of runs share (proxies of a search, cells of a study): how a run is cut down, who holds a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lmrecipes.launching import quieten
from lmrecipes.problems import InputError, Problem
from lmrecipes.ranks import started_by_launcher, stop_with_parent
from lmrecipes.recipe import Recipe, Tracking


def run_rank(runs: Callable[[dict[str, Any] | None], int], deepspeed: Path | None) -> int:
    """What a rank does around its runs. runs: makes them under the content of the DeepSpeed JSON, or of None."""
    quieten()
    if started_by_launcher():
        stop_with_parent()
    config = json.loads(deepspeed.read_text(encoding="utf-8")) if deepspeed is not None else None
    with redirect_stdout(sys.stderr):  # what libraries print is not the answer
        return runs(config)


class Stopped(Exception):
    """A signal asked the series to stop; the run at hand is given up."""


def unattended(recipe: Recipe) -> Recipe:
    """The recipe without what a run does for those who watch it: evaluations and samples on the way, checkpoints,
    trackers. None of it changes what is learned."""
    quiet = {"every": 0, "start": False, "samples": 0}
    return recipe.model_copy(
        update={
            "evaluation": recipe.evaluation.model_copy(update=quiet),
            "checkpoint": recipe.checkpoint.model_copy(update={"every": 0}),
            "tracking": Tracking(wandb="off", tensorboard=False),
        }
    )


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the folder of a series for one command. Raises InputError where another command trains there now."""
    try:
        with FileLock(path / ".lock", timeout=0):
            yield
    except Timeout:
        said, fix = f"another {what} runs in {path}", "wait for it, or begin another with --folder"
        raise InputError(Problem("--folder", said, fix, f"{what}-busy")) from None
