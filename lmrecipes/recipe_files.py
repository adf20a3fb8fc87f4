"""Finding and reading recipes: by name, `recipe.py`, or YAML; flags on top; every mistake as a problem with a fix."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_types import RulesBroken

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
        """The recipe itself. Raises InputError where its fields are wrong, or where the function fails."""
        try:
            recipe = self.variants[variant]()
        except ValidationError as error:
            raise InputError(problems_of(error, _line(self.path, error))) from None
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's code may raise anything
            raise InputError(_broken(self.path, error)) from None
        if not isinstance(recipe, Recipe):
            what = f"`{variant}()` returns a {type(recipe).__name__}, not a Recipe"
            raise InputError(Problem(str(self.path), what, "return a Recipe", "recipe-broken"))
        return recipe


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
    """First line of a recipe's docstring and its variants (functions of no argument), without running it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    doc = (ast.get_docstring(tree) or "").partition("\n")[0]
    variants = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id == "Recipe"
        if ast.unparse(node.args) == ""
    ]
    return doc, [name for name in variants if name != "recipe"]


def find_recipe(reference: str) -> RecipeFile:
    """A name under `recipes/`, a path to a `recipe.py`, a YAML file, or a folder with one (a run's, for example).

    Raises InputError with a suggestion.
    """
    path = Path(reference)
    if path.is_dir():
        path = next((path / name for name in ("recipe.py", "recipe.yaml") if (path / name).is_file()), path)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return RecipeFile(path, {"recipe": lambda: recipe_from_yaml(path)})
    if path.suffix != ".py" and (found := recipe_path(reference)).is_file():
        path = found
    if path.suffix == ".py" and path.is_file():
        return RecipeFile(path, _variants_in(path))
    if path.suffix in (".py", ".yaml", ".yml"):
        siblings = [other.name for other in path.parent.glob(f"*{path.suffix}")]
        what = f"no file {reference!r}.{did_you_mean(path.name, siblings)}"
        raise InputError(Problem("RECIPE", what, "give the path of a recipe", "recipe-missing"))
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
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_RecipeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}: line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise InputError(
            Problem(where, f"cannot be read as YAML: {error.problem}", "repair this place", "recipe-broken")
        ) from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(path), f"cannot be read: {error}", "repair the file", "recipe-broken")) from None
    if not isinstance(content, dict):
        found = "an empty file" if content is None else f"a {type(content).__name__}"
        what = f"{found}, not a mapping of recipe fields"
        raise InputError(Problem(str(path), what, "see `lmrecipes schema`", "recipe-broken"))
    try:
        return Recipe.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        raise InputError(problems_of(error, str(path))) from None


class _RecipeLoader(yaml.SafeLoader):
    """YAML whose words stay words (`wandb: off`, a class named `no`) and whose keys are given once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; raises ConstructorError at a key that stands there twice."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|false)$", re.IGNORECASE), list("tTfF"))


def problems_of(error: ValidationError, where: str | None) -> list[Problem]:
    """pydantic's complaints as problems, each with the rule, the value found and a fix.

    where: the recipe's file; None for values given by flag.
    """

    def place(field: str) -> str:
        return f"{where}: {field}" if where is not None else f"--{field}"

    problems = []
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        field = ".".join(location) or "recipe"
        given, context = item["input"], item.get("ctx", {})
        found = "" if isinstance(given, (dict, BaseModel)) else f", found {given!r}"
        if isinstance(rules := context.get("error"), RulesBroken):
            for broken in rules.rules:
                at = ".".join(part for part in (*location, broken.field) if part) or "recipe"
                problems.append(Problem(place(at), broken.what, broken.fix, "recipe-rule"))
            continue
        if item["type"] == "extra_forbidden":
            known = _fields_at(location[:-1])
            what = f"unknown key {location[-1]!r}.{did_you_mean(location[-1], known)}"
            problem = Problem(place(field), what, f"known here: {listing(known, 20)}", "recipe-unknown-key")
        elif item["type"] == "missing":
            problem = Problem(place(field), "is required and missing", f"add {field}", "recipe-value")
        elif item["type"] == "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"])
            what = f"must be {context['expected']}{found}.{did_you_mean(str(given), allowed)}"
            problem = Problem(place(field), what, f"use one of {listing(allowed)}", "recipe-value")
        elif item["type"] == "model_type":
            fix = f"write some of its fields: {listing(_fields_at(location), 20)}"
            problem = Problem(place(field), f"must be fields with values{found}", fix, "recipe-value")
        else:
            rule = item["msg"].removeprefix("Value error, ")
            for before, after in _RULES.items():
                rule = rule.replace(before, after)
            fix = _FIXES.get(item["type"], "change {field}").format(field=field, **context)
            problem = Problem(place(field), f"{rule}{found}", fix, "recipe-value")
        problems.append(problem)
    return problems


_RULES = {
    "Input should": "must",
    "a valid dictionary": "names with values",
    ", unable to parse string as a number": "",
    ", unable to parse string as an integer": "",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
"""pydantic's words and ours."""
_FIXES = {
    "greater_than": "set {field} above {gt:g}",
    "greater_than_equal": "set {field} to {ge:g} or more",
    "less_than": "set {field} below {lt:g}",
    "less_than_equal": "set {field} to {le:g} or less",
    "finite_number": "set {field} to a finite number",
    "float_type": "set {field} to a number",
    "float_parsing": "set {field} to a number",
    "int_type": "set {field} to a whole number",
    "int_parsing": "set {field} to a whole number",
    "int_from_float": "set {field} to a whole number",
    "dict_type": "write {field} as names with values: {{name: value}}",
}
"""What to do, by pydantic's type of error."""


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
    except ValidationError as error:
        raise InputError(problems_of(error, _line(path, error))) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's code may raise anything
        raise InputError(_broken(path, error)) from None
    functions = {name: getattr(module, name) for name in ["recipe", *summary(path)[1]] if hasattr(module, name)}
    if "recipe" not in functions:
        raise InputError(Problem(str(path), "defines no function `recipe() -> Recipe`", "add one", "recipe-broken"))
    return functions


def _broken(path: Path, error: BaseException) -> Problem:
    """A recipe.py that raises."""
    text = (error.msg if isinstance(error, SyntaxError) else str(error)).strip()
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Problem(_line(path, error), f"cannot be read: {what}", "repair the file", "recipe-broken")


def _line(path: Path, error: BaseException) -> str:
    """`recipe.py: line 12`: the last line of the file on the way to the error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    return f"{path}: line {lines[-1]}" if lines else str(path)
