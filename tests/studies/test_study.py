"""`lmrecipes study` and `lmrecipes gate` as their user meets them: real cells on tiny data, cut and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Run
from made_study import failed_result, made_recipe, made_result, write_recipe
from tiny import make_recipe

from lmrecipes.cli import run as command
from lmrecipes.run_folder import recipe_yaml
from lmrecipes.studies.folder import StudyFolder, open_study
from lmrecipes.studies.gate import gate_cells

Capture = pytest.CaptureFixture[str]
LMRECIPES = str(Path(sys.executable).parent / "lmrecipes")


@pytest.fixture
def here(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `mine/recipe.py`, and a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write_recipe(tiny, tmp_path / "mine")
    return tmp_path


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_study_cut_continued_and_with_a_cell_that_fails(here: Path, run: Run, capfd: Capture) -> None:
    """The same results to the last bit as without the break; a cell that fails is named, and the others go on."""
    (here / "README.md").write_text("# Mine\n<!-- study -->\n<!-- /study -->\n")
    cells = ["study", "mine", "--variants", "recipe", "broken", "fp32", "--seeds", "2", "--schedule.steps", "20"]
    whole = run(LMRECIPES, *cells, "--folder", "whole", "--json", "--readme", "README.md", cwd=here)
    assert whole.returncode == 0, whole.stderr
    said = json.loads(whole.stdout)
    assert [(row["row"], row["seeds"], row["failed"]) for row in said["rows"]] == [
        ("recipe", 2, 0), ("broken", 0, 2), ("fp32", 2, 0),
    ]  # fmt: skip
    assert "cell 6/6" in whole.stderr
    assert "broken, seed 1: failed, step" in whole.stderr
    fp32 = said["rows"][2]
    assert fp32["metrics"]["short"]["deviation"] > 0
    assert fp32["bytes"]["weights"] == fp32["bytes"]["gradients"] == fp32["bytes"]["optimizer"] / 2
    assert fp32["bytes"]["weights"] == 4 * fp32["parameters"]
    assert fp32["bytes"]["activations"] > said["rows"][0]["bytes"]["activations"] > 0
    assert said["rows"][0]["against_first"] == 1
    assert said["environment"]["world_size"] == 1
    assert not list((here / "whole").glob("**/step-*")), "cells leave no checkpoints"
    readme = (here / "README.md").read_text()
    assert "| broken | –" in readme  # noqa: RUF001
    assert "broken, seed 0, failed: step" in readme
    page = (here / "whole" / "study.html").read_text()
    assert "Plotly.react" in page
    assert "https://" not in page.partition("<style>")[0]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [LMRECIPES, *cells, "--folder", "cut"]
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
    while not (here / "cut" / "study.json").exists() or not journal(here / "cut"):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "goes on from the finished cells: " in err
    before = journal(here / "cut")
    assert 0 < len(before) < 6
    again = run(*arguments, cwd=here)
    assert again.returncode == 0, again.stderr
    after = journal(here / "cut")
    assert after[: len(before)] == before

    def results(folder: str) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in journal(here / folder)]

    assert results("cut") == results("whole")
    stored = json.loads((here / "cut" / "study.json").read_text())
    assert [cell["seed"] for cell in stored["cells"]] == [0, 1] * 3

    # Everything is there: fewer or other rows of the same cells need no process.
    fewer = ["study", "mine", "--variants", "fp32", "broken", "--seeds", "1", "--schedule.steps", "20"]
    assert command([*fewer, "--folder", "cut"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert all(len(line) <= 80 for line in out.splitlines() if line.startswith(" "))
    assert out.index(" fp32 ") < out.index(" broken ")
    assert len(journal(here / "cut")) == 6, "what is not shown is kept"


def test_each_row_has_its_own_processes_under_deepspeed(here: Path, run: Run) -> None:
    common = ("study", "mine", "--variants", "recipe", "pure", "--seeds", "1", "--schedule.steps", "3")
    two = run(LMRECIPES, *common, "--processes", "2", "--zero", "2", "--json", cwd=here)
    assert two.returncode == 0, two.stderr
    starts = [line for line in two.stderr.splitlines() if line.startswith("$ ")]
    assert ["zero2_bf16.json" in starts[0], "zero2_pure_bf16.json" in starts[1]] == [True, True]
    assert len(starts) == 2
    mixed, pure = json.loads(two.stdout)["rows"]
    per_parameter = {name: held / mixed["parameters"] for name, held in mixed["bytes"].items()}
    assert per_parameter["weights"] == pytest.approx(2, rel=0.01)
    assert per_parameter["masters"] == pytest.approx(2, rel=0.01), "fp32, halved"
    assert pure["bytes"]["optimizer"] == pytest.approx(mixed["bytes"]["optimizer"] / 2, rel=0.01)


def test_what_cannot_run_is_refused_before_the_first_cell(here: Path, capfd: Capture) -> None:
    assert command(["study", "mine", "--variants", "recipe", "pure", "--zero", "0"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "pure: precision.master_weights" in err
    assert not Path("runs").exists()


# Gates


def write_gated(tiny: Path, **changes: Any) -> None:
    gates = {"parity": {"seeds": 2, "margin": 0.3, **changes}}
    steps = {"schedule.steps": 6, "precision.compute": "bf16", "gates": gates}
    Path("gated.yaml").write_text(yaml.safe_dump(make_recipe(tiny, **steps), sort_keys=False))


def test_a_run_is_held_to_its_gates(here: Path, tiny: Path, run: Run) -> None:
    write_gated(tiny)
    trained = run(LMRECIPES, "train", "gated.yaml", "--run-folder", "runs/one", cwd=here)
    assert trained.returncode == 0, trained.stderr
    assert "lmrecipes gate runs/one" in trained.stdout
    done = run(LMRECIPES, "gate", "runs/one", "--json", cwd=here)
    assert done.returncode in (0, 1), done.stderr
    assert "cell 4/4" in done.stderr
    assert "own, seed 0" not in done.stderr, "the run itself is one of its runs"
    said = json.loads((here / "runs" / "one" / "gates.json").read_text())
    assert said == json.loads(done.stdout)
    assert said["gates"]["parity"]["met"] == (done.returncode == 0)
    evaluation = json.loads((here / "runs" / "one" / "evaluation.json").read_text())
    assert said["gates"]["parity"]["tasks"]["long"]["pairs"][0][0] == evaluation["tasks"]["long"]["metrics"]["accuracy"]
    report = (here / "runs" / "one" / "report.html").read_text()
    assert "<h2>Gates</h2>" in report
    assert "one-sided paired t-test" in report


@pytest.mark.parametrize(
    ("own", "code", "words"), [(0.80, 0, ["gate parity: met"]), (0.40, 1, ["gate parity: not met", "worse by 0.4"])]
)
def test_exit_codes(own: float, code: int, words: list[str], here: Path, tiny: Path, capfd: Capture) -> None:
    """With results of all runs at hand, nothing is trained."""
    folder = made_gate(tiny, own)
    assert command(["gate", "gated.yaml"]) == code
    out, err = capfd.readouterr()
    assert err == ""
    for word in ["one-sided paired t-test", "95% confidence", *words]:
        assert word in out
    assert json.loads((folder.path / "gates.json").read_text())["gates"]["parity"]["met"] == (code == 0)
    assert command(["gate", "gated.yaml", "--gates.parity.margin", "0.9"]) == 0


def made_gate(tiny: Path, own: float) -> StudyFolder:
    """A gate all of whose runs are there already."""
    recipe = made_recipe(tiny, gates={"parity": {"seeds": 2, "margin": 0.3}})
    Path("gated.yaml").write_text(recipe_yaml(recipe))
    cells = gate_cells(recipe)
    folder = open_study(Path("runs/gate-tiny"), cells, {"processes": 1, "zero": None})
    values = {"own": own, "reference of parity": 0.8}
    folder.write(cells, [made_result(cell, short=("spearman", values[cell.variant])) for cell in cells])
    return folder


def test_a_failed_run_fails_the_gate(here: Path, tiny: Path, capfd: Capture) -> None:
    folder = made_gate(tiny, 0.8)
    cells, results = folder.cells(), folder.results()
    folder.write(cells, [*results[:3], failed_result(cells[3], "step 3: the loss is nan")])
    assert command(["gate", "gated.yaml"]) == 3
    err = capfd.readouterr().err
    assert "reference of parity, seed 1: step 3: the loss is nan" in err
    assert "--retry" in err
    assert not (folder.path / "gates.json").exists()


def test_gates_that_cannot_be_measured(here: Path, tiny: Path, capfd: Capture) -> None:
    assert command(["gate", "mine"]) == 2
    assert "gates: the recipe has none" in capfd.readouterr().err
    run = Path("runs/one")
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(recipe_yaml(made_recipe(tiny, gates={"parity": {"seeds": 2}})))
    assert command(["gate", str(run), "--processes", "2", "--optimizer.lr", "1e-4"]) == 2
    err = capfd.readouterr().err
    for word in ("--processes, --zero", "flags change what is trained", "environment.json"):
        assert word in err
