"""Benchmark tasks of lm-eval (github.com/EleutherAI/lm-evaluation-harness) on an exported language model."""

from __future__ import annotations

import importlib.metadata
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrecipes.files import write_json
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.publishing.card import write_card
from lmrecipes.recipe import TOKEN_KINDS
from lmrecipes.run_folder import RunFolder
from lmrecipes.tracking.results import number, words

RESAMPLED = 1000
"""Bootstrap samples for the standard errors that have no formula."""


def evaluate_benchmarks(
    run: RunFolder, tasks: list[str], include: Path | None, limit: int | None, batch: int, chat_template: bool
) -> dict[str, Any]:
    """Scores of a run's model, also written to `lm_eval.json`: {run, lm_eval, limit, chat_template, rows}, a row being
    {task, metric, filter, shots, samples, value, stderr (None: unknown), higher_is_better}.

    include: a folder with task definitions. limit: only so many samples of each task. Raises InputError where the
    model is none of tokens, lm-eval is missing, a task is unknown or its data cannot be loaded.
    """
    exported = json.loads((run.model / "heads.json").read_text(encoding="utf-8")) if _is_exported(run) else None
    _check(run, exported, include)
    manager = _manager(tasks, include)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from lmrecipes.data.tokenizer import load_tokenizer
    from lmrecipes.inference.arithmetic import Arithmetic
    from lmrecipes.models.saving import load_whole

    assert exported is not None
    tokenizer = load_tokenizer(str(run.model))
    if chat_template and tokenizer.chat_template is None:
        what, fix = "the run's tokenizer has no chat template", "leave it out"
        raise InputError(Problem("--lm-eval-chat-template", what, fix, "lm-eval-chat"))
    arithmetic = Arithmetic.here(exported["compute"], exported["autocast"])
    model = HFLM(
        pretrained=arithmetic.place(load_whole(run.model, True, "sdpa")),
        tokenizer=tokenizer,
        batch_size=batch,
        softmax_dtype="float32",  # sums of log-likelihoods in 16 bits would tie
        mixed_precision_dtype=arithmetic.dtype if arithmetic.autocast else None,
    )
    try:
        found = simple_evaluate(
            model, tasks=tasks, task_manager=manager, limit=limit, bootstrap_iters=RESAMPLED, log_samples=False,
            apply_chat_template=chat_template,
        )  # fmt: skip
    except OSError as error:  # data sets, of the hub or of files
        what = f"the data of {listing(tasks)} could not be loaded: {str(error).strip().partition(chr(10))[0]}"
        fix = "check the network, and the paths in the task's definition"
        raise InputError(Problem("--lm-eval", what, fix, "lm-eval-data")) from None
    answer = {
        "run": run.path.name,
        "lm_eval": importlib.metadata.version("lm-eval"),
        "limit": limit,
        "chat_template": chat_template,
        "rows": _rows(found),
    }
    write_json(run.lm_eval, answer)
    write_card(run)
    return answer


def print_benchmarks(answer: dict[str, Any]) -> None:
    """The scores as a table."""
    table = Table(box=SIMPLE_HEAD)
    for header in ("task", "metric", "shots", "samples", "value", "standard error"):
        table.add_column(header, justify="left" if header in ("task", "metric") else "right", no_wrap=True)
    for row in answer["rows"]:
        name = words(row["metric"]) + ("" if row["filter"] == "none" else f" ({row['filter']})")
        numbers = (str(row["shots"]), f"{row['samples']:,}", number(row["value"]), number(row["stderr"]))
        table.add_row(Text(row["task"]), Text(name), *numbers)
    Console(highlight=False).print(table)


def _is_exported(run: RunFolder) -> bool:
    return (run.model / "heads.json").is_file()


def _check(run: RunFolder, exported: dict[str, Any] | None, include: Path | None) -> None:
    problems = []
    if exported is None:
        what, fix = "the run has no exported model yet", "finish it, or name a run that has finished"
        problems.append(Problem(str(run.model), what, fix, "model-missing"))
    elif not any(task["kind"] in TOKEN_KINDS for task in exported["tasks"].values()):
        what = "its benchmarks need a language model, but the run has no language_modelling or chat task"
        problems.append(Problem("--lm-eval", what, "leave it out, or name another run", "lm-eval-kind"))
    if find_spec("lm_eval") is None:
        what, fix = "lm-eval is not installed", 'run `pip install "lmrecipes[lm-eval]"`'
        problems.append(Problem("--lm-eval", what, fix, "lm-eval-missing"))
    if include is not None and not include.is_dir():
        what, fix = f"no folder {str(include)!r}", "name a folder with task definitions in YAML"
        problems.append(Problem("--lm-eval-include", what, fix, "lm-eval-include"))
    if problems:
        raise InputError(problems)


def _manager(tasks: list[str], include: Path | None) -> Any:
    """Knows where the tasks are defined: in the user's folder, or with lm-eval, whose many definitions take a quarter
    of a minute to read. Raises InputError for tasks that are nowhere."""
    from lm_eval.tasks import TaskManager

    if include is not None:
        own = TaskManager(include_path=str(include), include_defaults=False)
        if all(own.match_tasks([task]) for task in tasks):
            return own
    known = TaskManager(include_path=str(include) if include is not None else None)
    unknown = [task for task in tasks if not known.match_tasks([task])]
    if unknown:
        fix = "see `lm-eval ls tasks`, or name a folder with its definition by --lm-eval-include"
        what = "; ".join(f"no task {task!r}.{did_you_mean(task, known.all_tasks)}" for task in unknown)
        raise InputError(Problem("--lm-eval", what, fix, "lm-eval-task"))
    return known


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """lm-eval's `{task: {"metric,filter": value, "metric_stderr,filter": value or "N/A"}}` as one row per value."""
    rows = []
    for task, scores in found["results"].items():
        for key, value in scores.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = scores.get(f"{metric}_stderr,{chosen}")
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": chosen,
                    "shots": found["n-shot"].get(task, 0),
                    "samples": found["n-samples"].get(task, {}).get("effective", 0),
                    "value": value,
                    "stderr": stderr if isinstance(stderr, int | float) else None,
                    "higher_is_better": found["higher_is_better"].get(task, {}).get(metric),
                }
            )
    return rows
