"""`lmrecipes check`: the preflight rules over the launch files that a person names, or over a recipe's own pairs.

The rows of its tasks are checked too, as far as they are on this machine.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.launch_files import LoadedFile, load_file
from lmrecipes.planning.preflight import named_json, preflight
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe


def check_recipe(
    recipe: Recipe,
    folder: Path | None,
    deepspeed: Path | None,
    accelerate: Path | None,
    hardware: Hardware,
    hardware_named: bool,
) -> list[Problem]:
    """Every problem, without repetitions.

    Without files, each YAML in `folder` is checked with the JSON that it names, for the processes that it asks for and
    the precision that its name says. hardware_named: whether a person chose `hardware`; else a GPU pair is not held
    against a machine that has none.
    """
    if deepspeed is None and accelerate is None:
        pairs = sorted(folder.glob("*.yaml")) if folder is not None else []
        problems = [problem for pair in pairs for problem in _check_pair(recipe, pair, hardware, hardware_named)]
    else:
        yaml = load_file(accelerate, "accelerate") if accelerate is not None else None
        json = load_file(deepspeed, "deepspeed") if deepspeed is not None else _json_of(yaml, accelerate)
        problems = preflight(recipe, json, yaml, hardware)
    return list(dict.fromkeys(problems))


def check_data(recipe: Recipe) -> list[Problem]:
    """What is wrong with the tasks' rows. Nothing is fetched: what is not on this machine is not looked at."""
    from lmrecipes.assets import find, is_cached
    from lmrecipes.data.offline import OFFLINE
    from lmrecipes.data.sources import read_rows
    from lmrecipes.data.targets import build_task_data

    problems = []
    for name, task in recipe.tasks.items():
        offline, dataset = task.source.offline, task.source.dataset
        if offline in OFFLINE and not is_cached(find(OFFLINE[offline].asset)):
            continue
        if dataset is not None and not Path(dataset).is_dir():
            continue
        try:
            build_task_data(name, task, read_rows(name, task))
        except InputError as error:
            problems += error.problems
    return problems


def _check_pair(recipe: Recipe, path: Path, hardware: Hardware, hardware_named: bool) -> list[Problem]:
    yaml = load_file(path, "accelerate")
    json = _json_of(yaml, path)
    half = next((h for h in ("bf16", "fp16") if h in path.stem.split("_")), recipe.precision.compute)
    meant = recipe.model_copy(update={"precision": recipe.precision.model_copy(update={"compute": half})})
    if not hardware_named:
        processes = yaml.data.get("num_processes")
        where = "cuda" if half == "fp16" else hardware.device
        hardware = replace(
            hardware if where == hardware.device else Hardware("cuda", 1),
            processes=processes if isinstance(processes, int) and processes > 0 else hardware.processes,
        )
    return preflight(meant, json, yaml, hardware)


def _json_of(yaml: LoadedFile | None, path: Path | None) -> LoadedFile | None:
    """The JSON that a YAML names: as written, else of the same name beside it."""
    name = named_json(yaml) if yaml is not None else None
    if name is None or path is None:
        return None
    beside = path.parent / Path(name).name
    return load_file(beside if not Path(name).is_file() and beside.is_file() else name, "deepspeed")
