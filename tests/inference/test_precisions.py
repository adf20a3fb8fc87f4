"""Precisions beside each other: accuracy, agreement, the gate, and what is stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import WORDS

from lmrecipes.cli import run as command
from lmrecipes.inference.own_tasks import evaluate_run
from lmrecipes.inference.precisions import PrecisionResult, compare, compared_once, in_words, stored
from lmrecipes.problems import InputError
from lmrecipes.run_folder import RunFolder
from lmrecipes.tracking.report import write_report


@pytest.fixture(scope="module")
def results(made: RunFolder) -> list[PrecisionResult]:
    return compare(made, ["bf16", "int8"], None, margin=0.3)


def test_fp32_is_the_reference(made: RunFolder, results: list[PrecisionResult]) -> None:
    assert [result.precision for result in results] == ["fp32", "bf16", "int8"]
    scores = evaluate_run(made)["tasks"]
    for result in results:
        assert result.p95_ms >= result.p50_ms > 0 and result.cpu_ms > 0
        for name, task in result.tasks.items():
            # Not to the last bit: single texts go through another kernel of attention, and near ties change places.
            assert task.reference == pytest.approx(scores[name]["metrics"][scores[name]["headline"]], abs=1e-3)
            assert task.drop == pytest.approx(task.reference - task.value)
            assert task.rows == scores[name]["rows"]
    fp32, bf16, int8 = results
    assert all(task.bound == 0 and task.agreement == pytest.approx(1) for task in fp32.tasks.values())
    assert fp32.met and bf16.tasks["long"].agreement > 0.9
    assert fp32.megabytes > bf16.megabytes > 0 < int8.megabytes
    assert int8.tasks["long"].bound >= int8.tasks["long"].drop


def test_the_gate_is_of_the_bound(results: list[PrecisionResult]) -> None:
    from dataclasses import replace

    task = replace(results[1].tasks["long"], drop=0.0, bound=0.004)
    assert replace(results[1], tasks={"a": task}, margin=0.005).met
    assert not replace(results[1], tasks={"a": task}, margin=0.003).met
    assert not replace(results[1], tasks={"a": replace(task, bound=float("nan"))}, margin=0.005).met


def test_what_is_stored_is_of_this_model(made: RunFolder, results: list[PrecisionResult], tmp_path: Path) -> None:
    assert stored(made)["int8"] == results[2]
    assert compared_once(made, "int8") == results[2]
    copied = RunFolder(tmp_path / "copy")
    shutil.copytree(made.path, copied.path)
    (copied.model / "config.json").write_text((copied.model / "config.json").read_text() + " ")
    assert stored(copied) == {}
    recipe = copied.recipe.read_text().replace("/data/", "/gone/")
    copied.recipe.write_text(recipe)
    assert isinstance(compared_once(copied, "int8"), InputError)


def test_commands(
    made: RunFolder, results: list[PrecisionResult], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "rows.txt").write_text("\n".join(WORDS))
    assert command(["predict", str(made.path), str(tmp_path / "rows.txt"), "--precision", "int8"]) == 0
    answered = capsys.readouterr()
    assert in_words(results[2]) in answered.err and len(answered.out.splitlines()) == len(WORDS)
    code = command(["evaluate", str(made.path), "--precision", "bf16", "--json"])
    content = json.loads(capsys.readouterr().out)
    assert code == (0 if content["met"] else 1)
    assert [found["precision"] for found in content["precisions"]] == ["fp32", "bf16"]
    assert command(["evaluate", str(made.path), "--precision", "bf16"]) == code
    shown = capsys.readouterr().out
    assert "agreement" in shown and "p95 ms" in shown
    assert command(["evaluate", str(made.path), "--precision", "bf16", "--task", "long"]) == 2
    page = write_report([made.path], tmp_path / "page.html").read_text()
    assert "Precisions" in page and "ONNX Runtime" in page
    assert np.isfinite(results[2].tasks["short"].bound)
