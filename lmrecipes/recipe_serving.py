"""The part of a recipe that says how fast, and how exact, its model must answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lmrecipes.recipe_types import Config, Positive

ServedPrecision = Literal["fp32", "bf16", "int8"]
SERVED: tuple[ServedPrecision, ...] = ("fp32", "bf16", "int8")
"""Precisions that a finished model can predict in."""


class LatencyBudget(Config):
    """What a served model must keep; `lmrecipes latency` measures it, and exits with 1 where it does not."""

    precision: ServedPrecision = "int8"
    """That the model is served in."""
    p99_ms: Positive = 50.0
    """Most milliseconds that 99 of 100 requests of one row take, sent one after the other over loopback."""
    requests_per_second: Positive = 50.0
    """Requests of one row that must be answered in a second, when they arrive at random (a Poisson process)."""
    loaded_p99_ms: Positive = 200.0
    """Most milliseconds that 99 of 100 requests take under that load."""
    margin: Positive = 0.005
    """How much worse than fp32 a task's headline metric may be on the test split, in the metric's own units."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the one-sided paired bootstrap over the rows of the test split that decides on the margin."""
