"""The parts of a recipe that say how tasks are mixed: how often each is drawn, and what its loss weighs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmrecipes.problems import did_you_mean, listing
from lmrecipes.recipe_types import Broken, Config, Count, Fraction, NonNegative, Positive, require


class Waypoint(Config):
    """Weights from a moment of the run on."""

    at: Fraction
    """Share of the run's steps that lie before it."""
    weights: dict[str, NonNegative]
    """Weights by task; tasks that are not named keep `tasks.X.weight`."""


ADAPTIVE_LAG = 8
"""Steps between a decision about the weights and its first batch; no batch is assembled further ahead. A constant: with
a lag that followed `loader.prefetch`, the loader would change what the run trains on."""


class Adaptive(Config):
    """Weights that follow the losses. Each change is a line of the run folder's `plan.jsonl`."""

    method: Literal["off", "odm", "ado"] = "off"
    """odm: a bandit that draws more of what is not yet learned, whatever weights the tasks had (arXiv 2312.02406). ado:
    more of what is being learned fastest, by each task's fitted learning curve, starting from the tasks' weights
    (arXiv 2410.11820)."""
    every: Count = 20
    """Steps between two changes, over which losses are averaged. A change takes effect 8 steps after it was decided."""
    warmup_fraction: Fraction = 0.05
    """Share of the run in which the recipe's own weights hold and losses are not looked at."""
    smoothing: Fraction = 0.9
    """Share of the old estimate that a new observation leaves (odm: of the reward, ado: of the weights)."""
    floor: Fraction = 0.02
    """Smallest share of a task, as a share of what it had at the start."""


class Mixture(Config):
    """How often each task is drawn."""

    unit: Literal["examples", "tokens", "supervised_tokens"] = "examples"
    """What the weights count. supervised_tokens: those that carry loss; a text with a label for the whole has one."""
    law: Literal["explicit", "proportional", "temperature", "unimax"] | None = None
    """explicit: the tasks' weights are the shares. proportional: each weight is multiplied by the task's size in the
    unit. temperature: by min(size, size_cap) ** (1 / temperature). unimax: equal budgets, none above max_epochs passes
    (arXiv 2304.09151). None: temperature where one is given, else explicit."""
    temperature: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Of the law `temperature`: 1 is proportional to size, larger is flatter."""
    size_cap: Positive | None = None
    """Of the law `temperature`: larger sizes count as this one (arXiv 1910.10683, section 3.5.2)."""
    max_epochs: Positive | None = None
    """Most passes over the rows of a task that sets no max_epochs of its own. None: any number."""
    schedule: tuple[Waypoint, ...] = ()
    """Weights that change over the run, in order of `at`. Before the first one the tasks' weights hold."""
    between: Literal["constant", "linear"] = "constant"
    """Weights between two waypoints: those of the earlier one, or on the straight line to the next."""
    adaptive: Adaptive = Adaptive()
    """Weights that follow the losses."""
    replay: str | None = None
    """The `plan.jsonl` of an earlier run, whose changes of weights and of loss factors this run repeats."""

    @property
    def resolved_law(self) -> str:
        """The law in force."""
        return self.law or ("temperature" if self.temperature is not None else "explicit")

    @model_validator(mode="after")
    def _one_law_and_one_decider(self) -> Self:
        law, broken = self.resolved_law, []
        if self.temperature is not None and law != "temperature":
            what = f"belongs to the law `temperature`, but mixture.law is {law}"
            broken.append(Broken("temperature", what, "remove mixture.temperature, or set mixture.law to temperature"))
        if law == "temperature" and self.temperature is None:
            what = "the law `temperature` needs one"
            broken.append(Broken("temperature", what, "set mixture.temperature to 1 (by size) or more (flatter)"))
        if self.size_cap is not None and law != "temperature":
            what = f"belongs to the law `temperature`, but mixture.law is {law}"
            broken.append(Broken("size_cap", what, "remove mixture.size_cap, or set mixture.temperature"))
        if law == "unimax" and self.max_epochs is None:
            what = "the law `unimax` needs the number of passes over a small task that are still useful"
            broken.append(Broken("max_epochs", what, "set mixture.max_epochs, for example to 4"))
        deciders = {
            "schedule": bool(self.schedule), "adaptive.method": self.adaptive.method != "off",
            "replay": self.replay is not None,
        }  # fmt: skip
        chosen = [field for field, on in deciders.items() if on]
        if law == "unimax" and chosen:
            what = "the law `unimax` fixes the shares of the whole run, so nothing else may change them"
            broken.append(Broken(chosen[0], what, f"remove mixture.{chosen[0]}, or choose another mixture.law"))
        if len(chosen) > 1:
            what = f"{' and '.join(chosen)} are given, but only one of them can decide the weights"
            broken.append(Broken(chosen[-1], what, f"remove mixture.{chosen[0]} or mixture.{chosen[-1]}"))
        for number, (before, point) in enumerate(zip(self.schedule, self.schedule[1:], strict=False), start=1):
            if point.at <= before.at:
                what = f"waypoints stand in order of `at`, but {point.at:g} comes after {before.at:g}"
                fix = f"set mixture.schedule.{number}.at above {before.at:g}, or put the waypoints in order"
                broken.append(Broken(f"schedule.{number}.at", what, fix))
        require(broken)
        return self

    def broken_for(self, weights: Mapping[str, float]) -> list[Broken]:
        """Rules between the mixture and the tasks' own weights; fields count from the recipe's root."""
        broken = []
        if not any(weights.values()) and not (self.schedule and self.schedule[0].at == 0):
            first = next(iter(weights))
            what = "every weight is 0, so there is nothing to draw"
            broken.append(Broken("tasks", what, f"set tasks.{first}.weight, or another task's, above 0"))
        for number, point in enumerate(self.schedule):
            where = f"mixture.schedule.{number}.weights"
            for name in point.weights:
                if name not in weights:
                    what = f"the recipe has no task {name!r}.{did_you_mean(name, weights)}"
                    fix = f"name one of {listing(list(weights))}"
                    broken.append(Broken(f"{where}.{name}", what, fix))
            if not any({**weights, **point.weights}.values()):
                what = "every weight is 0 from here on, so there is nothing to draw"
                broken.append(Broken(where, what, "give one task a weight above 0"))
        if self.resolved_law == "unimax":
            broken += [
                Broken(
                    f"tasks.{name}.weight",
                    f"the law `unimax` gives every task the same budget, found {weight:g}",
                    f"remove tasks.{name}.weight, or choose another mixture.law",
                )
                for name, weight in weights.items()
                if weight != 1
            ]
        return broken


class LossWeighting(Config):
    """Factors of the tasks' losses that follow the losses, on top of `tasks.X.loss_factor`."""

    method: Literal["static", "uncertainty", "dwa", "famo"] = "static"
    """static: none. uncertainty: a learned variance for each task (arXiv 1705.07115). dwa: what falls slowest weighs
    most (arXiv 1803.10704). famo: all losses fall at the same rate (arXiv 2306.03792)."""
    every: Count = 10
    """Steps between two changes, over which losses are averaged."""
    lr: Positive = 0.025
    """Step size of the learned weights: of uncertainty for each step of the run, of famo (Adam) for each change."""
    temperature: Positive = 2.0
    """Of dwa: larger is closer to equal factors."""
