"""`lmrecipes predict` on rows of images and clips: as `evaluate` reads them, whatever they come in."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import make_model
from tiny_media import make_media, make_media_recipe

from lmrecipes.cli import run as command
from lmrecipes.data.encode import encode_tasks
from lmrecipes.inference import own_rows
from lmrecipes.inference.own_tasks import outputs_of, tasks_of
from lmrecipes.inference.row_predictor import RowsRefused, open_predictor
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import RunFolder
from lmrecipes.serving.requests import questions_of
from lmrecipes.training.loop import Start, Training

TASKS = ("words", "pictures", "sounds", "both")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two steps that reads texts, images and clips; its files lie in `data/` beside it."""
    folder = tmp_path_factory.mktemp("media")
    make_model(folder / "model")
    make_media(folder / "data")
    changes = {f"tasks.{task}.source.test_fraction": 0.3 for task in TASKS}
    recipe = make_media_recipe(folder / "model", folder / "data", **changes, **{"schedule.steps": 2})
    training = Training(Recipe.model_validate(recipe), Start(None, folder / "run"))
    training.fit()
    training.engine.release()
    return training.run


def file_of(run: RunFolder, task: str) -> Path:
    return run.path.parent / "data" / f"{task}.jsonl"


def rows_of(run: RunFolder, task: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in file_of(run, task).read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_read_as_evaluate_reads_them(made: RunFolder, task: str) -> None:
    """A file stands for every split, so that its rows are those of its test split in order."""
    wanted = outputs_of(made, tasks_of(made, task, file_of(made, task)))[task]
    found = open_predictor(made, folder=made.path.parent / "data").predict(rows_of(made, task), [task])[task]
    assert len(wanted.rows) == len(found) == 48
    np.testing.assert_array_equal(found, wanted.values)
    assert len(np.unique(found.round(5), axis=0)) > 4


def test_neighbours_do_not_matter(made: RunFolder) -> None:
    predictor = open_predictor(made, "fp32", folder=made.path.parent / "data")
    rows = rows_of(made, "both")
    assert {row["text"] is None for row in rows} == {row["image"] is None for row in rows} == {True, False}
    together = predictor.predict(rows, ["both"])["both"]
    alone = np.concatenate([predictor.predict([row], ["both"])["both"] for row in rows])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_what_a_service_is_sent_gives_the_same(made: RunFolder) -> None:
    """Rows of the test split as a client sends them, files as bytes: no path is read there."""
    from lmrecipes.recipe_files import recipe_from_yaml

    recipe, predictor = recipe_from_yaml(made.recipe), open_predictor(made)
    for task in TASKS:
        of_split = len(encode_tasks(recipe)[task].splits["test"])
        held = own_rows.test_rows(recipe, task, 100)
        assert len(held) == of_split
        values = predictor.predict(held, [task])[task]
        wanted = outputs_of(made, tasks_of(made, task))[task].values
        order, other = np.lexsort(values.T), np.lexsort(wanted.T)
        np.testing.assert_allclose(values[order], wanted[other], rtol=1e-4, atol=1e-5)
    with pytest.raises(RowsRefused, match="paths are not read here"):
        predictor.predict([{"image": "0.png"}], ["pictures"])
    question = json.loads(json.dumps(questions_of(recipe, 1)))[TASKS.index("pictures")]
    sent = {column: base64.b64decode(cell) for column, cell in question["row"].items()}
    assert sent == own_rows.test_rows(recipe, "pictures", 1)[0]


def test_files_are_named_as_from_the_rows(
    made: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Relative paths start in the folder of the file; rows without any input, or an unreadable one, are bad."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.jsonl"
    for task in ("pictures", "both"):
        args = ["predict", str(made.path), str(file_of(made, task)), "--task", task, "--to", str(out)]
        assert command([*args, "--on-bad-row", "error"]) == 0
        answered = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["label"] for row in answered] == [row["label"] for row in rows_of(made, task)]
        assert all(row[f"{task}_probability"] > 0 for row in answered)
    path = file_of(made, "both").with_name("bad.jsonl")
    (path.parent / "text.png").write_text("no image")
    rows = [{"text": "good", "image": None}, {"text": "", "image": None}, {"text": "good", "image": "gone.png"},
            {"text": None, "image": "text.png"}, {"image": "3.png"}]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ["predict", str(made.path), str(path), "--task", "both", "--to", str(out)]
    assert command(args) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert "line 2" in said and "line 3" in said and "line 4" in said and "line 5" not in said
    assert command([*args, "--on-bad-row", "skip"]) == 0
    answered = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["both_label"] is None for row in answered] == [False, True, True, True, False]
