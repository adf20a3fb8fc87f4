"""`lmrecipes combine`: what runs say of the same held-out rows, made one run, beside the alternatives."""

from __future__ import annotations

import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr
from typing import Any

import torch

from lmrecipes.combine.checkpoints import checkpoint_runs
from lmrecipes.combine.combination import Combination
from lmrecipes.combine.measures import facts_of
from lmrecipes.combine.members import ask
from lmrecipes.combine.options import CombineOptions, check_options
from lmrecipes.combine.panel import FITS, Panel
from lmrecipes.combine.soup import require_soup
from lmrecipes.combine.written import combined_recipe, results, write_blended_model, write_run
from lmrecipes.files import sync_folder
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.run_folder import RunFolder, new_run, open_run
from lmrecipes.training.evaluation import score_outputs


def combine(options: CombineOptions) -> dict[str, Any]:
    """Write the combined run; returns the content of its combination.json: run, method, of, and by task what
    `facts_of` gives. Raises InputError."""
    check_options(options)
    runs = [open_run(path) for path in options.runs]
    with redirect_stdout(stderr):  # what libraries print is not the answer
        if options.method == "distil":
            from lmrecipes.combine.distil import distil

            return distil(options)
        parent = Path("runs") if options.to is None else options.to.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".combine-") as scratch:
            return _combine(options, runs, Path(scratch))


def _combine(options: CombineOptions, runs: list[RunFolder], scratch: Path) -> dict[str, Any]:
    method, first = options.method, recipe_from_yaml(runs[0].recipe)
    of_weights = method not in FITS
    if method == "checkpoints":
        runs = [runs[0], *checkpoint_runs(runs[0], options.last, scratch)]
    panel = Panel.ask(runs, of_weights, first.evaluation.examples)
    if of_weights:
        alike = list(range(len(runs)))
        notes = panel.starts(alike)
        require_soup([run.model for run in runs], panel.names, list(panel.tasks))
    else:
        alike, notes = panel.alike()
    if options.weights == "greedy":
        alike = panel.greedy(scratch)
    blends = {} if method == "checkpoints" else panel.blends()
    called = "checkpoints" if method == "checkpoints" else "soup"
    soup = ask(panel.soup(alike, scratch / "soup"), called, panel.tasks, panel.most) if alike else None
    facts = {
        name: facts_of(task.metric_names[0], panel.candidates(name, blends, soup, method))
        for name, task in panel.tasks.items()
    }
    if of_weights:
        assert soup is not None
        model, said = scratch / "soup" / "model", soup.test
    else:
        model = scratch / "model"
        write_blended_model(model, method, runs, panel.names, blends[method], panel.specs[0])
        said = Combination.load(model).combined_outputs([one.test for one in panel.said])
    run = new_run(f"{first.name}-{method}") if options.to is None else RunFolder(options.to)
    made = {
        "run": run.path.resolve().name,
        "path": str(run.path),
        "method": method,
        "of": panel.names,
        "weights": options.weights if method == "soup" else None,
        "soup_of": [panel.names[at] for at in alike],
        "notes": [f"not combined, {left}" for left in panel.left_out] + notes,
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "tasks": facts,
    }
    recipe = combined_recipe(first, panel.tasks, method)
    scores = score_outputs(panel.tasks, panel.specs[0], said)
    of_members = {
        one.name: score_outputs(panel.tasks, own, one.test) for one, own in zip(panel.said, panel.specs, strict=True)
    }
    whole = RunFolder(scratch / "run" / run.path.resolve().name)
    write_run(whole, recipe, model, made, results(run, recipe, scores, runs, of_members, facts))
    whole.path.replace(run.path)
    sync_folder(run.path.absolute().parent)
    return made
