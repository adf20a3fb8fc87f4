"""What the ranks of a search do: proxy after proxy in one group of processes, each a real run without its ending."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, Self

import tyro
from rich.progress import BarColumn, Progress, TextColumn

from lmrecipes.launching import guarded, quieten
from lmrecipes.problems import RunFailed
from lmrecipes.ranks import started_by_launcher, stop_with_parent
from lmrecipes.recipe import Recipe
from lmrecipes.search.folder import SearchFolder
from lmrecipes.search.plan import Proxy, Question, Result, cost, next_proxy, proxy_recipe, target_tasks
from lmrecipes.tracking.progress import clock, terminal

TRAINING = 0.75
"""Share of a proxy's time that the bar gives to its training; the rest is the evaluation's."""


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
    quieten()
    if started_by_launcher():
        stop_with_parent()
    deepspeed = json.loads(options.deepspeed.read_text(encoding="utf-8")) if options.deepspeed else None
    with redirect_stdout(sys.stderr):  # what libraries print is not the answer
        return Proxies(SearchFolder(options.folder), options.question, deepspeed).run()


class Proxies:
    """The proxies of a search that are still to run. `asked`: number of a signal that asks to stop, or 0."""

    def __init__(self, folder: SearchFolder, question: Question, deepspeed: dict[str, Any] | None) -> None:
        self.folder, self.question, self.deepspeed = folder, question, deepspeed
        self.base = folder.base()
        self.results = folder.results()
        self.engine: Any = None
        self.asked = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._stop)

    def run(self) -> int:
        """Run them all; returns the exit code. Every rank decides alike, from the same results."""
        try:
            with ProxyBar(self.base, self.question, self.results) as bar:
                while (proxy := next_proxy(self.base, self.question, self.results)) is not None:
                    result = self._one(proxy, bar)
                    if result is None:
                        self.engine.barrier()  # a launcher ends the other ranks once one has ended
                        return 128 + self.asked
                    self.results.append(result)
                    bar.finished(result)
            return 0
        finally:
            if self.engine is not None:
                self.engine.close()

    def _one(self, proxy: Proxy, bar: ProxyBar) -> Result | None:
        """One proxy: trained, then evaluated on the validation split. None where a signal stopped it."""
        from lmrecipes.training.loop import Start, Training

        if self.engine is not None:
            self.engine.release()
            gc.collect()  # the former model and its optimizer hang in cycles
        began, recipe = time.perf_counter(), proxy_recipe(self.base, proxy)
        training = Training(recipe, Start(self.deepspeed, self.folder.path))
        self.engine = training.engine
        try:
            for step in training.stream.steps(0, recipe.schedule.steps):
                training.signal = self.asked
                metrics, outcome = training.one_step(step)
                if outcome.signal:
                    self.asked = outcome.signal
                    return None
                training.judge(outcome, metrics)
                bar.move(TRAINING * training.state.step / recipe.schedule.steps)
            scores = training.review.scores(
                training.engine, "validation", lambda i, n: bar.move(TRAINING + (1 - TRAINING) * i / n)
            )
        except RunFailed as error:
            shares = ", ".join(f"{name} {task.weight:g}" for name, task in recipe.tasks.items())
            raise RunFailed(f"proxy {proxy.kind} {proxy.number} ({shares}): {error}") from None
        for name, score in scores.items():
            score["constant_loss"] = training.specs[name].constant_loss
        result = Result(proxy, round(time.perf_counter() - began, 3), scores)
        if self.engine.is_main:
            self.folder.write([*self.results, result])
        return result

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.asked = number


class ProxyBar:
    """Proxies done, their mean cost, time: a live bar in a terminal, a line for each proxy elsewhere. Rank 0 only."""

    def __init__(self, base: Recipe, question: Question, results: Sequence[Result]) -> None:
        self.base, self.question, self.done = base, question, len(results)
        self.total = max(question.runs + 2 * question.repeats, len(results))
        self.show = os.environ.get("RANK", "0") == "0"
        self.seconds: list[float] = []
        self.began = time.monotonic()
        console = terminal()
        self.live = Progress(
            TextColumn("[bold]proxies"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}/{task.total}  {task.fields[said]}  {task.fields[clock]}"),
            console=console,
            expand=True,
            disable=not (self.show and console.is_terminal),
        )
        self.task = self.live.add_task("proxies", total=self.total, completed=self.done, count=self.done, said="",
                                       clock="")  # fmt: skip

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def move(self, part: float) -> None:
        """So much of the proxy at hand is trained."""
        elapsed = clock(time.monotonic() - self.began)
        self.live.update(self.task, completed=self.done + part, clock=f"{elapsed} < {self._left(part)}")

    def finished(self, result: Result) -> None:
        """One more proxy is done."""
        self.done += 1
        self.seconds.append(result.seconds)
        names = target_tasks(self.base, self.question)
        mean = sum(cost(result.scores[name], self.question.metric) for name in names) / len(names)
        said = f"{result.proxy.kind} {mean:.4f}"
        self.live.update(self.task, completed=self.done, count=self.done, said=said)
        if self.show and self.live.disable:
            line = f"proxy {self.done}/{self.total}  {said}  {result.seconds:.1f} s  {self._left(0)} left"
            print(line, file=sys.stderr, flush=True)  # noqa: T201 (the terminal's plain twin of the bar)

    def _left(self, part: float) -> str:
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else math.nan
        return clock(mean * (self.total - self.done - part))


if __name__ == "__main__":
    sys.exit(guarded(main))
