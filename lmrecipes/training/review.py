"""How good the model is at a moment of its run: scores on held-out rows, and texts that it continues."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from lmrecipes.data.encoded import EncodedTask
from lmrecipes.files import write_json
from lmrecipes.models.heads import HeadSpec
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import RunFolder
from lmrecipes.tracking.progress import evaluation_bar
from lmrecipes.tracking.samples import SamplesFile
from lmrecipes.tracking.trackers import Trackers
from lmrecipes.training.engine import Engine
from lmrecipes.training.evaluation import Moved, Outputs, Scores, score_outputs, task_outputs
from lmrecipes.training.sampling import Samples

log = logging.getLogger(__name__)


class Review:
    """Evaluations and samples of one run, by its live model. Every rank must call every method."""

    def __init__(
        self, recipe: Recipe, tasks: dict[str, EncodedTask], specs: dict[str, HeadSpec], tokenizer: str | None
    ) -> None:
        self.recipe, self.tasks, self.specs = recipe, tasks, specs
        self._samples = Samples(recipe, tasks, tokenizer)
        self._file: SamplesFile | None = None

    def open(self, run: RunFolder, step: int) -> None:
        """Begin to write samples of a run that stands at a step; on rank 0 alone."""
        if self._samples:
            self._file = SamplesFile(run.samples, step or None)

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            self._file.close()

    def before_training(self, engine: Engine, run: RunFolder, trackers: Trackers | None) -> None:
        """What the model can do before the first step, where the recipe asks for it."""
        if self.recipe.evaluation.start:
            with evaluation_bar(show=engine.is_main) as moved:
                scores = self.scores(engine, "test", moved)
            if engine.is_main:
                write_json(run.start, scores)
        self.sample(engine, 0, trackers)

    def scores(self, engine: Engine, split: str, moved: Moved = lambda done, total: None) -> Scores:
        """Metrics of every task on a split, the same on every rank."""
        return self.scores_of(self.outputs(engine, split, moved))

    def scores_of(self, outputs: Mapping[str, Outputs]) -> Scores:
        """Metrics of what `outputs` gave."""
        return score_outputs({name: task.task for name, task in self.tasks.items()}, self.specs, outputs)

    def outputs(self, engine: Engine, split: str, moved: Moved = lambda done, total: None) -> dict[str, Outputs]:
        """What the model says of every task's rows of a split, the same on every rank."""
        evaluation = self.recipe.evaluation
        with engine.averaged():
            return task_outputs(
                self.tasks, self.specs, split, evaluation.examples, evaluation.micro_examples, engine.predict,
                engine.rank, engine.world_size, engine.gather, moved,
            )  # fmt: skip

    def sample(self, engine: Engine, step: int, trackers: Trackers | None) -> None:
        """Let the model continue the recipe's samples, and record what it says."""
        if not self._samples:
            return
        with engine.averaged():
            drawn = self._samples.draw(engine, step)
        if self._file is not None:
            self._file.write(drawn)
        if trackers is not None:
            trackers.samples(drawn, step)


def before_training(run: RunFolder, final: Scores) -> dict[str, Any]:
    """The evaluation of a run's model before its first step, as a baseline of its results; empty where there is none,
    or of other rows, because the run was resumed with another `evaluation.examples`."""
    if not run.start.is_file():
        return {}
    scores: Scores = json.loads(run.start.read_text(encoding="utf-8"))
    if {name: score["rows"] for name, score in scores.items()} != {n: score["rows"] for n, score in final.items()}:
        log.warning("%s was measured on other rows than the results, and is left out", run.start)
        return {}
    day = time.strftime("%Y-%m-%d", time.localtime(run.start.stat().st_mtime))
    metrics = {name: score["metrics"] for name, score in scores.items()}
    return {"start": {"title": "before training", "measured": "with this run", "date": day, "tasks": metrics}}
