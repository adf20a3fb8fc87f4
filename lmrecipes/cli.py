"""The commands. Each is a function of its arguments that returns an exit code; heavy imports stay inside."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lmrecipes.planning.launch_pair import STANDARD_PAIRS, Stage, launch_pair, write_ddp_yaml, write_pair
from lmrecipes.problems import InputError, Problem, did_you_mean


@dataclass(frozen=True)
class JsonOption:
    """Flags of commands that print facts."""

    json: bool = False
    """Machine-readable output."""


@dataclass(frozen=True)
class CheckOptions:
    """Flags of `lmrecipes check`."""

    deepspeed: Path | None = None
    """The DeepSpeed JSON to check. None with no --accelerate: every pair in the recipe's folder."""
    accelerate: Path | None = None
    """The Accelerate YAML to check."""
    hardware: str | None = None
    """For example 2xcpu or 8xA100-80GB. None: this machine."""
    json: bool = False
    """Machine-readable output."""


@dataclass(frozen=True)
class ConfigureOptions:
    """Flags of `lmrecipes configure`."""

    hardware: str | None = None
    """For example 2xcpu or 8xA100-80GB. None: this machine."""
    zero: Stage = 2
    """ZeRO stage."""
    half: Annotated[Literal["fp32", "bf16", "fp16"] | None, tyro.conf.arg(name="precision")] = None
    """fp32, bf16 or fp16. None: the recipe's."""
    offload: bool = False
    """Optimizer states (and at stage 3 the parameters) in the host's memory."""
    write: Path | None = None
    """The folder. None: the recipe's own."""
    all: bool = False
    """Every standard pair and ddp.yaml, as in the recipes of this repository."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Flags of `lmrecipes evaluate`."""

    task: str | None = None
    """Only this task."""
    data: Path | None = None
    """A JSONL, CSV or Parquet file with the task's columns. None: the test split."""
    json: bool = False
    """Machine-readable output."""


@dataclass(frozen=True)
class ExportOptions:
    """Flags of `lmrecipes export`."""

    to: Path
    """The new folder."""


@dataclass(frozen=True)
class ReportOptions:
    """Flags of `lmrecipes report`."""

    to: Path | None = None
    """The page. None: report.html in the first run's folder."""


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line; returns its exit code."""
    if not args or args[0] in ("-h", "--help"):
        return _help()
    if args[0] == "--version":
        from lmrecipes import __version__

        print(__version__)
        return 0
    from lmrecipes.launching import guarded

    if args[0] not in COMMANDS:
        problem = Problem(
            "command", f"no command {args[0]!r}.{did_you_mean(args[0], COMMANDS)}", "see `lmrecipes --help`", "command"
        )
        return guarded(lambda: _raise(InputError(problem)))
    return guarded(lambda: COMMANDS[args[0]][1](args[1:]))


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


def _raise(error: Exception) -> int:
    raise error


def _parse(options: type[Any], args: Sequence[str], command: str) -> Any:
    return tyro.cli(options, args=list(args), prog=f"lmrecipes {command}", description=COMMANDS[command][1].__doc__)


def _print_json(content: Any) -> None:
    from lmrecipes.files import json_text

    print(json_text(content, indent=1))


def _first(args: Sequence[str], what: str, command: str) -> tuple[str, Sequence[str]]:
    """The positional argument before the flags."""
    if args and not args[0].startswith("-"):
        return args[0], args[1:]
    if args and args[0] in ("-h", "--help"):
        return "", args
    raise InputError(
        Problem(command, f"no {what} given", f"write `lmrecipes {command} {what} ...`", "argument-missing")
    )


def _list(args: Sequence[str]) -> int:
    """Recipes, one line each."""
    from lmrecipes.recipe_files import recipe_names, recipe_path, summary

    as_json = bool(args) and _parse(JsonOption, args, "list").json
    rows = [(name, *summary(recipe_path(name))) for name in recipe_names()]
    if as_json:
        _print_json([{"name": name, "about": about, "variants": variants} for name, about, variants in rows])
        return 0
    table = Table.grid(padding=(0, 3))
    for name, about, variants in rows:
        table.add_row(f"[bold]{name}[/]", about + "".join(f"  [dim]--{variant}[/]" for variant in variants))
    Console().print(table)
    return 0


def _show(args: Sequence[str]) -> int:
    """The resolved recipe as YAML, and its mixture in numbers."""
    from lmrecipes.launching import parse, quieten
    from lmrecipes.recipe_files import find_recipe

    reference, rest = _first(args, "RECIPE", "show")
    options, recipe = parse(find_recipe(reference), JsonOption, rest, f"lmrecipes show {reference}")
    quieten()
    from lmrecipes.data.encode import encode_tasks
    from lmrecipes.data.facts import mixture_facts
    from lmrecipes.run_folder import recipe_yaml

    facts = mixture_facts(recipe, encode_tasks(recipe))
    if options.json:
        _print_json({"recipe": recipe.model_dump(mode="json"), "mixture": facts})
        return 0
    print(recipe_yaml(recipe))
    title = f"mixture: {recipe.schedule.steps} steps of {recipe.batch.examples} examples"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("task", "rows", "tokens/row", "cut", "bad", "share", "of tokens", "examples", "epochs"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for task, fact in facts.items():
        table.add_row(
            task, f"{fact['rows']:,}", f"{fact['tokens_per_row']:.1f}", f"{fact['truncated']:,}", f"{fact['skipped']:,}",
            f"{fact['share']:.1%}", f"{fact['token_share']:.1%}", f"{fact['examples']:,}", f"{fact['epochs']:.2f}",
        )  # fmt: skip
    Console().print(table)
    return 0


def _check(args: Sequence[str]) -> int:
    """All problems of a recipe and its launch files at once.

    Exit code 0: none, 1: warnings only, 2: errors.
    """
    from lmrecipes.launching import parse
    from lmrecipes.machine import this_machine
    from lmrecipes.planning.check import check_recipe
    from lmrecipes.planning.hardware import Hardware
    from lmrecipes.recipe_files import find_recipe

    reference, rest = _first(args, "RECIPE", "check")
    try:
        file = find_recipe(reference)
        options, recipe = parse(file, CheckOptions, rest, f"lmrecipes check {reference}")
        hardware = Hardware.parse(options.hardware) if options.hardware else this_machine()
        explicit = options.hardware is not None
        problems = check_recipe(recipe, file.folder, options.deepspeed, options.accelerate, hardware, explicit)
    except InputError as error:
        problems = error.problems
    if "--json" in rest:
        _print_json([problem.as_dict() for problem in problems])
    elif problems:
        table = Table(show_lines=True)
        for column in ("id", "severity", "where", "what", "fix"):
            table.add_column(column, overflow="fold")
        for p in problems:
            table.add_row(
                p.id, f"[{'red' if p.severity == 'error' else 'yellow'}]{p.severity}[/]", p.where, p.what, p.fix
            )
        Console().print(table)
    else:
        print(f"{reference}: no problems")
    return 2 if any(p.severity == "error" for p in problems) else 1 if problems else 0


def _configure(args: Sequence[str]) -> int:
    """Write a launch pair: a DeepSpeed JSON and the Accelerate YAML that uses it."""
    from lmrecipes.launching import parse
    from lmrecipes.machine import this_machine
    from lmrecipes.planning.hardware import Hardware
    from lmrecipes.recipe_files import find_recipe

    reference, rest = _first(args, "RECIPE", "configure")
    file = find_recipe(reference)
    options, recipe = parse(file, ConfigureOptions, rest, f"lmrecipes configure {reference}")
    hardware = Hardware.parse(options.hardware) if options.hardware else this_machine()
    folder = options.write or file.folder or Path()
    chosen = (
        STANDARD_PAIRS if options.all else ((options.zero, options.half or recipe.precision.compute, options.offload),)
    )
    written: list[Path] = []
    for zero, half, offload in chosen:
        name = launch_pair(recipe, zero, half, hardware.processes, hardware.device, offload).name
        pair = launch_pair(
            recipe, zero, half, hardware.processes, hardware.device, offload, json_path=_shown(folder / f"{name}.json")
        )
        written += write_pair(pair, folder)
    if options.all:
        written.append(write_ddp_yaml(hardware.processes, hardware.device, folder))
    for path in written:
        print(path)
    return 0


def _shown(path: Path) -> str:
    """A path as the launch file names it: relative to the working directory where it lies below it."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(resolved)


def _train(args: Sequence[str]) -> int:
    """Print the exact launch command, then run it."""
    from lmrecipes.launcher import train

    reference, rest = _first(args, "RECIPE", "train")
    return train(reference or "bert_multitask", rest)


def _evaluate(args: Sequence[str]) -> int:
    """Evaluate a run's exported model on its test split, or on a file."""

    reference, rest = _first(args, "RUN", "evaluate")
    options = _parse(EvaluateOptions, rest, "evaluate")
    from lmrecipes.evaluate import evaluate_run
    from lmrecipes.launching import quieten
    from lmrecipes.run_folder import open_run
    from lmrecipes.tracking.results import results_table

    quieten()
    evaluation = evaluate_run(open_run(reference), options.task, options.data)
    if options.json:
        _print_json(evaluation)
    else:
        Console().print(results_table(evaluation))
    return 0


def _export(args: Sequence[str]) -> int:
    """Copy a run's model to a folder that transformers loads."""

    reference, rest = _first(args, "RUN", "export")
    options = _parse(ExportOptions, rest, "export")
    from lmrecipes.run_folder import open_run

    run = open_run(reference)
    if not (run.model / "heads.json").is_file():
        raise InputError(
            Problem(str(run.model), "the run has no exported model yet", "finish it with --resume", "model-missing")
        )
    if options.to.exists() and any(options.to.iterdir()):
        raise InputError(Problem("--to", f"{options.to} is not empty", "name a new folder", "export-exists"))
    partial = options.to.with_name(f".{options.to.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(run.model, partial)
    partial.replace(options.to)
    print(options.to)
    return 0


def _report(args: Sequence[str]) -> int:
    """One self-contained HTML page of one run, or comparing several."""

    runs = list(args[: next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))])
    if not runs and not args:
        raise InputError(Problem("report", "no RUN given", "write `lmrecipes report RUN ...`", "argument-missing"))
    options = _parse(ReportOptions, args[len(runs) :], "report")
    from lmrecipes.run_folder import open_run
    from lmrecipes.tracking.report import write_report

    folders = [open_run(run) for run in runs]
    print(write_report([folder.path for folder in folders], options.to or folders[0].report))
    return 0


def _assets(args: Sequence[str]) -> int:
    """List, fetch or verify the default models and data."""
    from lmrecipes import assets

    names = [arg for arg in args[1:] if not arg.startswith("-")]
    wanted = names or (list(assets.QUICKSTART) if "--quickstart" in args else [asset.name for asset in assets.ASSETS])
    if args and args[0] == "fetch":
        console = Console(stderr=True)
        with assets.progress_bar(console) as bar:
            folders = assets.fetch(wanted, bar)
        for name, folder in zip(wanted, folders, strict=True):
            print(f"{name}: {folder}")
        return 0
    if args and args[0] == "verify":
        problems = assets.verify(wanted)
        if problems:
            raise InputError(problems)
        print(f"{len(wanted)} assets are as they should be")
        return 0
    if args and args[0] not in ("list", "-h", "--help"):
        raise InputError(
            Problem("assets", f"{args[0]!r} is not one of list, fetch, verify", "use one of them", "command")
        )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("name", "MB", "cached", "what", "licence"):
        table.add_column(column, justify="right" if column == "MB" else "left", no_wrap=column in ("name", "cached"))
    for asset in assets.ASSETS:
        cached = "yes" if assets.is_cached(asset) else "no"
        table.add_row(asset.name, f"{asset.size_mb:g}", cached, asset.title, asset.licence)
    Console().print(table)
    return 0


def _schema(args: Sequence[str]) -> int:
    """The JSON Schema of a recipe, for editors."""
    from lmrecipes.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))
    return 0


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "list": ("", _list),
    "show": ("RECIPE", _show),
    "check": ("RECIPE", _check),
    "configure": ("RECIPE", _configure),
    "train": ("RECIPE", _train),
    "evaluate": ("RUN", _evaluate),
    "export": ("RUN --to DIR", _export),
    "report": ("RUN [RUN ...]", _report),
    "assets": ("[fetch|verify]", _assets),
    "schema": ("", _schema),
}
"""Command -> (usage, function)."""
