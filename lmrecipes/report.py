"""`lmrecipes report`: its arguments, and the page of runs, with the results table of a README where one is named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lmrecipes.problems import InputError, Problem
from lmrecipes.run_folder import RunFolder, open_run


@dataclass(frozen=True)
class ReportOptions:
    """Arguments of `lmrecipes report`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The runs' folders."""
    to: Path | None = None
    """The page. None: report.html in the first run's folder."""
    readme: Path | None = None
    """Also write the first run's results table between the markers `<!-- results -->` of this README; and between
    `<!-- alone -->`, where it has them, what each task reaches alone."""


def report(options: ReportOptions) -> Path:
    """Write the page, and the table; returns where the page is. Raises InputError."""
    if not options.runs:
        what, fix = "no RUN given", "write `lmrecipes report RUN [RUN ...]`"
        raise InputError(Problem("lmrecipes report", what, fix, "argument-missing"))
    from lmrecipes.studies.gains import markdown_alone
    from lmrecipes.tracking.report import write_report
    from lmrecipes.tracking.results import has_place, write_results_into

    runs = [open_run(run) for run in options.runs]
    page = write_report([run.path for run in runs], options.to or runs[0].report)
    if options.readme is not None:
        write_results_into(options.readme, _results(runs[0]))
        if runs[0].alone.is_file() and has_place(options.readme, "alone"):
            write_results_into(options.readme, markdown_alone(_read(runs[0].alone)), "alone")
    return page


def _results(run: RunFolder) -> str:
    """The table of a run, or of a combination, as Markdown."""
    from lmrecipes.combine.markdown import markdown_combination
    from lmrecipes.tracking.results import markdown_results

    if not run.evaluation.is_file():
        raise InputError(Problem(str(run.path), "the run has no results yet", "finish it", "run-unfinished"))
    environment = _read(run.environment)
    if run.combined.is_file():
        return markdown_combination(_read(run.combined), environment)
    return markdown_results(_read(run.evaluation), environment)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
