"""What a training process does: the `main` of every recipe, under python, torchrun, accelerate and deepspeed alike."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lmrecipes.flags import parse
from lmrecipes.problems import InputError, Problem, RunFailed
from lmrecipes.ranks import started_by_launcher, stop_with_parent
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import RecipeFile, find_recipe

DERIVED = ("batch-identity", "ga-mismatch")
NOT_LISTENED_TO = ("DeepSpeed", "torch.distributed", "accelerate", "httpx", "httpx2", "filelock")


@dataclass(frozen=True)
class ProcessOptions:
    """Where and how this run starts."""

    deepspeed: Path | None = None
    """A complete DeepSpeed JSON. None: what `accelerate launch` names in its YAML, else plain torch."""
    run_folder: Path | None = None
    """The run folder. None: a new one under runs/."""
    resume: bool = False
    """Continue from the newest checkpoint of `--run-folder`, or of this recipe's newest unfinished run."""
    until: int | None = None
    """Stop with a checkpoint after this step; `--resume` goes on from there."""


def main(*variants: Callable[[], Recipe]) -> None:
    """Run a recipe file as a script: `variants[0]` is the recipe, each other one a flag (`--full`)."""
    file = RecipeFile(Path(sys.argv[0]), {function.__name__: function for function in variants})
    sys.exit(guarded(lambda: run_process(file, sys.argv[1:])))


def guarded(action: Callable[[], int]) -> int:
    """Run an action and turn what it raises into the contract's exit codes, with a message instead of a traceback."""
    try:
        return action()
    except InputError as error:
        show_problems(error.problems)
        return 2
    except RunFailed as error:
        if os.environ.get("RANK", "0") == "0":
            Console(stderr=True).print("[bold red]the run failed[/]: ", end="")
            _say(str(error))
        return 3
    except KeyboardInterrupt:
        return 130


def show_problems(problems: Sequence[Problem]) -> None:
    """Problems on standard error, as one list; only rank 0 speaks."""
    if os.environ.get("RANK", "0") != "0":
        return
    console = Console(stderr=True, soft_wrap=True)
    for problem in problems:
        colour = "red" if problem.severity == "error" else "yellow"
        console.print(f"[bold {colour}]{problem.severity}[/] [dim]{problem.id}[/] ", end="")
        console.print(f"{problem.where}: {problem.what}", markup=False, highlight=False)
        console.print(f"      fix: {problem.fix}", markup=False, highlight=False, style="dim")


def run_process(file: RecipeFile, args: Sequence[str]) -> int:
    """One rank of a run, from its arguments to the results on the screen."""
    options, recipe = parse(file, ProcessOptions, args, file.path.name)
    quieten()
    deepspeed = read_deepspeed(options.deepspeed, file)
    check_launch(recipe, deepspeed)
    if started_by_launcher():
        stop_with_parent()
    from lmrecipes.training.loop import Start, Training
    from lmrecipes.training.signals import Interrupted

    start = Start(deepspeed[1] if deepspeed else None, options.run_folder, options.resume, options.until)
    training = Training(recipe, start)
    is_main = training.engine.is_main
    try:
        result = training.fit()
    except Interrupted as stop:
        if is_main:
            _say(f"{stop}. Go on with --resume --run-folder {training.run.path}")
        training.engine.barrier()  # a launcher ends the other ranks once one has ended
        return 128 + stop.number
    finally:
        training.engine.close()
    if is_main and not result:
        _say(f"stopped after step {training.state.step}. Go on with --resume --run-folder {training.run.path}")
    elif is_main:
        from lmrecipes.results import finish_run

        finish_run(training.run, file)
    return 0


def _say(line: str) -> None:
    Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)


def read_deepspeed(path: Path | None, file: RecipeFile) -> tuple[Path, dict[str, Any]] | None:
    """The DeepSpeed configuration of this launch: `--deepspeed`, or what Accelerate's YAML names."""
    if path is None:
        named = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() not in ("true", "1"):
            return None
        if named.lower() in ("none", ""):
            raise InputError(
                Problem(
                    "accelerate YAML: deepspeed_config",
                    "names no deepspeed_config_file, so the ZeRO stage would come from defaults",
                    "use a pair that `lmrecipes configure` writes",
                    "yaml-no-json",
                )
            )
        path = Path(named)
    if not path.is_file() and file.folder is not None and (file.folder / path.name).is_file():
        path = file.folder / path.name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            Problem("--deepspeed", f"no file {str(path)!r}", "give the path of a JSON", "file-missing")
        ) from None
    except ValueError as error:
        raise InputError(Problem(str(path), f"not JSON: {error}", "repair the file", "json-dialect")) from None
    return path, content


def check_launch(recipe: Recipe, deepspeed: tuple[Path, dict[str, Any]] | None) -> None:
    """The preflight rules on this launch; raises InputError with all errors found.

    The counts in the JSON are not compared: the engine derives them for the processes that really run.
    """
    from lmrecipes.machine import this_machine
    from lmrecipes.planning.launch_files import load_file
    from lmrecipes.planning.preflight import preflight

    if deepspeed is None:
        return
    machine = this_machine(int(os.environ.get("WORLD_SIZE", "1")))
    found = preflight(recipe, load_file(deepspeed[0], "deepspeed"), None, machine)
    errors = [problem for problem in found if problem.severity == "error" and problem.id not in DERIVED]
    if errors:
        raise InputError(errors)


def quieten() -> None:
    """Leave the terminal to the run's own messages."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    if "RANK" in os.environ or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in NOT_LISTENED_TO:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")


if __name__ == "__main__":
    sys.exit(guarded(lambda: run_process(find_recipe(sys.argv[1]), sys.argv[2:])))
