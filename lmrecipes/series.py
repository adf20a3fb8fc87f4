"""What all series of runs share (proxies of a search, cells of a study): how a run is cut down, who holds a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe, Tracking


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
