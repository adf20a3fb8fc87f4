"""The record of a run: what is on disk after every line, a crash and a resume."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from lmrecipes.files import write_json, write_text_atomically
from lmrecipes.problems import InputError
from lmrecipes.tracking.record import MetricsFile, read_metrics


def write_steps(path: Path, steps: range, resumed_at: int | None = None) -> None:
    with MetricsFile(path, resumed_at) as record:
        for step in steps:
            record.write(step, {"loss": 1.0 / step})


def test_every_line_is_on_disk_before_the_file_is_closed(tmp_path: Path) -> None:
    record = MetricsFile(tmp_path / "metrics.jsonl")
    record.write(1, {"loss": 0.5, "tokens/valence": 64})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5, "tokens/valence": 64}]
    record.write(2, {"loss": 0.25})
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    record.close()
    record.close()


def test_values_that_json_has_no_word_for_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as record:
        record.write(1, {"loss": math.nan, "lr": math.inf, "grad_norm": -math.inf, "loss_scale": np.float32(2.0)})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "lr": None, "grad_norm": None, "loss_scale": 2.0}


def test_resume_drops_later_steps_and_the_record_never_repeats(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 11))
    kept = path.read_text().splitlines()[:6]
    write_steps(path, range(7, 13), resumed_at=6)
    assert [row["step"] for row in read_metrics(path)] == list(range(1, 13))
    assert path.read_text().splitlines()[:6] == kept, "kept lines are the same bytes"


def test_a_new_run_starts_with_an_empty_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 4))
    write_steps(path, range(1, 3))
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_torn_last_line_is_left_out_and_not_continued(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write_steps(path, range(1, 4))
    path.write_bytes(path.read_bytes()[:-cut])
    whole = [row["step"] for row in read_metrics(path)]
    assert whole == ([1, 2, 3] if cut == 1 else [1, 2])
    write_steps(path, range(whole[-1] + 1, 6), resumed_at=whole[-1])
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]


def test_a_torn_character_at_the_end_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "loss/caf\xc3')
    assert read_metrics(path) == [{"step": 1}]


@pytest.mark.parametrize("bad", ["{", "[1]", "3", "\udcff"])
def test_a_bad_line_in_the_middle_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bad.encode("utf-8", "surrogateescape") + b'\n{"step": 2}\n')
    with pytest.raises(InputError, match="line 2"):
        read_metrics(path)


def test_a_missing_record_is_empty(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_failed_write_leaves_the_former_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evaluation.json"
    write_json(path, {"step": 1})

    def full_disk(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"step": 2})
    assert json.loads(path.read_text()) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_of_nested_values(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": (1, math.nan), "b": {"c": np.array([1.5, math.inf])}, "d": Path("x"), "e": {3, 1}, "f": "é"})
    assert json.loads(path.read_text()) == {"a": [1, None], "b": {"c": [1.5, None]}, "d": "x", "e": [1, 3], "f": "é"}
    with pytest.raises(TypeError, match="object"):
        write_json(path, object())
    assert json.loads(path.read_text())["f"] == "é"


def test_new_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text_atomically(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode
