"""Gradient cosines: how far the tasks pull the shared weights the same way, measured while a run trains.

At a due step, before its own passes, the examples of each task are split into halves, and each half goes forward and
backward by itself: every example of the step is computed once more, in twice as many passes as there are tasks. What
is read is the gradient of all that tasks share (the trunk and the language-model head, not heads nor front ends). Each
rank keeps its share of it, one fp32 copy for each task: 4 * tasks / ranks bytes a parameter. Then all gradients are
dropped. Nothing that training depends on is touched: a run with cosines takes the same path, bit for bit, as without.

`cosines.jsonl` holds a `Measurement` a line.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmrecipes.data.batches import MicroBatch
from lmrecipes.data.permutation import hash_key
from lmrecipes.data.stream import Drawn, TrainingStream
from lmrecipes.planning.batch import plan_batch
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import RunFolder
from lmrecipes.tracking.record import RecordFile
from lmrecipes.training.agreement import Measurement, Sums, lowest
from lmrecipes.training.engine import Engine
from lmrecipes.training.holdings import gradient_of
from lmrecipes.training.losses import weighted

log = logging.getLogger(__name__)


class Cosines:
    """Of one run; with `tracking.cosines_every: 0` it does nothing. Raises InputError where tasks share no weight that
    is trained. Every rank must call `before_step`."""

    def __init__(self, recipe: Recipe, engine: Engine, stream: TrainingStream) -> None:
        self.recipe, self.engine, self.stream = recipe, engine, stream
        self.every = recipe.tracking.cosines_every
        self.sums = Sums()
        self._file: RecordFile | None = None
        self._shared = [
            parameter for name, parameter in engine.module.named_parameters()
            if parameter.requires_grad and not name.startswith(("heads.", "inputs."))
        ]  # fmt: skip
        if self.every and not self._shared:
            what, fix = "compares gradients of what tasks share, and none of it is trained", "set it to 0"
            raise InputError(Problem("tracking.cosines_every", what, fix, "cosines-frozen"))

    def open(self, run: RunFolder, step: int) -> None:
        """Begin to write the measurements of a run that stands at a step; on rank 0 alone."""
        if self.every:
            self._file = RecordFile(run.cosines, step or None)

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            self._file.close()

    def before_step(self, number: int, factors: Mapping[str, float] | None) -> dict[str, float]:
        """Measure where the step numbered `number` (from 1) is due. factors: of the tasks' losses in this step, where
        the run adapts them. Returns metrics."""
        if not self.every or number % self.every:
            return {}
        began, device = time.perf_counter(), self.engine.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            examples, gradients = self._gradients(number, dict(factors or {}))
        found = self._measurement(number, began, examples, gradients)
        self.sums.add(found)
        if self._file is not None:
            self._file.append([found.as_dict()])
        metrics = {"time/cosines": found.seconds}
        metrics |= {f"cosine/{task}/{task}": value for task, value in found.within.items()}
        for (a, b), value in found.cosines().items():
            metrics[f"cosine/{a}/{b}"] = value
            if (average := self.sums.corrected(a, b)) is not None:
                metrics[f"cosine_so_far/{a}/{b}"] = average
        return metrics

    def say(self, seconds: float) -> None:
        """Log what was found, after a run that took so long in all, and what it cost."""
        if not self.sums.count or not self.engine.is_main:
            return
        cost = f"measured {self.sums.count} times in {self.sums.seconds:.1f} s, {self.sums.seconds / seconds:.0%}"
        least = lowest(self.sums)
        said = "no pair is above its noise yet"
        if least is not None:
            said = f"lowest between {least[0]} and {least[1]}, {least[2]:+.2f} without the noise"
        log.info(f"gradient cosines: {cost} of the training's time; {said}")

    def state(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self.sums) if self.every else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.sums = Sums(**state)

    def _gradients(
        self, number: int, factors: dict[str, float]
    ) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[list[Tensor], Tensor]]]:
        """Of each task with two examples or more: how many examples its halves have; this rank's share of the whole
        gradient, fp32, and of the halves' dot product and squared norms, float64 [3]."""
        stream = self.stream
        drawn = stream.drawn(number - 1)
        elements = stream.batcher.elements(drawn.tasks, drawn.rows)
        of_step = stream.scales.factors(elements)
        units = {name: of_step[name] / count if count else 0.0 for name, count in elements.items()}
        counts, gradients = {}, {}
        for at, task in enumerate(stream.batcher.names):
            mine = np.flatnonzero(drawn.tasks == at)
            halves = [mine[part] for part in split(drawn.rows[mine])]
            if not all(map(len, halves)):
                continue
            counts[task] = (len(halves[0]), len(halves[1]))
            first: list[Tensor] = []
            products = torch.zeros(3, dtype=torch.float64, device=self.engine.device)
            for half, chosen in enumerate(halves):
                self._pass(number, at, half, drawn.take(chosen), units, factors)
                for place, share in enumerate(self._shares()):
                    products[1 + half] += _dot(share, share)
                    if half == 0:
                        first.append(share.clone())
                    else:
                        products[0] += _dot(first[place], share)
                        first[place] += share
                self.engine.clear_gradients()
            gradients[task] = first, products
        return counts, gradients

    def _pass(
        self, number: int, task: int, half: int, drawn: Drawn, units: dict[str, float], factors: dict[str, float]
    ) -> None:
        """Forward and backward of some examples of one task: the engine holds their part of the step's gradient."""
        batch, engine = self.recipe.batch, self.engine
        plan = plan_batch(len(drawn.rows), batch.micro_examples, engine.world_size)
        micro_batches: list[MicroBatch] = self.stream.laid_out(drawn, units, plan)
        for i, micro in enumerate(micro_batches):
            key = ("cosines", number, task, half, i, engine.rank)
            torch.manual_seed(hash_key(self.recipe.seed, *key))
            micro = weighted(micro, factors) if factors else micro
            engine.micro_step(micro, last=i == len(micro_batches) - 1)

    def _shares(self) -> Iterator[Tensor]:
        """This rank's share of the gradient of each shared parameter, fp32, flat: valid until the next one is asked
        for."""
        for parameter in self._shared:
            whole = gradient_of(self.engine, parameter).flatten()
            yield whole.tensor_split(self.engine.world_size)[self.engine.rank]

    def _measurement(
        self, number: int, began: float, counts: dict[str, tuple[int, int]],
        gradients: dict[str, tuple[list[Tensor], Tensor]],
    ) -> Measurement:  # fmt: skip
        """All numbers, summed over ranks in one message."""
        pairs = list(combinations(gradients, 2))
        sent = [products for _, products in gradients.values()]
        sent += [torch.stack(list(map(_dot, gradients[a][0], gradients[b][0]))).sum()[None] for a, b in pairs]
        numbers = self.engine.sum_over_ranks(torch.cat(sent)).tolist() if sent else []
        examples, norms, within, signal = {}, {}, {}, {}
        for at, (task, (one, other)) in enumerate(counts.items()):
            dot, first, second = numbers[3 * at : 3 * at + 3]
            examples[task] = one + other
            if math.isfinite(dot + first + second):
                norms[task] = math.sqrt(max(0.0, first + 2 * dot + second))
                signal[task] = dot * (one + other) ** 2 / (one * other)  # each half is a part of a mean over all
                if first and second:
                    within[task] = dot / math.sqrt(first * second)
        dots: dict[str, dict[str, float]] = {}
        for (a, b), dot in zip(pairs, numbers[3 * len(counts) :], strict=True):
            if a in norms and b in norms and math.isfinite(dot):
                dots.setdefault(a, {})[b] = dot
        return Measurement(number, round(time.perf_counter() - began, 3), examples, norms, within, signal, dots)


def split(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Two halves of some examples of one task, as places in `rows`: by turns in the order of the stream, but all copies
    of a row in one half, or their noise would pass for agreement."""
    _, first, which = np.unique(rows, return_index=True, return_inverse=True)
    half = np.argsort(np.argsort(first))[which] % 2
    return [np.flatnonzero(half == number) for number in (0, 1)]


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Of flat tensors: each in their own dtype, then float64 []."""
    return torch.dot(one, other).double()
