"""From rows to targets and splits: every bad cell is named, and what belongs together stays together."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.data.rows import Rows, RowStream
from lmrecipes.data.targets import TaskData, collect
from lmrecipes.problems import InputError
from lmrecipes.recipe import Source, Task, TaskKind

ANY = Source(files="x.jsonl")


def words(count: int) -> list[str]:
    return [f"text number {i}" for i in range(count)]


def made(texts: Any, labels: Any, **others: Any) -> Rows:
    """Rows of these cells; None for a column that is not there."""
    cells = {"text": texts, "label": labels, **others}
    return Rows({role: cell for role, cell in cells.items() if cell is not None})


def stream(rows: Rows, size: int = 10**9) -> RowStream:
    """Rows in blocks of a size."""

    def part(start: int) -> Rows:
        cut = slice(start, start + size)
        return Rows({role: cells[cut] for role, cells in rows.cells.items()}, lambda i: rows.origin(start + i))

    return RowStream((part(start) for start in range(0, len(rows), size)), len(rows))


def build(
    kind: TaskKind, labels: list[Any], texts: list[Any] | None = None, names: tuple[str, ...] | None = None,
    groups: list[Any] | None = None, pairs: list[Any] | None = None, size: int = 10**9, **source: Any,
) -> TaskData:  # fmt: skip
    """The data of a source without splits."""
    task = Task(kind=kind, labels=names, source=Source(files="x", **source))
    rows = made(texts or words(len(labels)), labels, text_pair=pairs, group=groups)
    return collect("t", task, {"all": stream(rows, size)})


def bad(kind: TaskKind, label: Any, names: tuple[str, ...] | None = None) -> str:
    """What is said of one bad label among good ones."""
    good: dict[str, list[Any]] = {"regression": [0.5], "classification": ["a", "b"], "multi_label": [["a"], ["b"]]}
    labels = good[kind] * 50
    labels[7] = label
    with pytest.raises(InputError) as caught:
        build(kind, labels, names=names)
    (problem,) = caught.value.problems
    assert problem.id == "bad-rows"
    assert problem.where == "tasks.t.source"
    assert "on_bad_row" in problem.fix
    assert problem.what.startswith("1 bad row(s): row 7: ")
    return problem.what.removeprefix("1 bad row(s): row 7: ")


def targets_of(data: TaskData) -> dict[str, Any]:
    """Target of every text."""
    found: dict[str, Any] = {}
    for part in data.splits.values():
        found.update(zip(part.texts, part.targets.tolist(), strict=True))
    return found


def test_regression() -> None:
    labels: list[Any] = [1, 2.5, "-3e1", True, np.float32(0.5), np.int64(7), " 4 "] * 20
    data = build("regression", labels)
    assert data.labels == ()
    assert data.splits["train"].targets.dtype == np.float32
    assert [targets_of(data)[text] for text in words(7)] == [1, 2.5, -30, 1, 0.5, 7, 4]


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (None, "label 'label' is missing"),
        ("", "label 'label' is missing"),
        (math.nan, "label 'label' is NaN"),
        (np.float32("nan"), "label 'label' is NaN"),
        ("nan", "is not finite"),
        (math.inf, "is not finite"),
        (1e39, "label 1e+39 is not finite in fp32"),
        (10**400, "is not a number"),
        ("high", "label 'high' is not a number"),
        ([1.0], "label [1.0] is not a number"),
        (np.array([1.0, 2.0]), "label [1.0, 2.0] is not a number"),
    ],
)
def test_bad_regression_labels(label: Any, says: str) -> None:
    assert says in bad("regression", label)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", " a "], ("a", "b")),
        ([10, 9, 9.0], ("9", "10")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        ([True, False, np.bool_(True)], ("false", "true")),
        ([np.int64(3), np.float64(3), 4], ("3", "4")),
        ([np.str_("x"), "y", "1"], ("1", "x", "y")),
        (["2", "½", "²"], ("2", "²", "½")),
    ],
)
def test_classes_are_named_by_the_rows(labels: list[Any], names: tuple[str, ...]) -> None:
    data = build("classification", labels * 40)
    assert data.labels == names
    assert data.splits["train"].targets.dtype == np.int32
    found = targets_of(data)
    assert all(0 <= target < len(names) for target in found.values())
    assert len({found[text] for text in words(3)}) == len(names)


def test_classes_by_the_recipes_order_or_place() -> None:
    data = build("classification", ["neg", "pos", 0, 1, "1", 0.0, np.int32(1)] * 20, names=("neg", "pos", "never"))
    assert data.labels == ("neg", "pos", "never")
    assert [targets_of(data)[text] for text in words(7)] == [0, 1, 0, 1, 1, 0, 1]


def test_a_place_is_not_guessed_where_names_are_numbers() -> None:
    """With stars 1 to 3 as names, a 0 is not the first class: it would silently be the same as 1."""
    data = build("classification", [1, 2, "3"] * 40, names=("1", "2", "3"))
    assert [targets_of(data)[text] for text in words(3)] == [0, 1, 2]
    with pytest.raises(InputError, match=r"row 4: label 0 is not one of the 3 labels \(1, 2, 3\)"):
        build("classification", [1, 2, "3", 1, 0] * 12, names=("1", "2", "3"))


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (None, "is missing"),
        ("  ", "is missing"),
        (math.nan, "is NaN"),
        (np.float32("nan"), "is NaN"),
        ("aa", "label 'aa' is not one of the 2 labels (a, b)"),
        (2, "label 2 is not one of the 2 labels"),
        (-1, "label -1 is not one of the 2 labels"),
        ("²", "label '²' is not one of"),
        (["a"], "label ['a'] is not one class"),
        ({"a": 1}, "is not one class"),
    ],
)
def test_bad_classes(label: Any, says: str) -> None:
    assert says in bad("classification", label, names=("a", "b"))


def test_suggestion_for_a_misspelt_class() -> None:
    labels = ["medicine", "politics"] * 30
    labels[3] = "polittics"
    with pytest.raises(InputError, match="Did you mean `politics`"):
        build("classification", labels, names=("medicine", "politics"))


def test_multi_label() -> None:
    labels: list[Any] = ["a|b", "b | c", "", [], ["c"], ("a", "a"), np.array(["b", "c"]), np.array([], object), {"b"}]
    data = build("multi_label", labels * 20)
    assert data.labels == ("a", "b", "c")
    assert data.splits["train"].targets.dtype == np.uint8
    found = ["".join(name for name, on in zip("abc", targets_of(data)[text], strict=True) if on) for text in words(9)]
    assert found == ["ab", "bc", "", "", "c", "a", "bc", "", "b"]
    by_place = build("multi_label", [[0, 2], [], np.array([1]), "c"] * 20, names=("a", "b", "c"))
    assert [targets_of(by_place)[text] for text in words(4)] == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    comma = build("multi_label", ["a,b", "b"] * 30, label_separator=",")
    assert comma.labels == ("a", "b")


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (None, "label 'label' is missing"),
        (math.nan, "label 'label' is NaN"),
        (3, "label 3 is neither a list nor separated names"),
        (np.int64(3), "label 3 is neither a list nor separated names"),
        ("a|z", "label 'z' is not one of"),
        (["a", None], "label ['a', None] holds a missing value"),
        ([0, 1, 1], "repeats a number: a list names the labels that hold, it is no 0/1 vector"),
        (np.array([0, 1, 0]), "label [0, 1, 0] repeats a number"),
        ([["a"]], "is not one class"),
    ],
)
def test_bad_multi_labels(label: Any, says: str) -> None:
    assert says in bad("multi_label", label, names=("a", "b", "c"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'text' is empty"),
        (" \n\t", "'text' is empty"),
        (None, "'text' is None, not a text"),
        (5, "'text' is 5, not a text"),
        (b"x" * 99, "...,"),
        ("half \ud83d", "half a surrogate pair"),
    ],
)
def test_bad_texts(text: Any, says: str) -> None:
    texts: list[Any] = words(60)
    texts[4] = text
    with pytest.raises(InputError) as caught:
        build("regression", [1.0] * 60, texts)
    assert "1 bad row(s): row 4: 'text' " in str(caught.value)
    assert says in str(caught.value)
    with pytest.raises(InputError, match="row 4: 'other' "):
        build("regression", [1.0] * 60, words(60), pairs=texts, text_pair="other")


def test_bad_rows_are_counted_and_the_first_three_shown() -> None:
    labels: list[Any] = [0.5] * 50 + [None] * 9
    with pytest.raises(InputError) as caught:
        build("regression", labels)
    said = caught.value.problems[0].what
    assert said.startswith("9 bad row(s): row 50: ")
    assert "row 52: " in said
    assert "row 53: " not in said
    assert said.endswith("; and 6 more")


def test_skip_leaves_bad_rows_out_with_a_count() -> None:
    labels: list[Any] = [0.5, None, math.nan, 1.5] * 30
    texts: list[Any] = words(120)
    texts[0] = ""
    data = build("regression", labels, texts, on_bad_row="skip")
    assert data.skipped == 61
    assert sorted(targets_of(data)) == sorted(text for i, text in enumerate(words(120)) if i % 4 in (0, 3) and i)
    assert set(targets_of(data).values()) == {0.5, 1.5}


def test_too_few_labels() -> None:
    for kind, labels in {"classification": ["same"] * 60, "multi_label": [""] * 60}.items():
        with pytest.raises(InputError, match="label") as caught:
            build(kind, labels)  # type: ignore[arg-type]
        assert caught.value.problems[0].id == "labels-too-few"


def test_a_split_without_rows() -> None:
    with pytest.raises(InputError, match="no rows in the split") as caught:
        build("regression", [1.0] * 3)
    assert caught.value.problems[0].id == "split-empty"
    with pytest.raises(InputError, match=r"train, validation, test \(5 rows were read, 5 of them bad"):
        build("regression", [None] * 5, on_bad_row="skip")


def parts(data: TaskData) -> dict[str, set[str]]:
    return {split: set(part.texts) for split, part in data.splits.items()}


def test_groups_stay_whole() -> None:
    groups = [f"patient {i // 5}" for i in range(1000)]
    data = build("regression", [1.0] * 1000, groups=groups, group="who")
    home: dict[str, set[str]] = {}
    for split, texts in parts(data).items():
        for text in texts:
            home.setdefault(groups[int(text.split()[-1])], set()).add(split)
    assert len(home) == 200
    assert all(len(splits) == 1 for splits in home.values())
    assert all(len(texts) > 50 for texts in parts(data).values())


def test_a_row_without_a_group_is_its_own() -> None:
    for absent in (None, "", math.nan):
        data = build("regression", [1.0] * 300, groups=[absent] * 300, group="who")
        assert all(len(texts) > 10 for texts in parts(data).values())


def test_the_same_text_is_never_in_two_splits() -> None:
    texts = [["Some  Text %d", " some text %d", "SOME TEXT %d\n"][i % 3] % (i // 3) for i in range(900)]
    data = build("regression", [1.0] * 900, texts)
    normal = {split: {" ".join(text.lower().split()) for text in texts} for split, texts in parts(data).items()}
    assert sum(map(len, normal.values())) == 300
    assert all(len(texts) > 15 for texts in normal.values())
    assert sum(len(part) for part in data.splits.values()) == 900, "repeated rows are kept"


def test_the_same_text_with_another_pair_is_another_text() -> None:
    data = build("regression", [1.0] * 300, ["one premise"] * 300, pairs=words(300), text_pair="pair")
    assert all(len(part) > 10 for part in data.splits.values())
    assert data.splits["test"].joined(0) == f"one premise {(data.splits['test'].pairs or [])[0]}"


def test_fractions_are_met_and_do_not_move_the_test_split() -> None:
    def cut(**fractions: float) -> dict[str, set[str]]:
        return parts(build("regression", [1.0] * 5000, **fractions))

    base = cut()
    assert len(base["test"]) == pytest.approx(500, abs=80)
    assert len(base["validation"]) == pytest.approx(500, abs=80)
    assert cut() == base
    other = cut(validation_fraction=0.3)
    assert other["test"] == base["test"]
    assert len(other["validation"]) == pytest.approx(1500, abs=130)
    assert base["test"] < cut(test_fraction=0.2)["test"]


def test_a_row_keeps_its_split_when_others_are_added() -> None:
    small, large = parts(build("regression", [1.0] * 500)), parts(build("regression", [1.0] * 1000))
    assert all(small[split] <= large[split] for split in small)


def test_given_splits_are_kept_and_missing_ones_cut_from_train() -> None:
    task = Task(kind="regression", source=ANY)
    rows = {split: made([f"{split} {i}" for i in range(n)], [1.0] * n) for split, n in
            {"train": 200, "validation": 9, "test": 7}.items()}  # fmt: skip
    data = collect("t", task, {split: stream(part) for split, part in rows.items()})
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 200, "validation": 9, "test": 7}
    del rows["validation"]
    found = parts(collect("t", task, {split: stream(part) for split, part in rows.items()}))
    assert found["test"] == {f"test {i}" for i in range(7)}
    assert 5 < len(found["validation"]) < 40
    assert all(text.startswith("train") for text in found["validation"] | found["train"])


def test_labels_of_every_split_are_known() -> None:
    rows = {"train": made(words(2), ["a", "b"]), "validation": made(["v"], ["a"]),
            "test": made(["t"], ["c"])}  # fmt: skip
    by_split = {split: stream(part) for split, part in rows.items()}
    data = collect("t", Task(kind="classification", source=ANY), by_split)
    assert data.labels == ("a", "b", "c")
    assert data.splits["test"].targets.tolist() == [2]


def test_many_rows_take_time_in_proportion() -> None:
    """100,000 rows in 0.6 s were measured, half of them bad."""
    labels: list[Any] = ["a|b", None] * 50_000
    began = time.process_time()
    data = build("multi_label", labels, on_bad_row="skip")
    assert time.process_time() - began < 6
    assert data.skipped == 50_000


LABELS: dict[TaskKind, st.SearchStrategy[Any]] = {
    "regression": st.sampled_from([1, 2.5, "3", None, "bad"]),
    "classification": st.sampled_from(["b", "a", "10", 9, True, 3.0, None, ["a"]]),
    "multi_label": st.sampled_from(["c|a", "", ["b"], ["b", None], [1, 1], ["z", ["q"]], "a", 5]),
}


@settings(deadline=None)
@given(st.data(), st.sampled_from(list(LABELS)), st.integers(1, 20))
def test_where_blocks_end_changes_nothing(data: st.DataObject, kind: TaskKind, size: int) -> None:
    labels = [1, "a", "b"] * 20 + data.draw(st.lists(LABELS[kind], max_size=60))
    texts = [f"text {n}" for n in data.draw(st.lists(st.integers(0, 300), min_size=len(labels), max_size=len(labels)))]

    def outcome(size: int, policy: str) -> Any:
        try:
            found = build(kind, labels, texts, size=size, on_bad_row=policy)
        except InputError as error:
            return error.problems
        splits = {split: (part.texts, part.targets.tolist()) for split, part in found.splits.items()}
        return splits, found.labels, found.skipped

    for policy in ("skip", "error"):
        assert outcome(size, policy) == outcome(10**9, policy)


def test_a_row_that_is_left_out_names_no_class() -> None:
    labels = [["a"], ["b"]] * 60 + [["new", None], ["newer", ["nested"]]]
    assert build("multi_label", labels, on_bad_row="skip").labels == ("a", "b")
    texts = [*words(120), " "]
    assert build("classification", ["a", "b"] * 60 + ["new"], texts, on_bad_row="skip").labels == ("a", "b")
    assert build("classification", [*["a", "b"] * 60, ["new"]], on_bad_row="skip").labels == ("a", "b")
