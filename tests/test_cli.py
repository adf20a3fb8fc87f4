"""The commands: exit codes, help, machine-readable output alone on stdout, and what they say to every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_recipe

from lmrecipes.cli import COMMANDS
from lmrecipes.cli import run as command
from lmrecipes.planning.launch_pair import STANDARD_PAIRS
from lmrecipes.problems import InputError, Problem

ROOT = Path(__file__).resolve().parents[1]
BERT = ROOT / "recipes" / "bert_multitask"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working directory, and a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


Write = Callable[..., str]


@pytest.fixture
def write(tiny: Path, here: Path) -> Write:
    """Write the tiny recipe with some fields changed to `mine.yaml`; returns the file's name."""

    def write_recipe(**changes: Any) -> str:
        Path("mine.yaml").write_text(yaml.safe_dump(make_recipe(tiny, **changes), sort_keys=False))
        return "mine.yaml"

    return write_recipe


def refused(capfd: Capture, *args: str) -> str:
    """What a command says on stderr when it refuses: exit code 2, nothing on stdout, no traceback, nothing written."""
    before = sorted(Path.cwd().rglob("*"))
    assert command(args) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "errors.pydantic.dev" not in err
    assert sorted(Path.cwd().rglob("*")) == before
    return err


# Help and facts


def test_help_and_list_import_neither_torch_nor_transformers() -> None:
    code = """
import sys
from lmrecipes.cli import run
for args in (["--help"], ["list"], ["train", "--help"], ["train", "bert_multitask", "--help"], ["schema"]):
    assert run(args) == 0, args
heavy = {"torch", "transformers", "deepspeed", "accelerate", "datasets", "pandas", "sklearn"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_console_script_returns_the_exit_code() -> None:
    script = Path(sys.executable).parent / "lmrecipes"
    done = subprocess.run([script, "lst"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Did you mean `list`?" in done.stderr
    closed = subprocess.run(f"{script} schema | head -1", shell=True, capture_output=True, text=True)
    assert (closed.stdout, closed.stderr) == ("{\n", "")


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_names_every_command(args: list[str], capfd: Capture) -> None:
    assert command(args) == 0
    out, err = capfd.readouterr()
    assert err == ""
    for name in COMMANDS:
        assert f"  {name}" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capfd: Capture, here: Path) -> None:
    assert command([name, "--help"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith(f"usage: lmrecipes {name}")
    takes_recipe = name in ("show", "check", "plan", "configure", "train", "search", "study", "gate", "audit")
    assert (f"`lmrecipes {name} RECIPE --help`" in out) == takes_recipe


def test_a_recipes_help_lists_every_field(capfd: Capture) -> None:
    assert command(["train", "bert_multitask", "--help"]) == 0
    out = capfd.readouterr().out
    wanted = ["--processes", "--optimizer.lr", "--tasks.era.max-length", "--batch.examples", "--full: About fifteen"]
    for flag in [*wanted, "--tasks.valence.source.on-bad-row", "Peak learning rate of the trunk."]:
        assert flag in out


def test_version(capfd: Capture) -> None:
    from lmrecipes import __version__

    assert command(["--version"]) == 0
    assert capfd.readouterr().out == f"{__version__}\n"


def test_list(capfd: Capture, here: Path) -> None:
    own = here / "recipes" / "mine" / "recipe.py"
    own.parent.mkdir(parents=True)
    own.write_text('"""My own."""\nraise RuntimeError("listing runs no recipe")\n')
    assert command(["list"]) == 0
    assert "bert_multitask" in capfd.readouterr().out
    assert command(["list", "--json"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    recipes = {row["name"]: row for row in json.loads(out)}
    assert recipes["bert_multitask"]["variants"] == ["full"]
    assert recipes["mine"]["about"] == "My own."


def test_schema_is_closed_and_described(capfd: Capture) -> None:
    assert command(["schema"]) == 0
    schema = json.loads(capfd.readouterr().out)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Optimizer"]["properties"]["lr"]["description"] == "Peak learning rate of the trunk."


def test_assets(capfd: Capture, here: Path, no_assets: Path) -> None:
    assert command(["assets"]) == 0
    assert "minilm" in capfd.readouterr().out
    assert "'minlm' is not an asset. Did you mean `minilm`?" in refused(capfd, "assets", "verify", "minlm")
    assert "minilm" in refused(capfd, "assets", "verify", "minilm")
    assert "'fetc'" in refused(capfd, "assets", "fetc")


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_show(columns: int, capfd: Capture, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    name = write()
    assert command(["show", name, "--optimizer.lr", "1e-4"]) == 0
    out = capfd.readouterr().out
    text, _, shown = out.partition("mixture: 10 steps x 16 = 160 examples; shares of examples by weight")
    assert yaml.safe_load(text)["optimizer"]["lr"] == 1e-4
    table, _, warnings = shown.partition("warning ")
    assert max(map(len, table.splitlines())) <= columns
    heads = next(line.split() for line in table.splitlines() if "rows" in line)
    assert heads[:3] == ["task", "rows", "tokens/row"]
    assert not {"cut", "masked", "bad", "in"} & set(heads), "columns that would say nothing are left out"
    short = " ".join(line for line in table.splitlines() if line.startswith(" short"))
    assert short.replace("short", "").split() == ["232", "4.7", "60.0%", "96", "60.0%", "449", "21.1%", "0.41"]
    assert "tasks.rare.weight: the whole run draws 5 of its examples, less than the 16 of one step" in warnings
    assert "fix: raise tasks.rare.weight" in warnings
    Path("shown.yaml").write_text(text)
    assert command(["show", "shown.yaml", "--json"]) == 0
    shown_again = json.loads(capfd.readouterr().out)
    assert shown_again["recipe"]["optimizer"]["lr"] == 1e-4
    assert shown_again["mixture"]["short"]["share"] == 0.6


def test_show_as_json_has_stable_keys(capfd: Capture, write: Write) -> None:
    assert command(["show", write(**{"schedule.steps": 1600, "tasks.long.max_epochs": 2}), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert list(shown) == ["recipe", "mixture", "warnings"]
    assert list(shown["mixture"]) == ["short", "long", "rare"]
    for fact in shown["mixture"].values():
        assert set(fact) == {
            "kind", "rows", "tokens", "tokens_per_row", "truncated", "supervised", "masked", "skipped", "duplicates",
            "share", "shares", "examples", "example_share", "planned_tokens", "token_share", "epochs", "exhausted_at",
        }  # fmt: skip
    long = shown["mixture"]["long"]
    assert (long["examples"], long["epochs"], long["exhausted_at"]) == (318, 2, 54)
    assert long["shares"] == [[0, 0.37], [54, 0]]
    assert sorted(problem["id"] for problem in shown["warnings"]) == ["mixture-exhausted", "mixture-repeats"]
    assert "its 232 rows are repeated 104 times" in " ".join(problem["what"] for problem in shown["warnings"])
    assert all(problem["severity"] == "warning" for problem in shown["warnings"])


def test_show_tells_what_changes_over_the_run(capfd: Capture, write: Write) -> None:
    """Waypoints, exhaustion, rows that were cut, and rows of one split that stand in another."""
    waypoints = [{"at": 0.25, "weights": {"rare": 1}}, {"at": 0.75, "weights": {"short": 0}}]
    changes = {"mixture": {"schedule": waypoints, "max_epochs": 3}, "model.max_length": 20, "schedule.steps": 40}
    rows = jsonl("rows.jsonl", list(range(40)))
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    name = write(**changes, **{"tasks.short.source": {"splits": splits}})
    assert command(["show", name]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "by weight, by schedule" in out
    for words in ("cut", "in 2 splits", "used up", "share from a step on", "step 11", "step 31"):
        assert words in out
    assert "tasks.short.source: 40 of 40 rows of validation (100.0%) stand in train too" in out
    assert "max_epochs is reached in step" in out


def test_show_of_many_changes_shows_some(capfd: Capture, write: Write) -> None:
    waypoints = [{"at": 0.5, "weights": {"rare": 1}}]
    name = write(mixture={"schedule": waypoints, "between": "linear", "unit": "tokens"}, **{"schedule.steps": 100})
    assert command(["show", name]) == 0
    out = capfd.readouterr().out
    assert "shares of tokens by weight, by schedule in straight lines" in out
    assert "share from a step on (8 of 51 changes)" in out
    assert "step 1 " in out and "step 51" in out


def test_show_of_a_replay_shows_its_plan(capfd: Capture, write: Write) -> None:
    entry = {"kind": "weights", "step": 2, "start": 80, "weights": {"short": 1, "long": 0, "rare": 1}, "method": "odm"}
    Path("plan.jsonl").write_text(json.dumps(entry) + "\n")
    assert command(["show", write(**{"mixture.replay": "plan.jsonl"}), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert {task: fact["shares"][1] for task, fact in shown["mixture"].items()} == {
        "short": [5, 0.5], "long": [5, 0], "rare": [5, 0.5]
    }  # fmt: skip


# Refusals


def test_command_and_recipe_that_are_not_known(capfd: Capture, here: Path) -> None:
    assert "no command 'tran'. Did you mean `train`?" in refused(capfd, "tran")
    assert "Did you mean `bert_multitask`?" in refused(capfd, "show", "bert_multitsk")
    assert "no file 'absent.yaml'" in refused(capfd, "train", "absent.yaml")
    assert "no RECIPE given" in refused(capfd, "train")
    assert "'--zero' stands where the RECIPE belongs" in refused(capfd, "train", "--zero", "2", "bert_multitask")


@pytest.mark.parametrize("name", ["evaluate", "export", "report"])
def test_run_that_is_not_there(name: str, capfd: Capture, here: Path) -> None:
    (here / "runs" / "good").mkdir(parents=True)
    to = ["--to", "new"] if name != "evaluate" else []
    assert "not a run folder: it has no recipe.yaml. Did you mean `good`?" in refused(capfd, name, "runs/god", *to)
    assert "RUN" in refused(capfd, name, *to)


@pytest.mark.parametrize("name", ["show", "train"])
def test_flag_that_is_not_known(name: str, capfd: Capture, write: Write) -> None:
    assert "--optimizer.lr FLOAT" in refused(capfd, name, write(), "--optimizer.lrr", "1")
    assert "--tasks.short.weight FLOAT" in refused(capfd, name, write(), "--tasks.shrt.weight", "1")


@pytest.mark.parametrize("name", ["show", "train"])
def test_wrong_values_by_flag_are_shown_together(name: str, capfd: Capture, write: Write) -> None:
    flags = ["--optimizer.lr", "-1", "--batch.examples", "0", "--tasks.long.labels", "a", "a"]
    said = refused(capfd, name, write(), *flags)
    assert "--optimizer.lr: must be greater than 0, found -1.0" in said
    assert "--batch.examples: must be at least 1, found 0" in said
    assert "--tasks.long.labels: names repeat" in said
    flags = ["--mixture.temperature", "0.5", "--tasks.short.weight", "-1", "--tasks.rare.max-epochs", "nan"]
    said = refused(capfd, name, write(), *flags)
    assert "--mixture.temperature: must be at least 1, found 0.5\n      fix: set mixture.temperature to 1" in said
    assert "--tasks.short.weight: must be at least 0, found -1.0" in said
    assert "--tasks.rare.max_epochs: must be a finite number, found nan" in said
    said = refused(capfd, name, write(), "--mixture.law", "unimax", "--mixture.temperature", "2")
    assert "--mixture.temperature: belongs to the law `temperature`, but mixture.law is unimax" in said
    assert "--mixture.max_epochs: the law `unimax` needs" in said
    assert "could not convert string to float: 'fast'" in refused(capfd, name, write(), "--optimizer.lr", "fast")
    assert "'adam'" in refused(capfd, name, write(), "--optimizer.name", "adam")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tasks.short.source.txt": "x"}, ["tasks.short.source.txt: unknown key 'txt'. Did you mean `text`?"]),
        ({"optimiser": {}}, ["optimiser: unknown key 'optimiser'. Did you mean `optimizer`?"]),
        ({"tasks.short.kind": "regresion"}, ["tasks.short.kind: must be", "Did you mean `regression`?"]),
        ({"tasks.short.metrics": ["accuracy"]}, ["tasks.short.metrics: ['accuracy'] are not among"]),
        ({"tasks.short.source.offline": "x"}, ["exactly one of files", "found files, offline"]),
        ({"model.max_length": "x", "seed": -1}, ["max_length: must be a valid integer, found 'x'", "seed: must be"]),
        ({"tasks.long": {"kind": "classification"}}, ["tasks.long.source: is required and missing", "add tasks.long"]),
        ({"tasks": {}}, ["tasks: "]),
        ({"mixture": {"schedule": [{"at": 0.5, "weights": {"lon": 1}}]}},
         ["mixture.schedule.0.weights.lon: the recipe has no task 'lon'. Did you mean `long`?",
          "fix: name one of short, long, rare"]),
        ({"mixture": {"schedule": [{"at": 0.5, "wights": {}}], "law": "unimx"}},
         ["unknown key 'wights'. Did you mean `weights`?", "mixture.schedule.0.weights: is required", "`unimax`"]),
    ],
)  # fmt: skip
def test_wrong_fields(changes: dict[str, Any], says: list[str], capfd: Capture, write: Write) -> None:
    said = refused(capfd, "train", write(**changes))
    assert said.count("mine.yaml: ") >= len(changes)
    for part in says:
        assert part in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tasks: [1, 2\nfoo: {", "broken.yaml: line 2, column 4: cannot be read as YAML"),
        ("name: a\nseed: 1\nname: b\n", "broken.yaml: line 3, column 1: cannot be read as YAML: 'name' is given twice"),
        ("- 1\n", "broken.yaml: a list, not a mapping of recipe fields"),
        ("", "broken.yaml: an empty file, not a mapping of recipe fields"),
    ],
)
def test_broken_yaml(text: str, says: str, capfd: Capture, here: Path) -> None:
    Path("broken.yaml").write_text(text)
    assert says in refused(capfd, "train", "broken.yaml")


def test_words_of_a_yaml_file_stay_words(write: Write, capfd: Capture) -> None:
    name = write(**{"tasks.long.labels": ["yes", "no", "on"]})
    Path(name).write_text(Path(name).read_text().replace("'", ""))  # wandb: off, and three bare labels
    from lmrecipes.recipe_files import recipe_from_yaml

    recipe = recipe_from_yaml(Path(name))
    assert recipe.tracking.wandb == "off"
    assert recipe.tracking.tensorboard is False
    assert recipe.tasks["long"].labels == ("yes", "no", "on")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("\nraise RuntimeError('boom')\n", "mine.py: line 2: cannot be read: RuntimeError: boom"),
        ("def (:\n", "mine.py: line 1: cannot be read: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(5)\n", "mine.py: line 2: cannot be read: SystemExit: 5"),
        ("import lmrecipe\n", "line 1: cannot be read: ModuleNotFoundError: No module named 'lmrecipe'"),
        ("def recipe():\n    return {}['x']\n", "mine.py: line 2: cannot be read: KeyError: 'x'"),
        ("def recipe():\n    return 3\n", "`recipe()` returns a int, not a Recipe"),
        ("x = 3\n", "defines no function `recipe() -> Recipe`"),
        ("from lmrecipes.recipe import Model\ndef recipe():\n    return Model(max_length=1)\n",
         "mine.py: line 3: max_length: must be at least 4, found 1"),
    ],
)  # fmt: skip
def test_broken_recipe_py(body: str, says: str, capfd: Capture, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("mine.py").write_text(body)
    assert says in refused(capfd, "train", "mine.py")


def jsonl(name: str, labels: list[Any]) -> str:
    """A file of one text for each label; returns its path."""
    rows = [{"text": f"good {'bad ' * (i % 5)}red", "label": label} for i, label in enumerate(labels)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_wrong_data_is_shown_for_all_tasks_at_once(capfd: Capture, write: Write) -> None:
    name = write(
        **{
            "tasks.short.source.files": jsonl("nan.jsonl", [1.0, float("nan"), 2.0]),
            "tasks.long.labels": ["medicine", "politics"],
            "tasks.rare.source.label": "labl",
        }
    )
    said = refused(capfd, "train", name)
    assert "tasks.short.source: 1 bad row(s): nan.jsonl line 2: label 'label' is NaN" in said.replace(
        "is nan", "is NaN"
    )
    assert "label 'other' is not one of the 2 labels (medicine, politics)" in said
    assert "tasks.rare.source.label: " in said
    assert "has no column 'labl'; it has text, label. Did you mean `label`?" in said
    assert command(["check", name, "--json"]) == 2
    ids = [problem["id"] for problem in json.loads(capfd.readouterr().out)]
    assert sorted(ids) == ["bad-rows", "bad-rows", "column-missing"]


def test_data_that_is_not_there(capfd: Capture, write: Write) -> None:
    Path("empty.jsonl").write_text("")
    said = refused(
        capfd, "train", write(**{"tasks.short.source.files": "empty.jsonl", "tasks.rare.source.files": "emty.jsonl"})
    )
    assert "tasks.short.source: has no rows" in said
    assert "no file 'emty.jsonl'" in said
    assert "Did you mean `empty.jsonl`?" in said


@pytest.mark.parametrize("name", ["show", "train"])
def test_caps_that_cannot_fill_the_run(name: str, capfd: Capture, write: Write) -> None:
    changes = {"mixture.max_epochs": 1, "schedule.steps": 100}
    said = refused(capfd, name, write(**changes))
    assert "mixture.max_epochs: the run draws 1,600 examples, max_epochs allows 437: short 232 (232 rows x 1)" in said
    assert "fix: set tasks.short.max_epochs to 6.02 or more, or schedule.steps to 27 or less" in said
    assert command(["show", write(**changes, **{"tasks.short.max_epochs": 6.02})]) == 0
    assert command(["show", write(**{**changes, "schedule.steps": 27})]) == 0
    capfd.readouterr()
    said = refused(capfd, name, write(**{"tasks.rare.max_epochs": 0.02}))
    assert "tasks.rare.max_epochs: 0.02 passes over the 46 rows of rare are less than one row" in said


def test_a_schedule_whose_tasks_run_out(capfd: Capture, write: Write) -> None:
    only_short = {"at": 0, "weights": {"short": 1, "long": 0, "rare": 0}}
    changes = {"mixture": {"schedule": [only_short, {"at": 0.5, "weights": {}}]}, "schedule.steps": 100}
    said = refused(capfd, "show", write(**changes, **{"tasks.short.max_epochs": 1}))
    assert "tasks.short.max_epochs: in step 15 of 100 max_epochs has used up every task with a weight" in said
    assert "568 more are to be drawn with these weights, up to step 50" in said
    assert "fix: set tasks.short.max_epochs to 3.45 or more" in said
    assert command(["show", write(**changes, **{"tasks.short.max_epochs": 3.45})]) == 0


def test_a_problem_is_said_once() -> None:
    first, second = Problem("a", "is odd", "make it even"), Problem("b", "is odd", "make it even")
    assert InputError([first, second, first]).problems == [first, second]


# Launch files


def test_check_without_files_speaks_of_every_pair(capfd: Capture, here: Path, no_assets: Path) -> None:
    """A contradiction in one pair of the folder; data that is not on this machine is not looked at."""
    folder = here / "recipes" / "bert_multitask"
    assert command(["configure", str(BERT / "recipe.py"), "--hardware", "2xA100", "--all", "--write", str(folder)]) == 0
    (folder / "recipe.py").write_text((BERT / "recipe.py").read_text())
    capfd.readouterr()
    assert command(["check", "bert_multitask"]) == 0
    broken = folder / "zero3_bf16.json"
    content = json.loads(broken.read_text())
    content["bf16"]["enabled"] = False
    content["zero_optimization"]["stag"] = content["zero_optimization"].pop("stage")
    broken.write_text(json.dumps(content))
    capfd.readouterr()
    assert command(["check", "bert_multitask", "--json"]) == 2
    out, err = capfd.readouterr()
    assert err == ""
    found = json.loads(out)
    assert all(set(problem) == {"where", "what", "fix", "id", "severity"} for problem in found)
    assert all("zero3_bf16" in problem["where"] + problem["what"] for problem in found)
    assert {"ds-unknown-key", "precision-mismatch"} <= {problem["id"] for problem in found}
    assert command(["check", "bert_multitask"]) == 2
    table = capfd.readouterr().out
    assert max(map(len, table.splitlines())) <= 80
    for problem in found:
        assert problem["id"] in table


def test_check_of_named_files(capfd: Capture, here: Path, no_assets: Path) -> None:
    assert command(["configure", "bert_multitask", "--hardware", "2xA100", "--write", "mine"]) == 0
    capfd.readouterr()
    pair = ["--accelerate", "mine/zero2_bf16.yaml", "--hardware", "2xA100"]
    assert command(["check", "bert_multitask", *pair]) == 0
    assert command(["check", "bert_multitask", *pair, "--precision.compute", "fp16", "--json"]) == 2
    assert "precision-mismatch" in capfd.readouterr().out
    assert command(["check", "bert_multitask", "--deepspeed", "absent.json", "--json"]) == 2
    assert json.loads(capfd.readouterr().out)[0]["id"] == "file-unreadable"
    assert command(["check", "bert_multitask", "--hardware", "2xA1000", "--json"]) == 2
    assert json.loads(capfd.readouterr().out)[0]["id"] == "hardware"


def test_check_with_warnings_only_exits_with_1(capfd: Capture, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmrecipes.planning import check

    warning = Problem("a.json: b", "is odd", "make it even", "odd", "warning")
    monkeypatch.setattr(check, "check_recipe", lambda *_: [warning])
    assert command(["check", write(**{"schedule.steps": 60})]) == 1
    out = capfd.readouterr().out
    assert "warning" in out
    assert "errors: 0, warnings: 1" in out


def test_configure_writes_the_committed_pairs(capfd: Capture, here: Path) -> None:
    folder = Path("recipes/bert_multitask")  # the same relative path as in the repository
    args = ["configure", str(BERT / "recipe.py"), "--hardware", "2xA100-80GB", "--all"]
    assert command([*args, "--write", str(folder)]) == 0
    written = sorted(Path(line) for line in capfd.readouterr().out.split())
    assert written == sorted(folder.iterdir())
    assert len(written) == 2 * len(STANDARD_PAIRS) + 1
    committed = sorted(
        path.name for path in BERT.iterdir() if path.suffix in (".json", ".yaml") and path.stem != "baselines"
    )
    assert [path.name for path in written] == committed
    for path in written:
        assert path.read_text() == (BERT / path.name).read_text(), f"run `lmrecipes {' '.join(args)}` again"
    yaml_of_pair = yaml.safe_load((folder / "zero2_bf16.yaml").read_text())
    assert yaml_of_pair["deepspeed_config"]["deepspeed_config_file"] == "recipes/bert_multitask/zero2_bf16.json"


def test_configure_one_pair(capfd: Capture, here: Path) -> None:
    args = [
        "configure",
        "bert_multitask",
        "--hardware",
        "8xA100",
        "--zero",
        "3",
        "--precision",
        "fp16",
        "--write",
        "mine",
    ]
    assert command(args) == 0
    assert sorted(p.name for p in Path("mine").iterdir()) == ["zero3_fp16.json", "zero3_fp16.yaml"]
    content = yaml.safe_load(Path("mine/zero3_fp16.yaml").read_text())
    assert content["num_processes"] == 8
    assert content["deepspeed_config"]["deepspeed_config_file"] == "mine/zero3_fp16.json"
    capfd.readouterr()
    said = refused(capfd, "configure", "bert_multitask", "--hardware", "2xcpu", "--precision", "fp16", "--write", "cpu")
    assert "fp16 under DeepSpeed needs a GPU" in said
    assert "hardware" in refused(capfd, "configure", "bert_multitask", "--hardware", "8 GPUs", "--write", "cpu")
    assert command(["configure", "bert_multitask", "--hardware", "2xcpu", "--all", "--write", "cpu"]) == 0
    assert not list(Path("cpu").glob("*fp16*"))
    assert "use_cpu: true" in Path("cpu/ddp.yaml").read_text()
    capfd.readouterr()
    file = "mine/zero3_fp16.yaml"
    assert f"{file}/x: Not a directory" in refused(capfd, "configure", "bert_multitask", "--write", f"{file}/x")


def test_configure_knows_the_recipes_precision(capfd: Capture, here: Path, no_assets: Path) -> None:
    """The pair is the recipe's own kind without a word about it; `check` then finds nothing to say."""
    pure = ["bert_multitask", "--precision.master-weights", "none"]
    assert command(["configure", *pure, "--hardware", "2xA100", "--write", "pure"]) == 0
    assert sorted(p.name for p in Path("pure").iterdir()) == ["zero2_pure_bf16.json", "zero2_pure_bf16.yaml"]
    same = ["configure", "bert_multitask", "--precision", "pure_bf16", "--hardware", "2xA100", "--write", "same"]
    assert command(same) == 0
    assert Path("same/zero2_pure_bf16.json").read_text() == Path("pure/zero2_pure_bf16.json").read_text()
    capfd.readouterr()
    files = ["--accelerate", "pure/zero2_pure_bf16.yaml", "--hardware", "2xA100", "--json"]
    assert command(["check", *pure, *files]) == 0
    capfd.readouterr()
    assert command(["check", "bert_multitask", *files]) == 2
    assert {problem["id"] for problem in json.loads(capfd.readouterr().out)} == {"masters-mismatch"}
    assert "pure-zero0" in refused(capfd, "configure", *pure, "--zero", "0", "--write", "no")
    assert "pure-offload" in refused(capfd, "configure", *pure, "--offload", "--write", "no")
    (here / "fp8.yaml").write_text(yaml.safe_dump({**make_recipe(here), "precision": {"layers": {"*": "fp8"}}}))
    assert command(["configure", "fp8.yaml", "--hardware", "2xH100", "--all", "--write", "fp8"]) == 0
    assert {p.stem for p in Path("fp8").glob("*.json")} == {
        "zero1_fp32",
        "zero2_fp32",
        "zero3_fp32",
        "zero2_fp32_offload",
        "zero3_fp32_offload",
    }
    assert command(["configure", *pure, "--hardware", "2xH100", "--all", "--write", "all"]) == 0
    assert {p.stem for p in Path("all").glob("*.json")} == {f"zero{stage}_pure_bf16" for stage in (1, 2, 3)}
    capfd.readouterr()
    assert "precision-hw" in refused(capfd, "configure", *pure, "--hardware", "2xV100", "--all", "--write", "no")


def test_check_says_what_fp16_and_fp8_are_on_a_cpu(capfd: Capture, write: Write, no_assets: Path) -> None:
    def said(*flags: str) -> tuple[int, set[str]]:
        code = command(["check", file, "--hardware", "2xcpu", "--json", *flags])
        return code, {problem["id"] for problem in json.loads(capfd.readouterr().out)}

    file = write(**{"schedule.steps": 60})
    assert said() == (0, set())
    assert said("--precision.compute", "fp16") == (1, {"fp16-cpu"})
    file = write(**{"schedule.steps": 60, "precision.layers": {"*": "fp8"}})
    assert said() == (1, {"fp8-hw"})
    assert said("--precision.fp8", "emulated") == (0, set())
    assert said("--precision.fp8", "native") == (2, {"fp8-hw"})
