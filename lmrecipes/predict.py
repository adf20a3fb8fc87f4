"""`lmrecipes predict`: its arguments, and who answers."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.text import Text

from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe_serving import ServedPrecision
from lmrecipes.run_folder import RunFolder, open_run
from lmrecipes.serving.options import ServeOptions


@dataclass(frozen=True)
class PredictOptions:
    """Arguments of `lmrecipes predict`."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a finished run."""
    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FILE ...]")] = ()
    """JSONL, CSV, TSV or Parquet files with the columns of the tasks, or .txt files with one text a line. None:
    standard input, JSONL or one text a line."""
    task: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Only this task; may be repeated. None: every task with labels whose columns the rows have."""
    precision: ServedPrecision | None = None
    """What the model is computed in. None: as it was trained."""
    batch: int | None = None
    """Most rows computed at once. None: as many as the run's own evaluation."""
    to: Path | None = None
    """Where the rows with their answers go: a file of the same format, or .jsonl. None: standard output."""
    probabilities: bool = False
    """Also those of all other labels."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a row that cannot be read: stop, or answer null, with a count."""
    serve: bool = False
    """Answer over HTTP instead, until it is ended; the flags below are of that."""
    service: Annotated[ServeOptions, tyro.conf.arg(name="")] = field(default_factory=ServeOptions)


def predict(options: PredictOptions) -> int:
    """Answer; returns the exit code. Raises InputError."""
    _check(options)
    run = open_run(options.run)
    from lmrecipes.inference.row_predictor import open_predictor

    with redirect_stdout(sys.stderr):  # what libraries print is no answer
        threads, batch = (
            (options.service.threads, options.service.max_batch) if options.serve else (None, options.batch)
        )
        predictor = open_predictor(run, options.precision or "own", threads, batch, None if options.serve else Path())
        tasks = _tasks(options.task, list(predictor.specs))
        if options.precision in ("bf16", "int8"):
            _say_accuracy(run, options.precision)
    if options.serve:
        from lmrecipes.serving.app import serve

        return serve(predictor, options.service, run.path.name)
    from lmrecipes.inference.predicted_tables import predict_tables

    predict_tables(predictor, options, tasks)
    return 0


def _check(options: PredictOptions) -> None:
    """Flags that do not belong together."""
    problems = []
    of_files = {
        "FILE": options.files, "--to": options.to, "--batch": options.batch, "--task": options.task,
        "--probabilities": options.probabilities, "--on-bad-row": options.on_bad_row == "skip",
    }  # fmt: skip
    if options.serve:
        for flag in (flag for flag, value in of_files.items() if value):
            what, fix = "is about files, each request says its own", "leave it out, or --serve"
            problems.append(Problem(flag, what, fix, "predict-flags"))
    elif options.service != ServeOptions():
        what, fix = "flags of the service stand without --serve", "add --serve, or leave them out"
        problems.append(Problem("lmrecipes predict", what, fix, "predict-flags"))
    if options.batch is not None and options.batch < 1:
        what = f"must be at least 1, found {options.batch}"
        problems.append(Problem("--batch", what, "give --batch 1 or more", "predict-flags"))
    if problems:
        raise InputError(problems)


def _tasks(named: tuple[str, ...], known: list[str]) -> list[str] | None:
    """The tasks that are asked for; None: any. Raises InputError."""
    problems = [
        Problem(
            "--task", f"no task {task!r} with labels.{did_you_mean(task, known)}", f"use {listing(known)}",
            "task-unknown",
        )
        for task in named
        if task not in known
    ]  # fmt: skip
    if problems:
        raise InputError(problems)
    return list(dict.fromkeys(named)) or None


def _say_accuracy(run: RunFolder, precision: ServedPrecision) -> None:
    """One line on how much this precision costs; in yellow where it is too much, or nobody knows."""
    from lmrecipes.inference.precisions import compared_once, in_words

    console, found = Console(stderr=True, soft_wrap=True, highlight=False), compared_once(run, precision)
    if isinstance(found, InputError):
        what = (
            f"{precision} has never been compared with fp32: the run's data cannot be read ({found.problems[0].what})"
        )
        console.print(Text(what, style="yellow"))
    else:
        more = "" if found.met else f". `lmrecipes evaluate {run.path} --precision {precision}` asks more rows"
        console.print(Text(f"{in_words(found)}{more}", style="" if found.met else "yellow"))
