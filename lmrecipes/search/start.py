"""`lmrecipes search`: checks what is asked, starts the ranks that run the proxies, then says what they found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from lmrecipes.flags import parse
from lmrecipes.launcher import STOPPED, start_problems, start_processes
from lmrecipes.launching import quieten
from lmrecipes.machine import this_machine
from lmrecipes.planning.launch_pair import LaunchPair, Stage, own_pair, write_pair
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import find_recipe
from lmrecipes.search.folder import SearchFolder, open_search
from lmrecipes.search.plan import Question, answer, drawn_tasks, next_proxy, proxy_base


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, and with how much effort."""

    question: Annotated[Question, tyro.conf.arg(name="")] = field(default_factory=Question)
    steps: int = 40
    """Optimizer steps of a proxy."""
    rows: int = 500
    """Most validation rows of each task that a proxy is evaluated on."""
    processes: int | None = None
    """Ranks on this machine. None: every GPU, or one process on a CPU."""
    zero: Stage | None = None
    """ZeRO stage under DeepSpeed. None: plain torch (DDP where there are several processes)."""
    folder: Path | None = None
    """The search's folder. None: runs/search-NAME. The same command goes on with what it holds."""
    write: Path | None = None
    """Write the weights as YAML: the found ones where they are better, else the recipe's own."""
    json: bool = False
    """Machine-readable output."""


def search(reference: str, args: Sequence[str]) -> int:
    """Run `lmrecipes search REFERENCE ARGS`; returns the contract's exit code."""
    file = find_recipe(reference)
    options, recipe = parse(file, SearchOptions, args, f"lmrecipes search {reference}")
    if problems := [*mixture_problems(recipe), *question_problems(recipe, options)]:
        raise InputError(problems)
    quieten()
    hardware = this_machine(options.processes)
    base, question = proxy_base(recipe, options.steps, options.rows), options.question
    pair = own_pair(base, options.zero, hardware)
    if problems := [p for p in start_problems(base, pair, hardware) if p.severity == "error"]:
        raise InputError(problems)
    folder = open_search(options.folder or Path("runs") / f"search-{recipe.name}", base)
    if next_proxy(base, question, folder.results()) is not None:
        from lmrecipes.data.encode import encode_tasks

        encode_tasks(recipe)  # before any rank exists
        with folder.alone():
            code = start_processes(_rank_command(folder, question, pair), hardware.processes, AGAIN)
        if code in STOPPED:
            Console(stderr=True, soft_wrap=True).print(f"stopped. {AGAIN}: {len(folder.results())}", highlight=False)
        if code:
            return code
    from lmrecipes.search.show import as_json, print_answer, weights_yaml

    found = answer(base, question, folder.results())
    if options.write is not None:
        from lmrecipes.files import write_text_atomically

        options.write.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(options.write, weights_yaml(base, found))
    if options.json:
        from lmrecipes.files import json_text

        print(json_text(as_json(base, question, found), indent=1))  # noqa: T201
    else:
        print_answer(base, question, found, options.write)
    return 0


AGAIN = "The same command goes on from the finished proxies"
"""How to continue a search that was cut."""


def mixture_problems(recipe: Recipe) -> list[Problem]:
    """Why the recipe's mixture has no weights to search."""
    mixture, problems = recipe.mixture, []
    law = mixture.law or ("temperature" if mixture.temperature is not None else "explicit")
    if law != "explicit":
        what = f"the search looks for explicit weights, found the law {law!r}"
        fix = "write the shares that `lmrecipes show` prints as weights, with `mixture.law: explicit`"
        problems.append(Problem("mixture.law", what, fix, "search-mixture"))
    moving = {
        "schedule": bool(mixture.schedule),
        "adaptive.method": mixture.adaptive.method != "off",
        "replay": mixture.replay is not None,
    }
    for name in (name for name, moves in moving.items() if moves):
        what = "the search looks for weights that hold over the whole run"
        problems.append(Problem(f"mixture.{name}", what, "leave it out while you search", "search-mixture"))
    return problems


def question_problems(recipe: Recipe, options: SearchOptions) -> list[Problem]:
    """What is wrong with the search's own flags."""
    question, tasks = options.question, drawn_tasks(recipe)
    problems = []
    if len(tasks) < 2:
        what = f"only {tasks[0]!r} is drawn, so there are no shares to search"
        problems.append(Problem("tasks", what, "give two tasks or more a weight above 0", "search-tasks"))
    least = {"runs": len(tasks) + 2, "repeats": 2, "steps": 1, "rows": 1}
    reason = {"runs": ": the fit has as many unknowns for each task", "repeats": ": one seed shows no noise"}
    given = {"runs": question.runs, "repeats": question.repeats, "steps": options.steps, "rows": options.rows}
    for name, value in given.items():
        if value < least[name]:
            what = f"must be at least {least[name]}, found {value}{reason.get(name, '')}"
            problems.append(Problem(f"--{name}", what, f"give --{name} {least[name]} or more", "search-effort"))
    for name in question.targets:
        if name not in tasks:
            what = f"no task {name!r} is drawn.{did_you_mean(name, tasks)}"
            problems.append(Problem("--targets", what, f"name some of {listing(tasks)}", "search-target"))
    return problems


def _rank_command(folder: SearchFolder, question: Question, pair: LaunchPair | None) -> list[str]:
    command = ["-m", "lmrecipes.search.run", "--folder", str(folder.path), "--runs", str(question.runs)]
    command += ["--repeats", str(question.repeats), "--metric", question.metric]
    command += ["--targets", *question.targets] if question.targets else []
    if pair is not None:
        command += ["--deepspeed", str(write_pair(pair, folder.path / "launch")[0])]
    return command
