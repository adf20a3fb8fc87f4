"""What it costs and gains to answer in fewer bits: each precision against fp32, on the test split."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray

from lmrecipes.combine.bootstrap import Resamples, resampled_metric
from lmrecipes.combine.combination import specs_of
from lmrecipes.data.progress import progress_in_rows
from lmrecipes.files import write_json
from lmrecipes.inference.int8_graph import model_state
from lmrecipes.inference.own_rows import test_rows
from lmrecipes.inference.own_tasks import Opened, outputs_of, tasks_of
from lmrecipes.inference.row_predictor import Row, RowPredictor, open_predictor
from lmrecipes.metrics import task_metrics
from lmrecipes.models.heads import HeadSpec
from lmrecipes.problems import InputError
from lmrecipes.recipe import Task
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.recipe_serving import SERVED, LatencyBudget, ServedPrecision
from lmrecipes.run_folder import RunFolder, cpu_name
from lmrecipes.tracking.results import lower_is_better
from lmrecipes.training.evaluation import Outputs, Predict

EXAMPLES = 1500
"""Rows of each task's test split that decide, at most; where nobody has asked for a comparison, of all tasks."""
CALLS, WARM_UP, SECONDS = 200, 10, 30.0
"""Rows that are timed one by one, those before them, and when it is enough."""


@dataclass(frozen=True)
class TaskPrecision:
    """One task in one precision, against fp32.

    value, reference: its headline metric, and that of fp32. drop: how much worse it is, in the metric's own units;
    bound: the upper end of a one-sided paired bootstrap interval of the drop. agreement: share of rows with the same
    class (of labels: of decisions; of regression: the correlation with fp32's numbers).
    """

    metric: str
    value: float
    reference: float
    drop: float
    bound: float
    agreement: float
    rows: int


@dataclass(frozen=True)
class PrecisionResult:
    """A precision's accuracy, time for one row on one thread (tokenizing included) and memory of its weights.

    margin: the largest bound that meets the gate; confidence: of the bounds.
    """

    precision: ServedPrecision
    kind: str
    megabytes: float
    p50_ms: float
    p95_ms: float
    cpu_ms: float
    margin: float
    confidence: float
    tasks: dict[str, TaskPrecision]

    @property
    def met(self) -> bool:
        """Whether no task is worse than fp32 by more than the margin, for sure. A bound that is no number is not."""
        return all(task.bound <= self.margin for task in self.tasks.values())

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "met": self.met}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Inverse of `as_dict`."""
        tasks = {name: TaskPrecision(**{**task, **_numbers(task)}) for name, task in saved["tasks"].items()}
        return cls(**{**{key: value for key, value in saved.items() if key != "met"}, "tasks": tasks})


def _numbers(task: Mapping[str, Any]) -> dict[str, float]:
    """JSON has no word for NaN."""
    return {key: float("nan") for key, value in task.items() if value is None}


def compare(
    run: RunFolder,
    precisions: Sequence[ServedPrecision] = SERVED,
    most: int | None = EXAMPLES,
    margin: float = LatencyBudget().margin,
    confidence: float = LatencyBudget().confidence,
) -> list[PrecisionResult]:
    """fp32 and these precisions on (at most `most` rows of) the test split of every task with labels. Also written to
    RUN/precisions.json. Raises InputError where the run has no model, or its data cannot be read."""
    tasks = {name: task for name, task in tasks_of(run).items() if not task.of_tokens}
    specs, wanted = specs_of(run.model), _with_fp32(precisions)
    outputs = {precision: outputs_of(run, tasks, "test", most, _opener(precision)) for precision in wanted}
    found = {
        precision: {
            name: _against(task, specs[name], outputs[precision][name], outputs["fp32"][name], confidence)
            for name, task in tasks.items()
        }
        for precision in wanted
    }
    results = [
        PrecisionResult(name, *timed, margin, confidence, found[name])
        for name, timed in _timed(run, tasks, wanted).items()
    ]
    _store(run, results)
    return results


def stored(run: RunFolder) -> dict[ServedPrecision, PrecisionResult]:
    """What RUN/precisions.json says of the model that the run has now."""
    if not run.precisions.is_file():
        return {}
    content = json.loads(run.precisions.read_text(encoding="utf-8"))
    if content["model"] != model_state(run.model):
        return {}
    return {saved["precision"]: PrecisionResult.from_dict(saved) for saved in content["precisions"]}


def compared_once(run: RunFolder, precision: ServedPrecision) -> PrecisionResult | InputError:
    """The stored comparison of a precision, made now where there is none; or why it cannot be made."""
    if (result := stored(run).get(precision)) is not None:
        return result
    try:
        each = max(1, EXAMPLES // sum(not spec.of_tokens for spec in specs_of(run.model).values()))
        return next(result for result in compare(run, [precision], each) if result.precision == precision)
    except InputError as why:
        return why


def in_words(result: PrecisionResult) -> str:
    """A comparison in one line."""
    tasks = [
        f"{name} {task.value:.4f} (fp32 {task.reference:.4f}, agreement {task.agreement:.1%})"
        for name, task in result.tasks.items()
    ]
    gate = f"gate {'met' if result.met else 'not met'} (margin {result.margin:g})"
    return f"{result.precision} on the test split: {', '.join(tasks)}; {gate}"


def content_of(run: RunFolder, results: Sequence[PrecisionResult]) -> dict[str, Any]:
    """Results as RUN/precisions.json has them."""
    return {
        "run": run.path.name,
        "measured": time.strftime("%Y-%m-%d"),
        "processor": cpu_name(),
        "torch": torch.__version__,
        "met": all(result.met for result in results),
        "precisions": [result.as_dict() for result in results],
    }


def _store(run: RunFolder, results: Sequence[PrecisionResult]) -> None:
    """Write the results beside those of other precisions of the same model."""
    found = {**stored(run), **{result.precision: result for result in results}}
    kept = [found[name] for name in SERVED if name in found]
    write_json(run.precisions, {**content_of(run, kept), "model": model_state(run.model)})


def _opener(precision: ServedPrecision) -> Opened:
    """How `outputs_of` reads a model."""
    return lambda folder: cast(Predict, open_predictor(RunFolder(folder.parent), precision))


def _against(task: Task, spec: HeadSpec, found: Outputs, reference: Outputs, confidence: float) -> TaskPrecision:
    metric, draws = task.metric_names[0], Resamples.of(len(found.rows), found.groups)
    sign = 1.0 if lower_is_better(metric) else -1.0
    value, fp32 = (task_metrics((metric,), spec, one.values, found.targets)[metric] for one in (found, reference))
    drawn, drawn_fp32 = (resampled_metric(metric, spec, one.values, found.targets, draws) for one in (found, reference))
    bound = float(np.quantile(sign * (drawn - drawn_fp32), confidence))
    agreement = _agreement(spec, found.values, reference.values)
    return TaskPrecision(metric, value, fp32, sign * (value - fp32), bound, agreement, len(found.rows))


def _agreement(spec: HeadSpec, one: NDArray[Any], other: NDArray[Any]) -> float:
    if spec.kind == "regression":
        return float(np.corrcoef(one, other)[0, 1]) if one.std() and other.std() else float("nan")
    if spec.kind == "multi_label":
        return float(((one > 0) == (other > 0)).mean())
    return float((one.argmax(axis=1) == other.argmax(axis=1)).mean())


def _with_fp32(precisions: Sequence[ServedPrecision]) -> list[ServedPrecision]:
    return ["fp32", *(precision for precision in dict.fromkeys(precisions) if precision != "fp32")]


Timed = tuple[str, float, float, float, float]
"""kind, megabytes, p50, p95 and CPU milliseconds."""


def _timed(
    run: RunFolder, tasks: Mapping[str, Task], precisions: Sequence[ServedPrecision]
) -> dict[ServedPrecision, Timed]:
    """Rows of all tasks one by one, the precisions in turn on each, on one thread."""
    rows = _rows(run, tasks)
    before = torch.get_num_threads()
    try:
        predictors = {name: open_predictor(run, name, threads=1) for name in precisions}
        taken = _turns(predictors, rows)
    finally:
        torch.set_num_threads(before)
    return {
        name: (
            predictor.kind, predictor.bytes / 1e6, *np.quantile(taken[name][0], [0.5, 0.95]).tolist(),
            float(np.mean(taken[name][1])),
        )
        for name, predictor in predictors.items()
    }  # fmt: skip


def _turns(
    predictors: Mapping[ServedPrecision, RowPredictor], rows: Sequence[tuple[str, Row]]
) -> dict[ServedPrecision, tuple[list[float], list[float]]]:
    """Wall and CPU milliseconds of each row."""
    taken: dict[ServedPrecision, tuple[list[float], list[float]]] = {name: ([], []) for name in predictors}
    began, order = time.monotonic(), list(predictors.items())
    with progress_in_rows("timing", WARM_UP + CALLS) as advance:
        for number in range(WARM_UP + CALLS):
            task, row = rows[number % len(rows)]
            for name, predictor in order if number % 2 else reversed(order):
                wall, cpu = time.perf_counter(), time.process_time()
                predictor.predict([row], [task])
                if number >= WARM_UP:
                    taken[name][0].append(1e3 * (time.perf_counter() - wall))
                    taken[name][1].append(1e3 * (time.process_time() - cpu))
            advance(1)
            if number > WARM_UP and time.monotonic() - began > SECONDS:
                break
    return taken


def _rows(run: RunFolder, tasks: Mapping[str, Task]) -> list[tuple[str, Row]]:
    """Rows of the tasks' test splits in turn, each with the task that it is of."""
    recipe, each = recipe_from_yaml(run.recipe), -(-CALLS // len(tasks))
    by_task = {name: test_rows(recipe, name, each) for name in tasks}
    return [(name, rows[at % len(rows)]) for at in range(each) for name, rows in by_task.items()]
