"""Fixtures shared by all tests: a tiny model, small data, commands. GPUs are hidden but from `pytest -m gpu`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmrecipes.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure(config: pytest.Config) -> None:
    """The tests are written for CPUs; those marked gpu see the GPUs."""
    if config.option.markexpr != "gpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model/` and `data/`, see `tiny.py`."""
    from tiny import make_data, make_model

    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder / "model")
    make_data(folder / "data")
    return folder


@pytest.fixture(scope="session")
def tiny_gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model/` and `data/`, see `tiny_gpt.py`."""
    from tiny_gpt import make_gpt, make_gpt_data

    folder = tmp_path_factory.mktemp("tiny_gpt")
    make_gpt(folder / "model")
    make_gpt_data(folder / "data")
    return folder


@pytest.fixture(scope="session")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run with a regression, a classification and a multi_label task, see `tiny_run.py`."""
    from tiny_run import make_run

    return make_run(tiny, tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def no_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("LMRECIPES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a command with this Python's scripts on the path, in a folder; output is captured as text."""

    def call(
        *command: str | Path, cwd: Path, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
        return subprocess.run(
            [str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
        )

    return call
