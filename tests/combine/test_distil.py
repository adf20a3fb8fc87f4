"""`combine --method distil`: who is taught by whom, what is compared, and what is not made twice.

Trainings are stand-ins that leave a finished run; tests/training trains students for real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from planted_teacher import plant
from tiny import make_recipe

from lmrecipes.combine import distil as module
from lmrecipes.combine import members
from lmrecipes.combine.distil import distil, trained
from lmrecipes.combine.markdown import markdown_combination
from lmrecipes.combine.options import CombineOptions, check_options
from lmrecipes.combine.show import notes_of
from lmrecipes.files import write_json
from lmrecipes.flags import parse
from lmrecipes.launcher import TrainOptions
from lmrecipes.problems import InputError
from lmrecipes.recipe_files import find_recipe, recipe_from_yaml
from lmrecipes.run_folder import RunFolder, recipe_yaml, write_environment


@pytest.fixture
def place(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs one and two, and student.yaml."""
    for name in ("one", "two"):
        plant(tmp_path / name, tiny, **{"evaluation.examples": 8})
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(make_recipe(tiny, name="student")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(members, "SINGLE_CALLS", 2)
    monkeypatch.setattr(members, "BATCHES", 1)
    return tmp_path


@pytest.fixture
def trainings(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of each training."""
    asked: list[list[str]] = []

    def train(reference: str, args: Sequence[str]) -> int:
        asked.append([reference, *args])
        options, recipe = parse(find_recipe(reference), TrainOptions, args, "train")
        assert options.run_folder is not None
        run = RunFolder(options.run_folder)
        shutil.copytree(place / "one" / "model", run.model)
        run.recipe.write_text(recipe_yaml(recipe))
        write_environment(run, {"device": "cpu", "world_size": 1, "precision": "fp32"})
        write_json(run.evaluation, {"run": run.path.name, "tasks": {}})
        return 0

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "write_report", lambda runs, to: None)
    return asked


def options(place: Path, **changes: Any) -> CombineOptions:
    given = {"student": "student.yaml --schedule.steps 4", "to": place / "out"} | changes
    return CombineOptions((place / "one", place / "two"), "distil", **given)


def test_the_average_teaches_and_all_are_compared(place: Path, trainings: list[list[str]]) -> None:
    made = distil(options(place, control=True))
    flags, out = ["student.yaml", "--schedule.steps", "4", "--distillation.teacher"], str(place / "out")
    assert trainings == [
        [*flags, f"{out}/teacher", "--run-folder", out],
        [*flags, "None", "--run-folder", f"{out}/control"],
    ]
    assert recipe_from_yaml(place / "out" / "recipe.yaml").distillation.teacher == f"{out}/teacher"
    assert recipe_from_yaml(place / "out" / "control" / "recipe.yaml").distillation.teacher is None
    assert json.loads((place / "out" / "combination.json").read_text())["of"] == ["one", "two"]
    for task, facts in made["tasks"].items():
        names = [model["name"] for model in facts["models"]]
        assert names == ["one", "two", "average", "stack", "soup", "student", "control"], task
        by_name = {model["name"]: model for model in facts["models"]}
        assert by_name["student"]["loss"] == by_name["one"]["loss"]
        assert by_name["soup"]["bytes"] == by_name["one"]["bytes"] == by_name["average"]["bytes"] / 2


def test_what_is_finished_is_not_made_again(place: Path, trainings: list[list[str]]) -> None:
    distil(options(place))
    before = (place / "out" / "teacher" / "combination.json").stat().st_mtime_ns
    distil(options(place, control=True))
    assert [arguments[-1] for arguments in trainings] == [str(place / "out"), str(place / "out" / "control")]
    assert (place / "out" / "teacher" / "combination.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"schedule\.steps: the run .* was trained with 4, now it is 5"):
        distil(options(place, student="student.yaml --schedule.steps 5"))
    plant(place / "three", Path(recipe_from_yaml(place / "one" / "recipe.yaml").model.pretrained).parent)
    with pytest.raises(InputError, match="is the average of other runs: one, two"):
        distil(CombineOptions((place / "one", place / "three"), "distil", place / "out", student="student.yaml"))


def test_one_run_teaches_itself_and_another_may_be_named(place: Path, trainings: list[list[str]]) -> None:
    alone = CombineOptions((place / "one",), "distil", place / "alone", student="student.yaml")
    check_options(alone)
    made = distil(alone)
    assert trainings[-1][2] == str(place / "one")
    assert [model["name"] for model in made["tasks"]["long"]["models"]] == ["one", "student"]
    assert "that the student has: it has none (short), it has none (long)" in notes_of(made)[1]
    made = distil(options(place, teacher=place / "two", to=place / "named"))
    assert trainings[-1][4] == str(place / "two")
    assert made["taught_by"] == "two"
    assert not (place / "named" / "teacher").exists()


def test_a_teacher_that_is_none_of_the_members_is_shown(place: Path, tiny: Path, trainings: list[list[str]]) -> None:
    plant(place / "three", tiny)
    made = distil(options(place, teacher=place / "three"))
    names = [model["name"] for model in made["tasks"]["long"]["models"]]
    assert names == ["one", "two", "average", "stack", "soup", "teacher", "student"]
    assert made["taught_by"] == "teacher"


@pytest.mark.parametrize(
    ("lower_is_better", "of_teacher", "of_student", "said"),
    [(False, 0.02, 0.018, "90% (a)"), (True, -0.5, -0.6, "120% (a)"), (True, 0.1, -1.0, "it has none (a)")],
)
def test_the_share_of_the_gain_that_is_kept(
    lower_is_better: bool, of_teacher: float, of_student: float, said: str
) -> None:
    gains = {"one": 0.0, "teacher": of_teacher, "student": of_student}
    models = [{"name": n, "role": "member", "against": {"validation": {"value": g}}} for n, g in gains.items()]
    facts = {
        "models": models, "lower_is_better": lower_is_better, "groups": None, "resamples": 9, "kind": "classification"
    }  # fmt: skip
    made = {"tasks": {"a": facts}, "threads": 1, "soup_of": [], "notes": [], "taught_by": "teacher"}
    assert notes_of(made)[-1] == f"Share of the teacher's gain over the best member that the student has: {said}."
    del made["taught_by"]
    assert len(notes_of(made)) == 1


def test_an_interrupted_student_is_gone_on_with(place: Path, trainings: list[list[str]]) -> None:
    folder = place / "cut"
    (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
    trained("student.yaml", [], folder)
    assert trainings[-1][-1] == "--resume"
    lost = place / "lost"
    lost.mkdir()
    (lost / "recipe.yaml").write_text("ended before its first checkpoint")
    trained("student.yaml", [], lost)
    assert trainings[-1][-1] == str(lost)


def test_a_training_that_fails_ends_the_command_with_its_code(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train", lambda reference, args: 130)
    with pytest.raises(SystemExit) as stop:
        trained("student.yaml", [], place / "stopped")
    assert stop.value.code == 130


def test_flags_of_students_belong_to_distil(place: Path) -> None:
    wrong = CombineOptions((place / "one", place / "two"), "average", teacher=place / "one", control=True)
    with pytest.raises(InputError) as refused:
        check_options(wrong)
    assert {problem.where for problem in refused.value.problems} == {"--teacher", "--control"}


def test_the_readme_table_has_a_row_for_each_model(place: Path, trainings: list[list[str]]) -> None:
    made = distil(options(place))
    text = markdown_combination(made, {"device": "cpu", "cpu": "A CPU", "precision": "bf16"})
    rows = [line for line in text.splitlines() if line.startswith(("| one", "| two", "| average", "| **student**"))]
    assert len(rows) == 8, "four models, metric and loss"
    assert all(row.count("|") == len(made["tasks"]) + 4 for row in rows)
    student = made["tasks"]["long"]["models"][-1]
    assert f"{student['loss']['after']:.3f}" in next(row for row in rows[4:] if "student" in row)
