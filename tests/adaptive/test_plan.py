"""`plan.jsonl`: what is written is what is read, and a file that cannot be followed says where and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.adaptive.plan import Entry, FactorsEntry, PlanFile, WeightsEntry, as_row, from_row, read_plan
from lmrecipes.planning.check import check_data
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe

TASKS = ("a", "b")
PLAN: list[Entry] = [
    WeightsEntry(step=20, start=448, weights={"a": 613, "b": 387}, method="odm"),
    FactorsEntry(step=20, from_step=21, factors={"a": 1.084, "b": 0.916}, method="famo"),
    FactorsEntry(step=30, from_step=31, factors={"a": 1.1, "b": 0.9}, method="famo"),
    WeightsEntry(step=40, start=768, weights={"a": 1000, "b": 0}, method="odm"),
]


def written(path: Path, entries: list[Entry]) -> Path:
    file = PlanFile(path, [])
    file.extend(entries)
    file.close()
    return path


def test_lines_are_as_documented(tmp_path: Path) -> None:
    assert written(tmp_path / "plan.jsonl", PLAN[:2]).read_text() == (
        '{"kind": "weights", "step": 20, "start": 448, "weights": {"a": 613, "b": 387}, "method": "odm"}\n'
        '{"kind": "loss_factors", "step": 20, "from_step": 21, "factors": {"a": 1.084, "b": 0.916}, "method": "famo"}\n'
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_plan(written(tmp_path / "plan.jsonl", PLAN), TASKS, 16) == PLAN
    assert read_plan(written(tmp_path / "empty.jsonl", []), TASKS, 16) == []


@given(st.integers(0, 2**62), st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=2))
def test_entries_survive_json(start: int, factors: list[float]) -> None:
    for entry in (
        WeightsEntry(step=1, start=start, weights={"a": start, "b": 1}, method="ado"),
        FactorsEntry(step=1, from_step=2, factors=dict(zip(TASKS, factors, strict=True)), method="dwa"),
    ):
        assert from_row(json.loads(json.dumps(as_row(entry)))) == entry


def test_every_line_is_on_disk_when_it_is_made_and_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "plan.jsonl"
    file = PlanFile(path, [])
    for count in (1, 1, 3, 4):
        file.extend(PLAN[:count])
        assert read_plan(path, TASKS, 16) == PLAN[:count]
    file.close()
    file.close()


def test_resume_cuts_the_file_back_to_the_checkpoint(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole.jsonl", PLAN).read_bytes()
    path = written(tmp_path / "plan.jsonl", PLAN[:3])
    with path.open("a") as file:
        file.write('{"kind": "weig')
    resumed = PlanFile(path, PLAN[:2])
    assert read_plan(path, TASKS, 16) == PLAN[:2]
    resumed.extend(PLAN)
    resumed.close()
    assert path.read_bytes() == whole


def changed(number: int, **changes: Any) -> list[str]:
    rows = [as_row(entry) for entry in PLAN]
    rows[number] |= changes
    return [json.dumps(row) for row in rows]


@pytest.mark.parametrize(
    "lines, line, said",
    [
        (['{"kind": "weights", "st'], 1, "is not JSON"),
        ([*changed(0)[:1], "\udcff"], 2, "is not JSON"),
        (["[1]"], 1, "kind is None"),
        (changed(1, kind=[]), 2, "kind is []"),
        (changed(1, kind="factors"), 2, "kind is 'factors', not one of weights, loss_factors"),
        (changed(0, more=1), 1, "found kind, step, start, weights, method, more"),
        (changed(0, start=2.5), 1, "start is 2.5, not a whole number"),
        (changed(1, from_step=-1), 2, "from_step is -1"),
        (changed(0, step=True), 1, "step is True"),
        (changed(0, weights=[1]), 1, "weights must be an object"),
        (changed(0, weights={"a": 1.5, "b": 1}), 1, "the weight of a is 1.5"),
        (changed(0, weights={"a": -1, "b": 1}), 1, "the weight of a is -1"),
        (changed(0, weights={"a": 0, "b": 0}), 1, "every weight is 0"),
        (changed(1, factors={"a": -1, "b": 1}), 2, "the factor of a is -1"),
        ([changed(1)[1].replace("1.084", "NaN")], 1, "the factor of a is nan"),
        (changed(1, factors={"a": None, "b": 1}), 2, "the factor of a is None"),
        (changed(0, weights={"a": 1, "bb": 1}), 1, "the recipe has no task 'bb', only a, b. Did you mean `b`?"),
        (changed(2, factors={"a": 1}), 3, "nothing is said of the recipe's task 'b'"),
        (changed(0, start=450), 1, "start 450 is not where a step of batch.examples=16 begins"),
        (changed(0, start=0), 1, "start 0 does not lie after 0"),
        (changed(3, start=448), 4, "start 448 does not lie after 448"),
        (changed(2, from_step=20), 3, "from_step 20 does not lie after 21"),
    ],
)
def test_a_line_that_cannot_be_followed_is_named(tmp_path: Path, lines: list[str], line: int, said: str) -> None:
    path = tmp_path / "plan.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as error:
        read_plan(path, TASKS, 16)
    (problem,) = error.value.problems
    assert problem.where == f"mixture.replay: {path}: line {line}"
    assert said in problem.what
    assert problem.fix
    assert problem.id == "replay-plan"


def test_all_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "plan.jsonl"
    path.write_text("\n".join(["{", *changed(1), "{"]))
    with pytest.raises(InputError, match=r"line 1: (.|\n)*line 6: "):
        read_plan(path, TASKS, 16)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mixture\.replay: .*plan\.jsonl: cannot be read \(No such file"):
        read_plan(tmp_path / "plan.jsonl", TASKS, 16)


def test_check_finds_a_plan_that_cannot_be_followed(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"text {n}", "label": n % 7}) + "\n" for n in range(40)))
    plan = written(tmp_path / "plan.jsonl", PLAN)
    task = {"kind": "regression", "source": {"files": str(rows)}}

    def problems(*names: str) -> list[str]:
        tasks = dict.fromkeys(names, task)
        recipe = {"name": "replays", "tasks": tasks, "batch": {"examples": 16}, "mixture": {"replay": str(plan)}}
        found = [problem.id for problem in check_data(Recipe.model_validate(recipe))]
        return [id for id in found if id.startswith("replay")]

    assert problems("a", "b") == []
    assert problems("a", "c") == ["replay-plan"] * 4
