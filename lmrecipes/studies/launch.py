"""Starts the cells of a study: all in one group of processes, or under DeepSpeed each row in its own."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from lmrecipes.launcher import STOPPED, start_problems, start_processes
from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.launch_pair import Stage, own_pair, write_pair
from lmrecipes.problems import InputError, Problem
from lmrecipes.studies.cells import Cell
from lmrecipes.studies.folder import StudyFolder, with_results

AGAIN = "The same command goes on from the finished cells"
"""How to continue a study that was cut."""


def check_cells(cells: Sequence[Cell], hardware: Hardware, zero: Stage | None) -> None:
    """Raise InputError with all that is known to be wrong with any cell on this machine, before the first one runs."""
    problems: list[Problem] = []
    for row, cell in _first_of_rows(cells).items():
        try:
            found = start_problems(cell.recipe, own_pair(cell.recipe, zero, hardware), hardware)
        except InputError as error:
            found = error.problems
        problems += [Problem(f"{row}: {p.where}", p.what, p.fix, p.id) for p in found if p.severity == "error"]
    if problems:
        raise InputError(problems)


def train_cells(
    folder: StudyFolder, cells: Sequence[Cell], hardware: Hardware, zero: Stage | None,
    again: str = AGAIN, keep_outputs: bool = False,
) -> int:  # fmt: skip
    """Run the cells that have no result yet; returns the contract's exit code. again: how to go on with the rest.
    keep_outputs: also what each says of its test rows, in the folder's `outputs`.

    DeepSpeed's autocast is the process's, not the engine's: cells of different precision cannot share one.
    """
    rows = _first_of_rows(cells)
    for row in [None] if zero is None else rows:
        while _pending(folder, cells, row):
            command = ["-m", "lmrecipes.studies.run", "--folder", str(folder.path)]
            command += ["--keep-outputs"] if keep_outputs else []
            if row is not None:
                pair = own_pair(rows[row].recipe, zero, hardware)
                assert pair is not None
                command += ["--row", row, "--deepspeed", str(write_pair(pair, folder.path / "launch")[0])]
            code = start_processes(command, hardware.processes, again)
            if code in STOPPED:
                done = len(cells) - len(_pending(folder, cells, None))
                Console(stderr=True, soft_wrap=True).print(f"stopped. {again}: {done}", highlight=False)
            if code:
                return code
    return 0


def prepare_data(cells: Sequence[Cell]) -> None:
    """Encode what is not encoded yet, before any rank exists."""
    from lmrecipes.data.encode import encode_tasks

    for cell in _first_of_rows(cells).values():
        encode_tasks(cell.recipe)


def _first_of_rows(cells: Sequence[Cell]) -> dict[str, Cell]:
    rows: dict[str, Cell] = {}
    for cell in cells:
        rows.setdefault(cell.row, cell)
    return rows


def _pending(folder: StudyFolder, cells: Sequence[Cell], row: str | None) -> list[Cell]:
    planned = with_results(cells, folder.results())
    return [cell for cell, result in planned if result is None and row in (None, cell.row)]
