"""`lmrecipes export`: a run's model as a folder of its own, or on the hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lmrecipes.files import link_or_copy
from lmrecipes.problems import InputError, Problem
from lmrecipes.publishing.card import MEMBERS, README, model_card
from lmrecipes.run_folder import DERIVED, RunFolder, open_run

ADAPTER = "adapter"
WITH_ADAPTER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "vocab.*",
    "merges.txt",
    "heads.*",
)
"""Files of the whole model that an adapter by itself needs too."""


@dataclass(frozen=True)
class ExportOptions:
    """Arguments of `lmrecipes export`."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a finished run."""
    to: Path | None = None
    """The new folder. None: only with --push-to-hub."""
    adapter: bool = False
    """Only the adapter, in peft's format, of a run with `model.lora`. Else the whole model, adapters merged."""
    push_to_hub: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME")] = None
    """Also upload it, with its model card."""
    private: bool = False
    """Where the repository is made now, only its owner sees it."""


def export_run(options: ExportOptions) -> list[str]:
    """Write the folder, upload it, or both; returns where the model is now. Raises InputError."""
    run = open_run(options.run)
    _check(run, options)
    repository = options.push_to_hub
    if repository is None:
        assert options.to is not None
        return [str(_written(run, options, options.to, str(options.to), shutil.copy2))]
    from lmrecipes.publishing.hub import open_hub, push

    api = open_hub(repository)
    if options.to is not None:
        folder = _written(run, options, options.to, repository, shutil.copy2)
        return [str(folder), push(api, folder, repository, options.private)]
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".export-") as staging:
        folder = _written(run, options, Path(staging) / "model", repository, link_or_copy)
        return [push(api, folder, repository, options.private)]


def _check(run: RunFolder, options: ExportOptions) -> None:
    """Everything that can be wrong before the hub is asked, at once."""
    problems, to = [], options.to
    combined = (run.model / MEMBERS).is_file()
    if not (run.model / "heads.json").is_file() and not combined:
        what = "the run has no exported model yet"
        fix = f"finish it: `lmrecipes train {run.recipe} --resume --run-folder {run.path}`"
        problems.append(Problem(str(run.model), what, fix, "model-missing"))
    elif options.adapter and not (run.model / ADAPTER).is_dir():
        what, fix = "the run trained no adapter (model.lora.rank is 0)", "leave --adapter out: export the whole model"
        problems.append(Problem("--adapter", what, fix, "export-adapter"))
    if to is None and options.push_to_hub is None:
        problems.append(Problem("--to", "is not given", "name a new folder, or --push-to-hub OWNER/NAME", "export-to"))
    if to is not None and to.exists() and (not to.is_dir() or any(to.iterdir())):
        problems.append(Problem("--to", f"{to} exists already", "name a new folder", "export-exists"))
    if options.private and options.push_to_hub is None:
        problems.append(Problem("--private", "is about the hub", "add --push-to-hub OWNER/NAME", "export-private"))
    if problems:
        raise InputError(problems)


def _written(run: RunFolder, options: ExportOptions, to: Path, name: str, copy: Callable[[str, str], object]) -> Path:
    """The folder `to`, complete or absent. name: what its card calls it."""
    partial = to.absolute().with_name(f".{to.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        left_out = shutil.ignore_patterns(ADAPTER, README, *DERIVED)
        if options.adapter:
            shutil.copytree(run.model / ADAPTER, partial, copy_function=copy)
            for file in (file for pattern in WITH_ADAPTER for file in run.model.glob(pattern)):
                copy(str(file), str(partial / file.name))
        else:
            shutil.copytree(run.model, partial, ignore=left_out, copy_function=copy)
        text = model_card(run, name, options.adapter, options.push_to_hub is not None)
        (partial / README).write_text(text, encoding="utf-8")
        partial.replace(to)
    except OSError as error:
        what = f"cannot be written: {error}"
        raise InputError(Problem("--to", what, "name another folder", "export-failed")) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to
