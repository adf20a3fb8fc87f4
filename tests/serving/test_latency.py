"""`lmrecipes latency` on a real run of a tiny model: real services, real requests, and the verdict on budgets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest
import yaml
from tiny import make_recipe

from lmrecipes.cli import run as command
from lmrecipes.inference import own_rows
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.run_folder import RunFolder
from lmrecipes.serving.options import ServeOptions
from lmrecipes.serving.process import get, service
from lmrecipes.serving.requests import questions_of

LOOSE = {"precision": "fp32", "p99_ms": 1e6, "requests_per_second": 20, "loaded_p99_ms": 1e6, "margin": 10.0}
TIGHT = {"precision": "int8", "p99_ms": 1e-3, "requests_per_second": 5, "loaded_p99_ms": 1e6, "margin": 10.0}


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of three tasks in two steps, with a budget that any machine keeps and one that none does."""
    folder = tmp_path_factory.mktemp("latency")
    changes = {"schedule.steps": 2, "latency": {"loose": LOOSE, "tight": TIGHT}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(make_recipe(tiny, **changes)))
    words = [sys.executable, "-m", "lmrecipes.launching", str(folder / "mine.yaml"), "--run-folder", "run"]
    subprocess.run(words, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return RunFolder(folder / "run")


def test_the_command_measures_stores_and_judges(
    finished: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# mine\n\n<!-- latency -->\n<!-- /latency -->\n")
    args = ["latency", str(finished.path), "--precision", "fp32", "int8", "--seconds", "0.2", "--json"]
    assert command([*args, "--readme", str(readme)]) == 1
    found = json.loads(capfd.readouterr().out)
    assert found == json.loads(finished.latency.read_text())
    assert list(found["precisions"]) == ["fp32", "int8"]
    for served in found["precisions"].values():
        assert served["closed"]["errors"] == {} and served["closed"]["requests"] > 0
        assert served["budgets"].keys() == {"loose", "tight"}
        assert served["tasks"].keys() == {"short", "long", "rare"}
        assert served["megabytes"] > 0
    assert found["precisions"]["fp32"]["tasks"]["long"]["drop"] == 0
    loose, tight = found["budgets"]["loose"], found["budgets"]["tight"]
    assert loose["met"] and loose["precisions"]["fp32"]["met"]
    assert not tight["met"] and not tight["precisions"]["int8"]["checks"][0]["met"]
    assert [check["met"] for check in tight["precisions"]["int8"]["checks"][1:]] == [True] * 4
    table = readme.read_text()
    assert "| int8 |" in table and "| kept | not kept |" in table and "Budget `tight`" in table
    page = finished.report.read_text()
    assert "Budget tight" in page and page.count("<svg") >= 3
    assert command(["latency", str(finished.path), "--precision", "fp32", "--seconds", "0.1", "--budget", "loose"]) == 0
    said = capfd.readouterr().out
    assert "budget loose: kept" in said and "tight" not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--budget", "tigth"], "Did you mean `tight`"),
        (["--precision", "fp32", "--budget", "tight"], "add int8"),
        (["--seconds", "0"], "must be above 0"),
    ],
)
def test_flags_that_do_not_fit(
    finished: RunFolder, flags: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(["latency", str(finished.path), *flags]) == 2
    assert said in capfd.readouterr().err.replace("\n", " ")


def test_requests_are_rows_of_the_test_split(finished: RunFolder, tiny: Path) -> None:
    recipe = recipe_from_yaml(finished.recipe)
    questions = questions_of(recipe, 5)
    assert [question["tasks"] for question in questions[:3]] == [[task] for task in recipe.tasks]
    everything = own_rows.test_rows(recipe, "long", 1000)
    known = {json.loads(line)["text"] for line in (tiny / "data" / "long.jsonl").read_text().splitlines()}
    assert 0 < len(everything) < 0.3 * len(known)
    assert {row["text"] for row in everything} <= known and all(set(row) == {"text"} for row in everything)
    assert own_rows.test_rows(recipe, "long", 5) == everything[:5]  # chosen by hash: fewer are the same ones


def test_the_service_answers_as_the_model_does(finished: RunFolder) -> None:
    from lmrecipes.inference.row_predictor import answers, open_predictor

    rows = own_rows.test_rows(recipe_from_yaml(finished.recipe), "long", 3)
    predictor = open_predictor(finished.path, "fp32", 1)
    expected = answers(predictor.specs["long"], predictor.predict(rows, ["long"])["long"], True)
    with service(finished.path, "fp32", ServeOptions()) as port:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        body = json.dumps({"rows": rows, "tasks": ["long"], "probabilities": True})
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        found = json.loads(connection.getresponse().read())["predictions"]["long"]
        assert get("127.0.0.1", port, "/health")[0] == 200
    assert [answer["label"] for answer in found] == [answer["label"] for answer in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)


SLOW = """
import sys, time
sys.path.insert(0, {folder!r})
from stand_in import Letters
from lmrecipes.launching import quieten
from lmrecipes.serving.app import serve
from lmrecipes.serving.options import ServeOptions

class Slow(Letters):
    def predict(self, rows, tasks):
        if rows[0]["text"] == "slow":
            print("computing", file=sys.stderr, flush=True)
            time.sleep(1.0)
        return super().predict(rows, tasks)

quieten()
sys.exit(serve(Slow(("length",)), ServeOptions(port=0), "slow"))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_under_way_and_ends_with_0(number: signal.Signals) -> None:
    code = SLOW.format(folder=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = int(process.stderr.readline().split("http://127.0.0.1:")[1].split(",")[0])
        until = time.monotonic() + 30
        while get("127.0.0.1", port, "/ready")[0] != 200:
            assert time.monotonic() < until
        answers: list[tuple[int, bytes]] = []
        idle = HTTPConnection("127.0.0.1", port, timeout=30)  # a kept connection must not hold the service
        idle.request("GET", "/health")
        idle.getresponse().read()

        def ask() -> None:
            connection = HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/predict", '{"row": {"text": "slow"}}', {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answers.append((answer.status, answer.read()))

        thread = threading.Thread(target=ask)
        thread.start()
        assert "computing" in process.stderr.readline()
        process.send_signal(number)
        thread.join(30)
        assert process.wait(30) == 0
        assert answers == [(200, b'{"predictions": {"length": [{"value": 4.0}]}}')]
        with pytest.raises(OSError, match="refused"):
            get("127.0.0.1", port, "/health")
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
