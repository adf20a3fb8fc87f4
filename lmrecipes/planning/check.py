"""`lmrecipes check`: the preflight rules over the launch files that a person names, or over a recipe's own pairs.

The rows of its tasks are checked too, as far as they are on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lmrecipes.data.ids import IdsRule, ids_rule
from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.launch_files import LoadedFile, load_file
from lmrecipes.planning.pair_precision import pair_word, precision_of, word_in_name
from lmrecipes.planning.preflight import named_json, preflight
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe, Task


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
    the precision that its name says, and a run without any file as well. hardware_named: whether a person chose
    `hardware`; else a GPU pair is not held against a machine that has none.
    """
    if deepspeed is None and accelerate is None:
        pairs = sorted(folder.glob("*.yaml")) if folder is not None else []
        problems = [problem for pair in pairs for problem in _check_pair(recipe, pair, hardware, hardware_named)]
        problems += preflight(recipe, None, None, hardware)
    else:
        yaml = load_file(accelerate, "accelerate") if accelerate is not None else None
        json = load_file(deepspeed, "deepspeed") if deepspeed is not None else _json_of(yaml, accelerate)
        problems = preflight(recipe, json, yaml, hardware)
    return list(dict.fromkeys(problems))


def check_data(recipe: Recipe) -> list[Problem]:
    """What is wrong with the tasks' rows and with their mixture.

    Nothing is fetched: what is not on this machine is not looked at.
    """
    from lmrecipes.assets import find, is_cached
    from lmrecipes.data.duplicates import duplicate_warnings
    from lmrecipes.data.offline import OFFLINE

    problems: list[Problem] = []
    rows: dict[str, int] = {}
    for name, task in recipe.tasks.items():
        offline, dataset = task.source.offline, task.source.dataset
        asset = OFFLINE[offline].asset if offline in OFFLINE else None
        if asset is not None and not is_cached(find(asset)):
            continue
        if dataset is not None and not Path(dataset).is_dir():
            continue
        try:
            found = _look_through(name, task, ids_rule(recipe, name, _vocabulary(recipe)))
        except InputError as error:
            problems += error.problems
            continue
        problems += duplicate_warnings({name: found})
        if task.kind != "language_modelling":  # how many texts its documents are cut into, only encoding tells
            rows[name] = found.counts["train"]["rows"]
    return problems + check_mixture(recipe, rows)


def check_tokens(recipe: Recipe) -> list[Problem]:
    """What keeps the recipe's tokenizer from serving its tasks. Looked at where the tokenizer is on this machine."""
    here = _is_here(recipe.model.tokenizer or recipe.model.pretrained)
    if recipe.model.tokenizer_vocabulary or not here or not any(task.of_tokens for task in recipe.tasks.values()):
        return []
    from lmrecipes.data.encode import check_tokenizer

    try:
        check_tokenizer(recipe)
    except InputError as error:
        return error.problems
    return []


def check_layers(recipe: Recipe) -> list[Problem]:
    """Rules of `precision.layers` that do not fit the recipe's model. Looked at where the model is on this machine."""
    model = recipe.model
    if not recipe.precision.by_layer or not (model.mlp.hidden or model.config or _is_here(model.pretrained)):
        return []
    from lmrecipes.precision.layer_rules import layer_problems

    return layer_problems(recipe)


def check_teacher(recipe: Recipe) -> list[Problem]:
    """What keeps the recipe's teacher, if it has one, from teaching its tasks."""
    if recipe.distillation.teacher is None:
        return []
    from lmrecipes.training.distillation import teacher_problems

    return teacher_problems(recipe)


def check_mixture(recipe: Recipe, rows: Mapping[str, int]) -> list[Problem]:
    """What is wrong with the mixture, or surprising, over tasks of so many training rows.

    Nothing where a task's rows are not known, or where the mixture counts tokens, which only encoding tells: then the
    run itself checks before it starts.
    """
    from lmrecipes.adaptive.steering import Steering, replayed_plan
    from lmrecipes.data.facts import mixture_warnings, planned
    from lmrecipes.data.mixture import Supply
    from lmrecipes.data.weights import build_mixture, cap_of

    try:
        replayed = replayed_plan(recipe)
        if recipe.mixture.unit != "examples" or set(rows) != set(recipe.tasks):
            return []
        supplies = {name: Supply(count, count, cap_of(recipe, name, count)) for name, count in rows.items()}
        mixture = Steering(recipe, build_mixture(recipe, supplies), {}, replayed).mixture
        return mixture_warnings(recipe, planned(recipe, mixture))
    except InputError as error:
        return error.problems


@dataclass(frozen=True)
class _Rows:
    """What is known of a task's rows. counts[split]["rows"]; duplicates: of each pair of splits."""

    task: Task
    counts: dict[str, dict[str, int]]
    duplicates: dict[str, int]


def _vocabulary(recipe: Recipe) -> int | None:
    """How many ids the recipe's model knows, where a task asks and the model is on this machine."""
    from lmrecipes.data.tokenizer import vocabulary_of

    reads_ids = any(task.source.ids is not None for task in recipe.tasks.values())
    model = recipe.model
    here = bool(model.mlp.hidden or model.config) or _is_here(model.tokenizer or model.pretrained)
    return vocabulary_of(recipe) if reads_ids and here else None


def _is_here(name: str) -> bool:
    """Whether a model or tokenizer is on this machine."""
    from lmrecipes.assets import ASSETS, is_cached

    asset = next((asset for asset in ASSETS if asset.name == name), None)
    return is_cached(asset) if asset is not None else Path(name).is_dir()


def _look_through(name: str, task: Task, ids: IdsRule | None) -> _Rows:
    """Check every row of a task, block by block. Raises InputError with all problems found."""
    from lmrecipes.data.duplicates import DuplicateCounter
    from lmrecipes.data.progress import progress_in_rows
    from lmrecipes.data.sources import SPLITS, open_rows
    from lmrecipes.data.targets import CheckedRows

    checked = CheckedRows(name, task, open_rows(name, task), ids=ids)
    with TemporaryDirectory() as folder, progress_in_rows(f"checking {name}", checked.total) as advance:
        duplicates = DuplicateCounter(Path(folder), SPLITS)
        for rows, pieces in checked.blocks():
            for split, piece in pieces.items():
                duplicates.add(split, piece.keys)
            advance(rows)
        checked.finish()
        return _Rows(task, {split: {"rows": rows} for split, rows in checked.rows.items()}, duplicates.count())


def _check_pair(recipe: Recipe, path: Path, hardware: Hardware, hardware_named: bool) -> list[Problem]:
    yaml = load_file(path, "accelerate")
    json = _json_of(yaml, path)
    word = word_in_name(path.stem) or pair_word(recipe.precision)
    meant = recipe.model_copy(update={"precision": precision_of(recipe.precision, word)})
    if not hardware_named:
        processes = yaml.data.get("num_processes")
        where = "cuda" if word == "fp16" and json is not None else hardware.device
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
