"""Reads the two launch files, strictly: everything that is wrong with a file is reported, and reading goes on.

DeepSpeed reads its JSON as Hjson (comments allowed, duplicate keys refused), Accelerate as plain JSON (comments
refused, the last duplicate wins silently). A file that both read the same way has neither.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lmrecipes.problems import Problem

FileKind = Literal["deepspeed", "accelerate"]


@dataclass(frozen=True)
class LoadedFile:
    """A launch file as read: its content (empty where it could not be read) and what was wrong with it."""

    kind: FileKind
    path: str
    data: dict[str, Any]
    problems: tuple[Problem, ...] = ()
    readable: bool = True

    @property
    def name(self) -> str:
        """File name, as messages call it."""
        return Path(self.path).name


class _Mapping(dict[str, Any]):
    """A mapping that remembers which of its keys were given more than once."""

    duplicates: tuple[str, ...] = ()


def load_file(path: str | Path, kind: FileKind) -> LoadedFile:
    """Read a DeepSpeed JSON or an Accelerate YAML; a file that cannot be read is a problem, not an exception."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        what, fix = "the file does not exist", "give the path of an existing file, or write one: `lmrecipes configure`"
    except (OSError, UnicodeDecodeError) as error:
        what, fix = f"the file cannot be read ({error})", "make it a readable text file (UTF-8)"
    else:
        return parse_deepspeed(text, str(path)) if kind == "deepspeed" else parse_accelerate(text, str(path))
    return LoadedFile(kind, str(path), {}, (Problem(str(path), what, fix, id="file-unreadable"),), readable=False)


def parse_deepspeed(text: str, path: str) -> LoadedFile:
    """Read the text of a DeepSpeed JSON. Comments, trailing commas and duplicate keys are reported and passed over."""
    name, problems = Path(path).name, []
    plain, comments, commas = _without_comments(text)
    for line in comments:
        what = "a comment: DeepSpeed accepts it, Accelerate fails on it"
        problems.append(Problem(f"{name}: line {line}", what, "delete the comment", id="json-dialect"))
    for line in commas:
        what = "a comma before a closing bracket: DeepSpeed accepts it, Accelerate fails on it"
        problems.append(Problem(f"{name}: line {line}", what, "delete the comma", id="json-dialect"))
    numbers: list[str] = []
    try:
        data = json.loads(plain, object_pairs_hook=_mapping_from_pairs, parse_constant=numbers.append)
    except json.JSONDecodeError as error:
        where = f"{name}: line {error.lineno}, column {error.colno}"
        problems.append(Problem(where, f"not JSON: {error.msg}", "correct the syntax at this place", id="file-syntax"))
        return LoadedFile("deepspeed", path, {}, tuple(problems), readable=False)
    problems += [Problem(name, f"{word} is not JSON", "write a finite number", id="json-dialect") for word in numbers]
    return _loaded("deepspeed", path, data, problems, "json-dialect", "DeepSpeed refuses it, Accelerate takes the last")


def parse_accelerate(text: str, path: str) -> LoadedFile:
    """Read the text of an Accelerate YAML (or JSON, which Accelerate takes too)."""
    name = Path(path).name
    try:
        data = yaml.load(text, Loader=_YamlLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}: line {mark.line + 1}, column {mark.column + 1}" if mark else name
        what = f"not YAML: {getattr(error, 'problem', None) or error}"
        problem = Problem(where, what, "correct the syntax at this place", id="file-syntax")
        return LoadedFile("accelerate", path, {}, (problem,), readable=False)
    return _loaded("accelerate", path, data, [], "yaml-duplicate-key", "Accelerate silently takes the last")


def _loaded(
    kind: FileKind, path: str, data: Any, problems: list[Problem], duplicate_id: str, consequence: str
) -> LoadedFile:
    name = Path(path).name
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        what, fix = f"the file holds {found}, not a mapping of keys to values", "write keys and values at the top level"
        problems.append(Problem(name, what, fix, id="file-syntax"))
        return LoadedFile(kind, path, {}, tuple(problems), readable=False)
    for where in _duplicates(data, ""):
        what = f"the key is given more than once: {consequence}"
        problems.append(Problem(f"{name}: {where}", what, "keep one of them", id=duplicate_id))
    return LoadedFile(kind, path, data, tuple(problems))


def _mapping_from_pairs(pairs: list[tuple[str, Any]]) -> _Mapping:
    mapping = _Mapping(pairs)
    keys = [key for key, _ in pairs]
    mapping.duplicates = tuple(key for key in mapping if keys.count(key) > 1)
    return mapping


def _duplicates(value: Any, path: str) -> list[str]:
    """Dotted paths of the keys given more than once, at any depth."""
    found: list[str] = []
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += _duplicates(item, f"{path}[{index}]")
    if isinstance(value, dict):
        prefix = f"{path}." if path else ""
        found += [f"{prefix}{key}" for key in getattr(value, "duplicates", ())]
        for key, item in value.items():
            found += _duplicates(item, f"{prefix}{key}")
    return found


class _YamlLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with mappings that remember duplicate keys."""


def _yaml_mapping(loader: _YamlLoader, node: yaml.MappingNode) -> _Mapping:
    loader.flatten_mapping(node)
    pairs = [
        (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
        for key, value in node.value
    ]
    return _mapping_from_pairs([(key if isinstance(key, str) else str(key), value) for key, value in pairs])


_YamlLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _yaml_mapping)


def _without_comments(text: str) -> tuple[str, list[int], list[int]]:
    """The text with comments and trailing commas blanked out (positions stay), and the line numbers of both."""
    characters, comments, commas = list(text), [], []
    position, comma = 0, -1  # comma: position of the last comma with nothing but space after it
    while position < len(text):
        character = text[position]
        end = position + 1
        if character == '"':
            while end < len(text) and text[end] not in '"\n':
                end += 2 if text[end] == "\\" else 1
            end += 1
            comma = -1
        elif character == "#" or text.startswith("//", position):
            end = text.find("\n", position)
        elif text.startswith("/*", position):
            end = text.find("*/", position) + 2
            end = end if end > 1 else len(text)
        elif character == ",":
            comma = position
        elif character in "]}" and comma >= 0:
            characters[comma] = " "
            commas.append(text.count("\n", 0, comma) + 1)
            comma = -1
        elif not character.isspace():
            comma = -1
        if character in "#/":
            end = len(text) if end < 0 else end
            if end > position + 1 or character == "#":
                comments.append(text.count("\n", 0, position) + 1)
                for place in range(position, end):
                    characters[place] = "\n" if text[place] == "\n" else " "
        position = end
    return "".join(characters), comments, commas
