"""int8 predictions: their graph is made once, of the model that there is, and agrees with fp32."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from exported_run import make_exported_run
from tiny import WORDS

from lmrecipes.inference import int8_graph
from lmrecipes.inference.row_predictor import open_predictor
from lmrecipes.run_folder import RunFolder

ROWS = [{"text": " ".join(WORDS[at : at + size])} for at in range(0, 24, 3) for size in (1, 4, 17)]
TASKS = ["short", "long", "rare"]


def agreement(run: RunFolder, task: str) -> tuple[float, float]:
    """Correlation of all values with fp32's, and the share of rows with the same largest one."""
    one, other = (open_predictor(run, p).predict(ROWS, [task])[task] for p in ("fp32", "int8"))
    same = (one.argmax(-1) == other.argmax(-1)).mean() if one.ndim > 1 else 1.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1]), float(same)


@pytest.mark.parametrize("task", TASKS)
def test_onnx_agrees_with_fp32(made: RunFolder, task: str) -> None:
    assert open_predictor(made, "int8").kind == "ONNX Runtime, int8"
    correlation, same = agreement(made, task)
    assert correlation > 0.98 and same >= 0.85


def test_regression_is_in_the_targets_units(made: RunFolder) -> None:
    one, other = (open_predictor(made, p).predict(ROWS, ["short"])["short"] for p in ("fp32", "int8"))
    np.testing.assert_allclose(other.mean(), one.mean(), atol=0.2 * one.std())


def test_the_graph_is_kept_until_the_model_changes(made: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    before = open_predictor(made, "int8").predict(ROWS, ["long"])["long"]
    shutil.copytree(made.path, run.path)
    graph = run.path / "model-int8" / "model.onnx"
    stamp = graph.stat().st_mtime_ns
    open_predictor(run, "int8")
    assert graph.stat().st_mtime_ns == stamp
    assert {path.name for path in run.path.glob("model-int8*")} == {"model-int8"}
    from safetensors.torch import load_file, save_file

    heads = load_file(run.model / "heads.safetensors")
    save_file({name: -tensor for name, tensor in heads.items()}, run.model / "heads.safetensors")
    after = open_predictor(run, "int8").predict(ROWS, ["long"])["long"]
    np.testing.assert_allclose(after, -before, rtol=1e-4, atol=1e-4)


def test_without_a_graph_torch_computes(
    made: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(made.path, run.path, ignore=shutil.ignore_patterns("model-int8"))
    monkeypatch.setattr(int8_graph, "TOLERANCE", -1.0)  # no graph is good enough
    with caplog.at_level(logging.WARNING):
        predictor = open_predictor(run, "int8")
    assert predictor.kind == "torch, int8" and "off by" in caplog.text
    assert predictor.bytes < 0.9 * open_predictor(run, "fp32").bytes
    assert "failed" in json.loads((run.path / "model-int8" / "facts.json").read_text())
    monkeypatch.undo()  # what failed is not tried again
    assert open_predictor(run, "int8").kind == "torch, int8"
    correlation, same = agreement(run, "long")
    assert correlation > 0.98 and same >= 0.85


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_decoder_with_adapters(tmp_path: Path, pooling: str) -> None:
    run = make_exported_run(tmp_path, lora=True, **{"model.pooling": pooling})
    assert open_predictor(run, "int8").kind == "ONNX Runtime, int8"
    correlation, same = agreement(run, "topic")
    assert correlation > 0.95 and same >= 0.75  # weights far larger than trained ones
