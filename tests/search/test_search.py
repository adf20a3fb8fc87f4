"""`lmrecipes search` as its user meets it: real proxies on tiny data, cut and continued, its answer, its refusals."""

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
from made_search import made_recipe, only_noise, power_law, searched
from tiny import make_recipe

from lmrecipes.cli import run as command
from lmrecipes.flags import parse
from lmrecipes.launcher import TrainOptions
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import find_recipe
from lmrecipes.run_folder import recipe_yaml
from lmrecipes.search.folder import SearchFolder, open_search
from lmrecipes.search.plan import Question
from lmrecipes.search.show import flags, print_answer, weights, weights_yaml

Capture = pytest.CaptureFixture[str]
LMRECIPES = str(Path(sys.executable).parent / "lmrecipes")
SMALL = ("--runs", "5", "--repeats", "2", "--rows", "20")


@pytest.fixture
def here(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `mine.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("mine.yaml").write_text(yaml.safe_dump(make_recipe(tiny), sort_keys=False))
    return tmp_path


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_search_from_end_to_end_cut_and_continued(here: Path, run: Run, capfd: Capture) -> None:
    """One search without a break, and the same one stopped by Ctrl-C in between: the same losses to the last bit."""
    whole = run(LMRECIPES, "search", "mine.yaml", *SMALL, "--steps", "25", "--json", "--write", "w.yaml", cwd=here)
    assert whole.returncode == 0, whole.stderr
    said = json.loads(whole.stdout)
    assert set(said["found_shares"]) == set(said["own_shares"]) == {"short", "long", "rare"}
    assert sum(said["found_shares"].values()) == pytest.approx(1)
    assert f"proxy {said['proxies']}/9" in whole.stderr
    done = journal(here / "runs" / "search-tiny")
    assert len(done) == said["proxies"] == 7 + 2 * (said["measured"] is not None)
    assert {score["rows"] <= 20 for row in done for score in row["scores"].values()} == {True}
    assert sorted(path.name for path in (here / "runs" / "search-tiny").iterdir()) == [
        ".lock", "results.jsonl", "settings.json",
    ]  # fmt: skip
    assert list((here / "runs").iterdir()) == [here / "runs" / "search-tiny"], "proxies leave no runs behind"
    written = yaml.safe_load(Path("w.yaml").read_text())
    assert written == {"tasks": {name: {"weight": weight} for name, weight in said["weights"].items()}}

    arguments = ["search", "mine.yaml", *SMALL, "--steps", "25", "--folder", "cut"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([LMRECIPES, *arguments], env=environment, stderr=subprocess.PIPE, text=True)
    while not (here / "cut" / "results.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "goes on from the finished proxies" in err
    before = journal(here / "cut")
    assert 0 < len(before) < len(done)
    with (here / "cut" / "results.jsonl").open("a") as file:
        file.write('{"proxy": {"kind": "de')  # as a machine that loses power leaves it
    again = run(LMRECIPES, *arguments, cwd=here)
    assert again.returncode == 0, again.stderr
    after = journal(here / "cut")
    assert after[: len(before)] == before
    strip = [{key: value for key, value in row.items() if key != "seconds"} for row in (*after, *done)]
    assert strip[: len(after)] == strip[len(after) :]

    assert command(["search", "mine.yaml", *SMALL, "--steps", "25"]) == 0  # all is there: no process is started
    out, err = capfd.readouterr()
    assert err == ""
    assert ("keep your weights" in out) == (not said["better"])
    assert all(len(line) <= 80 for line in out.splitlines() if line.startswith(" "))


def test_two_ranks_and_deepspeed_give_the_same_losses(here: Path, run: Run) -> None:
    common = ("search", "mine.yaml", *SMALL, "--steps", "3")
    one = run(LMRECIPES, *common, "--folder", "one", cwd=here)
    two = run(LMRECIPES, *common, "--folder", "two", "--processes", "2", "--zero", "2", "--json", cwd=here)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert json.loads(two.stdout)["proxies"] >= 7
    for a, b in zip(journal(here / "one")[:7], journal(here / "two")[:7], strict=True):
        assert a["proxy"] == b["proxy"]
        for task, score in a["scores"].items():
            assert b["scores"][task]["loss"] == pytest.approx(score["loss"], rel=1e-4)


# What it refuses


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--runs", "4"], ["--runs", "at least 5"]),
        (["--repeats", "1", "--steps", "0"], ["--repeats", "--steps"]),
        (["--targets", "shrot"], ["Did you mean `short`?"]),
        (["--mixture.temperature", "2"], ["mixture.law", "'temperature'", "lmrecipes show"]),
        (["--mixture.law", "proportional"], ["mixture.law", "'proportional'"]),
        (["--mixture.adaptive.method", "odm"], ["mixture.adaptive.method"]),
        (["--mixture.replay", "plan.jsonl"], ["mixture.replay"]),
        (["--tasks.short.weight", "0", "--tasks.rare.weight", "0"], ["only 'long' is drawn"]),
        (["--precision.compute", "fp16", "--zero", "2"], ["precision.compute"]),
    ],
)
def test_refusals(args: list[str], words: list[str], here: Path, capfd: Capture) -> None:
    assert command(["search", "mine.yaml", *args]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    for word in words:
        assert word in err
    assert not Path("runs").exists()


def test_a_schedule_of_weights_is_refused(here: Path, tiny: Path, capfd: Capture) -> None:
    recipe = make_recipe(tiny, **{"mixture.schedule": [{"at": 0.5, "weights": {"short": 1}}]})
    Path("mine.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert command(["search", "mine.yaml"]) == 2
    assert "mixture.schedule" in capfd.readouterr().err


def test_another_search_in_the_folder_is_refused(tmp_path: Path) -> None:
    base = made_recipe(a=1, b=2)
    assert open_search(tmp_path / "s", base).base() == base
    faster = base.model_copy(update={"batch": base.batch.model_copy(update={"micro_examples": 4})})
    assert open_search(tmp_path / "s", faster).base() == faster, "what no result depends on may change"
    longer = base.model_copy(update={"schedule": base.schedule.model_copy(update={"steps": 41}), "seed": 1})
    with pytest.raises(InputError) as refused:
        open_search(tmp_path / "s", longer)
    assert [problem.where for problem in refused.value.problems] == ["schedule.steps", "seed"]
    rows = base.model_copy(update={"evaluation": base.evaluation.model_copy(update={"examples": 7})})
    with pytest.raises(InputError, match=r"evaluation\.examples"):
        open_search(tmp_path / "s", rows)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="holds no search"):
        open_search(tmp_path, made_recipe(a=1, b=2))


def test_one_command_at_a_time(tmp_path: Path) -> None:
    folder = open_search(tmp_path / "s", made_recipe(a=1, b=2))
    with folder.alone(), pytest.raises(InputError, match="another search runs"), SearchFolder(folder.path).alone():
        pass
    with folder.alone():
        pass


def test_results_are_kept_as_they_were(tmp_path: Path) -> None:
    base = made_recipe(a=1, b=1, c=1, d=1)
    results, _ = searched(base, Question(), power_law([0.02, 0.02, 0.02, 0.3], 0.005))
    folder = open_search(tmp_path / "s", base)
    assert folder.results() == []
    folder.write(results)
    assert SearchFolder(folder.path).results() == results


# What it says


UNEVEN = made_recipe(own_task=1, b=1, off=0, c=1, d=1)


def test_found_weights_are_said_as_yaml_and_flags_that_train_takes(tmp_path: Path, capsys: Capture) -> None:
    _, said = searched(UNEVEN, Question(), power_law([0.02, 0.02, 0.02, 0.3], 0.005))
    assert said.better
    found = weights(UNEVEN, said)
    assert found["off"] == 0
    assert yaml.safe_load(weights_yaml(UNEVEN, said)) == {"tasks": {name: {"weight": w} for name, w in found.items()}}
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_yaml(UNEVEN))
    _, recipe = parse(find_recipe(str(path)), TrainOptions, flags(UNEVEN, said).split(), "train")
    assert {name: task.weight for name, task in recipe.tasks.items()} == found
    pasted = yaml.safe_load(recipe_yaml(UNEVEN))
    for name, task in yaml.safe_load(weights_yaml(UNEVEN, said))["tasks"].items():
        pasted["tasks"][name] |= task
    assert Recipe.model_validate(pasted) == recipe
    print_answer(UNEVEN, Question(), said, None)
    out = capsys.readouterr().out
    assert "take the found weights" in out
    assert flags(UNEVEN, said) in out
    assert "mean" in out


def test_where_the_own_are_kept_no_others_are_offered(capsys: Capture) -> None:
    said = [searched(UNEVEN, Question(), only_noise(0.02, seed))[1] for seed in range(6)]
    kept = [answer for answer in said if not answer.better]
    assert len(kept) >= 5
    for answer in kept:
        assert weights(UNEVEN, answer) == {name: task.weight for name, task in UNEVEN.tasks.items()}
        assert weights_yaml(UNEVEN, answer).startswith("# the recipe's own")
        print_answer(UNEVEN, Question(metric="headline", targets=("b",)), answer, None)
    out = capsys.readouterr().out
    assert "--tasks" not in out
    assert out.count("keep your weights") == len(kept)
