"""Results beside baselines, for terminals and READMEs."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from made_up_run import make_evaluation, make_language_run
from rich.console import Console

from lmrecipes.problems import InputError
from lmrecipes.tracking.results import (
    duration,
    hardware,
    lower_is_better,
    markdown_results,
    number,
    results_of,
    results_table,
    write_results_into,
)


@pytest.fixture
def evaluation() -> dict[str, Any]:
    """The content of an evaluation.json, to change at will."""
    return copy.deepcopy(make_evaluation("bert_multitask-20261122-101530"))


def printed(evaluation: dict[str, Any], width: int = 140) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(results_table(evaluation))
    return console.export_text()


def test_table_has_a_row_per_task_with_baselines_and_their_date(evaluation: dict[str, Any]) -> None:
    text = printed(evaluation)
    for task, scores in evaluation["tasks"].items():
        (line,) = [line for line in text.splitlines() if f" {task} " in line]
        assert number(scores["metrics"][scores["headline"]]) in line
        assert number(evaluation["baselines"]["linear"]["tasks"][task][scores["headline"]]) in line
        assert f"{scores['rows']:,}" in line
    assert "TF-IDF + linear: stored, 2026-11-22" in text


def test_a_run_without_baselines_has_no_empty_columns(evaluation: dict[str, Any]) -> None:
    evaluation.pop("baselines")
    assert "TF-IDF" not in printed(evaluation)
    assert markdown_results(evaluation).splitlines()[0] == "| task | kind | metric | this run | rows |"


def test_missing_and_empty_values_are_dashes(evaluation: dict[str, Any]) -> None:
    del evaluation["baselines"]["scratch"]["tasks"]["hpo"]
    evaluation["tasks"]["valence"]["metrics"]["spearman"] = None
    text = printed(evaluation)
    assert "–" in next(line for line in text.splitlines() if " hpo " in line)  # noqa: RUF001
    assert printed({"run": "x", "step": 0, "tasks": {}})


def test_markdown_marks_the_best_of_each_row(evaluation: dict[str, Any]) -> None:
    lines = markdown_results(evaluation, {"device": "cpu", "cpu": "Xeon", "world_size": 2}).splitlines()
    assert lines[0] == "| task | kind | metric | this run | TF-IDF + linear | same BERT from scratch | rows |"
    assert lines[1].count("|") == lines[0].count("|")
    assert lines[2].startswith("| `valence` | regression | spearman | **0.7")
    assert lines[-1].endswith(
        "2 x cpu (Xeon). TF-IDF + linear: stored, 2026-11-22; same BERT from scratch: with this run, 2026-11-22."
    )


def test_all_metrics_start_with_the_headline(evaluation: dict[str, Any]) -> None:
    results = [result for result in results_of(evaluation, headline_only=False) if result.task == "valence"]
    assert [result.metric for result in results] == list(evaluation["tasks"]["valence"]["metrics"])
    assert results[0].best == 0


def test_errors_are_better_when_smaller(evaluation: dict[str, Any]) -> None:
    assert lower_is_better("mean_squared_error") and not lower_is_better("spearman")
    evaluation["tasks"]["valence"]["headline"] = "mean_squared_error"
    result = results_of(evaluation)[0]
    assert result.ours is not None and result.baselines[0] is not None and result.ours < result.baselines[0]
    assert result.best == 0


def test_perplexity_stands_beside_what_it_was_before(tmp_path: Path) -> None:
    evaluation = json.loads((make_language_run(tmp_path / "run") / "evaluation.json").read_text())
    assert lower_is_better("perplexity") and lower_is_better("bits_per_byte") and not lower_is_better("token_accuracy")
    lines = markdown_results(evaluation).splitlines()
    assert lines[0] == "| task | kind | metric | this run | before training | rows |"
    assert "| `speeches` | language modelling | perplexity | **17.92** | 24.81 | 600 |" in lines
    assert lines[-1].endswith("before training: with this run, 2026-11-22.")
    best = {(r.task, r.metric): r.best for r in results_of(evaluation, headline_only=False) if r.task == "assistant"}
    assert best == {("assistant", metric): 0 for metric in ("perplexity", "bits_per_byte", "token_accuracy")}
    assert "4.310" in printed(evaluation) and "7.020" in printed(evaluation)


def test_results_replace_what_is_between_the_markers(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\n<!-- results -->\nold\n<!-- /results -->\n\nAfter.\n")
    text = markdown_results(evaluation)
    write_results_into(readme, text)
    first = readme.read_text()
    write_results_into(readme, text)
    assert readme.read_text() == first == f"# Title\n\n<!-- results -->\n{text.strip()}\n<!-- /results -->\n\nAfter.\n"


@pytest.mark.parametrize(
    "page",
    ["", "<!-- results -->", "<!-- /results --> <!-- results -->", "<!-- results --><!-- results --><!-- /results -->"],
)
def test_a_readme_without_one_pair_of_markers_is_refused_and_kept(tmp_path: Path, page: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(page)
    with pytest.raises(InputError, match="needs one"):
        write_results_into(readme, "text")
    assert readme.read_text() == page
    with pytest.raises(InputError, match="no such file"):
        write_results_into(tmp_path / "other.md", "text")


def test_words_for_people() -> None:
    assert [duration(s) for s in (2.34, 59, 118.2, 3600)] == ["2.3 s", "59 s", "1 min 58 s", "1 h 0 min"]
    assert [number(v) for v in (0.5, 12.3456, 1234.5, 1.5e7, None)] == ["0.500", "12.35", "1,234", "1.5e+07", "–"]  # noqa: RUF001
    assert (
        hardware({"device": "NVIDIA H100", "world_size": 8, "zero": 3, "precision": "bf16"})
        == "8 x NVIDIA H100, ZeRO 3, bf16"
    )
    assert hardware({}) == ""
