"""Bring your own data: a short YAML recipe over a JSONL, a CSV and a Parquet file, from training to the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import Run
from own_run import LMRECIPES, RECIPE, ROOT, own_run, rows_of, write_csv

from lmrecipes.cli import run as command


@pytest.fixture
def finished(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished run; the user's folder is the working directory."""
    folder = own_run(tiny)
    monkeypatch.chdir(folder.parents[1])
    return folder


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_the_recipe_is_short_and_stands_in_the_readme() -> None:
    text = RECIPE.read_text()
    assert len(text.splitlines()) <= 25
    readme = ROOT / "README.md"
    if readme.exists():
        block = readme.read_text().partition("<!-- own-data -->")[2].partition("```yaml\n")[2].partition("```")[0]
        assert block == text, "put docs/own_data.yaml after <!-- own-data --> in README.md, as it is"


def test_the_run_folder_is_complete(finished: Path) -> None:
    assert len(losses(finished)) == 3
    recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert recipe["schedule"]["steps"] == 3
    assert [task["kind"] for task in recipe["tasks"].values()] == ["regression", "classification", "multi_label"]
    scores = json.loads((finished / "evaluation.json").read_text())["tasks"]
    assert set(scores) == {"urgency", "topic", "tags"}
    planned = json.loads((finished / "mixture.json").read_text())
    assert {task: fact["examples"] for task, fact in planned.items()} == {"urgency": 48, "topic": 96, "tags": 48}
    for name in ("environment.json", "report.html", "model/model.safetensors", "model/heads.safetensors"):
        assert (finished / name).is_file()


def test_evaluate_gives_the_scores_of_the_run(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(["evaluate", str(finished), "--json"]) == 0
    again = json.loads(capfd.readouterr().out)
    for task, scores in json.loads((finished / "evaluation.json").read_text())["tasks"].items():
        assert again["tasks"][task]["rows"] == scores["rows"]
        assert again["tasks"][task]["metrics"] == pytest.approx(scores["metrics"], abs=1e-5)


def test_evaluate_one_task_on_a_file(finished: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = [row for row in rows_of("topic") if row["topic"] != "other"][:20]  # not every class
    file = tmp_path / "new.csv"
    write_csv(file, [{"message": row["message"], "topic": row["topic"]} for row in kept])
    assert command(["evaluate", str(finished), "--task", "topic", "--data", str(file), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert list(found["tasks"]) == ["topic"]
    assert found["tasks"]["topic"]["rows"] == 20
    assert found["split"] == str(file)


def test_evaluate_prints_a_table(
    finished: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert command(["evaluate", str(finished), "--task", "tags"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"{finished.name}, test split, after step 3")
    assert "micro F1" in "".join(lines)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--task", "topc"], "Did you mean `topic`?"),
        (["--data", "data/topics.csv"], "add --task"),
        (["--task", "topic", "--data", "data/topic.csv"], "Did you mean `topics.csv`?"),
        (["--task", "topic", "--data", "data/tickets.jsonl"], "no column 'topic'"),
    ],
)
def test_evaluate_refuses(finished: Path, capfd: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    assert command(["evaluate", str(finished), *args]) == 2
    assert says in capfd.readouterr().err


def test_export_is_what_transformers_loads(finished: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    assert command(["export", str(finished), "--to", str(tmp_path / "deep" / "exported")]) == 0
    folder = Path(capfd.readouterr().out.strip())
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in (finished / "model").iterdir())
    tokens = AutoTokenizer.from_pretrained(folder)("good heart", return_tensors="pt")
    assert AutoModel.from_pretrained(folder)(**tokens).last_hidden_state.shape[-1] == 32
    assert command(["export", str(finished), "--to", str(folder)]) == 2
    assert "exists already" in capfd.readouterr().err
    assert [p.name for p in folder.parent.iterdir()] == ["exported"]


def test_report_compares(finished: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    assert command(["report", str(finished), str(other), "--to", str(tmp_path / "page.html")]) == 0
    page = Path(capfd.readouterr().out.strip()).read_text()
    assert finished.name in page
    assert "other" in page


def test_show_and_check(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(["show", str(finished), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["mixture"]["topic"]["share"] == 0.5  # weights 1, 2, 1
    assert shown["recipe"]["schedule"]["steps"] == 3
    assert command(["check", str(finished / "recipe.yaml")]) == 1
    assert "the whole run draws 48 of its examples" in " ".join(capfd.readouterr().out.split())
    assert command(["check", str(finished / "recipe.yaml"), "--schedule.steps", "20"]) == 0
    assert capfd.readouterr().out.strip().endswith("no problems")


def test_its_recipe_repeats_the_run_and_a_datasets_folder_is_a_source(finished: Path, run: Run) -> None:
    """The run's own recipe.yaml, one source of which is now a `datasets` folder of the same rows: the same losses."""
    import datasets

    datasets.Dataset.from_list(rows_of("topic")).save_to_disk("data/topics")
    source = ["--tasks.topic.source.files", "None", "--tasks.topic.source.dataset", "data/topics"]
    where = ["--processes", "1", "--run-folder", "runs/again"]
    done = run(LMRECIPES, "train", finished / "recipe.yaml", *where, *source, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert losses(Path("runs/again")) == losses(finished)
