"""Every command of every README: the cheap ones run, the expensive ones go through the parsers that they would meet.

`TESTED` says for each command how; a command that it does not know fails the test.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tyro
from own_run import ROOT, own_run, rows_of, tiny_flags, write_csv

from lmrecipes import assets
from lmrecipes.cli import run as command
from lmrecipes.combine.options import CombineOptions, check_options
from lmrecipes.evaluate import EvaluateOptions
from lmrecipes.flags import parse
from lmrecipes.launcher import TrainOptions
from lmrecipes.launching import ProcessOptions
from lmrecipes.precision.audit.start import AuditOptions
from lmrecipes.predict import PredictOptions
from lmrecipes.publishing.export import ExportOptions
from lmrecipes.recipe_files import find_recipe
from lmrecipes.search.start import SearchOptions
from lmrecipes.serving.latency import LatencyOptions
from lmrecipes.studies.cells import plan_cells
from lmrecipes.studies.gate import GateOptions
from lmrecipes.studies.start import StudyOptions

READMES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("recipes/*/README.md")),
    *(ROOT / "docs" / name for name in ("gpt.md", "serving.md")),
]
PROGRAMS = ("./launch/", "lmrecipes ", "accelerate ", "deepspeed ", "torchrun ", "python ", "wandb ")


def commands_of(text: str) -> list[str]:
    """The command lines of the ```bash blocks: continued lines joined, comments and redirections cut off."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.split(r"\s+(?:#|\||<|>|&&)", line.strip().removeprefix("$ "))[0].strip()
            if re.sub(r"^([A-Z_]+=\S+\s+)+", "", line).startswith(PROGRAMS):
                found.append(line)
    return found


COMMANDS = sorted(
    {(path.relative_to(ROOT).as_posix(), line) for path in READMES for line in commands_of(path.read_text())}
)


@pytest.fixture
def place(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the README's reader has it: the repository's files, data of their own, runs/RUN and runs/OTHER."""
    finished = own_run(tiny)
    for name in ("docs", "launch", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")  # `--readme` writes into it
    shutil.copytree(finished.parents[1] / "data", tmp_path / "data")
    write_csv(
        tmp_path / "data" / "new.csv", [{"message": row["message"], "topic": row["topic"]} for row in rows_of("topic")]
    )
    for name in ("RUN", "OTHER"):
        shutil.copytree(finished, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


How = Callable[[Sequence[str], Path], None]


def runs(words: Sequence[str], tiny: Path) -> None:
    """The command itself."""
    assert command(words[1:]) == 0


def shows(words: Sequence[str], tiny: Path) -> None:
    """The command itself; only parsed where the recipe's data is not on this machine. With the tiny model, except for
    tasks on tokens, whose tokenizer must end texts."""
    file, args = find_recipe(words[2]), list(words[3:])
    tasks = parse(file, TrainOptions, args, "show")[1].tasks.values()
    if all(map(assets.is_cached, assets.ASSETS)) or not any(task.source.offline for task in tasks):
        runs(words if any(task.of_tokens for task in tasks) else [*words, *tiny_flags(tiny / "model")], tiny)


def trains(words: Sequence[str], tiny: Path) -> None:
    """Its flags, and that the recipe with them is whole."""
    parse(find_recipe(words[2]), TrainOptions, words[3:], "train")


def searches(words: Sequence[str], tiny: Path) -> None:
    """Its flags, and that the recipe with them is whole."""
    parse(find_recipe(words[2]), SearchOptions, words[3:], "search")


def studies(words: Sequence[str], tiny: Path) -> None:
    """Its flags, and that every cell is whole."""
    file = find_recipe(words[2])
    options, _ = parse(file, StudyOptions, words[3:], "study")
    assert plan_cells(file, options.variants, options.vary, options.seeds, StudyOptions, words[3:])


def gates(words: Sequence[str], tiny: Path) -> None:
    """Its flags, and that there is a gate. RUN: see tests/studies."""
    if words[2] != "runs/RUN":
        assert parse(find_recipe(words[2]), GateOptions, words[3:], "gate")[1].gates


def plans(words: Sequence[str], tiny: Path) -> None:
    """The command itself, with the tiny model."""
    runs([*words, *tiny_flags(tiny / "model")], tiny)


def audits(words: Sequence[str], tiny: Path) -> None:
    """Its flags; tests/precision runs it."""
    parse(find_recipe(words[2]), AuditOptions, words[3:], "audit")


def writes(words: Sequence[str], tiny: Path) -> None:
    """The command itself, into a folder of its own."""
    runs(words if "--write" in words else [*words, "--write", "written"], tiny)
    assert any(Path(words[words.index("--write") + 1] if "--write" in words else "written").glob("*.yaml"))


def starts(words: Sequence[str], tiny: Path) -> None:
    """`recipe.py` and its flags, as a process of the run reads them."""
    script, *args = words
    assert Path(script).is_file(), f"no file {script}"
    if Path(script).name == "recipe.py":
        options, _ = parse(find_recipe(script), ProcessOptions, args, script)
        assert options.deepspeed is None or options.deepspeed.is_file()


def plain(words: Sequence[str], tiny: Path) -> None:
    starts(words[1:], tiny)


def torchrun(words: Sequence[str], tiny: Path) -> None:
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(list(words[1:]))
    starts([args.training_script, *args.training_script_args], tiny)


def accelerate(words: Sequence[str], tiny: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    args = launch_command_parser().parse_args(list(words[2:]))
    assert args.config_file is None or Path(args.config_file).is_file()
    starts([args.training_script, *args.training_script_args], tiny)


def deepspeed(words: Sequence[str], tiny: Path) -> None:
    from deepspeed.launcher.runner import parse_args

    args = parse_args(list(words[1:]))
    starts([args.user_script, *args.user_args], tiny)


def evaluates(words: Sequence[str], tiny: Path) -> None:
    """The command itself, or with lm-eval its flags (tests/inference runs it)."""
    if "--lm-eval" in words:
        tyro.cli(EvaluateOptions, args=words[2:])
    elif "--precision" in words:
        assert command(words[1:]) in (0, 1)  # a tiny model with random weights need not meet the gate
    else:
        runs(words, tiny)


def combines(words: Sequence[str], tiny: Path) -> None:
    """Its flags, and that the student's recipe with its own is whole; tests/combine runs it."""
    options = tyro.cli(CombineOptions, args=words[2:])
    check_options(options)
    if options.student is not None:
        reference, *flags = shlex.split(options.student)
        parse(find_recipe(reference), TrainOptions, flags, "train")


def loads(words: Sequence[str], tiny: Path) -> None:
    """Its flags; tests/serving runs it."""
    tyro.cli(LatencyOptions, args=words[2:])


def predicts(words: Sequence[str], tiny: Path) -> None:
    """Its flags; tests/inference and tests/serving run it."""
    tyro.cli(PredictOptions, args=words[2:])


def exports(words: Sequence[str], tiny: Path) -> None:
    """The command itself; of an adapter, or to the hub, its flags (tests/publishing runs it)."""
    if "--adapter" in words or "--push-to-hub" in words:
        tyro.cli(ExportOptions, args=words[2:])
    else:
        runs(words, tiny)


def looks_up(words: Sequence[str], tiny: Path) -> None:
    """The command itself, unless it downloads: then only the names that it is given."""
    if "fetch" not in words:
        runs(words, tiny)
    for word in words[words.index("fetch") + 1 :] if "fetch" in words else ():
        assert word == "--quickstart" or assets.find(word)


def launches(words: Sequence[str], tiny: Path) -> None:
    """A script that tests/test_launch.py runs."""
    assert os.access(words[0], os.X_OK)
    assert words[0].removeprefix("./") in (ROOT / "tests" / "test_launch.py").read_text()


def is_installed(words: Sequence[str], tiny: Path) -> None:
    assert (Path(sys.executable).parent / words[0]).is_file()


TESTED: dict[str, How] = {
    "./launch/setup": launches,
    "./launch/quickstart": launches,
    "./launch/test": launches,
    "./launch/ensemble": launches,
    "lmrecipes list": runs,
    "lmrecipes show": shows,
    "lmrecipes check": runs,
    "lmrecipes configure": writes,
    "lmrecipes plan": plans,
    "lmrecipes audit": audits,
    "lmrecipes train": trains,
    "lmrecipes search": searches,
    "lmrecipes study": studies,
    "lmrecipes gate": gates,
    "lmrecipes evaluate": evaluates,
    "lmrecipes combine": combines,
    "lmrecipes latency": loads,
    "lmrecipes predict": predicts,
    "lmrecipes export": exports,
    "lmrecipes report": runs,
    "lmrecipes assets": looks_up,
    "lmrecipes schema": runs,
    "python": plain,
    "torchrun": torchrun,
    "accelerate launch": accelerate,
    "deepspeed": deepspeed,
    "wandb sync": is_installed,
}
"""First words of a command -> its test. An `lmrecipes train` that really runs is in test_own_data.py."""


@pytest.mark.parametrize(("readme", "line"), COMMANDS)
def test_command(readme: str, line: str, place: Path, tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    how = TESTED.get(" ".join(words[:2])) or TESTED.get(words[0])
    assert how is not None, f"{readme}: `{line}` has no test: add it to TESTED"
    try:
        how(words, tiny)
    except SystemExit as stop:
        pytest.fail(f"{readme}: `{line}` is refused ({stop.code}): {capfd.readouterr().err}")


def test_commands_are_found() -> None:
    text = """
Text: lmrecipes list

```bash
$ lmrecipes list   # comment
OMP_NUM_THREADS=2 lmrecipes train x \\
    --zero 2
cat texts | sort
lmrecipes schema > recipe.json
```

```yaml
lmrecipes: none
```
"""
    assert commands_of(text) == [
        "lmrecipes list",
        "OMP_NUM_THREADS=2 lmrecipes train x      --zero 2",
        "lmrecipes schema",
    ]


def test_the_readmes_name_files_that_are_there() -> None:
    for readme in READMES:
        for target in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
            assert (readme.parent / target).exists(), f"{readme}: {target}"
