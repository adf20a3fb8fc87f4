"""The stream of steps that a rank trains on, assembled in the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.batches import Batcher, MicroBatch
from lmrecipes.data.layout import Arrangement, deal
from lmrecipes.data.loss_scales import LossScales
from lmrecipes.data.mixture import Mixture
from lmrecipes.planning.batch import BatchPlan
from lmrecipes.recipe import Loader


@dataclass
class Step:
    """One optimizer step on one rank, and what the whole step holds over all ranks.

    supervised: tokens that carry loss; a text with a label for the whole has one. elements: what the loss is a mean of.
    factors: of each task's mean loss in the step's loss.
    """

    micro_batches: list[MicroBatch]
    examples: dict[str, int]
    tokens: dict[str, int]
    supervised: dict[str, int]
    elements: dict[str, int]
    factors: dict[str, float]


@dataclass(frozen=True)
class Drawn:
    """Examples of the global stream, [k] each: their places in it, numbers of their tasks, and rows."""

    indices: NDArray[np.int64]
    tasks: NDArray[np.int16]
    rows: NDArray[np.int64]

    def take(self, chosen: NDArray[np.int64]) -> Drawn:
        """Those at `chosen`."""
        return Drawn(self.indices[chosen], self.tasks[chosen], self.rows[chosen])


class TrainingStream:
    """Steps of the global stream as this rank sees them. `mixture` may be replaced between steps by one that gives the
    same samples for all steps that are already under way."""

    def __init__(
        self, batcher: Batcher, scales: LossScales, mixture: Mixture, plan: BatchPlan, arrangement: Arrangement,
        rank: int, loader: Loader,
    ) -> None:  # fmt: skip
        self.batcher, self.scales, self.mixture, self.plan = batcher, scales, mixture, plan
        self.arrangement, self.rank, self.loader = arrangement, rank, loader

    def step(self, number: int, mixture: Mixture | None = None) -> Step:
        """Step `number` (from 0): global samples number * examples up to (number + 1) * examples."""
        drawn = self.drawn(number, mixture)
        tasks, rows = drawn.tasks, drawn.rows
        lengths = self.batcher.lengths(tasks, rows)
        counts = np.bincount(tasks, minlength=len(self.batcher.names))
        tokens = np.bincount(tasks, weights=lengths, minlength=len(self.batcher.names)).astype(np.int64)
        examples = dict(zip(self.batcher.names, counts.tolist(), strict=True))
        elements = self.batcher.elements(tasks, rows)
        factors = self.scales.factors(elements)
        units = {name: factors[name] / count if count else 0.0 for name, count in elements.items()}
        micros = self.laid_out(drawn, units, self.plan)
        of_tokens = {name: self.batcher.specs[name].of_tokens for name in examples}
        supervised = {name: elements[name] if of_tokens[name] else count for name, count in examples.items()}
        by_name = dict(zip(self.batcher.names, tokens.tolist(), strict=True))
        return Step(micros, examples, by_name, supervised, elements, factors)

    def drawn(self, number: int, mixture: Mixture | None = None) -> Drawn:
        """The examples of step `number`."""
        indices = number * self.plan.examples + np.arange(self.plan.examples)
        return Drawn(indices, *(mixture or self.mixture).at(indices))

    def laid_out(self, drawn: Drawn, units: Mapping[str, float], plan: BatchPlan) -> list[MicroBatch]:
        """This rank's micro-batches of these examples, `plan.examples` at most. units: see `Batcher.micro_batch`."""
        lengths = self.batcher.lengths(drawn.tasks, drawn.rows)
        return [
            self.batcher.micro_batch(
                self.arrangement.parts(micro, lengths), drawn.tasks, drawn.rows, units, self.arrangement, drawn.indices
            )
            for micro in deal(lengths, plan)[self.rank]
        ]

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Steps start..stop-1 in order, assembled ahead by threads, or where `loader.workers` is 0 when asked for."""
        if self.loader.workers == 0:
            for number in range(start, stop):
                yield self.step(number, self.mixture)
            return
        with ThreadPoolExecutor(self.loader.workers, "batches") as pool:
            ahead: deque[Future[Step]] = deque()
            for number in range(start, stop):
                while len(ahead) <= self.loader.prefetch and number + len(ahead) < stop:
                    ahead.append(pool.submit(self.step, number + len(ahead), self.mixture))
                yield ahead.popleft().result()
