"""A combined model as it lies on disk: whole exported models, and how their predictions become one.

model/  combination.json              method, members, weights and temperature of each task, heads
        members/0/recipe.yaml         the recipe of a member: its columns, tokenizer settings, longest text
        members/0/model/              its exported model, as `transformers` loads it; it may be a combination itself
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.combine.values import probabilities, scaled, values_of
from lmrecipes.files import write_json
from lmrecipes.inference.exported import not_exported
from lmrecipes.models.heads import HeadSpec
from lmrecipes.problems import InputError, Problem
from lmrecipes.run_folder import RunFolder
from lmrecipes.training.evaluation import Outputs

FILE = "combination.json"


@dataclass(frozen=True)
class Blend:
    """How the members' predictions of one task become one.

    weights: of the members, not negative, together 1. temperature: of the mean of their probabilities, see `scaled`.
    """

    weights: tuple[float, ...]
    temperature: float = 1.0

    def __call__(self, spec: HeadSpec, members: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """The members' probabilities (of regression: numbers) as one."""
        mean = sum(weight * found for weight, found in zip(self.weights, members, strict=True))
        return scaled(spec, np.asarray(mean), self.temperature)


@dataclass(frozen=True)
class Combination:
    """Members whose predictions are averaged.

    names: of the runs that the members were. specs: of the tasks that it knows, as the first member's. A member may
    have been trained on a task with another loss than the first; `own` are its heads.
    """

    method: str
    members: tuple[RunFolder, ...]
    names: tuple[str, ...]
    blends: Mapping[str, Blend]
    specs: Mapping[str, HeadSpec]
    own: tuple[Mapping[str, HeadSpec], ...]

    @classmethod
    def load(cls, folder: Path) -> Combination:
        """Read the `model/` of a combined run. Raises InputError where a member is missing."""
        saved = _saved(folder)
        members = tuple(RunFolder(folder / member) for member in saved["members"])
        return cls(
            saved["method"],
            members,
            tuple(saved["of"]),
            {task: Blend(tuple(blend["weights"]), blend["temperature"]) for task, blend in saved["tasks"].items()},
            specs_of(folder),
            tuple(specs_of(member.model) for member in members),
        )

    def combined(self, task: str, values: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """What the members say of rows of a task -> what the combination says: values as `Head.predictions` has them,
        fp32 [n] or [n, outputs]. The class, and the labels that hold, may differ from those of every member."""
        found = [probabilities(own[task], given) for own, given in zip(self.own, values, strict=True)]
        return values_of(self.specs[task], self.blends[task](self.specs[task], found))

    def combined_outputs(self, of_members: Sequence[Mapping[str, Outputs]]) -> dict[str, Outputs]:
        """The same of rows that every member has read. Raises InputError where these are not the same."""
        combined = {}
        for task, first in of_members[0].items():
            outputs = [found[task] for found in of_members]
            require_same_rows(task, self.names, outputs)
            values = self.combined(task, [found.values for found in outputs])
            combined[task] = replace(first, values=values)
        return combined


def is_combination(folder: Path) -> bool:
    """Whether a `model/` holds members instead of weights."""
    return (folder / FILE).is_file()


def specs_of(folder: Path) -> dict[str, HeadSpec]:
    """The heads of an exported model or a combination, without its weights. Raises InputError where it is neither."""
    file = folder / (FILE if is_combination(folder) else "heads.json")
    if not file.is_file():
        raise not_exported(folder, [file.name])
    saved = json.loads(file.read_text(encoding="utf-8"))
    of_tasks = saved["specs"] if file.name == FILE else saved["tasks"]
    return {name: HeadSpec.from_dict(spec) for name, spec in of_tasks.items()}


def write_combination(
    folder: Path, method: str, names: Sequence[str], blends: Mapping[str, Blend], specs: Mapping[str, HeadSpec]
) -> None:
    """Write combination.json beside the members, which lie in members/0, members/1, ..."""
    content = {
        "method": method,
        "members": [f"members/{number}" for number in range(len(names))],
        "of": list(names),
        "tasks": {
            task: {"weights": list(blend.weights), "temperature": blend.temperature} for task, blend in blends.items()
        },
        "specs": {task: specs[task].as_dict() for task in blends},
    }
    write_json(folder / FILE, content)


def require_same_rows(task: str, names: Sequence[str], outputs: Sequence[Outputs]) -> None:
    """Raise InputError where models with these names did not read the same rows of a task."""
    first = outputs[0]
    for name, other in zip(names[1:], outputs[1:], strict=True):
        what = _difference(first, other)
        if what is not None:
            fix = (
                "combine runs whose task reads the same source, is cut into splits by the same fractions and group, "
                "and leaves out the same bad rows"
            )
            raise InputError(
                Problem(f"tasks.{task}", f"{names[0]} and {name} do not read the same rows: {what}", fix, "rows-differ")
            )


def _difference(one: Outputs, other: Outputs) -> str | None:
    """How the rows of two models differ, in words."""
    if len(one.rows) != len(other.rows):
        return f"{len(one.rows):,} rows and {len(other.rows):,}"
    if not np.array_equal(one.rows, other.rows):
        return "their numbers differ"
    apart = np.flatnonzero((one.targets != other.targets).reshape(len(one.rows), -1).any(axis=1))
    if len(apart):
        return f"{len(apart):,} of {len(one.rows):,} rows have other labels, the first is row {one.rows[apart[0]]:,}"
    return None


def _saved(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    missing = [member for member in saved["members"] if not (folder / member / "model").is_dir()]
    if missing:
        raise not_exported(folder, missing)
    return saved
