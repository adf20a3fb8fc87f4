"""The report's section about number formats: dtypes, changes, an audit's heat map."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_up_run import make_run

from lmrecipes.files import write_json
from lmrecipes.tracking.precision_section import heat_maps, precision
from lmrecipes.tracking.report import write_report
from lmrecipes.tracking.run_record import read_run

NONE = {"overflow": 0.0, "underflow": 0.0, "no_bits": 0.0}


def make_audit(layers: int) -> dict[str, Any]:
    """What `lmrecipes audit` stores, as far as the report reads it."""

    def tensor(at: int) -> dict[str, Any]:
        numbers = {"losses": {**NONE, "underflow": 0.01 * at}, "plain": {**NONE, "overflow": 0.2, "underflow": 0.3}}
        return {"formats": {name: {"sqnr": 31.0 - at, **numbers} for name in ("fp8_e4m3", "fp8_e5m2", "bf16", "fp16")}}

    rows: list[dict[str, Any]] = [
        {"name": f"encoder.layer.{at}.dense", "tensors": {key: tensor(at) for key in ("weight", "input", "gradient")}}
        for at in range(layers)
    ]
    rows.append({"name": "norm</script>", "tensors": {"weight": tensor(0), "output": tensor(0)}})
    return {
        "steps": 2,
        "from_step": 8,
        "weights": "checkpoint step-00000100",
        "layers": rows,
        "findings": [{"kind": "range", "layer": "norm</script>", "value": 1e6, "what": "weight: up to 1e6"}],
        "recommendation": {"yaml": "precision:\n  compute: bf16\n  layers:\n    '*': fp8\n"},
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "one-20261122-101530")


def test_nothing_is_said_where_nothing_is_known(run: Path) -> None:
    record = read_run(run)
    assert precision([record]) == "" or "dtypes" in record.environment


def test_a_map_has_a_row_for_each_layer_and_a_column_for_each_tensor_and_format() -> None:
    maps = heat_maps(make_audit(3))
    assert maps["rows"] == ["encoder.layer.0.dense", "encoder.layer.1.dense", "encoder.layer.2.dense", "norm</script>"]
    assert maps["groups"] == ["weights", "inputs", "gradients", "outputs"] and len(maps["columns"]) == 16
    sqnr, lost, plain = maps["measures"]
    assert [row[0] for row in sqnr["values"]] == [31.0, 30.0, 29.0, 31.0]
    assert sqnr["values"][3][4] is None and sqnr["values"][0][15] is None and sqnr["values"][3][15] == 31.0
    assert lost["values"][2][0] == 2.0 and plain["values"][2][0] == 50.0
    assert sqnr["good_high"] and not lost["good_high"]


def test_the_page_shows_dtypes_changes_and_the_audit(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    rows = [{"what": "optimizer", "declared": "fp32", "found": "fp32", "bytes": 82_500, "where": "exp_avg"}]
    write_json(run / "environment.json", {**environment, "dtypes": rows})
    change = {"step": 120, "layer": "encoder.layer.3", "from": "fp8", "to": "bf16", "reason": "its inputs overflowed"}
    (run / "precision.jsonl").write_text(json.dumps(change) + "\n")
    write_json(run / "audit.json", make_audit(12))
    page = write_report([run], run / "report.html").read_text()
    (section,) = re.findall(r"<section><h2>Precision</h2>(.*?)</section>", page, re.S)
    for text in ("exp_avg", "82.5 kB", "its inputs overflowed", "encoder.layer.3", "Recommended", "compute: bf16"):
        assert text in section
    (data,) = re.findall(r'class="heatdata">(.*?)</script>', section, re.S)
    assert json.loads(data) == heat_maps(make_audit(12))
    assert "norm&lt;/script&gt;" in section
    assert "exp_avg" not in page.replace(section, "").partition("<script>")[0]  # once, not in the environment too


def test_several_runs_are_folded(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "two-20261122-101530")
    for one in (run, other):
        write_json(one / "audit.json", make_audit(1))
    section = precision([read_run(run), read_run(other)])
    assert section.count('class="heatmap"') == 2 and "<summary>Each run</summary>" in section
