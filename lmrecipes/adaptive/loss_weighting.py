"""Factors of the tasks' losses that follow the losses: uncertainty, DWA, FAMO. Pure: a round's losses in, factors out.

Learned weights are updated on the host from the globally reduced losses: no parameter is added to the model, so that
they work alike under every engine and are replayed exactly. A round is `loss_weighting.every` steps. Factors are 1 on
average at the start, so that the learning rate means what it means without them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from lmrecipes.adaptive.mixing import softmax
from lmrecipes.adaptive.rounds import Mean
from lmrecipes.recipe import LossWeighting


class Weighter(Protocol):
    """What a method keeps are its fields: JSON-ready, saved in checkpoints."""

    def update(self, losses: Mapping[str, Mean], settings: LossWeighting) -> dict[str, float]:
        """Factors of the tasks seen so far, after a round with these losses."""


@dataclass
class Uncertainty:
    """Homoscedastic uncertainty (arXiv 1705.07115, equations 7 and 10), s_i = log sigma_i^2.

    The paper's objective is exp(-s) L / 2 + s / 2 for a regression and exp(-s) L + s / 2 for a classification. They are
    the same in r = s and r = s - log 2: (exp(-r) L + r) / 2. So we keep r, from 0, and the factor exp(-r), twice the
    paper's. Gradient descent goes one step of `lr` for each step of the round; a step is no longer than lr / 2, since
    the gradient (1 - exp(-r) L) / 2 has no bound below. Fixed point: r = log L, where every task's term is 1.
    """

    r: dict[str, float] = field(default_factory=dict)

    def update(self, losses: Mapping[str, Mean], settings: LossWeighting) -> dict[str, float]:
        """See `Weighter`."""
        for task, loss in losses.items():
            r = self.r.get(task, 0.0)
            for _ in range(settings.every):
                r -= settings.lr / 2 * max(1 - math.exp(-r) * loss.value, -1.0)
            self.r[task] = r
        return {task: math.exp(-r) for task, r in self.r.items()}


@dataclass
class Dwa:
    """Dynamic weight averaging (arXiv 1803.10704, equation 7), with rounds in the place of its epochs.

        factor_i = K exp(w_i / T) / sum_j exp(w_j / T),  w_i = L_i(t) / L_i(t - 1)
    w_i is 1 until a task was seen in two rounds, and stays as it was where a round held no example of it.
    """

    last: dict[str, float] = field(default_factory=dict)
    pace: dict[str, float] = field(default_factory=dict)

    def update(self, losses: Mapping[str, Mean], settings: LossWeighting) -> dict[str, float]:
        """See `Weighter`."""
        for task, loss in losses.items():
            self.pace[task] = loss.value / self.last.get(task, loss.value)
            self.last[task] = loss.value
        if not self.pace:
            return {}
        shares = softmax({task: w / settings.temperature for task, w in self.pace.items()})
        return {task: len(shares) * share for task, share in shares.items()}


DECAY = 0.01
"""gamma of FAMO: keeps the logits near 0."""
BETAS, EPS = (0.9, 0.999), 1e-8
"""Of Adam, as in FAMO's code."""


@dataclass
class Famo:
    """Fast adaptive multitask optimization (arXiv 2306.03792, algorithm 1; github.com/Cranial-XIX/FAMO).

    With logits x, z = softmax(x), the loss whose gradient the model follows is the sum of factor_i L_i with
        factor_i = K c z_i / L_i,  1 / c = sum_j z_j / L_j
    and x follows, by Adam with weight decay, d = J^T (log L(t - 1) - log L(t)), J the Jacobian of z: what has fallen
    faster than the others loses weight. Its code computes the same batch once more after the step; here L are the
    means of one round and the next, whose batches differ: no forward pass is added, and the mean keeps their noise low.
    Its factors sum to 1, ours to K.
    """

    logits: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    first_moment: dict[str, float] = field(default_factory=dict)
    second_moment: dict[str, float] = field(default_factory=dict)
    updates: int = 0

    def update(self, losses: Mapping[str, Mean], settings: LossWeighting) -> dict[str, float]:
        """See `Weighter`."""
        fallen = {t: math.log(self.last[t]) - math.log(loss.value) for t, loss in losses.items() if t in self.last}
        self.last |= {task: loss.value for task, loss in losses.items()}
        self.logits = dict.fromkeys(self.last, 0.0) | self.logits
        if fallen:
            self._descend(fallen, settings.lr)
        if not self.logits:
            return {}
        ratios = {task: z / self.last[task] for task, z in softmax(self.logits).items()}
        total = sum(ratios.values())
        return {task: len(ratios) * ratio / total for task, ratio in ratios.items()}

    def _descend(self, fallen: Mapping[str, float], lr: float) -> None:
        """One step of Adam. A task without two losses counts as one that has fallen like the others."""
        z = softmax({task: self.logits[task] for task in fallen})
        mean = sum(z[task] * fallen[task] for task in fallen)
        self.updates += 1
        for task in fallen:
            gradient = z[task] * (fallen[task] - mean) + DECAY * self.logits[task]
            first = BETAS[0] * self.first_moment.get(task, 0.0) + (1 - BETAS[0]) * gradient
            second = BETAS[1] * self.second_moment.get(task, 0.0) + (1 - BETAS[1]) * gradient**2
            self.first_moment[task], self.second_moment[task] = first, second
            step = first / (1 - BETAS[0] ** self.updates)
            self.logits[task] -= lr * step / (math.sqrt(second / (1 - BETAS[1] ** self.updates)) + EPS)


WEIGHTERS: dict[str, type[Uncertainty] | type[Dwa] | type[Famo]] = {
    "uncertainty": Uncertainty,
    "dwa": Dwa,
    "famo": Famo,
}
"""The methods of `loss_weighting.method`."""


def rounded(factor: float) -> float:
    """Three significant digits: what two world sizes compute differs in the last bits, what they use seldom does."""
    return float(f"{factor:.3g}")
