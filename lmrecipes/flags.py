"""Flags on top of a recipe: every field is one (`--optimizer.lr 3e-5`), and each variant of a recipe.py (`--full`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import make_dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import RecipeFile, problems_of

Options = TypeVar("Options")


def parse(file: RecipeFile, options: type[Options], args: Sequence[str], program: str) -> tuple[Options, Recipe]:
    """The options and the recipe with its variant's and single fields' flags applied.

    Raises InputError with every wrong value, and SystemExit(2) with a message of its own where a flag is not known.
    """
    rest = [arg for arg in args if not re.match(r"--local[_-]rank", arg)]
    chosen = [name for name in file.variants if name != "recipe" and f"--{name}" in rest]
    if len(chosen) > 1:
        names = " ".join(f"--{name}" for name in chosen)
        raise InputError(Problem(names, "variants exclude each other", "keep one", "flag-conflict"))
    rest = [arg for arg in rest if arg not in [f"--{name}" for name in chosen]]
    recipe = file.build(chosen[0] if chosen else "recipe")
    variants = [
        f"--{name}: {(function.__doc__ or '').strip()}" for name, function in file.variants.items() if name != "recipe"
    ]
    flat = tyro.conf.arg(name="")  # --deepspeed and --optimizer.lr rather than --options.deepspeed
    command_type = make_dataclass(
        "Command", [("options", Annotated[options, flat]), ("recipe", Annotated[Recipe, flat])]
    )
    registry = ConstructorRegistry()
    registry.struct_rule(_unchecked)
    command: Any = tyro.cli(
        command_type,
        default=command_type(options(), recipe),
        args=rest,
        prog=program,
        description="\n".join([recipe.description, *variants]),
        registry=registry,
    )
    try:
        return command.options, Recipe.model_validate(command.recipe.model_dump(warnings=False))
    except ValidationError as error:
        raise InputError(problems_of(error, None)) from None


def _unchecked(info: StructTypeInfo) -> StructConstructorSpec | None:
    """How tyro builds a part of a recipe: without checks; the whole is checked at once, for all mistakes together."""
    model = info.type
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return None
    hints = get_type_hints(model, include_extras=True)
    fields = []
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(info.default, model):
            default = getattr(info.default, name)
        elif default is PydanticUndefined:
            default = tyro.MISSING
        fields.append(StructFieldSpec(name, hints[name], default, " ".join((field.description or "").split())))
    return StructConstructorSpec(instantiate=model.model_construct, fields=tuple(fields))
