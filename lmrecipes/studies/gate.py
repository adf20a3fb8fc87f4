"""`lmrecipes gate`: a recipe against itself at the precision of its gates' references, over seeds, and the verdict."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmrecipes.files import json_text, write_json
from lmrecipes.flags import parse
from lmrecipes.launching import quieten
from lmrecipes.machine import this_machine
from lmrecipes.planning.launch_pair import Stage
from lmrecipes.problems import InputError, Problem, RunFailed
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import find_recipe
from lmrecipes.run_folder import RunFolder
from lmrecipes.studies.cells import Cell, recipe_key, with_seeds
from lmrecipes.studies.folder import open_study, with_results
from lmrecipes.studies.launch import check_cells, prepare_data, train_cells
from lmrecipes.studies.parity import Verdict, difference, judge
from lmrecipes.studies.record import CellResult
from lmrecipes.tracking.record import read_metrics
from lmrecipes.tracking.results import number, words

OWN = "own"


@dataclass(frozen=True)
class GateOptions:
    """Where the runs of the gates take place. Of a RUN both follow from how it was launched."""

    processes: int | None = None
    """Ranks on this machine. None: every GPU, or one process on a CPU."""
    zero: Stage | None = None
    """ZeRO stage under DeepSpeed. None: plain torch (DDP where there are several processes)."""
    folder: Path | None = None
    """The folder of the runs. None: gates/ in the RUN, or runs/gate-NAME. The same command goes on with what it
    holds."""
    retry: bool = False
    """Run once more what failed."""
    json: bool = False
    """Machine-readable output."""


def gate(reference: str, args: Sequence[str]) -> int:
    """Run `lmrecipes gate REFERENCE ARGS`; returns the contract's exit code."""
    file = find_recipe(reference)
    options, recipe = parse(file, GateOptions, args, f"lmrecipes gate {reference}")
    if not recipe.gates:
        what, fix = "the recipe has none", "write one, for example gates={'parity': Gate()}"
        raise InputError(Problem("gates", what, fix, "gate-none"))
    run = RunFolder(Path(reference)) if file.path == Path(reference) / "recipe.yaml" else None
    processes, zero = options.processes, options.zero
    if run is not None:
        processes, zero = _launch_of(run, options, file.build(), recipe)
    quieten()
    hardware, cells = this_machine(processes), gate_cells(recipe)
    check_cells(cells, hardware, zero)
    path = options.folder or (run.path / "gates" if run else Path("runs") / f"gate-{recipe.name}")
    folder = open_study(path, cells, {"processes": hardware.processes, "zero": zero})
    target = run if run is not None else RunFolder(folder.path)
    with folder.alone():
        results = [result for result in folder.results() if not (options.retry and result.failed)]
        if run is not None and run.evaluation.is_file():
            results = [result_of(run, cells[0]), *(one for one in results if one.key != cells[0].key)]
        folder.write(cells, results)
        target.gates.unlink(missing_ok=True)  # an earlier verdict is not of what follows
        if any(result is None for _, result in with_results(cells, results)):
            prepare_data(cells)
            if code := train_cells(folder, cells, hardware, zero):
                return code
    verdicts = verdicts_of(recipe, list(with_results(cells, folder.results())))
    content = {
        "recipe": recipe.name,
        "measured": time.strftime("%Y-%m-%d"),
        "environment": folder.surroundings(),
        "gates": {name: verdict.as_dict() for name, verdict in verdicts.items()},
    }
    write_json(target.gates, content)
    if run is not None:
        from lmrecipes.tracking.report import write_report

        write_report([run.path], run.report)
    if options.json:
        print(json_text(content, indent=1))  # noqa: T201
    else:
        print_verdicts(verdicts, target.gates)
    return 0 if all(verdict.met for verdict in verdicts.values()) else 1


def gate_cells(recipe: Recipe) -> list[Cell]:
    """The runs that a recipe's gates need. Gates with equal references share them."""
    cells = with_seeds(OWN, (), recipe, max(gate.seeds for gate in recipe.gates.values()))
    for name, gate in recipe.gates.items():
        other = recipe.model_copy(update={"precision": gate.reference})
        cells += with_seeds(f"reference of {name}", (), other, gate.seeds)
    return cells


def verdicts_of(recipe: Recipe, cells: Sequence[tuple[Cell, CellResult | None]]) -> dict[str, Verdict]:
    """The verdict on each gate. Raises RunFailed where one of the runs failed."""
    by_variant: dict[str, dict[int, CellResult]] = {}
    for cell, result in cells:
        if result is None or result.failed is not None:
            why = result.failed if result is not None else "it has not been run"
            raise RunFailed(f"{cell.row}, seed {cell.recipe.seed}: {why}. With --retry it is run once more")
        by_variant.setdefault(cell.variant, {})[result.seed] = result
    own = by_variant[OWN]
    return {name: judge(gate, own, by_variant[f"reference of {name}"]) for name, gate in recipe.gates.items()}


def result_of(run: RunFolder, cell: Cell) -> CellResult:
    """A finished run as the result of the cell that it is."""
    evaluation = json.loads(run.evaluation.read_text(encoding="utf-8"))
    metrics = read_metrics(run.metrics)
    times = [row["time/step"] for row in metrics if row.get("time/step") is not None]
    return CellResult(
        cell.variant, {}, cell.row, cell.recipe.seed, cell.key,
        tasks=evaluation["tasks"], loss=metrics[-1].get("loss") if metrics else None,
        seconds_per_step=statistics.median(times) if times else None, seconds=evaluation["seconds_of_training"],
    )  # fmt: skip


def print_verdicts(verdicts: dict[str, Verdict], written: Path) -> None:
    """The verdicts for people: a table, then each task in words."""
    console = Console(highlight=False)
    for name, verdict in verdicts.items():
        console.print(f"gate [bold]{name}[/]: {verdict.tested}.", soft_wrap=True)
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for head in ("task", "metric", "own", "reference", "worse by", "bound", "margin", ""):
            table.add_column(head, justify="left" if head in ("task", "metric", "") else "right")
        for task, found in verdict.tasks.items():
            values = [difference(found.metric, value) for value in (found.worse, found.bound, found.margin)]
            mark = Text("met", style="green") if found.met else Text("not met", style="bold red")
            means = [number(found.own), number(found.reference)]
            table.add_row(Text(task), words(found.metric), *means, *values, mark)
        console.print(table)
        for task, found in verdict.tasks.items():
            console.print(Text(f"{found.in_words(task, verdict.gate)}."), soft_wrap=True)
        colour, said = ("green", "met") if verdict.met else ("red", "not met")
        console.print(f"[bold {colour}]gate {name}: {said}[/]")
    console.print(f"written to {written}", markup=False, soft_wrap=True)


def _launch_of(run: RunFolder, options: GateOptions, before: Recipe, recipe: Recipe) -> tuple[int, Stage | None]:
    """How a run was launched. Raises InputError where flags say something else than the run."""
    problems = []
    if options.processes is not None or options.zero is not None:
        what, fix = f"{run.path} says both", "leave them out, or give the recipe's name instead of the run"
        problems.append(Problem("--processes, --zero", what, fix, "gate-launch"))
    if recipe_key(before) != recipe_key(recipe):
        what = "flags change what is trained, so that the run is none of its runs"
        problems.append(Problem(str(run.path), what, "keep to flags of --gates, or name the recipe", "gate-recipe"))
    if not run.environment.is_file():
        what = "the run has no environment.json, so how it was launched is not known"
        problems.append(Problem(str(run.path), what, "name the recipe, with --processes and --zero", "gate-launch"))
    if problems:
        raise InputError(problems)
    environment: dict[str, Any] = json.loads(run.environment.read_text(encoding="utf-8"))
    return environment["world_size"], environment["zero"]
