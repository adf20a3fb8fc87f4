"""The members of a combination after each has spoken: what they say of the same rows, and what can be made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmrecipes.combine.averaging import average, stack
from lmrecipes.combine.combination import Blend, require_same_rows, specs_of
from lmrecipes.combine.measures import Candidate, blended, member
from lmrecipes.combine.members import Said, ask, shared_tasks
from lmrecipes.combine.options import Method
from lmrecipes.combine.soup import difference, different_starts, greedy, write_soup
from lmrecipes.combine.values import probabilities
from lmrecipes.combine.written import write_member
from lmrecipes.inference.own_tasks import outputs_of
from lmrecipes.metrics import mean_loss
from lmrecipes.models.heads import HeadSpec
from lmrecipes.recipe import Task
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.run_folder import RunFolder
from lmrecipes.training.evaluation import Outputs

Blends = dict[Method, dict[str, Blend]]
"""By method (average, stack), then by task."""
FITS: dict[Method, Callable[..., Blend]] = {"average": average, "stack": stack}


@dataclass(frozen=True)
class Panel:
    """tasks: those that all members know. specs: each member's heads. most: rows of a split that they were asked about.
    left_out: tasks that are not combined, in words."""

    runs: list[RunFolder]
    names: list[str]
    tasks: dict[str, Task]
    specs: list[dict[str, HeadSpec]]
    said: list[Said]
    most: int | None
    left_out: list[str]

    @classmethod
    def ask(cls, runs: list[RunFolder], of_tokens: bool, most: int | None) -> Panel:
        """Let every member speak. Raises InputError where their tasks or rows do not agree."""
        shared = shared_tasks(runs, of_tokens)
        names = _distinct(runs)
        said = [ask(run, name, shared.tasks, most) for run, name in zip(runs, names, strict=True)]
        for task in shared.tasks:
            require_same_rows(task, names, [one.validation[task] for one in said])
            require_same_rows(task, names, [one.test[task] for one in said])
        specs = [specs_of(run.model) for run in runs]
        return cls(runs, names, shared.tasks, specs, said, most, shared.left_out)

    def blends(self) -> Blends:
        """Weights and temperatures of each task with labels, fitted on the validation split."""
        fitted: Blends = {method: {} for method in FITS}
        for task in (name for name, given in self.tasks.items() if not given.of_tokens):
            outputs = [one.validation[task] for one in self.said]
            found = [probabilities(own[task], o.values) for own, o in zip(self.specs, outputs, strict=True)]
            for method, fit in FITS.items():
                fitted[method][task] = fit(self.specs[0][task], found, outputs[0].targets, outputs[0].groups)
        return fitted

    def alike(self) -> tuple[list[int], list[str]]:
        """The largest group of members whose weights can be averaged, and why others cannot, in words."""
        groups: list[list[int]] = []
        for at, run in enumerate(self.runs):
            home = next((group for group in groups if not self._apart(group[0], run)), None)
            if home is None:
                groups.append([at])
            else:
                home.append(at)
        largest = max(groups, key=len)
        others = [at for at in range(len(self.runs)) if at not in largest]
        if len(largest) == 1:
            return [], [f"no soup: {self._apart(largest[0], self.runs[others[0]])}"]
        why = [f"the soup is without {self.names[at]}: {self._apart(largest[0], self.runs[at])}" for at in others]
        return largest, why + self.starts(largest)

    def starts(self, members: Sequence[int]) -> list[str]:
        """A note where the weights of these did not start alike."""
        note = different_starts({self.names[at]: recipe_from_yaml(self.runs[at].recipe) for at in members})
        return [] if note is None else [note]

    def _apart(self, at: int, run: RunFolder) -> str | None:
        return difference(self.runs[at].model, run.model, list(self.tasks))

    def greedy(self, scratch: Path) -> list[int]:
        """The members of a greedy soup, by their mean loss on the validation split, see `_loss`."""
        alone = [self._loss(one.validation) for one in self.said]
        order = [int(at) for at in np.argsort(alone, kind="stable")]

        def loss_of(members: tuple[int, ...]) -> float:
            if len(members) == 1:
                return alone[members[0]]
            name = "greedy-" + "-".join(map(str, members))
            run = self.soup(members, scratch / name)
            return self._loss(outputs_of(run, self.tasks, "validation", self.most))

        return sorted(greedy(order, loss_of))

    def soup(self, members: Sequence[int], to: Path) -> RunFolder:
        """The run whose weights are the mean of some members', in the new folder `to`."""
        write_member(self.runs[members[0]], to, with_model=False)
        write_soup([self.runs[at].model for at in members], to / "model", list(self.tasks))
        return RunFolder(to)

    def candidates(self, task: str, blends: Blends, soup: Said | None, method: Method) -> list[Candidate]:
        """All models of a task, members first."""
        spec = self.specs[0][task]
        found = [member(said, task, own[task]) for said, own in zip(self.said, self.specs, strict=True)]
        combined = [blended(kind, of_task[task], found) for kind, of_task in blends.items() if task in of_task]
        if soup is not None:
            combined.append(member(soup, task, spec, "checkpoints" if method == "checkpoints" else "soup"))
        return [*found, *combined]

    def _loss(self, outputs: dict[str, Outputs]) -> float:
        """Mean over tasks of the loss as a share of the best constant predictor's: what training minimises."""
        specs = self.specs[0]
        shares = [
            mean_loss(specs[task], found.values, found.targets) / specs[task].constant_loss
            for task, found in outputs.items()
        ]
        return sum(shares) / len(shares)


def _distinct(runs: Sequence[RunFolder]) -> list[str]:
    """Names of the runs' folders; paths where names repeat."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]
