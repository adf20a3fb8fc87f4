"""`lmrecipes plan`: the table, its JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny import make_recipe

from lmrecipes.cli import run as command
from lmrecipes.plan import short
from lmrecipes.planning.by_precision import COMPARED

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("mine.yaml").write_text(yaml.safe_dump(make_recipe(tiny)))
    return "mine.yaml"


def test_the_table_fits_a_terminal_and_marks_the_recipes_own(file: str, capfd: Capture) -> None:
    assert command(["plan", file, "--by", "precision", "--hardware", "8xA100-80GB", "--zero", "2"]) == 0
    out = capfd.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith("8xA100-80GB, ZeRO 2; each rank: 1 x 2 texts of 48 tokens a step")
    assert "fp32 *" in out
    assert "masters" in out
    assert "does not run" not in out
    assert command(["plan", file, "--hardware", "2xcpu", "--zero", "0"]) == 0
    out = capfd.readouterr().out
    assert "masters" not in out
    assert "fp16 mixed does not run there" in out
    assert list(Path().iterdir()) == [Path(file)], "nothing is written"


def test_json_has_every_term_and_nothing_else_on_stdout(file: str, capfd: Capture) -> None:
    args = ["plan", file, "--hardware", "2xH100", "--length", "24", "--json", "--precision.layers", "*", "fp8"]
    assert command(args) == 0
    out, err = capfd.readouterr()
    made = json.loads(out)
    assert err == ""
    assert made["micro_batch"] == {"texts": 8, "time": 24, "row": 24}
    assert [row["name"] for row in made["precisions"]] == [*COMPARED, "this recipe's"]
    own = made["precisions"][-1]
    assert own["own"]
    assert own["precision"] == {"compute": "fp32", "layers": {"*": "fp8"}}
    assert any(term["kind"] == "fp8" for term in own["terms"]["flops"])
    for row in made["precisions"]:
        for part, terms in row["terms"].items():
            assert row["totals"][part] == pytest.approx(sum(term["value"] for term in terms))


def test_what_it_refuses(file: str, capfd: Capture) -> None:
    for name, value in (("hardware", "8xA1000"), ("length", "0"), ("length", "49"), ("by", "colour"), ("zero", "7")):
        assert command(["plan", file, f"--{name}", value]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert "Traceback" not in err


def test_numbers_are_short() -> None:
    assert [short(x) for x in (0, 7, 999, 1000, 999_600, 1.8234e12)] == ["0", "7", "999", "1k", "1M", "1.82T"]
