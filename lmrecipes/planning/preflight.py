"""Preflight: everything that can be known to be wrong with a run before it starts, all at once.

Rules are functions of a `LaunchView`, registered by id in a plain tuple. Each speaks about one thing; a file that
cannot be read is a problem of its own, and the rules then speak about the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace

from lmrecipes.planning import rules_accelerate, rules_agreement, rules_deepspeed, rules_precision
from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.launch_files import LoadedFile, parse_deepspeed
from lmrecipes.planning.launch_pair import LaunchPair
from lmrecipes.planning.launch_view import LaunchView
from lmrecipes.problems import Problem
from lmrecipes.recipe import Recipe

Rule = Callable[[LaunchView], Iterable[Problem]]

RULES: tuple[tuple[str, Rule], ...] = (
    *rules_deepspeed.RULES,
    *rules_accelerate.RULES,
    *rules_precision.RULES,
    *rules_agreement.RULES,
)
"""Every rule with its stable id, in the order in which problems are shown."""


def preflight(
    recipe: Recipe, deepspeed: LoadedFile | None, accelerate: LoadedFile | None, hardware: Hardware
) -> list[Problem]:
    """Every problem of this recipe with these launch files on this machine; an empty list is a clean run.

    deepspeed, accelerate: from `launch_files.load_file`; None for a run without that file.
    """
    problems = [problem for file in (deepspeed, accelerate) if file is not None for problem in file.problems]
    view = LaunchView(recipe, deepspeed, accelerate, hardware)
    for id, rule in RULES:
        problems += [replace(problem, id=id) for problem in rule(view)]
    return problems


def preflight_pair(recipe: Recipe, pair: LaunchPair | None, hardware: Hardware) -> list[Problem]:
    """As `preflight`, of a pair that is not written yet, or of plain torch."""
    text = parse_deepspeed(json.dumps(pair.deepspeed), f"{pair.name}.json") if pair is not None else None
    return preflight(recipe, text, None, hardware)


def named_json(accelerate: LoadedFile) -> str | None:
    """Path of the DeepSpeed JSON that an Accelerate YAML names, as it is written there."""
    section = accelerate.data.get("deepspeed_config")
    path = section.get("deepspeed_config_file") if isinstance(section, dict) else None
    return path if isinstance(path, str) else None
