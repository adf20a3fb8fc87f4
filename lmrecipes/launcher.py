"""`lmrecipes train`: checks the recipe, prepares its data, then starts the ranks with one printed command."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from lmrecipes.launching import parse, quieten, show_problems
from lmrecipes.machine import cores, this_machine
from lmrecipes.planning.launch_files import load_file
from lmrecipes.planning.launch_pair import Stage, launch_pair, write_pair
from lmrecipes.planning.preflight import preflight
from lmrecipes.problems import InputError, Problem, RunFailed
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import RecipeFile, find_recipe
from lmrecipes.run_folder import RunFolder, latest_run, new_run, open_run


@dataclass(frozen=True)
class TrainOptions:
    """Where and how the run starts."""

    processes: int | None = None
    """Ranks on this machine. None: every GPU, or one process on a CPU."""
    zero: Stage | None = None
    """ZeRO stage under DeepSpeed. None: plain torch (DDP where there are several processes)."""
    offload: bool = False
    """With --zero 2 or 3: optimizer states (and at 3 the parameters) in the host's memory."""
    deepspeed: Path | None = None
    """A DeepSpeed JSON of your own, in place of --zero."""
    run_folder: Path | None = None
    """The run folder. None: a new one under runs/."""
    resume: bool = False
    """Continue from the newest checkpoint of `--run-folder`, or of this recipe's newest unfinished run."""
    until: int | None = None
    """Stop with a checkpoint after this step; `--resume` goes on from there."""
    baselines: bool = False
    """Afterwards train TF-IDF + linear and the same model from scratch on the same data, and store their results."""


def train(reference: str, args: Sequence[str]) -> int:
    """Run `lmrecipes train REFERENCE ARGS`; returns the contract's exit code."""
    file = find_recipe(reference)
    options, recipe = parse(file, TrainOptions, args, f"lmrecipes train {reference}")
    quieten()
    hardware = this_machine(options.processes)
    config = _deepspeed_config(options, recipe, hardware.device, hardware.processes)
    if config is not None:
        problems = preflight(recipe, load_file(config, "deepspeed"), None, hardware)
        errors = [p for p in problems if p.severity == "error" and (options.deepspeed or p.id not in ("json-path",))]
        if errors:
            raise InputError(errors)
        show_problems(problems)
    elif why := hardware.why_not(recipe.precision.compute):
        raise InputError(Problem("precision.compute", why, "use another precision", "precision-hw"))
    _prepare_data(recipe)
    run = _run_folder(options, recipe)
    flags = _forwarded(args)
    code = start_ranks(file, run, config, hardware.processes, [*flags, *(["--resume"] if options.resume else [])])
    if code == 0 and options.baselines and run.evaluation.is_file():
        _baselines(file, run, recipe, config, hardware.processes, flags)
    return code


def start_ranks(file: RecipeFile, run: RunFolder, config: Path | None, processes: int, flags: Sequence[str]) -> int:
    """Start the ranks of a run and wait for them; prints the exact command first."""
    target = [str(file.path)] if file.path.suffix == ".py" else ["-m", "lmrecipes.launching", str(file.path)]
    where = [*(["--deepspeed", str(config)] if config else []), "--run-folder", str(run.path)]
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launch, *target, *where, *flags]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // processes))
    shown = shlex.join(["python", *command[1:]])
    Console(stderr=True, soft_wrap=True).print(f"$ OMP_NUM_THREADS={threads} {shown}", markup=False, highlight=False)
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": threads, "LMRECIPES_COMMAND": shown}, start_new_session=True
    )
    asked = _forward_signals(process)
    code = process.wait()
    if asked:
        return 128 + asked[0]
    if code in (0, 2, 3):
        return code
    raise RunFailed(f"a rank ended with exit code {code}; its message stands above. The run folder is {run.path}")


def _deepspeed_config(options: TrainOptions, recipe: Recipe, device: Any, processes: int) -> Path | None:
    """The DeepSpeed JSON: the user's, or one written for --zero into the cache of launch files."""
    if options.deepspeed is not None:
        if options.zero is not None or options.offload:
            raise InputError(
                Problem("--deepspeed", "given together with --zero or --offload", "keep one of them", "flag-conflict")
            )
        return options.deepspeed
    if options.zero is None:
        if options.offload:
            raise InputError(Problem("--offload", "needs a ZeRO stage", "add --zero 2 or --zero 3", "flag-conflict"))
        return None
    pair = launch_pair(recipe, options.zero, recipe.precision.compute, processes, device, options.offload)
    return write_pair(pair, Path("runs") / "launch" / recipe.name)[0]


def _prepare_data(recipe: Recipe) -> None:
    """Encode what is not encoded yet, before any rank exists."""
    from lmrecipes.data.encode import encode_tasks

    encode_tasks(recipe)


def _run_folder(options: TrainOptions, recipe: Recipe) -> RunFolder:
    if options.resume:
        run = open_run(options.run_folder) if options.run_folder is not None else latest_run(recipe.name)
        if run is None:
            problem = f"no unfinished run of {recipe.name!r} under runs/"
            raise InputError(Problem("--resume", problem, "name one with --run-folder", "resume-nothing"))
        return run
    if options.run_folder is None:
        return new_run(recipe.name)
    if (options.run_folder / "metrics.jsonl").exists():
        raise InputError(
            Problem("--run-folder", f"{options.run_folder} holds a run already", "add --resume, or name a new folder", "run-exists")
        )
    options.run_folder.mkdir(parents=True, exist_ok=True)
    return RunFolder(options.run_folder)


_OWN_FLAGS = {"--processes": 1, "--zero": 1, "--offload": 0, "--no-offload": 0, "--deepspeed": 1, "--run-folder": 1,
              "--resume": 0, "--no-resume": 0, "--baselines": 0, "--no-baselines": 0}  # fmt: skip


def _forwarded(args: Sequence[str]) -> list[str]:
    """The recipe's own flags among the arguments: what every rank must be told."""
    kept, skip = [], 0
    for arg in args:
        name, has_value, _ = arg.partition("=")
        if skip:
            skip -= 1
        elif name in _OWN_FLAGS:
            skip = 0 if has_value else _OWN_FLAGS[name]
        else:
            kept.append(arg)
    return kept


def _forward_signals(process: subprocess.Popen[bytes]) -> list[int]:
    """Hand Ctrl-C and TERM to the ranks, which save and stop; returns the list that the first signal is put into."""
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        process.send_signal(signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    return asked


def _baselines(
    file: RecipeFile, run: RunFolder, recipe: Recipe, config: Path | None, processes: int, flags: Sequence[str]
) -> None:
    from lmrecipes.results import measure_baselines, show_results

    def train_scratch(folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = ["--model.initialization", "scratch", "--tracking.wandb", "off"]
        code = start_ranks(file, RunFolder(folder), config, processes, [*flags, *scratch])
        if code != 0:
            raise RunFailed(f"the baseline from scratch ended with exit code {code}")
        content: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
        return content

    measure_baselines(run, file, recipe, train_scratch)
    show_results(run)
