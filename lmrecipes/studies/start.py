"""`lmrecipes study`: checks what is asked, has the cells run, then says what they found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmrecipes.flags import parse
from lmrecipes.launching import quieten
from lmrecipes.machine import this_machine
from lmrecipes.planning.launch_pair import Stage
from lmrecipes.recipe_files import find_recipe
from lmrecipes.studies.cells import plan_cells
from lmrecipes.studies.folder import open_study, with_results
from lmrecipes.studies.launch import check_cells, prepare_data, train_cells
from lmrecipes.tracking.results import place_in, write_results_into


@dataclass(frozen=True)
class StudyOptions:
    """What is compared, and with how much effort."""

    variants: tuple[str, ...] = ()
    """Functions of the recipe file, `recipe` among them. None: all of them."""
    vary: tuple[str, ...] = ()
    """FIELD=VALUE,VALUE: trains every variant with each of these values of a recipe's field; of several, with every
    combination. Several words are one value (`optimizer.betas=0.9 0.98,0.8 0.9`)."""
    seeds: int = 3
    """Runs of each row, with seeds from the recipe's `seed` on."""
    processes: int | None = None
    """Ranks on this machine. None: every GPU, or one process on a CPU."""
    zero: Stage | None = None
    """ZeRO stage under DeepSpeed. None: plain torch (DDP where there are several processes)."""
    folder: Path | None = None
    """The study's folder. None: runs/study-NAME. The same command goes on with what it holds."""
    retry: bool = False
    """Run cells that failed once more."""
    readme: Path | None = None
    """Also write the tables between the markers `<!-- study -->` of this README."""
    json: bool = False
    """Machine-readable output."""


def study(reference: str, args: Sequence[str]) -> int:
    """Run `lmrecipes study REFERENCE ARGS`; returns the contract's exit code."""
    file = find_recipe(reference)
    options, recipe = parse(file, StudyOptions, args, f"lmrecipes study {reference}")
    cells = plan_cells(file, options.variants, options.vary, options.seeds, StudyOptions, args)
    if options.readme is not None:
        place_in(options.readme, "study")  # a missing one is said before the cells run
    quieten()
    hardware = this_machine(options.processes)
    check_cells(cells, hardware, options.zero)
    launch = {"processes": hardware.processes, "zero": options.zero}
    folder = open_study(options.folder or Path("runs") / f"study-{recipe.name}", cells, launch)
    with folder.alone():
        results = [result for result in folder.results() if not (options.retry and result.failed)]
        folder.write(cells, results)
        if any(result is None for _, result in with_results(cells, results)):
            prepare_data(cells)
            if code := train_cells(folder, cells, hardware, options.zero):
                return code
    from lmrecipes.studies.page import write_page
    from lmrecipes.studies.record import rows_of, summary
    from lmrecipes.studies.show import markdown, print_rows

    results = [result for _, result in with_results(cells, folder.results()) if result is not None]
    rows, environment = rows_of(results), folder.surroundings()
    write_page(recipe, rows, environment, folder.page)
    if options.readme is not None:
        write_results_into(options.readme, markdown(recipe, rows, environment), "study")
    if options.json:
        from lmrecipes.files import json_text

        print(json_text({"environment": environment, **summary(results)}, indent=1))  # noqa: T201
    else:
        print_rows(recipe, rows, environment, folder.page)
    return 0 if any(row.finished for row in rows) else 3
