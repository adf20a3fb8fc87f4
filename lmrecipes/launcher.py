"""`lmrecipes train`: checks the recipe, prepares its data, then starts the ranks with one printed command."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from lmrecipes.flags import parse
from lmrecipes.launching import DERIVED, quieten, show_problems
from lmrecipes.machine import cores, this_machine
from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.launch_files import load_file
from lmrecipes.planning.launch_pair import LaunchPair, Stage, own_pair, write_pair
from lmrecipes.planning.preflight import preflight, preflight_pair
from lmrecipes.problems import InputError, Problem, RunFailed
from lmrecipes.ranks import run_ranks, send_to_children
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import RecipeFile, find_recipe
from lmrecipes.run_folder import RunFolder, claim_run, new_run, resumable_run

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1)
"""Exit codes of a rank that was asked to stop and did, with a checkpoint."""


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
    each_task_alone: bool = False
    """Afterwards train each task alone on as many examples, and show what it gains or loses among the others. With
    --resume and --run-folder of a finished run: only that."""
    baselines: bool = False
    """Afterwards train linear models (for tasks with labels) and the same model from scratch on the same data, and
    store their results."""


def train(reference: str, args: Sequence[str]) -> int:
    """Run `lmrecipes train REFERENCE ARGS`; returns the contract's exit code."""
    file = find_recipe(reference)
    options, recipe = parse(file, TrainOptions, args, f"lmrecipes train {reference}")
    quieten()
    hardware = this_machine(options.processes)
    pair = _pair(options, recipe, hardware)
    config = options.deepspeed
    if config is not None:
        found = preflight(recipe, load_file(config, "deepspeed"), None, hardware) + _model_problems(recipe)
    else:
        found = start_problems(recipe, pair, hardware)
    problems = [problem for problem in found if problem.id not in DERIVED]
    if any(problem.severity == "error" for problem in problems):
        raise InputError(problems)
    show_problems(problems)
    if options.each_task_alone and (done := _joint_before(options, recipe)) is not None:
        return _alone(done, recipe, hardware, options)
    _prepare_data(recipe)
    run = _run_folder(options, recipe)
    if pair is not None:
        config = write_pair(pair, run.path / "launch")[0]
    flags = _forwarded(args)
    code = start_ranks(file, run, config, hardware.processes, [*flags, *(["--resume"] if options.resume else [])])
    if code == 2 and not options.resume and {path.name for path in run.path.iterdir()} <= {"launch"}:
        shutil.rmtree(run.path)  # refused before it began; a folder of the user's own with other files stays
    if code == 0 and options.baselines and run.evaluation.is_file():
        _baselines(file, run, recipe, config, hardware.processes, flags)
    if code == 0 and options.each_task_alone and run.evaluation.is_file():
        return _alone(run, recipe, hardware, options)
    return code


def _joint_before(options: TrainOptions, recipe: Recipe) -> RunFolder | None:
    """The finished run that `--each-task-alone` is asked of; None where it is still to be trained. Raises InputError
    where there is nothing to compare."""
    from lmrecipes.studies.alone import check_alone, finished_before

    others = {"--deepspeed": options.deepspeed, "--offload": options.offload, "--until": options.until}
    check_alone(recipe, [name for name, value in others.items() if value])
    run = RunFolder(options.run_folder) if options.resume and options.run_folder is not None else None
    return run if run is not None and finished_before(run, recipe) else None


def _alone(run: RunFolder, recipe: Recipe, hardware: Hardware, options: TrainOptions) -> int:
    from lmrecipes.studies.alone import train_alone

    return train_alone(run, recipe, hardware, options.zero)


def start_ranks(file: RecipeFile, run: RunFolder, config: Path | None, processes: int, flags: Sequence[str]) -> int:
    """Start the ranks of a run and wait for them; prints the exact command first. Returns the contract's exit code."""
    target = [str(file.path)] if file.path.suffix == ".py" else ["-m", "lmrecipes.launching", str(file.path)]
    where = [*(["--deepspeed", str(config)] if config else []), "--run-folder", str(run.path)]
    again = f"Go on from the newest checkpoint with --resume --run-folder {run.path}"
    return start_processes([*target, *where, *flags], processes, again)


def start_processes(rank_command: Sequence[str], processes: int, again: str) -> int:
    """Start `python RANK_COMMAND` so many times under one launcher and wait; prints the exact command first.

    Returns the contract's exit code. Raises RunFailed where a rank broke without a word; `again`: how to go on then.
    """
    # INT and TERM are handed on below: by itself torch's launcher would kill ranks that save for more than 30 seconds.
    several = ["--standalone", f"--nproc_per_node={processes}", "--signals_to_handle=SIGQUIT"]
    launcher = ["-m", "torch.distributed.run", *several] if processes > 1 else []
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // processes))
    shown = shlex.join(["python", *launcher, *rank_command])
    Console(stderr=True, soft_wrap=True).print(f"$ OMP_NUM_THREADS={threads} {shown}", markup=False, highlight=False)
    environment = {"OMP_NUM_THREADS": threads, "LMRECIPES_COMMAND": shown}
    asked: list[int] = []
    with _environment(environment), _signals_handed_on(asked):
        codes = run_ranks([*several, *rank_command]) if processes > 1 else {0: _run_alone(rank_command)}
    return _exit_code(codes, asked, again)


def _run_alone(command: Sequence[str]) -> int:
    process = subprocess.Popen([sys.executable, *command], start_new_session=True)
    return process.wait()


def _exit_code(codes: dict[int, int], asked: Sequence[int], again: str) -> int:
    """One exit code from those of the ranks. A rank that ended by itself with 2 or 3 has said why."""
    if not any(codes.values()):
        return 0  # also where a signal came too late to stop anything
    if asked:
        return 128 + asked[0]
    spoken = [code for code in codes.values() if code in (2, 3, *STOPPED)]
    killed = {rank: signal.Signals(-code).name for rank, code in codes.items() if code < 0}
    # Torch's launcher ends the ranks that are left with TERM, and after 30 seconds with KILL.
    broken = {rank: f"ended with exit code {code}" for rank, code in codes.items() if code > 0 and code not in spoken}
    first = {rank: name for rank, name in killed.items() if name != "SIGTERM"}
    if spoken and not first and not broken:
        return spoken[0]
    by_signal = first if first or broken else killed
    reasons = {**{rank: f"was ended by {name}" for rank, name in by_signal.items()}, **broken}
    what = "; ".join(f"rank {rank} {reason}" for rank, reason in sorted(reasons.items()))
    hint = " (KILL from outside is most often the system, out of memory)" if "SIGKILL" in what else ""
    raise RunFailed(f"{what}{hint}. {again}")


def _pair(options: TrainOptions, recipe: Recipe, hardware: Hardware) -> LaunchPair | None:
    """The launch pair that --zero asks for; raises InputError for flags that contradict each other."""
    if options.deepspeed is not None and (options.zero is not None or options.offload):
        raise InputError(
            Problem("--deepspeed", "given together with --zero or --offload", "keep one of them", "flag-conflict")
        )
    if options.offload and options.zero is None:
        raise InputError(Problem("--offload", "needs a ZeRO stage", "add --zero 2 or --zero 3", "flag-conflict"))
    return own_pair(recipe, options.zero, hardware, options.offload)


def start_problems(recipe: Recipe, pair: LaunchPair | None, hardware: Hardware) -> list[Problem]:
    """What is known to be wrong with a run under the pair, or on plain torch, before anything is prepared."""
    return preflight_pair(recipe, pair, hardware) + _model_problems(recipe)


def _model_problems(recipe: Recipe) -> list[Problem]:
    """What only the models themselves can tell: layers by format, and a teacher. Both import torch."""
    problems: list[Problem] = []
    if recipe.precision.by_layer:
        from lmrecipes.precision.layer_rules import layer_problems

        problems += layer_problems(recipe)
    if recipe.distillation.teacher is not None:
        from lmrecipes.training.distillation import teacher_problems

        problems += teacher_problems(recipe)
    return problems


def _prepare_data(recipe: Recipe) -> None:
    """Encode what is not encoded yet, and ask a teacher what it has not been asked, before any rank exists. Raises
    InputError also where the data cannot fill the run."""
    from lmrecipes.adaptive.steering import Steering, replayed_plan
    from lmrecipes.data.encode import encode_tasks
    from lmrecipes.data.facts import mixture_of

    replayed = replayed_plan(recipe)
    tasks = encode_tasks(recipe)
    mixture = Steering(recipe, mixture_of(recipe, tasks), {}, replayed).mixture
    if recipe.distillation.teacher is not None:
        from lmrecipes.training.distillation import soft_targets
        from lmrecipes.training.losses import head_specs

        soft_targets(recipe, tasks, head_specs(tasks), mixture)


def _run_folder(options: TrainOptions, recipe: Recipe) -> RunFolder:
    if options.resume:
        return resumable_run(options.run_folder, recipe)
    return claim_run(options.run_folder) if options.run_folder is not None else new_run(recipe.name)


_OWN_FLAGS = {"--processes": 1, "--zero": 1, "--offload": 0, "--no-offload": 0, "--deepspeed": 1, "--run-folder": 1,
              "--resume": 0, "--no-resume": 0, "--baselines": 0, "--no-baselines": 0,
              "--each-task-alone": 0, "--no-each-task-alone": 0}  # fmt: skip


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


@contextmanager
def _signals_handed_on(asked: list[int]) -> Iterator[None]:
    """Hand Ctrl-C, TERM and a closed terminal to the ranks, which save and stop; `asked` receives the signals."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        send_to_children(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables that the ranks inherit."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _baselines(
    file: RecipeFile, run: RunFolder, recipe: Recipe, config: Path | None, processes: int, flags: Sequence[str]
) -> None:
    from lmrecipes.results import measure_baselines, show_results

    def train_scratch(folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = ["--model.initialization", "scratch", "--model.lora.rank", "0", "--tracking.wandb", "off"]
        code = start_ranks(file, RunFolder(folder), config, processes, [*flags, *scratch])
        if code != 0:
            raise RunFailed(f"the baseline from scratch ended with exit code {code}")
        content: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
        return content

    measure_baselines(run, file, recipe, train_scratch)
    show_results(run)
