"""Learning from a teacher: its answers are asked for once and belong to the right rows, the student follows them, and
one recipe gives one trajectory with them too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from planted_teacher import SAYS, plant
from tiny import make_recipe
from trajectories import Engine, Rows, assert_same, train_cases

from lmrecipes.data.encode import encode_tasks
from lmrecipes.data.facts import mixture_of
from lmrecipes.data.soft_targets import SoftTargets
from lmrecipes.inference.own_tasks import outputs_of
from lmrecipes.launcher import start_problems
from lmrecipes.planning.check import check_teacher
from lmrecipes.planning.hardware import Hardware
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import RunFolder
from lmrecipes.training import distillation
from lmrecipes.training.distillation import soft_targets, teacher_problems
from lmrecipes.training.evaluation import Outputs
from lmrecipes.training.losses import head_specs

LONG = {"schedule.steps": 60, "optimizer.lr": 0.01}


@pytest.fixture(scope="module")
def teacher(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return plant(tmp_path_factory.mktemp("planted") / "teacher", tiny)


def student(tiny: Path, teacher: RunFolder, weight: float = 1.0, **changes: Any) -> dict[str, Any]:
    changes |= {"distillation.teacher": str(teacher.path), "distillation.weight": weight}
    return make_recipe(tiny, **changes)


def asked(recipe: dict[str, Any]) -> dict[str, SoftTargets]:
    checked = Recipe.model_validate(recipe)
    tasks = encode_tasks(checked)
    return soft_targets(checked, tasks, head_specs(tasks), mixture_of(checked, tasks))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, int]]:
    """An empty cache; rows that a teacher is asked about, question by question."""
    monkeypatch.setenv("LMRECIPES_CACHE", str(tmp_path / "cache"))
    questions: list[dict[str, int]] = []

    def counting(run: RunFolder, tasks: Any, split: str, chosen: Any) -> Any:
        questions.append({name: len(rows.rows) for name, rows in chosen.items()})
        return outputs_of(run, tasks, split, chosen)

    monkeypatch.setattr(distillation, "outputs_of", counting)
    return questions


@pytest.fixture(scope="module")
def plain(run: Run, tiny: Path, teacher: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """One process: without a teacher, with one of no weight, with half of it, and long runs that follow it alone."""
    cases = {
        "labels": make_recipe(tiny),
        "none": student(tiny, teacher, 0.0),
        "half": student(tiny, teacher, 0.5),
        "whole": student(tiny, teacher, 1.0, **LONG),
    }
    return train_cases(run, tmp_path_factory.mktemp("plain"), 1, "plain", cases)


def test_a_teacher_without_weight_changes_no_bit(plain: dict[str, Rows]) -> None:
    assert plain["none"] == plain["labels"]
    assert plain["half"][0]["loss"] != plain["labels"][0]["loss"]


def test_the_first_loss_is_the_distance_from_the_prior_to_the_teacher(plain: dict[str, Rows], tiny: Path) -> None:
    """Heads start as the constant predictor, and this teacher is constant: the whole of it can be computed by hand."""
    specs = head_specs(encode_tasks(Recipe.model_validate(make_recipe(tiny))))
    first = plain["whole"][0]
    said, own = (np.exp(np.array(z) / 2) for z in (SAYS["long"], specs["long"].prior))
    p, q = said / said.sum(), own / own.sum()
    assert first["loss/long"] == pytest.approx(4 * (p * np.log(p / q)).sum(), rel=1e-4)
    assert first["loss/short"] == pytest.approx((SAYS["short"][0] * specs["short"].std) ** 2, rel=1e-4)
    half, labels = plain["half"][0], plain["labels"][0]
    assert half["loss/long"] == pytest.approx((first["loss/long"] + labels["loss/long"]) / 2, rel=1e-5)


def test_a_student_follows_a_teacher_that_contradicts_the_labels(plain: dict[str, Rows]) -> None:
    rows = plain["whole"]
    for name in SAYS:
        losses = [row[f"loss/{name}"] for row in rows if f"loss/{name}" in row]
        assert losses[-1] < 0.02 * losses[0], f"{name}: {losses}"


def test_one_trajectory_with_a_teacher(
    run: Run, tiny: Path, teacher: RunFolder, plain: dict[str, Rows], tmp_path: Path
) -> None:
    """Two ranks, two micro-batches each, against one process with one."""
    engines: dict[str, Engine] = {"zero2": 2, "zero3": 3}
    cases = {name: student(tiny, teacher, 0.5, **{"batch.micro_examples": 4}) for name in engines}
    for rows in train_cases(run, tmp_path, 2, engines, cases).values():
        assert_same(rows, plain["half"], 1e-5)


def test_every_row_gets_what_was_said_of_it(tiny: Path, tmp_path: Path) -> None:
    """A teacher that tells rows apart, and micro-batches that mix tasks and rows."""
    import torch
    from safetensors.torch import load_file, save_file

    teacher = plant(tmp_path / "teacher", tiny)
    random = torch.Generator().manual_seed(0)
    file = teacher.model / "heads.safetensors"
    save_file({name: torch.randn(w.shape, generator=random) for name, w in load_file(file).items()}, file)
    recipe = Recipe.model_validate(student(tiny, teacher))
    tasks = encode_tasks(recipe)
    found = asked(student(tiny, teacher))
    whole = outputs_of(teacher, {name: task.task for name, task in tasks.items()}, "train")
    for name, soft in found.items():
        assert np.unique(np.round(soft.values, 4), axis=0).shape[0] > 5
        np.testing.assert_allclose(soft.values, whole[name].values[soft.rows], rtol=1e-4, atol=1e-5)
        some = soft.rows[[3, 1, 2]]
        np.testing.assert_allclose(soft.of(some).values.numpy(), whole[name].values[some], rtol=1e-4, atol=1e-5)


def test_only_new_rows_are_asked_about(tiny: Path, teacher: RunFolder, counted: list[dict[str, int]]) -> None:
    short, long = student(tiny, teacher), student(tiny, teacher, **{"schedule.steps": 20})
    first = asked(short)
    assert counted == [{name: len(soft.rows)} for name, soft in first.items()], "task by task"
    assert sum(len(soft.rows) for soft in first.values()) <= 10 * 16 + 3, "the rows that ten steps draw, not all"
    counted.clear()
    asked({**short, "distillation": {**short["distillation"], "temperature": 5.0}})
    assert counted == [], "another student asks nothing again"
    second = asked(long)
    new = {name: rows for question in counted for name, rows in question.items()}
    for name, soft in second.items():
        assert new.get(name, 0) == len(soft.rows) - len(first[name].rows)
    counted.clear()
    (teacher.model / "heads.safetensors").touch()
    asked(short)
    assert len(counted) == 3, "another teacher may lie there now"


def test_an_interruption_loses_one_task(
    tiny: Path, teacher: RunFolder, counted: list[dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = distillation.outputs_of

    def interrupted(run: RunFolder, tasks: Any, split: str, chosen: Any) -> Any:
        if len(counted) == 2:
            raise KeyboardInterrupt
        return answer(run, tasks, split, chosen)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(distillation, "outputs_of", interrupted)
        asked(student(tiny, teacher))
    first = [name for question in counted for name in question]
    asked(student(tiny, teacher))
    assert len(counted) == 3 and next(iter(counted[2])) not in first


def test_adaptive_weights_may_draw_any_row(tiny: Path, teacher: RunFolder, counted: list[dict[str, int]]) -> None:
    recipe = student(tiny, teacher, **{"mixture.adaptive.method": "odm"})
    tasks = encode_tasks(Recipe.model_validate(recipe))
    assert {name: len(soft.rows) for name, soft in asked(recipe).items()} == {n: len(t.train) for n, t in tasks.items()}


def test_a_teacher_trained_with_another_loss(tiny: Path, teacher: RunFolder) -> None:
    """Its softmax is what the student's classes, each against the rest, are to say."""
    recipe = student(tiny, teacher, **{"tasks.long.loss": "binary_cross_entropy"})
    values = asked(recipe)["long"].values[0]
    shares = np.exp(SAYS["long"]) / np.exp(SAYS["long"]).sum()
    np.testing.assert_allclose(1 / (1 + np.exp(-values)), shares, rtol=1e-4)


def test_token_tasks_have_no_teacher(teacher: RunFolder, tiny: Path) -> None:
    recipe = student(tiny, teacher)
    text = {"kind": "language_modelling", "source": recipe["tasks"]["long"]["source"]}
    checked = Recipe.model_validate({**recipe, "tasks": {**recipe["tasks"], "text": text}})
    assert teacher_problems(checked) == []


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"distillation.teacher": "runs/none"}, "run-missing", "not a run folder"),
    ({"tasks.long.kind": "multi_label"}, "teacher-tasks", "of kind classification, here it is of kind multi_label"),
    ({"tasks.long.labels": ["x", "y"]}, "teacher-labels", "other labels (medicine, other, politics)"),
]


@pytest.mark.parametrize(("changes", "id", "said"), REFUSED)
def test_what_cannot_teach_is_refused_before_anything_is_asked(
    changes: dict[str, Any], id: str, said: str, tiny: Path, teacher: RunFolder, counted: list[dict[str, int]]
) -> None:
    from tiny import change

    recipe = change(student(tiny, teacher), changes)
    checked = Recipe.model_validate(recipe)
    (problem,) = teacher_problems(checked)
    assert (problem.where, problem.id) == ("distillation.teacher", id)
    assert said in problem.what and problem.fix
    assert problem in check_teacher(checked) and problem in start_problems(checked, None, Hardware("cpu", 1))


def test_a_task_that_the_teacher_does_not_know(tiny: Path, teacher: RunFolder) -> None:
    recipe = student(tiny, teacher)
    recipe["tasks"]["extra"] = recipe["tasks"]["short"]
    (problem,) = teacher_problems(Recipe.model_validate(recipe))
    assert "has no task 'extra': it has short, long, rare" in problem.what


def test_a_teacher_that_reads_other_rows_is_refused(
    tiny: Path, teacher: RunFolder, counted: list[dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that the teacher sees beside a row are compared with the student's."""

    def shifted(run: RunFolder, tasks: Any, split: str, chosen: Any) -> Any:
        found = outputs_of(run, tasks, split, chosen)
        if "short" not in found:
            return found
        short = found["short"]
        return {**found, "short": Outputs(short.rows, short.values, np.roll(short.targets, 1))}

    monkeypatch.setattr(distillation, "outputs_of", shifted)
    with pytest.raises(InputError, match="training rows of 'short' have other labels") as refused:
        asked(student(tiny, teacher))
    assert refused.value.problems[0].id == "teacher-rows"
