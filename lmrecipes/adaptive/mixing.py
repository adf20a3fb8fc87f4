"""Shares that follow the losses: ODM and ADO. Pure: a round's losses in, new shares out.

A *round* is `mixture.adaptive.every` steps, numbered from 1 at the start of the run. Losses are means over a round in
units of the constant predictor's loss, so that every task starts near 1 whatever it measures; a task that the round
held no example of is absent. Shares count what the recipe's weights count (`mixture.unit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from lmrecipes.adaptive.learning_curve import fit_power_law
from lmrecipes.adaptive.rounds import Mean
from lmrecipes.recipe import Adaptive

Shares = dict[str, float]

GRID = 1.02
"""Shares in the plan are rounded to powers of this, by 1 % at most. World sizes sum in different orders, so that their
losses differ in the last bits; rounded this coarsely they give the same weights, unless a share lies within that
difference of a boundary: in 16 runs of 400 steps in fp32, on one rank and on two, all 957 entries agreed. In bf16 the
runs themselves drift apart, and so do their plans. What holds for any two worlds and any precision is a replay."""
RESOLUTION = 10_000
"""The weight of a share of 1."""


class Mixer(Protocol):
    """What a method keeps are its fields: JSON-ready, saved in checkpoints."""

    def update(
        self, number: int, losses: Mapping[str, Mean], shares: Shares, start: Shares, settings: Adaptive
    ) -> Shares | None:
        """Shares after round `number`, summing to 1 over the tasks of `shares`; None: as they are.

        shares: in force now, of the tasks that can still be drawn. start: of all tasks at the start of the run.
        """


@dataclass
class Odm:
    """Online data mixing (arXiv 2312.02406, algorithm 1): Exp3 over the tasks, with their losses as rewards.

    With K tasks and eps_t = min(1/K, sqrt(ln K / (K t))) at round t:
        R_i <- smoothing R_i + (1 - smoothing) G L_i
        share_i = (1 - K eps_t) exp(eps_{t-1} R_i) / sum_j exp(eps_{t-1} R_j) + eps_t
    The algorithm rewards a task by the summed loss of the draws of it among the G draws of a round, over its share. Our
    draws are not random but follow the shares to within two examples, so that this is G times the mean loss, without
    the noise of the counts. A step is a draw, G = every. Three things differ: R_i starts at the first reward and not at
    0, which would take a task that is seen late for one that is learned; losses are normalised; and the recipe's
    weights hold during the warm-up, after which the method knows nothing of them but the floor.
    """

    rewards: dict[str, float] = field(default_factory=dict)

    def update(
        self, number: int, losses: Mapping[str, Mean], shares: Shares, start: Shares, settings: Adaptive
    ) -> Shares | None:
        """See `Mixer`."""
        for task, loss in losses.items():
            reward = settings.every * loss.value
            old = self.rewards.get(task, reward)
            self.rewards[task] = settings.smoothing * old + (1 - settings.smoothing) * reward
        if not self.rewards:
            return None
        unseen = sum(self.rewards.values()) / len(self.rewards)
        before, explored = exploration(len(shares), number - 1), exploration(len(shares), number)
        gibbs = softmax({task: before * self.rewards.get(task, unseen) for task in shares})
        return {task: (1 - len(shares) * explored) * share + explored for task, share in gibbs.items()}


def exploration(tasks: int, number: int) -> float:
    """eps_t of ODM: the share of a task that is drawn for exploration alone."""
    return min(1 / tasks, math.sqrt(math.log(tasks) / (tasks * number))) if number else 1 / tasks


CREDIT_SMOOTHING = 0.1
"""gamma_1 of ADO: what a round adds to a task's credit."""
CREDIT_POWER = 0.5
"""s of ADO: how far credit counts."""
FEWEST_POINTS = 4
"""Rounds that a curve of three parameters is fitted to, at least."""


@dataclass
class Ado:
    """Adaptive data optimization (arXiv 2410.11820, section 3; constants as in its code, github.com/yidingjiang/ado).

    Each task's losses since the warm-up are fitted by L(n) = eps + b n^-a; n counts rounds of *all* tasks, because
    what is learned elsewhere lowers a loss too. With the starting shares mu as the prior, at round t:
        h_i <- gamma_1 share_i + (1 - gamma_1) h_i                  credit: how much the task has been drawn
        rho_i ~ mu_i h_i^s (-dL_i/dn)                               what is being learned, and by whose data
        share_i = smoothing mean_i + (1 - smoothing) rho_i          mean: of all former rho
        mean_i <- mean_i + (rho_i - mean_i) / (t + 1)
    A task with too few losses for a curve keeps its prior in rho, and so do all where no loss falls any more.
    """

    credit: Shares = field(default_factory=dict)
    mean: Shares = field(default_factory=dict)
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    """By task: [round, mean loss, elements], oldest first."""

    def update(
        self, number: int, losses: Mapping[str, Mean], shares: Shares, start: Shares, settings: Adaptive
    ) -> Shares | None:
        """See `Mixer`."""
        for task, loss in losses.items():
            self.curves.setdefault(task, []).append([float(number), loss.value, loss.elements])
        for task in start:
            old = self.credit.get(task, start[task])
            self.credit[task] = CREDIT_SMOOTHING * shares.get(task, 0.0) + (1 - CREDIT_SMOOTHING) * old
        fitted = [task for task in shares if len(self.curves.get(task, ())) >= FEWEST_POINTS]
        if not fitted:
            return None
        speeds = {task: fit_power_law(*zip(*self.curves[task], strict=True)).speed(number) for task in fitted}
        drive = {task: start[task] * self.credit[task] ** CREDIT_POWER * speeds[task] for task in fitted}
        total, prior = sum(drive.values()), sum(start[task] for task in fitted)
        rho = {task: prior * drive[task] / total if total and task in drive else start[task] for task in shares}
        new = {}
        for task in shares:
            mean = self.mean.get(task, start[task])
            new[task] = settings.smoothing * mean + (1 - settings.smoothing) * rho[task]
            self.mean[task] = mean + (rho[task] - mean) / (number + 1)
        return scaled(new)


MIXERS: dict[str, type[Odm] | type[Ado]] = {"odm": Odm, "ado": Ado}
"""The methods of `mixture.adaptive.method`."""


def softmax(logits: Mapping[str, float]) -> Shares:
    """exp(x) / sum exp(x), without overflow."""
    most = max(logits.values())
    return scaled({task: math.exp(x - most) for task, x in logits.items()})


def scaled(values: Mapping[str, float], total: float = 1.0) -> Shares:
    """The values (not all 0) times what makes them sum to `total`."""
    now = sum(values.values())
    return {task: value * total / now for task, value in values.items()}


def with_floors(shares: Shares, floors: Mapping[str, float]) -> Shares:
    """The shares with none below its floor, taken from the others in proportion. Floors sum to less than 1."""
    low: set[str] = set()
    while True:
        free = {task: share for task, share in shares.items() if task not in low}
        raised = scaled(free, 1 - sum(floors[task] for task in low)) | {task: floors[task] for task in low}
        below = {task for task in free if raised[task] < floors[task]}
        if not below:
            return {task: raised[task] for task in shares}
        low |= below


def whole_weights(shares: Shares, tasks: tuple[str, ...]) -> dict[str, int]:
    """Integer weights of all tasks: shares rounded to the grid, at least 1 for each of `shares`, 0 for the others."""

    def whole(share: float) -> int:
        rounded = GRID ** round(math.log(share) / math.log(GRID)) if share > 0 else 0.0
        return max(1, round(RESOLUTION * rounded))

    return {task: whole(shares[task]) if task in shares else 0 for task in tasks}
