"""The cells of a study: which runs it is made of. A cell is known by what it trains, so that equal ones run once."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from lmrecipes.files import json_text
from lmrecipes.flags import parse
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import RecipeFile
from lmrecipes.series import unattended

Overrides = dict[str, str]
"""Field of the recipe -> value, as it was given."""


@dataclass(frozen=True)
class Cell:
    """One run. variant: a function of the recipe file; recipe: what is trained, its seed included."""

    variant: str
    overrides: tuple[tuple[str, str], ...]
    recipe: Recipe

    @property
    def row(self) -> str:
        """What the seeds of one variant and one set of overrides have in common, for people."""
        names = [field.rpartition(".")[2] for field, _ in self.overrides]
        names = names if len(set(names)) == len(names) else [field for field, _ in self.overrides]
        said = [f"{name} {value}" for name, (_, value) in zip(names, self.overrides, strict=True)]
        return ", ".join([self.variant, *said])

    @property
    def key(self) -> str:
        """The cell's identity: a hash of all that its results may depend on, launch apart."""
        return recipe_key(self.recipe)


def recipe_key(recipe: Recipe) -> str:
    """A hash of all in a recipe that results, times and memory may depend on."""
    content = unattended(recipe).model_dump(mode="json", exclude={"name", "description", "gates"})
    return hashlib.sha256(json_text(content).encode()).hexdigest()[:16]


def with_seeds(variant: str, overrides: Iterable[tuple[str, str]], recipe: Recipe, seeds: int) -> list[Cell]:
    """The cells of one row: seeds from the recipe's own on."""
    own = [recipe.model_copy(update={"seed": (recipe.seed + i) % 2**32}) for i in range(seeds)]
    return [Cell(variant, tuple(overrides), unattended(one)) for one in own]


def plan_cells(
    file: RecipeFile, variants: Sequence[str], vary: Sequence[str], seeds: int, options: type[Any], args: Sequence[str]
) -> list[Cell]:
    """All cells of a study in their order: variants x values of the varied fields x seeds.

    variants: none for all of the file's. vary: `FIELD=VALUE,VALUE`. args: the command line, whose flags hold for all.
    Raises InputError with all that is wrong with any of them.
    """
    grid, problems = _grid(file, vary)
    problems += [
        Problem("--variants", f"no variant {name!r}.{did_you_mean(name, file.variants)}",
                f"use some of {listing(list(file.variants))}", "study-variant")
        for name in variants if name not in file.variants
    ]  # fmt: skip
    problems += [
        Problem(f"--{name}", "a study takes its variants from --variants", f"write --variants {name}", "study-variant")
        for name in file.variants if f"--{name}" in args
    ]  # fmt: skip
    problems += [
        Problem(flag, "given twice, of which the last alone would hold", f"write all after one {flag}", "study-flag")
        for flag in ("--variants", "--vary") if sum(arg.partition("=")[0] == flag for arg in args) > 1
    ]  # fmt: skip
    if seeds < 1:
        what = f"must be at least 1, found {seeds}"
        problems.append(Problem("--seeds", what, "give --seeds 1 or more", "study-seeds"))
    if problems:
        raise InputError(problems)
    cells: list[Cell] = []
    for variant, overrides in itertools.product(dict.fromkeys(variants or file.variants), itertools.product(*grid)):
        chosen = [] if variant == "recipe" else [f"--{variant}"]
        flags = [flag for field, value in overrides for flag in _flag(field, value)]
        try:
            _, recipe = parse(file, options, [*args, *chosen, *flags], f"lmrecipes study {file.path}")
        except InputError as error:
            problems += error.problems
        else:
            cells += with_seeds(variant, overrides, recipe, seeds)
    if problems:
        raise InputError(problems)
    return cells


def fields_of(part: BaseModel, prefix: str = "") -> list[str]:
    """Dotted paths of a recipe's fields."""
    found: list[str] = []
    for name, value in part:
        if isinstance(value, BaseModel):
            found += fields_of(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and value and all(isinstance(one, BaseModel) for one in value.values()):
            found += [field for key, one in value.items() for field in fields_of(one, f"{prefix}{name}.{key}.")]
        else:
            found.append(f"{prefix}{name}")
    return found


def _grid(file: RecipeFile, vary: Sequence[str]) -> tuple[list[list[tuple[str, str]]], list[Problem]]:
    """For each varied field the overrides to choose from, and what is wrong with them. Equal values count once."""
    grid: dict[str, list[tuple[str, str]]] = {}
    problems = []
    known = {field.replace("-", "_"): field for field in fields_of(file.build())}
    for text in vary:
        said, equals, values = text.partition("=")
        given = list(dict.fromkeys(value.strip() for value in values.split(",")))
        field = known.get(said.replace("-", "_"))
        if not equals or not all(given):
            fix = "write --vary FIELD=VALUE,VALUE, for example optimizer.lr=1e-4,1e-3"
            problems.append(Problem("--vary", f"{text!r} is no field with values", fix, "study-vary"))
        elif field is None:
            what = f"no field {said!r}.{did_you_mean(said, known.values())}"
            problems.append(Problem("--vary", what, "see `lmrecipes train RECIPE --help`", "study-vary"))
        elif field in grid:
            fix = f"write all its values after one {field}="
            problems.append(Problem("--vary", f"{field} is varied twice", fix, "study-vary"))
        else:
            grid[field] = [(field, value) for value in given]
    return list(grid.values()), problems


def _flag(field: str, value: str) -> list[str]:
    """A field's value as flags; several words are several values (`optimizer.betas=0.9 0.98`)."""
    if value.lower() in ("true", "false"):
        parents, dot, name = field.rpartition(".")
        return [f"--{parents}{dot}{'' if value.lower() == 'true' else 'no-'}{name}"]
    return [f"--{field}", *value.split()]
