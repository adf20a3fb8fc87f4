"""An exported model is the trained one: `transformers` loads it, and it predicts what the live engine predicted."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from made_runs import Runs, make_runs

from lmrecipes.data.batches import Batcher
from lmrecipes.data.encode import encode_tasks
from lmrecipes.data.layout import Arrangement
from lmrecipes.inference.predictor import Predictor
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.run_folder import replace_folder

TOLERANCE = {"plain": 1e-6, "zero2": 1e-6, "zero3": 2e-2, "offload3": 2e-2}
"""Of predictions, absolute. ZeRO's own weights are the fp32 masters cast to bf16, and so are the predictor's, in the
same batches. Under ZeRO-3 DeepSpeed's linear layers round to bf16 before they add the bias and after: 3e-3 here."""


@pytest.fixture(scope="module")
def runs(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make_runs(run, tiny, tmp_path_factory)


@pytest.mark.parametrize("name", list(TOLERANCE))
def test_transformers_loads_the_folder_whole(name: str, runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoModel, AutoTokenizer

    with caplog.at_level(logging.WARNING):
        model, found = AutoModel.from_pretrained(runs[name] / "model", output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(runs[name] / "model")
    assert not any(found.values()), found
    assert not caplog.records
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer("heart fever")["input_ids"][0] == tokenizer.cls_token_id


@pytest.mark.parametrize("name", list(TOLERANCE))
def test_the_exported_model_predicts_what_the_engine_did(name: str, runs: Runs) -> None:
    live = json.loads((runs.folder / f"{name}.predictions.json").read_text())
    predictor = Predictor(runs[name] / "model")
    specs = predictor.exported.specs
    tasks = encode_tasks(recipe_from_yaml(runs[name] / "recipe.yaml"))
    batcher = Batcher({task: encoded.splits["test"] for task, encoded in tasks.items()}, specs)
    for number, task in enumerate(tasks):
        count = len(live[task])
        rows, owners, units = np.arange(count), np.full(count, number, np.int16), dict.fromkeys(tasks, 1.0)
        batch = batcher.micro_batch([rows], owners, rows, units, Arrangement("padded"))
        found = predictor(batch)[task].float().numpy()
        assert np.abs(found - np.array(live[task])).max() <= TOLERANCE[name]
        assert np.ptp(found) > 0.01, "predictions differ between texts"


@pytest.mark.parametrize("name", ["plain", "zero2"])
def test_evaluate_repeats_the_final_evaluation(
    name: str, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To 1e-6: the batches are the same, only the number of threads may differ, and with it the order of sums."""
    from lmrecipes.cli import run as command

    assert command(["evaluate", str(runs[name]), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    then = json.loads((runs[name] / "evaluation.json").read_text())
    assert again["step"] == then["step"]
    assert again["tasks"].keys() == then["tasks"].keys()
    for task, score in then["tasks"].items():
        found = again["tasks"][task]
        assert found["rows"] == score["rows"]
        assert found["loss"] == pytest.approx(score["loss"], abs=1e-6)
        assert found["metrics"] == pytest.approx(score["metrics"], abs=1e-6)


def test_what_was_trained_is_what_is_exported(runs: Runs) -> None:
    """Every tensor of the trunk has moved from the pretrained one, but for the pooler, which no task trains."""
    from safetensors.torch import load_file

    start = load_file(Path(recipe_from_yaml(runs["zero3"] / "recipe.yaml").model.pretrained) / "model.safetensors")
    for name in ("plain", "zero2", "zero3"):
        end = load_file(runs[name] / "model" / "model.safetensors")
        assert end.keys() == start.keys()
        # ZeRO-3 loads the model in bf16, its pooler too.
        still = {key for key in start if torch.equal(start[key].bfloat16(), end[key].bfloat16())}
        assert still == {"pooler.dense.weight", "pooler.dense.bias"}


def test_a_reader_never_sees_a_part_of_an_export(tmp_path: Path) -> None:
    def write(folder: Path, content: str) -> None:
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).write_text(content)

    final, stop = tmp_path / "model", threading.Event()
    seen: list[str] = []
    write(final, "0")

    def read() -> None:
        while not stop.is_set():
            try:
                seen.append((final / "b").read_text())
            except FileNotFoundError:
                seen.append("absent")

    reader: Any = threading.Thread(target=read)
    reader.start()
    for turn in range(1, 60):
        write(tmp_path / "model.tmp", str(turn))
        replace_folder(tmp_path / "model.tmp", final)
    stop.set()
    reader.join()
    assert len(set(seen)) > 5
    assert "absent" not in seen
    assert (final / "a").read_text() == "59"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
