"""`lmrecipes audit`: its arguments, what it writes, and the answer as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from sys import stderr
from typing import Annotated, Any, Literal

import tyro

from lmrecipes.flags import parse
from lmrecipes.precision.audit.judge import Budget, findings, verdicts
from lmrecipes.precision.audit.recommend import Recommendation, recommend
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe_files import find_recipe
from lmrecipes.recipe_precision import LayerFormat
from lmrecipes.run_folder import RunFolder, open_run

Candidate = Literal["fp8", "fp8_e4m3", "fp8_e5m2", "bf16", "fp16"]


@dataclass(frozen=True)
class AuditOptions:
    """How much is measured, and against what it is judged."""

    steps: int = 2
    """Audited steps."""
    after: int | None = None
    """Steps before them. None: 8 of training for a recipe, so that heads are not at zero any more; for a run without
    its optimizer's state 4 that fill the moments, with the weights at rest."""
    rows: int = 64
    """Rows of each activation and gradient in a step, and of each weight, on which the statistics stand."""
    budget: str = "normal"
    """strict, normal or loose; numbers on top of it: `normal,sqnr=28,gradient=22,underflow=0.005,scaling=none`."""
    formats: Annotated[tuple[Candidate, ...], tyro.conf.arg(metavar="FORMAT [FORMAT ...]")] = ("fp8", "bf16")
    """Formats to choose from, the most wanted first, fp32 the last in any case. Also: fp8_e4m3, fp8_e5m2, fp16."""
    write: Path | None = None
    """Write the recommended `precision:` block to this file."""
    json: bool = False
    """Machine-readable output."""


def audit(reference: str, args: Sequence[str]) -> int:
    """Run `lmrecipes audit REFERENCE ARGS`; returns the contract's exit code."""
    file = find_recipe(reference)
    options, recipe = parse(file, AuditOptions, args, f"lmrecipes audit {reference}")
    budget = Budget.parse(options.budget)
    run = open_run(reference) if (Path(reference) / "recipe.yaml").is_file() else None
    problems = _option_problems(options)
    if run is not None and (run.model / "combination.json").is_file():
        fix = f"audit one of its members: {run.model / 'members' / '0'}"
        problems.append(
            Problem(str(run.path), "a combination of runs has no weights of its own", fix, "audit-combined")
        )
    if problems:
        raise InputError(problems)
    from lmrecipes.launching import quieten
    from lmrecipes.precision.audit.text import audit_bar, print_audit

    quieten()
    with redirect_stdout(stderr), audit_bar() as moved:  # what libraries print is not the answer
        from lmrecipes.precision.audit.live import measure

        found = measure(recipe, run, options.steps, options.after, options.rows, moved)
    candidates: tuple[LayerFormat, ...] = options.formats
    recommendation = recommend(found.layers, found.names, candidates, budget, recipe.precision.pure)
    said = {
        "recipe": recipe.name,
        "run": run.path.name if run is not None else None,
        "weights": found.weights,
        "optimizer": found.optimizer,
        "from_step": found.from_step,
        "steps": options.steps,
        "rows": options.rows,
    }
    judged = {"budget": {"name": options.budget, **asdict(budget)}, "formats": list(candidates)}
    advice = as_json(recommendation, title_of(said, options.budget))
    answer = {
        **said,
        **judged,
        "layers": [{**asdict(layer), "format": recommendation.formats[layer.name]} for layer in found.layers],
        "unsafe": verdicts(found.layers, candidates, budget),
        "findings": [asdict(finding) for finding in findings(found.layers)],
        "recommendation": advice,
    }
    if options.write is not None:
        from lmrecipes.files import write_text_atomically

        write_text_atomically(options.write, advice["yaml"])
    if run is not None:
        _keep(run, answer)
    if options.json:
        from lmrecipes.files import json_text

        print(json_text(answer, indent=1))  # noqa: T201
    else:
        print_audit(answer, found.layers, options.write, run)
    return 0


def title_of(said: dict[str, Any], budget: str) -> str:
    """What the recommended block says of itself."""
    of = said["run"] or said["recipe"]
    return f"recommended by `lmrecipes audit` of {of} ({said['steps']} step(s), budget {budget})"


def as_json(recommendation: Recommendation, title: str) -> dict[str, Any]:
    """The recommendation for programs."""
    pure = recommendation.pure
    return {
        "precision": recommendation.block,
        "yaml": recommendation.yaml(title),
        "without_master_weights": None if pure is None else {**asdict(pure), "what": pure.what},
    }


def _keep(run: RunFolder, answer: dict[str, Any]) -> None:
    """Store an audit with its run, and show it in the run's report."""
    from lmrecipes.files import write_json
    from lmrecipes.tracking.report import write_report

    write_json(run.audit, answer)
    write_report([run.path], run.report)


def _option_problems(options: AuditOptions) -> list[Problem]:
    problems = []
    if not options.formats:
        fix = "name one or more, for example `--formats fp8 bf16`"
        problems.append(Problem("--formats", "names no format", fix, "audit-formats"))
    efforts = (("--steps", options.steps, 1), ("--after", options.after, 0), ("--rows", options.rows, 16))
    for flag, value, least in efforts:
        if value is not None and value < least:
            what = f"must be at least {least}, found {value}"
            problems.append(Problem(flag, what, f"give {flag} {least} or more", "audit-effort"))
    return problems
