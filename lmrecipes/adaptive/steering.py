"""Steering: the one object that the training loop tells of its losses and asks what to change.

Decisions depend on losses summed over all ranks, on the recipe and on the step, never on the world. They are entries of
the plan, and what holds at a step is read from the plan alone, so that a run that adapts, one that resumes and one that
replays go the same way. New weights hold `ADAPTIVE_LAG` steps after the one that decided them, when no batch with the
old ones is under way; new loss factors hold from the next step on.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

from lmrecipes.adaptive.loss_weighting import WEIGHTERS, Weighter, rounded
from lmrecipes.adaptive.mixing import MIXERS, Mixer, whole_weights, with_floors
from lmrecipes.adaptive.plan import Entry, FactorsEntry, WeightsEntry, as_row, from_row, read_plan
from lmrecipes.adaptive.rounds import Mean, Round
from lmrecipes.data.mixture import Mixture
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import ADAPTIVE_LAG, Recipe


class Steering:
    """Weights and loss factors of a run over its steps.

    mixture: the recipe's, from which `self.mixture` goes on. units: by task, what a loss of 1 is in its own units.
    replayed: the plan to follow (see `replayed_plan`), or None to decide as the recipe says. Raises InputError where
    the tasks that it draws are used up before the run ends.
    """

    def __init__(
        self, recipe: Recipe, mixture: Mixture, units: Mapping[str, float], replayed: Sequence[Entry] | None = None
    ) -> None:
        self.recipe, self.mixture, self.units = recipe, mixture, units
        self.plan: list[Entry] = []
        self._factors: list[FactorsEntry] = []
        self.replays = replayed is not None
        mixing, weighting = recipe.mixture.adaptive.method, recipe.loss_weighting.method
        self._mixer: Mixer | None = MIXERS[mixing]() if mixing != "off" else None
        self._weighter: Weighter | None = WEIGHTERS[weighting]() if weighting != "static" else None
        self._start = mixture.shares_at(0) if self._mixer is not None else {}
        self._mixing_round, self._weighting_round = Round(), Round()
        self.follow(replayed or ())
        if self.replays:
            self._check_supply()
        self._exhausts = bool(self.mixture.exhausted_before(recipe.schedule.steps * recipe.batch.examples))

    @property
    def writes(self) -> bool:
        """Whether the run has a plan to write down."""
        return self.replays or self._mixer is not None or self._weighter is not None

    @property
    def changes_weights(self) -> bool:
        """Whether shares differ from one step to another, or may: by the plan, the schedule or max_epochs."""
        return self._mixer is not None or len(self.mixture.plan) > 1 or self._exhausts

    def factors(self, number: int) -> dict[str, float] | None:
        """Factors of the tasks' losses in the step numbered `number` (from 1); None: the run has none."""
        passed = bisect_right(self._factors, number, key=attrgetter("from_step"))
        if passed:
            return self._factors[passed - 1].factors
        return dict.fromkeys(self.recipe.tasks, 1.0) if self._weighter is not None or self._factors else None

    def observe(self, losses: Mapping[str, float], elements: Mapping[str, int]) -> None:
        """One step's mean losses over all ranks, of the tasks that it held, in the tasks' own units."""
        finite = {task: loss / self.units[task] for task, loss in losses.items() if math.isfinite(loss)}
        if self._mixer is not None:
            self._mixing_round.add(finite, elements)
        if self._weighter is not None:
            self._weighting_round.add(finite, elements)

    def due(self, step: int) -> bool:
        """Whether a round ends with the `step`-th step."""
        return self._ends_mixing(step) or self._ends_weighting(step)

    def decide(self, step: int) -> list[Entry]:
        """What to change after `step` steps. Every rank asks; what rank 0 gets is for all of them to `follow`."""
        entries: list[Entry] = []
        if self._ends_mixing(step) and self._mixer is not None:
            weights = self._weights(self._mixer, step, self._mixing_round.close())
            old = next((entry.weights for entry in reversed(self.plan) if isinstance(entry, WeightsEntry)), None)
            if weights is not None and weights != old:
                method = self.recipe.mixture.adaptive.method
                entries.append(WeightsEntry(step=step, start=self._starts(step), weights=weights, method=method))
        if self._ends_weighting(step) and self._weighter is not None:
            settings = self.recipe.loss_weighting
            found = self._weighter.update(self._weighting_round.close(), settings)
            factors = {task: rounded(found.get(task, 1.0)) for task in self.recipe.tasks}
            if factors != self.factors(step + 1):
                entries.append(FactorsEntry(step=step, from_step=step + 1, factors=factors, method=settings.method))
        return entries

    def follow(self, entries: Sequence[Entry]) -> None:
        """Add entries to the plan, and their weights to the mixture."""
        for entry in entries:
            if isinstance(entry, WeightsEntry):
                weights = tuple(entry.weights[task] for task in self.mixture.tasks)
                self.mixture = self.mixture.with_stage(entry.start, weights)
            else:
                self._factors.append(entry)
            self.plan.append(entry)

    def state(self) -> dict[str, Any]:
        """JSON-ready: the plan so far and all that the next decisions depend on."""
        parts: dict[str, Any] = {"mixing_round": self._mixing_round, "weighting_round": self._weighting_round}
        parts |= {"mixer": self._mixer, "weighter": self._weighter}
        memory = {name: asdict(part) for name, part in parts.items() if part is not None}
        return {"plan": [as_row(entry) for entry in self.plan], "memory": memory}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; from an empty one, of a run without a plan, nothing changes.

        Raises InputError where the replayed file is no longer the one that the run started with.
        """
        if not state:
            return
        plan, memory = [from_row(row) for row in state["plan"]], state["memory"]
        if self.replays and plan != self.plan:
            raise InputError(
                Problem(
                    "mixture.replay",
                    f"{self.recipe.mixture.replay} is not what it was when the run started",
                    "restore the file, or start a new run without --resume",
                    "replay-changed",
                )
            )
        if not self.replays:
            self.follow(plan)
        self._mixing_round, self._weighting_round = Round(**memory["mixing_round"]), Round(**memory["weighting_round"])
        if self._mixer is not None:
            self._mixer = type(self._mixer)(**memory["mixer"])
        if self._weighter is not None:
            self._weighter = type(self._weighter)(**memory["weighter"])

    def _check_supply(self) -> None:
        examples, steps = self.recipe.batch.examples, self.recipe.schedule.steps
        try:
            self.mixture.counts(steps * examples)
        except OverflowError as stop:
            step = int(stop.args[0]) // examples + 1
            raise InputError(
                Problem(
                    "mixture.replay",
                    f"from step {step} of {steps} on every task that the plan draws is used up (max_epochs)",
                    "replay with the max_epochs and the data of the run that wrote the plan",
                    "mixture-supply",
                )
            ) from None

    def _starts(self, step: int) -> int:
        """Where weights that are decided after `step` steps begin to hold: a global sample index."""
        return (step + ADAPTIVE_LAG) * self.recipe.batch.examples

    def _ends_mixing(self, step: int) -> bool:
        in_time = step + ADAPTIVE_LAG < self.recipe.schedule.steps
        return self._mixer is not None and in_time and step % self.recipe.mixture.adaptive.every == 0

    def _ends_weighting(self, step: int) -> bool:
        in_time = step < self.recipe.schedule.steps
        return self._weighter is not None and in_time and step % self.recipe.loss_weighting.every == 0

    def _weights(self, mixer: Mixer, step: int, losses: Mapping[str, Mean]) -> dict[str, int] | None:
        """The mixer's weights after a round, None where they stay. Rounds that began in the warm-up do not count."""
        settings = self.recipe.mixture.adaptive
        if step - settings.every < settings.warmup_fraction * self.recipe.schedule.steps:
            return None
        shares = {task: share for task, share in self.mixture.shares_at(self._starts(step)).items() if share > 0}
        new = mixer.update(step // settings.every, losses, shares, self._start, settings)
        if new is None:
            return None
        floored = with_floors(new, {task: settings.floor * self._start[task] for task in new})
        return whole_weights(floored, self.mixture.tasks)


def replayed_plan(recipe: Recipe) -> list[Entry] | None:
    """The plan that the recipe repeats, if any. Raises InputError where it cannot be followed."""
    if recipe.mixture.replay is None:
        return None
    return read_plan(Path(recipe.mixture.replay), list(recipe.tasks), recipe.batch.examples)
