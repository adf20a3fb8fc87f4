"""What the ranks of a search do: proxy after proxy in one group of processes, each a real run without its ending."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from lmrecipes.launching import guarded
from lmrecipes.problems import RunFailed
from lmrecipes.search.folder import SearchFolder
from lmrecipes.search.plan import Proxy, Question, Result, cost, next_proxy, proxy_recipe, target_tasks
from lmrecipes.series import Stopped, run_rank
from lmrecipes.tracking.series_bar import SeriesBar


@dataclass(frozen=True)
class RankOptions:
    """What a rank is told."""

    folder: Path
    """The search's folder, with its settings."""
    question: Annotated[Question, tyro.conf.arg(name="")] = field(default_factory=Question)
    deepspeed: Path | None = None
    """A DeepSpeed JSON. None: plain torch."""


def main() -> int:
    """One rank of a search."""
    options = tyro.cli(RankOptions)
    return run_rank(
        lambda deepspeed: Proxies(SearchFolder(options.folder), options.question, deepspeed).run(), options.deepspeed
    )


class Proxies:
    """The proxies of a search that are still to run."""

    def __init__(self, folder: SearchFolder, question: Question, deepspeed: dict[str, Any] | None) -> None:
        from lmrecipes.training.series import Series

        self.folder, self.question = folder, question
        self.series = Series(deepspeed)
        self.base = folder.base()
        self.results = folder.results()

    def run(self) -> int:
        """Run them all; returns the exit code. Every rank decides alike, from the same results."""
        total = max(self.question.runs + 2 * self.question.repeats, len(self.results))
        targets = target_tasks(self.base, self.question)
        try:
            with SeriesBar(("proxy", "proxies"), total, len(self.results)) as bar:
                while (proxy := next_proxy(self.base, self.question, self.results)) is not None:
                    result = self._one(proxy, bar)
                    self.results.append(result)
                    mean = sum(cost(result.scores[name], self.question.metric) for name in targets) / len(targets)
                    bar.finished(f"{proxy.kind} {mean:.4f}", result.seconds)
            return 0
        except Stopped:
            return self.series.stopped()
        finally:
            self.series.close()

    def _one(self, proxy: Proxy, bar: SeriesBar) -> Result:
        """One proxy: trained, then evaluated on the validation split."""
        began, recipe = time.perf_counter(), proxy_recipe(self.base, proxy)
        training = self.series.begin(recipe, self.folder.path)
        try:
            for _ in self.series.steps(training):
                bar.trained(training.state.step / recipe.schedule.steps)
            scores = training.review.scores(training.engine, "validation", bar.evaluated)
        except RunFailed as error:
            shares = ", ".join(f"{name} {task.weight:g}" for name, task in recipe.tasks.items())
            raise RunFailed(f"proxy {proxy.kind} {proxy.number} ({shares}): {error}") from None
        for name, score in scores.items():
            score["constant_loss"] = training.specs[name].constant_loss
        result = Result(proxy, round(time.perf_counter() - began, 3), scores)
        if training.engine.is_main:
            self.folder.write([*self.results, result])
        return result


if __name__ == "__main__":
    sys.exit(guarded(main))
