"""The commands. Each is a function of its arguments that returns an exit code; heavy imports stay inside."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmrecipes.check import CheckOptions, problem_table, problems_of
from lmrecipes.configure import ConfigureOptions, configure
from lmrecipes.evaluate import EvaluateOptions, evaluate, print_answer
from lmrecipes.flags import Options, parse
from lmrecipes.plan import PlanOptions, plan, print_plan
from lmrecipes.predict import PredictOptions, predict
from lmrecipes.problems import InputError, Problem, did_you_mean
from lmrecipes.publishing.export import ExportOptions, export_run
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import RecipeFile, find_recipe, recipe_names, recipe_path, summary
from lmrecipes.report import ReportOptions, report


@dataclass(frozen=True)
class JsonOption:
    """Flags of commands that print facts."""

    json: bool = False
    """Machine-readable output."""


@dataclass(frozen=True)
class AssetsOptions:
    """Arguments of `lmrecipes assets`."""

    action: tyro.conf.Positional[Literal["list", "fetch", "verify"]] = "list"
    """list: the assets; fetch: put them into the cache; verify: compare the cached files with their hashes."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which. None: all."""
    quickstart: bool = False
    """Those of the default recipe."""


@dataclass(frozen=True)
class NoOptions:
    """A command without flags."""


def main() -> None:
    """Entry point of the console script."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `lmrecipes schema | head`: who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(args: Sequence[str]) -> int:
    """Run one command line; returns its exit code."""
    from lmrecipes.launching import guarded

    if not args or args[0] in ("-h", "--help"):
        return _help()
    if args[0] == "--version":
        from lmrecipes import __version__

        print(__version__)
        return 0
    try:
        return guarded(lambda: _with_files(lambda: _command(args[0])(args[1:])))
    except SystemExit as stop:  # tyro has spoken: its help, or what is wrong with a flag
        return stop.code if isinstance(stop.code, int) else 0


def _with_files(action: Callable[[], int]) -> int:
    """Run an action; a file or folder that it cannot read or write is the user's to put right."""
    try:
        return action()
    except OSError as error:
        if error.filename is None or isinstance(error, BrokenPipeError):
            raise
        fix = "check the path, its permissions and the free space, or name another"
        raise InputError(Problem(str(error.filename), error.strerror or "cannot be used", fix, "file-system")) from None


def _command(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        what = f"no command {name!r}.{did_you_mean(name, COMMANDS)}"
        raise InputError(Problem("lmrecipes", what, "see `lmrecipes --help`", "command-unknown"))
    return COMMANDS[name][1]


def _help() -> int:
    table = Table.grid(padding=(0, 3))
    for name, (usage, function) in COMMANDS.items():
        about = (function.__doc__ or "").partition("\n")[0]
        table.add_row(f"  [bold]{name}[/] {escape(usage)}", about)
    console = Console()
    console.print("lmrecipes: fine-tune GPT- and BERT-style models on mixed data, several tasks at once\n")
    console.print(table)
    console.print("\nRECIPE is a name (see `lmrecipes list`), a path to a recipe.py, or a YAML file.")
    console.print(
        "`lmrecipes COMMAND --help` explains a command; `lmrecipes train RECIPE --help` every field of a recipe."
    )
    return 0


def _parse(options: type[Any], args: Sequence[str], command: str) -> Any:
    about = inspect.getdoc(COMMANDS[command][1])
    return tyro.cli(options, args=list(args), prog=f"lmrecipes {command}", description=about)


def _recipe(args: Sequence[str], options: type[Options], command: str) -> tuple[RecipeFile, Options, Recipe]:
    """The recipe that the first argument names, with the flags after it applied."""
    file = _recipe_file(args, options, command)
    chosen, recipe = parse(file, options, args[1:], f"lmrecipes {command} {args[0]}")
    return file, chosen, recipe


def _recipe_file(args: Sequence[str], options: type[Any], command: str) -> RecipeFile:
    """The file of the recipe before the flags. Prints the command's own help where only that is asked for."""
    if args and args[0] in ("-h", "--help"):
        about = inspect.getdoc(COMMANDS[command][1])
        more = f"Every field of a recipe is a flag too: see `lmrecipes {command} RECIPE --help`."
        tyro.cli(options, args=["--help"], prog=f"lmrecipes {command} RECIPE", description=f"{about}\n\n{more}")
    if not args or args[0].startswith("-"):
        what = "no RECIPE given" if not args else f"{args[0]!r} stands where the RECIPE belongs"
        fix = f"write `lmrecipes {command} RECIPE`, then the flags; `lmrecipes list` names the recipes"
        raise InputError(Problem(f"lmrecipes {command}", what, fix, "argument-missing"))
    return find_recipe(args[0])


def _print_json(content: Any) -> None:
    from lmrecipes.files import json_text

    print(json_text(content, indent=1))


def _list(args: Sequence[str]) -> int:
    """Recipes, one line each."""
    options = _parse(JsonOption, args, "list")
    rows = [(name, *summary(recipe_path(name))) for name in recipe_names()]
    if options.json:
        _print_json([{"name": name, "about": about, "variants": variants} for name, about, variants in rows])
        return 0
    table = Table.grid(padding=(0, 3))
    for name, about, variants in rows:
        table.add_row(f"[bold]{name}[/]", about + "".join(f"  [dim]--{variant}[/]" for variant in variants))
    Console().print(table)
    return 0


def _show(args: Sequence[str]) -> int:
    """The resolved recipe as YAML, and its mixture in numbers."""
    _, options, recipe = _recipe(args, JsonOption, "show")
    from lmrecipes.launching import quieten

    quieten()
    from lmrecipes.adaptive.steering import Steering, replayed_plan
    from lmrecipes.data.duplicates import duplicate_warnings
    from lmrecipes.data.encode import encode_tasks
    from lmrecipes.data.facts import mixture_facts, mixture_of, mixture_warnings
    from lmrecipes.mixture_text import print_mixture
    from lmrecipes.run_folder import recipe_yaml

    replayed = replayed_plan(recipe)
    tasks = encode_tasks(recipe)
    facts = mixture_facts(recipe, tasks, Steering(recipe, mixture_of(recipe, tasks), {}, replayed).mixture)
    problems = mixture_warnings(recipe, facts) + duplicate_warnings(tasks)
    if options.json:
        warnings = [problem.as_dict() for problem in problems]
        _print_json({"recipe": recipe.model_dump(mode="json"), "mixture": facts, "warnings": warnings})
        return 0
    print(recipe_yaml(recipe))
    print_mixture(recipe, facts, problems, Console())
    return 0


def _check(args: Sequence[str]) -> int:
    """All problems of a recipe, its data and its launch files at once.

    Exit code 0: none, 1: warnings only, 2: errors.
    """
    try:
        file, options, recipe = _recipe(args, CheckOptions, "check")
        problems = problems_of(recipe, file.folder, options)
    except InputError as error:
        problems = error.problems
    if "--json" in args:
        _print_json([problem.as_dict() for problem in problems])
    elif problems:
        Console().print(problem_table(problems))
        errors = sum(problem.severity == "error" for problem in problems)
        print(f"errors: {errors}, warnings: {len(problems) - errors}")
    else:
        print(f"{args[0]}: no problems")
    return 2 if any(problem.severity == "error" for problem in problems) else 1 if problems else 0


def _configure(args: Sequence[str]) -> int:
    """Write a launch pair: a DeepSpeed JSON and the Accelerate YAML that uses it."""
    file, options, recipe = _recipe(args, ConfigureOptions, "configure")
    for path in configure(recipe, file.folder, options):
        print(path)
    return 0


def _plan(args: Sequence[str]) -> int:
    """Arithmetic, traffic and memory of a step in each precision, before anything runs."""
    _, options, recipe = _recipe(args, PlanOptions, "plan")
    from lmrecipes.launching import quieten

    quieten()
    made = plan(recipe, options)
    if options.json:
        _print_json(made.as_dict())
    else:
        print_plan(made, Console())
    return 0


def _train(args: Sequence[str]) -> int:
    """Print the exact launch command, then run it."""
    from lmrecipes.launcher import TrainOptions, train

    _recipe_file(args, TrainOptions, "train")
    return train(args[0], args[1:])


def _search(args: Sequence[str]) -> int:
    """Search mixture weights with short proxy runs; says whether they beat the recipe's own, as measured."""
    from lmrecipes.search.start import SearchOptions, search

    _recipe_file(args, SearchOptions, "search")
    return search(args[0], args[1:])


def _study(args: Sequence[str]) -> int:
    """Train variants of a recipe over seeds: metrics with their spread, time and memory beside each other."""
    from lmrecipes.studies.start import StudyOptions, study

    _recipe_file(args, StudyOptions, "study")
    return study(args[0], args[1:])


def _gate(args: Sequence[str]) -> int:
    """Measure a recipe's gates over seeds. Exit code 0: all are met, 1: one is not."""
    from lmrecipes.studies.gate import GateOptions, gate

    _recipe_file(args, GateOptions, "gate")
    return gate(args[0], args[1:])


def _audit(args: Sequence[str]) -> int:
    """Where precision hurts, layer by layer: a few steps measured, and a `precision:` block recommended."""
    from lmrecipes.precision.audit.start import AuditOptions, audit

    _recipe_file(args, AuditOptions, "audit")
    return audit(args[0], args[1:])


def _evaluate(args: Sequence[str]) -> int:
    """Evaluate a run's exported model on its test split, on a file, or on benchmarks of lm-eval."""
    options = _parse(EvaluateOptions, args, "evaluate")
    from lmrecipes.launching import quieten

    quieten()
    answer = evaluate(options)
    if options.json:
        _print_json(answer)
    else:
        print_answer(options, answer)
    return 0 if answer.get("met", True) else 1


def _latency(args: Sequence[str]) -> int:
    """Serve a run in each precision, under real load. Exit code 0: its latency budgets are kept, 1: one is not."""
    from lmrecipes.launching import quieten
    from lmrecipes.serving.latency import LatencyOptions, latency

    options = _parse(LatencyOptions, args, "latency")
    quieten()
    return latency(options)


def _combine(args: Sequence[str]) -> int:
    """One run made of several: mean predictions, mean weights, or a small model that learns from all."""
    from lmrecipes.combine.options import CombineOptions
    from lmrecipes.launching import quieten

    options = _parse(CombineOptions, args, "combine")
    quieten()
    from lmrecipes.combine.show import print_combination
    from lmrecipes.combine.start import combine

    made = combine(options)
    if options.json:
        _print_json(made)
    else:
        print_combination(made, Console())
    return 0


def _predict(args: Sequence[str]) -> int:
    """Answer rows of files or of standard input with a run's model, in a chosen precision; --serve: over HTTP."""
    options = _parse(PredictOptions, args, "predict")
    from lmrecipes.launching import quieten

    quieten()
    return predict(options)


def _export(args: Sequence[str]) -> int:
    """Write a run's model, or its adapter, to a folder that transformers loads, or to the hub."""
    options = _parse(ExportOptions, args, "export")
    from lmrecipes.launching import quieten

    quieten()
    for place in export_run(options):
        print(place)
    return 0


def _report(args: Sequence[str]) -> int:
    """One self-contained HTML page of one run, or comparing several."""
    options = _parse(ReportOptions, args, "report")
    print(report(options))
    return 0


def _assets(args: Sequence[str]) -> int:
    """List, fetch or verify the default models and data."""
    options = _parse(AssetsOptions, args, "assets")
    from lmrecipes import assets

    names = options.names or (assets.QUICKSTART if options.quickstart else [asset.name for asset in assets.ASSETS])
    if options.action == "fetch":
        with assets.progress_bar(Console(stderr=True)) as bar:
            folders = assets.fetch(names, bar)
        for name, folder in zip(names, folders, strict=True):
            print(f"{name}: {folder}")
        return 0
    if options.action == "verify":
        if problems := assets.verify(names):
            raise InputError(problems)
        print(f"{len(names)} assets are as they should be")
        return 0
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("name", "MB", "cached", "what", "licence"):
        table.add_column(column, justify="right" if column == "MB" else "left", no_wrap=column in ("name", "cached"))
    for asset in map(assets.find, names):
        cached = "yes" if assets.is_cached(asset) else "no"
        table.add_row(asset.name, f"{asset.size_mb:g}", cached, asset.title, asset.licence)
    Console().print(table)
    return 0


def _schema(args: Sequence[str]) -> int:
    """The JSON Schema of a recipe, for editors."""
    _parse(NoOptions, args, "schema")
    _print_json(Recipe.model_json_schema())
    return 0


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "list": ("", _list),
    "show": ("RECIPE", _show),
    "check": ("RECIPE", _check),
    "plan": ("RECIPE", _plan),
    "configure": ("RECIPE", _configure),
    "train": ("RECIPE", _train),
    "search": ("RECIPE", _search),
    "study": ("RECIPE", _study),
    "gate": ("RECIPE|RUN", _gate),
    "audit": ("RECIPE|RUN", _audit),
    "evaluate": ("RUN", _evaluate),
    "latency": ("RUN", _latency),
    "combine": ("RUN RUN ... --method average|stack|soup|checkpoints|distil", _combine),
    "predict": ("RUN [FILE ...]", _predict),
    "export": ("RUN --to DIR | --push-to-hub OWNER/NAME", _export),
    "report": ("RUN [RUN ...]", _report),
    "assets": ("[fetch|verify] [NAME ...]", _assets),
    "schema": ("", _schema),
}
"""Command -> (usage, function)."""
