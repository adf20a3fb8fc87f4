"""Finding and reading recipes: by name, `recipe.py`, or YAML; flags on top; every mistake as a problem with a fix."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Recipe

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
"""The recipes of this repository."""


@dataclass(frozen=True)
class RecipeFile:
    """Where a recipe stands. variants: its functions that return a `Recipe`, `recipe` first."""

    path: Path
    variants: dict[str, Callable[[], Recipe]]

    @property
    def folder(self) -> Path | None:
        """The recipe's folder, with its launch pairs; None for a YAML file."""
        return self.path.parent if self.path.suffix == ".py" else None

    def build(self, variant: str = "recipe") -> Recipe:
        """The recipe itself. Raises InputError where its fields are wrong."""
        try:
            return self.variants[variant]()
        except ValidationError as error:
            raise InputError(problems_of(error, str(self.path))) from None


def recipe_names() -> list[str]:
    """Names under `recipes/` here and in this repository, sorted."""
    folders = {
        folder.name
        for root in (Path("recipes"), RECIPES)
        for folder in root.glob("*")
        if (folder / "recipe.py").is_file()
    }
    return sorted(folders)


def recipe_path(name: str) -> Path:
    """`recipe.py` of a named recipe; the working directory's `recipes/` comes first."""
    here = Path("recipes") / name / "recipe.py"
    return here if here.is_file() else RECIPES / name / "recipe.py"


def summary(path: Path) -> tuple[str, list[str]]:
    """First line of a recipe's docstring and its variants, without running it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    doc = (ast.get_docstring(tree) or "").partition("\n")[0]
    variants = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id == "Recipe"
    ]
    return doc, [name for name in variants if name != "recipe"]


def find_recipe(reference: str) -> RecipeFile:
    """A name under `recipes/`, a path to a `recipe.py`, or a YAML file. Raises InputError with a suggestion."""
    path = Path(reference)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return RecipeFile(path, {"recipe": lambda: recipe_from_yaml(path)})
    if path.is_dir() and (path / "recipe.py").is_file():
        path = path / "recipe.py"
    if path.suffix != ".py" and (found := recipe_path(reference)).is_file():
        path = found
    if path.suffix == ".py" and path.is_file():
        return RecipeFile(path, _variants_in(path))
    if path.suffix in (".py", ".yaml", ".yml"):
        raise InputError(Problem("RECIPE", f"no file {reference!r}", "give the path of a recipe", "recipe-missing"))
    names = recipe_names()
    raise InputError(
        Problem(
            "RECIPE",
            f"no recipe {reference!r}.{did_you_mean(reference, names)}",
            f"use one of {listing(names)}, the path of a recipe.py, or a YAML file",
            "recipe-missing",
        )
    )


def recipe_from_yaml(path: Path) -> Recipe:
    """Read a YAML recipe; its name defaults to the file's."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(path), f"not YAML: {error}", "repair the file", "recipe-broken")) from None
    if not isinstance(content, dict):
        raise InputError(
            Problem(str(path), "not a mapping of recipe fields", "see `lmrecipes schema`", "recipe-broken")
        )
    try:
        return Recipe.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        raise InputError(problems_of(error, str(path))) from None


def problems_of(error: ValidationError, where: str) -> list[Problem]:
    """pydantic's complaints as problems: an unknown key with the nearest known one."""
    problems = []
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        field = ".".join(location) or "recipe"
        if item["type"] == "extra_forbidden":
            known = _fields_at(location[:-1])
            what = f"unknown key {location[-1]!r}.{did_you_mean(location[-1], known)}"
            problems.append(
                Problem(f"{where}: {field}", what, f"known here: {listing(known, 20)}", "recipe-unknown-key")
            )
            continue
        message = item["msg"].removeprefix("Value error, ")
        found = (
            ""
            if item["type"] == "missing" or isinstance(item["input"], (dict, BaseModel))
            else f", found {item['input']!r}"
        )
        problems.append(Problem(f"{where}: {field}", f"{message}{found}", f"correct {field}", "recipe-value"))
    return problems


def _fields_at(location: Sequence[str]) -> list[str]:
    """Names of the fields at a place in the recipe's tree."""
    here: Any = Recipe
    for part in location:
        if isinstance(here, type) and issubclass(here, BaseModel):
            here = here.model_fields[part].annotation if part in here.model_fields else None
        else:
            here = next((a for a in get_args(here) if isinstance(a, type) and issubclass(a, BaseModel)), None)
    if isinstance(here, type) and issubclass(here, BaseModel):
        return list(here.model_fields)
    return []


def _variants_in(path: Path) -> dict[str, Callable[[], Recipe]]:
    spec = importlib.util.spec_from_file_location(f"lmrecipes_recipe_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, NameError, AttributeError, TypeError) as error:
        problem = Problem(
            str(path), f"cannot be imported: {type(error).__name__}: {error}", "repair the file", "recipe-broken"
        )
        raise InputError(problem) from None
    functions = {name: getattr(module, name) for name in ["recipe", *summary(path)[1]] if hasattr(module, name)}
    if "recipe" not in functions:
        raise InputError(Problem(str(path), "defines no function `recipe() -> Recipe`", "add one", "recipe-broken"))
    return functions
