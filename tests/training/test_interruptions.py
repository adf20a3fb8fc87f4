"""What ends a run from outside: signals, a dead rank, a dead parent, numbers that are not finite.

These tests start the installed command itself with a bare PATH, as somebody does who never activated `.venv`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import Run
from made_runs import LONG_STEPS, Runs, long_recipe, make_runs

from lmrecipes.tracking.record import read_metrics

COMMAND = str(Path(sys.prefix) / "bin" / "lmrecipes")
OURS = re.compile(
    r"\$ OMP_NUM_THREADS=|step \d+/\d+  loss|interrupted by SIG(TERM|INT); saved .*step-\d+\. Go on with --resume"
    r"|model: [\d,]+ parameters|mixture: \d+ steps|  short \d|stopped after step|the run failed: "
    r"|(error|warning) [a-z0-9-]+ |      fix: |report: |step \d was skipped: its gradients were not finite"
    r"| {9,}declared +found|(weights|masters|products|gradients|reduction|optimizer|updates)  +\S"
)
"""Every line that the command may write to standard error where that is no terminal."""
STARTS = 120.0
"""Seconds that a run may take until its first steps."""


@pytest.fixture(scope="module")
def runs(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make_runs(run, tiny, tmp_path_factory)


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds recipe.yaml: a run of a few seconds in fp32."""
    folder = tmp_path_factory.mktemp("interrupted")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(long_recipe(tiny), sort_keys=False))
    return folder


@contextmanager
def training(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """`lmrecipes train` on two ranks; whatever is left of it is killed in the end."""
    environment = {**os.environ, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [COMMAND, "train", "recipe.yaml", "--processes", "2", *flags], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        for left in [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []:
            left.kill()
        process.communicate()


def wait(what: str, true: Callable[[], bool], seconds: float = STARTS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s: {what}"
        time.sleep(0.02)


def steps(run: Path) -> list[int]:
    return [row["step"] for row in read_metrics(run / "metrics.jsonl")]


def started(process: subprocess.Popen[str], run: Path, beyond: int) -> list[psutil.Process]:
    """Wait until the run is well under way; its ranks, in order."""
    ended_or_under_way = lambda: process.poll() is not None or max(steps(run), default=0) > beyond + 5  # noqa: E731
    wait("first steps", ended_or_under_way)
    assert process.poll() is None, process.communicate()[1][-2000:]
    found = psutil.Process(process.pid).children()
    assert len(found) == 2
    return sorted(found, key=lambda rank: int(rank.environ()["RANK"]))


def gone(ranks: list[psutil.Process]) -> bool:
    return not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def assert_only_ours(stderr: str) -> None:
    assert [line for line in lines(stderr) if not OURS.match(line)] == []


def test_signals_stop_a_run_with_a_checkpoint_and_resume_finishes_it(folder: Path, runs: Runs) -> None:
    """TERM, then Ctrl-C, then the end: each step once, and the same losses as the run that nobody stopped."""
    run, flags = folder / "signals", ["--run-folder", "signals"]
    done = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        with training(folder, *flags, *(["--resume"] if done else [])) as process:
            ranks = started(process, run, done)
            process.send_signal(number)
            out, stderr = process.communicate(timeout=60)
        assert process.returncode == 128 + number, stderr[-2000:]
        assert gone(ranks)
        assert f"interrupted by {number.name}; saved signals/checkpoints/step-" in stderr
        assert_only_ours(stderr)
        assert out == ""
        newest = max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())
        assert newest == max(steps(run)) > done, "no step is lost"
        done = newest
    with training(folder, *flags, "--resume") as process:
        out, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr[-2000:]
    assert_only_ours(stderr)
    assert steps(run) == list(range(1, LONG_STEPS + 1))
    same = ("loss", "grad_norm", "tokens/short", "examples/long")
    whole = [[row[key] for key in same] for row in read_metrics(runs["ddp_long"] / "metrics.jsonl")]
    assert [[row[key] for key in same] for row in read_metrics(run / "metrics.jsonl")] == whole


def test_a_dead_parent_and_a_dead_rank(folder: Path) -> None:
    run, flags = folder / "dead", ["--zero", "2", "--precision.compute", "bf16", "--run-folder", "dead"]
    with training(folder, *flags) as process:
        ranks = started(process, run, 0)
        process.kill()
        wait("ranks without a parent save and end", lambda: gone(ranks), 60)
    saved = [path.name for path in (run / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert not saved[0].endswith(".tmp")
    with training(folder, *flags, "--resume") as process:
        ranks = started(process, run, int(saved[0].removeprefix("step-")))
        ranks[1].kill()
        _, stderr = process.communicate(timeout=90)
    assert process.returncode == 3
    assert gone(ranks)
    # Rank 0 may notice the broken connection, and end by itself, before torch's launcher ends it.
    assert re.search(r"the run failed: (rank 0 [^;]*; )?rank 1 was ended by SIGKILL", stderr)
    assert "--resume --run-folder dead" in stderr


def test_refusals_and_failures_are_one_message(folder: Path, run: Run) -> None:
    """No traceback, and the exit code that the contract says, through the launcher of two ranks and of one."""

    def train(*flags: str) -> tuple[int, str]:
        done = run(COMMAND, "train", "recipe.yaml", *flags, cwd=folder)
        assert done.stdout == ""
        assert_only_ours(done.stderr)
        return done.returncode, done.stderr

    code, stderr = train("--optimizer.lr", "1e38", "--run-folder", "nan")
    assert code == 3
    assert re.search(r"the run failed: step 4: 3 steps in a row were skipped: the \w+ of \S+ are not finite \(", stderr)
    assert stderr.endswith("; saved nan/checkpoints/step-00000001: from before the first of them\n")
    said = "the command, the model, 7 lines of dtypes, 2 of the mixture, one for each skipped step, the reason"
    assert len(lines(stderr)) == 15, said
    shutil.rmtree(folder / "nan" / "checkpoints")
    code, stderr = train("--resume", "--run-folder", "nan", "--optimizer.lr", "1e38", "--processes", "2")
    assert code == 2, "nothing to resume is never a start from 0"
    assert stderr.count("no complete checkpoint to resume from") == 1, "rank 0 alone speaks"
    code, stderr = train("--resume")
    assert code == 2
    assert "no unfinished run of 'tiny'" in stderr
    code, stderr = train("--run-folder", "nan")
    assert code == 2
    assert "nan holds a run already" in stderr
