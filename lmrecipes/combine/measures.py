"""Members and combinations beside each other on one task: accuracy, likelihood, calibration, disagreement, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmrecipes.combine.bootstrap import Resamples, interval, resampled_means, resampled_metric
from lmrecipes.combine.calibration import best_temperature, calibration_error, deviation_of, row_losses
from lmrecipes.combine.combination import Blend
from lmrecipes.combine.members import Said, Speed
from lmrecipes.combine.options import Method
from lmrecipes.combine.values import Floats, probabilities, scaled, values_of
from lmrecipes.metrics import task_metrics
from lmrecipes.models.heads import HeadSpec
from lmrecipes.tracking.results import lower_is_better
from lmrecipes.training.evaluation import Outputs

Role = Method | Literal["member", "teacher"]


@dataclass(frozen=True)
class Candidate:
    """One model on one task. spec: how to read its values. temperature: None, to be fitted on the validation split.
    weights: of the members, where predictions are combined."""

    name: str
    role: Role
    spec: HeadSpec
    validation: Outputs
    test: Outputs
    speed: Speed
    bytes: int
    temperature: float | None = None
    weights: tuple[float, ...] | None = None


def member(said: Said, task: str, spec: HeadSpec, role: Role = "member") -> Candidate:
    """A single model."""
    speed = said.speeds[task]
    return Candidate(said.name, role, spec, said.validation[task], said.test[task], speed, said.bytes)


def blended(role: Role, blend: Blend, members: Sequence[Candidate]) -> Candidate:
    """The members' predictions as one model: before its temperature, which stands beside it."""
    spec, plain = members[0].spec, Blend(blend.weights)
    splits = []
    for outputs in ([m.validation for m in members], [m.test for m in members]):
        found = [probabilities(m.spec, said.values) for m, said in zip(members, outputs, strict=True)]
        splits.append(replace(outputs[0], values=values_of(spec, plain(spec, found))))
    speed = sum((m.speed for m in members[1:]), members[0].speed)
    size = sum(m.bytes for m in members)
    return Candidate(role, role, spec, splits[0], splits[1], speed, size, blend.temperature, blend.weights)


def facts_of(metric: str, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """What is known of the models on a task, JSON-ready; the members come first."""
    members = [at for at, candidate in enumerate(candidates) if candidate.role == "member"]
    sign = -1.0 if lower_is_better(metric) else 1.0
    resamples = Resamples.of(len(candidates[0].test.rows), candidates[0].test.groups)
    found = [_Judged(metric, candidate, resamples) for candidate in candidates]
    best = {
        "validation": max(members, key=lambda at: sign * found[at].validation_value),
        "test": max(members, key=lambda at: sign * found[at].value),
    }
    return {
        "kind": candidates[0].spec.kind,
        "metric": metric,
        "lower_is_better": sign < 0,
        "rows": len(candidates[0].test.rows),
        "validation_rows": len(candidates[0].validation.rows),
        "resamples": resamples.draws,
        "groups": resamples.groups,
        "best": {split: candidates[at].name for split, at in best.items()},
        "disagreement": disagreement([candidates[at] for at in members]),
        "models": [
            judged.as_dict() | {"against": {split: judged.against(found[at]) for split, at in best.items()}}
            for judged in found
        ],
    }


class _Judged:
    """A candidate's numbers, and its draws, which are paired with those of others.

    Of tasks of tokens losses are in nats per token, and there is no calibration.
    """

    def __init__(self, metric: str, candidate: Candidate, resamples: Resamples) -> None:
        self.candidate, spec = candidate, candidate.spec
        values, targets = candidate.test.values, candidate.test.targets
        self.value = _metric(metric, spec, candidate.test)
        self.validation_value = _metric(metric, spec, candidate.validation)
        self.draws = resampled_metric(metric, spec, values, targets, resamples)
        self.temperature: float | None = None
        self.errors: list[float | None] = [None, None]
        if spec.of_tokens:
            per_token = values[:, 0] * len(values) / targets[:, 0].sum()
            self.losses = [float(per_token.mean())] * 2
            self.loss_draws = resampled_metric("perplexity", spec, values, targets, resamples)
            self.loss_draws = np.log(self.loss_draws)
            return
        held_out = probabilities(spec, candidate.validation.values)
        known = candidate.validation.targets
        self.temperature = candidate.temperature or best_temperature(spec, held_out, known)
        deviation = deviation_of(held_out, known) if spec.kind == "regression" else 1.0
        plain = probabilities(spec, values)
        calibrated = scaled(spec, plain, self.temperature)
        rows = [row_losses(spec, found, targets, deviation) for found in (plain, calibrated)]
        self.losses = [float(found.mean()) for found in rows]
        self.errors = [calibration_error(spec, found, targets, deviation) for found in (plain, calibrated)]
        self.loss_draws = resampled_means(rows[1], resamples)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready. before, after: the temperature."""
        candidate = self.candidate
        return {
            "name": candidate.name,
            "role": candidate.role,
            "weights": None if candidate.weights is None else list(candidate.weights),
            "value": self.value,
            "interval": interval(self.draws),
            "validation_value": self.validation_value,
            "temperature": self.temperature,
            "loss": {"before": self.losses[0], "after": self.losses[1], "interval": interval(self.loss_draws)},
            "calibration_error": {"before": self.errors[0], "after": self.errors[1]},
            **asdict(candidate.speed),
            "bytes": candidate.bytes,
        }

    def against(self, other: _Judged) -> dict[str, Any]:
        """This model's metric and calibrated loss less those of another, with intervals of the paired draws."""
        return {
            "value": self.value - other.value,
            "interval": interval(self.draws - other.draws),
            "loss": self.losses[1] - other.losses[1],
            "loss_interval": interval(self.loss_draws - other.loss_draws),
        }


def disagreement(members: Sequence[Candidate]) -> dict[str, Any] | None:
    """How differently members predict the test rows, of each pair and on average. None for tasks of tokens."""
    spec = members[0].spec
    if spec.of_tokens:
        return None
    found = [probabilities(one.spec, one.test.values) for one in members]
    measure, apart = {
        "classification": ("share of rows with another class", _other_class),
        "multi_label": ("share of labels that hold for one only", _other_labels),
        "regression": ("mean difference, in standard deviations of the targets", _other_numbers),
    }[spec.kind]
    targets = members[0].test.targets
    pairs = [[apart(one, other, targets) for other in found] for one in found]
    count = len(members) * (len(members) - 1)
    return {"measure": measure, "pairs": pairs, "mean": sum(map(sum, pairs)) / count if count else 0.0}


def _other_class(one: Floats, other: Floats, targets: NDArray[Any]) -> float:
    return float((one.argmax(axis=1) != other.argmax(axis=1)).mean())


def _other_labels(one: Floats, other: Floats, targets: NDArray[Any]) -> float:
    return float(((one > 0.5) != (other > 0.5)).mean())


def _other_numbers(one: Floats, other: Floats, targets: NDArray[Any]) -> float:
    return float(np.abs(one - other).mean() / (targets.std() or 1.0))


def _metric(metric: str, spec: HeadSpec, outputs: Outputs) -> float:
    return task_metrics((metric,), spec, outputs.values, outputs.targets)[metric]
