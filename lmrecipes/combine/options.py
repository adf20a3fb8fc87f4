"""Arguments of `lmrecipes combine`, and what can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lmrecipes.problems import InputError, Problem

Method = Literal["average", "stack", "soup", "checkpoints", "distil"]


@dataclass(frozen=True)
class CombineOptions:
    """Arguments of `lmrecipes combine`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The folders of finished runs with tasks in common; combined runs are runs too."""
    method: Method = "average"
    """average: the mean of their probabilities, calibrated. stack: a weighted mean, fitted on the validation split.
    soup: one model with the mean of their weights. checkpoints: the mean of the weights of one run's last checkpoints
    and its final ones. distil: one small model that learns from their average."""
    to: Path | None = None
    """The new run's folder. None: runs/NAME-METHOD-<time>."""
    weights: Literal["uniform", "greedy"] = "uniform"
    """Of a soup. greedy: a member is kept only if with it the soup does no worse on the validation split."""
    last: int = 4
    """Of checkpoints: how many, besides the final weights."""
    student: str | None = None
    """Of distil: the RECIPE of the small model, with its flags: 'ensemble --student'. None: the first run's own."""
    teacher: Path | None = None
    """Of distil: a finished run that teaches in place of the average of RUNs, which are only shown beside it."""
    control: bool = False
    """Of distil: train the same student without a teacher too, and show both."""
    json: bool = False
    """Machine-readable output."""


def check_options(options: CombineOptions) -> None:
    """Raise InputError for all that is wrong with the arguments by themselves."""
    problems, count = [], len(options.runs)
    where = "lmrecipes combine"
    if options.method == "checkpoints" and count != 1:
        what, fix = f"checkpoints are of one run, found {count}", "name one RUN, or choose --method soup"
        problems.append(Problem(where, what, fix, "combine-runs"))
    elif options.method != "checkpoints" and count < (1 if options.method == "distil" else 2):
        what, fix = f"needs two runs or more, found {count}", "write `lmrecipes combine RUN RUN ...`"
        problems.append(Problem(where, what, fix, "combine-runs"))
    if len({run.resolve() for run in options.runs}) < count:
        problems.append(Problem(where, "names a run twice", "name each once", "combine-runs"))
    if options.weights == "greedy" and options.method != "soup":
        fix = "leave it out, or choose --method soup"
        problems.append(Problem("--weights", f"is about soups, not {options.method}", fix, "combine-flags"))
    if options.last < 1:
        problems.append(Problem("--last", f"must be at least 1, found {options.last}", "raise it", "combine-flags"))
    if options.student is not None and options.method != "distil":
        fix = "leave it out, or choose --method distil"
        problems.append(Problem("--student", f"is about distillation, not {options.method}", fix, "combine-flags"))
    for flag, given in (("--teacher", options.teacher), ("--control", options.control or None)):
        if given is not None and options.method != "distil":
            fix = "leave it out, or choose --method distil"
            problems.append(Problem(flag, f"is about distillation, not {options.method}", fix, "combine-flags"))
    to = options.to
    if to is not None and options.method != "distil" and to.exists() and (not to.is_dir() or any(to.iterdir())):
        problems.append(Problem("--to", f"{to} exists already", "name a new folder", "combine-exists"))
    if problems:
        raise InputError(problems)
