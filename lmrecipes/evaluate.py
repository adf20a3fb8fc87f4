"""`lmrecipes evaluate`: its arguments, and who answers."""

from __future__ import annotations

from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from sys import stderr
from typing import Annotated, Any

import tyro

from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe_serving import ServedPrecision
from lmrecipes.run_folder import open_run


@dataclass(frozen=True)
class EvaluateOptions:
    """Arguments of `lmrecipes evaluate`."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a finished run."""
    task: str | None = None
    """Only this task."""
    data: Path | None = None
    """A JSONL, CSV or Parquet file with the task's columns. None: the test split."""
    precision: tuple[ServedPrecision, ...] = ()
    """Compare these precisions with fp32: accuracy, agreement and time. Exit code 1 where one is worse than fp32 by
    more than 0.005 of a task's headline metric."""
    lm_eval: Annotated[str | None, tyro.conf.arg(metavar="TASK[,TASK]")] = None
    """Benchmark tasks of lm-eval in place of the run's own; of runs with language-modelling or chat tasks."""
    lm_eval_include: Path | None = None
    """A folder with definitions of further tasks for lm-eval."""
    lm_eval_limit: int | None = None
    """Only the first so many samples of each of these tasks."""
    lm_eval_batch: int = 8
    """Samples that are computed at once."""
    lm_eval_chat_template: bool = False
    """Ask as a user in the run's chat template, rather than let a text be continued."""
    json: bool = False
    """Machine-readable output."""


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """The scores that the arguments ask for. Raises InputError."""
    _check(options)
    run = open_run(options.run)
    with redirect_stdout(stderr):  # what libraries print is not the answer
        if options.precision:
            from lmrecipes.inference.precisions import compare, content_of

            return content_of(run, compare(run, options.precision, None))
        if options.lm_eval is None:
            from lmrecipes.inference.own_tasks import evaluate_run

            return evaluate_run(run, options.task, options.data)
        from lmrecipes.inference.benchmarks import evaluate_benchmarks

        tasks = [task for part in options.lm_eval.split(",") if (task := part.strip())]
        return evaluate_benchmarks(
            run, tasks, options.lm_eval_include, options.lm_eval_limit, options.lm_eval_batch,
            options.lm_eval_chat_template,
        )  # fmt: skip


def print_answer(options: EvaluateOptions, answer: dict[str, Any]) -> None:
    """The scores as a table."""
    if options.precision:
        from lmrecipes.inference.precisions_text import print_precisions

        print_precisions(answer)
    elif options.lm_eval is None:
        from lmrecipes.results import print_results

        print_results(answer)
    else:
        from lmrecipes.inference.benchmarks import print_benchmarks

        print_benchmarks(answer)


def _check(options: EvaluateOptions) -> None:
    """Flags that do not belong together."""
    problems, own = [], {"--task": options.task, "--data": options.data, "--precision": options.precision or None}
    for flag in (flag for flag in ("--task", "--data") if options.precision and own[flag] is not None):
        what, fix = "is no part of a comparison of precisions", "leave it out, or --precision"
        problems.append(Problem(flag, what, fix, "precision-flags"))
    of_lm_eval = {
        "--lm-eval-include": options.lm_eval_include,
        "--lm-eval-limit": options.lm_eval_limit,
        "--lm-eval-chat-template": options.lm_eval_chat_template or None,
    }
    if options.lm_eval is None:
        for flag in (flag for flag, value in of_lm_eval.items() if value is not None):
            what, fix = "is about benchmark tasks", "add --lm-eval TASK, or leave it out"
            problems.append(Problem(flag, what, fix, "lm-eval-flags"))
    else:
        for flag in (flag for flag, value in own.items() if value is not None):
            what, fix = "is about the run's own tasks", "leave it out, or --lm-eval"
            problems.append(Problem(flag, what, fix, "lm-eval-flags"))
        if not options.lm_eval.strip(", "):
            problems.append(Problem("--lm-eval", "names no task", "write --lm-eval TASK[,TASK]", "lm-eval-task"))
    for flag, value in (("--lm-eval-limit", options.lm_eval_limit), ("--lm-eval-batch", options.lm_eval_batch)):
        if value is not None and value < 1:
            what, fix = f"must be at least 1, found {value}", f"give {flag} 1 or more"
            problems.append(Problem(flag, what, fix, "lm-eval-flags"))
    if problems:
        raise InputError(problems)
