"""The report's section about negative transfer: cosines as a heat map and curves, and each task alone."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_up_run import KINDS, WEIGHTS, make_run, noise

from lmrecipes.files import write_json
from lmrecipes.problems import InputError
from lmrecipes.report import ReportOptions, report
from lmrecipes.tracking.report import write_report
from lmrecipes.tracking.run_record import read_run
from lmrecipes.tracking.transfer_section import curves, heat_map, transfer
from lmrecipes.training.agreement import measured

TASKS = list(KINDS)
TRUE = {("valence", "icd10"): 0.4, ("valence", "hpo"): 0.1, ("valence", "party"): -0.6, ("icd10", "hpo"): 0.8}


def make_cosines(count: int = 40) -> list[dict[str, Any]]:
    """What a run measures: signals of 0.1 under norms of 1; `party` is missing from some steps."""
    rows = []
    for at in range(count):
        tasks = [task for task in TASKS if task != "party" or at % 4]
        dots: dict[str, dict[str, float]] = {}
        for number, a in enumerate(tasks):
            for b in tasks[number + 1 :]:
                dots.setdefault(a, {})[b] = 0.1 * TRUE.get((a, b), 0.0) + 0.03 * noise(a, b, at)
        rows.append(
            {
                "step": 5 * (at + 1), "seconds": 0.8, "examples": {task: round(40 * WEIGHTS[task]) for task in tasks},
                "norms": dict.fromkeys(tasks, 1.0),
                "within": {task: 0.05 + 0.02 * noise(task, at) for task in tasks},
                "signal": {task: 0.1 + 0.05 * noise("signal", task, at) for task in tasks}, "dots": dots,
            }
        )  # fmt: skip
    return rows


def make_alone() -> dict[str, Any]:
    """What `--each-task-alone` stores."""

    def task(
        gain: float | None, interval: list[float] | None, verdict: str, failed: str | None = None
    ) -> dict[str, Any]:
        return {
            "metric": "accuracy", "rows": 900, "joint": 0.81, "alone": None if gain is None else 0.81 - gain,
            "gain": gain, "interval": interval, "examples_joint": 1234, "examples_alone": 1280, "steps": 20,
            "seconds": 33.3, "failed": failed, "verdict": verdict,
        }  # fmt: skip

    return {
        "measured": "2026-11-22", "method": "Gain: <joint> less alone", "environment": {},
        "seconds": {"joint": 100.0, "alone": 133.2},
        "tasks": {
            "valence": task(0.031, [0.012, 0.05], "gains"), "icd10": task(-0.02, [-0.03, -0.01], "loses"),
            "hpo": task(0.001, [-0.01, 0.012], "undecided"), "party": task(None, None, "", "no <memory>"),
        },
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "one-20261122-101530")
    (folder / "cosines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_cosines()))
    write_json(folder / "alone.json", make_alone())
    return folder


def test_nothing_is_said_where_nothing_was_measured(tmp_path: Path) -> None:
    assert transfer([read_run(make_run(tmp_path / "bare-20261122-101530"))], 0) == ("", [])


def test_a_map_is_symmetric_and_shows_the_noise_on_its_diagonal() -> None:
    maps = heat_map(TASKS, measured(make_cosines()))
    corrected, plain = maps["measures"]
    for at in range(4):
        assert corrected["values"][at][at] is None and plain["values"][at][at] == pytest.approx(0.05, abs=0.01)
        assert [row[at] for row in corrected["values"]] == corrected["values"][at]
    assert corrected["values"][0][1] == pytest.approx(0.4, abs=0.1)
    assert corrected["values"][3][0] == pytest.approx(-0.6, abs=0.1)
    assert plain["values"][0][1] == pytest.approx(0.04, abs=0.01)
    assert re.fullmatch(r"-0\.\d\d ± 0\.\d\d", corrected["text"][3][0]) and corrected["text"][0][0] == ""


def test_curves_follow_each_pair_and_begin_with_a_full_window() -> None:
    chart = curves(TASKS, measured(make_cosines()), 4)
    assert chart is not None and len(chart.lines) == 6 and len({line.series for line in chart.lines}) == 6
    (line,) = (line for line in chart.lines if line.name == "valence, party")
    assert line.x[0] == 25 and line.x[-1] == 200 and max(line.y) < 0
    assert curves(TASKS, measured(make_cosines(4)), 4) is None


def test_a_readme_gets_the_comparison_where_it_has_a_place(run: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    places = "<!-- results -->\n<!-- /results -->\n"
    for text in (places, places + "<!-- alone -->\nold\n<!-- /alone -->\n"):
        readme.write_text(text)
        report(ReportOptions((run,), None, readme))
        assert "old" not in readme.read_text()
        assert ("| `icd10` | accuracy | 0.810 | 0.830 | -0.020 | -0.030 to -0.010 | loses |" in readme.read_text()) == (
            "alone" in text
        )
    assert "| `party` | accuracy | 0.810 |" in readme.read_text() and "| failed |" in readme.read_text()
    assert "Trained for 1 min 40 s jointly, 2 min 13 s alone" in readme.read_text()
    readme.write_text(places + "<!-- alone -->\n")
    with pytest.raises(InputError, match="needs one <!-- alone --> and after it one"):
        report(ReportOptions((run,), None, readme))


def test_the_page_shows_both(run: Path) -> None:
    page = write_report([run], run / "report.html").read_text()
    (section,) = re.findall(r"<section><h2>Negative transfer</h2>(.*?)</section>", page, re.S)
    for text in (
        "40 measurements, 32 s in all, 27% of",
        "below 0 a step for one undoes",
        "gains",
        "loses",
        "undecided",
    ):
        assert text in section
    for text in ("+0.012 to +0.050", "-0.020", "1,234 / 1,280", "no &lt;memory&gt;", "&lt;joint&gt;", "33.3"):
        assert text in section
    (data,) = re.findall(r'class="heatdata">(.*?)</script>', section, re.S)
    assert json.loads(data) == heat_map(TASKS, measured(make_cosines()))
    (number,) = re.findall(r'data-chart="(\d+)"', section)
    (charts,) = re.findall(r'id="charts">(.*?)</script>', page, re.S)
    assert json.loads(charts)[int(number)]["lines"][0]["name"] == "valence, icd10"


def test_several_runs_are_folded_and_their_charts_are_their_own(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "two-20261122-101530")
    (other / "cosines.jsonl").write_text((run / "cosines.jsonl").read_text())
    content, charts = transfer([read_run(run), read_run(other)], 7)
    assert "<summary>Each run</summary>" in content and len(charts) == 2
    assert re.findall(r'data-chart="(\d+)"', content) == ["7", "8"]
