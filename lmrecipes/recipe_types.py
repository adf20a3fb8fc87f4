"""What the parts of a recipe are made of: a closed, frozen base, number types, and rules that name their field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Broken:
    """A rule between fields that does not hold. field: where, below the part that says so; empty: the part itself."""

    field: str
    what: str
    fix: str


class RulesBroken(ValueError):
    """Raised by a part's validator: every rule of it that does not hold."""

    def __init__(self, rules: Sequence[Broken]) -> None:
        super().__init__("; ".join(f"{rule.field}: {rule.what}".removeprefix(": ") for rule in rules))
        self.rules = tuple(rules)


def require(broken: Sequence[Broken]) -> None:
    """Raise RulesBroken if any rule is broken."""
    if broken:
        raise RulesBroken(broken)
