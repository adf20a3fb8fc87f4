"""The scripts of `launch/` and `.ci/run`, run for real in a small copy of the repository.

The copy installs an empty requirements file and a package whose build backend lies beside it, so that the real pip
runs without a network and in seconds. DeepSpeed's operators and `lmrecipes` are stand-ins that record their arguments.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["launch/setup", "launch/quickstart", "launch/ensemble", "launch/test", ".ci/run"]

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "lmrecipes"
version = "0"
"""

# Makes an editable wheel with the standard library alone. While `hang` exists it waits, as a slow download would.
BACKEND = """
import pathlib, time, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    here = pathlib.Path.cwd()
    if (here / "hang").exists():
        (here / "hanging").touch()
        time.sleep(60)
    info = "lmrecipes-0.dist-info"
    files = {
        "lmrecipes.pth": str(here),
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: lmrecipes\\nVersion: 0\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{info}/entry_points.txt": "[console_scripts]\\nlmrecipes = stand_in:main\\n",
    }
    record = "".join(f"{name},,\\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / "lmrecipes-0-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)
    return "lmrecipes-0-py3-none-any.whl"
"""

STAND_IN = """
import pathlib, sys

def record(name, arguments):
    with (pathlib.Path(__file__).parent / "calls").open("a") as calls:
        print(name, *arguments, file=calls)

def main():
    if sys.argv[1:] != ["--help"]:
        record("lmrecipes", sys.argv[1:])
"""

BUILD_OPERATORS = """
import os, pathlib, sys
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import stand_in
stand_in.record("operators", [*sys.argv[1:], os.environ["TORCH_EXTENSIONS_DIR"], os.environ.get("DS_ACCELERATOR")])
"""


def executable(path: Path, text: str) -> None:
    """Write a script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def copy_repository(root: Path) -> Path:
    """A repository at `root` with our scripts and stand-ins for all that takes long."""
    for name in SCRIPTS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    (root / "requirements.txt").write_text("# nothing\n")
    (root / "requirements-dev.txt").write_text("# nothing\n")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "stand_in.py").write_text(STAND_IN)
    (root / "launch/build_operators.py").write_text(BUILD_OPERATORS)
    executable(root / "fakes/nvidia-smi", "#!/bin/sh\nexit 1\n")  # a machine without GPU, whatever it has
    executable(root / "fakes/c++", "#!/bin/sh\n")
    return root


def environment(root: Path) -> dict[str, str]:
    """Ours, without the caller's pip and DeepSpeed settings, no network for pip; programs in `fakes/` come first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "DS_"))}
    fakes = f"{root / 'fakes'}:{os.environ['PATH']}"
    return {**kept, "PATH": fakes, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}


def run(root: Path, script: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository at `root`, from another folder."""
    command = [str(root / script), *arguments]
    place = cwd or root.parent
    return subprocess.run(command, cwd=place, env=environment(root), capture_output=True, text=True, timeout=60)


def calls(root: Path) -> list[str]:
    """What the stand-ins were called with, so far."""
    return (root / "calls").read_text().splitlines() if (root / "calls").exists() else []


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository (with a space in its path) where `launch/setup` has run once."""
    root = copy_repository(tmp_path_factory.mktemp("launch") / "a clone")
    done = run(root, "launch/setup")
    assert done.returncode == 0, done.stderr
    assert "ready in" in done.stdout
    assert "next: ./launch/quickstart" in done.stdout
    yield root
    shutil.rmtree(root)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_bash(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert path.read_text().splitlines()[0] == "#!/usr/bin/env bash"
    subprocess.run(["bash", "-n", path], check=True)


def test_setup_builds_the_operators_and_fetches_the_assets(ready: Path) -> None:
    extensions = ready / ".venv/torch_extensions"
    operators = f"operators --needed deepspeed_shm_comm --optional cpu_adam {extensions} cpu"
    assert calls(ready)[:2] == [operators, "lmrecipes assets fetch --quickstart"]
    assert extensions.is_dir()


def test_second_setup_does_nothing(ready: Path) -> None:
    before = calls(ready)
    log = (ready / ".venv/setup.log").stat().st_mtime_ns
    began = time.monotonic()
    done = run(ready, "launch/setup")
    assert time.monotonic() - began < 2  # 0.1 s on an idle machine
    assert done.returncode == 0
    assert "up to date" in done.stdout
    assert calls(ready) == before
    assert (ready / ".venv/setup.log").stat().st_mtime_ns == log


def test_changed_requirements_are_installed_and_a_failure_is_named(ready: Path) -> None:
    requirements = ready / "requirements.txt"
    original = requirements.read_text()
    requirements.write_text("no-such-package==1.0\n")
    failed = run(ready, "launch/setup")
    assert failed.returncode == 1
    assert "No matching distribution found for no-such-package==1.0" in failed.stderr
    assert "pip could not install the other packages" in failed.stderr
    requirements.write_text(original)
    repaired = run(ready, "launch/setup")
    assert repaired.returncode == 0
    assert "installed the other packages" in repaired.stdout
    assert "making .venv" not in repaired.stdout  # pip undid its own failure: nothing to begin again


def test_torch_is_installed_first_by_its_pin(ready: Path) -> None:
    requirements = ready / "requirements.txt"
    original = requirements.read_text()
    requirements.write_text("deepspeed==0.0.0  # wants torch\ntorch==0.0.0  # reason\n")
    failed = run(ready, "launch/setup")
    requirements.write_text(original)
    assert failed.returncode == 1
    assert "installing torch==0.0.0\n" in failed.stdout
    assert "No matching distribution found for torch==0.0.0" in failed.stderr
    assert run(ready, "launch/setup").returncode == 0


def test_interrupted_setup_is_repaired(ready: Path) -> None:
    (ready / "requirements-dev.txt").write_text("# changed\n")
    (ready / "hang").touch()
    process = subprocess.Popen(
        [ready / "launch/setup"], env=environment(ready), stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 20
    while not (ready / "hanging").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (ready / "hang").unlink()
    assert not (ready / ".venv/setup.stamp").exists()
    repaired = run(ready, "launch/setup")
    assert repaired.returncode == 0, repaired.stderr
    assert "making .venv again" in repaired.stdout
    assert "up to date" in run(ready, "launch/setup").stdout


def test_stale_lock_is_removed_and_a_held_one_is_kept(ready: Path) -> None:
    stale = ready / ".venv/torch_extensions/stale/lock"
    held = ready / ".venv/torch_extensions/held/lock"
    for lock in (stale, held):
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    with held.open():
        done = run(ready, "launch/setup")
    assert f"removed {stale}" in done.stdout
    assert not stale.exists()
    assert held.exists()


def test_quickstart_trains_the_default_recipe(ready: Path) -> None:
    done = run(ready, "launch/quickstart", "--full", "--tasks.tweets.weight", "0.5")
    assert done.returncode == 0, done.stderr
    command = "lmrecipes train bert_multitask --zero 2 --processes 2 --full --tasks.tweets.weight 0.5"
    assert calls(ready)[-1] == command
    assert done.stdout.splitlines()[-1] == f"quickstart: training on the CPU: {command}"


def test_ensemble_makes_what_is_not_finished(ready: Path) -> None:
    """One BERT is finished, one was cut and has a checkpoint, one ended before its first checkpoint."""
    for name in ("bert-1/evaluation.json", "bert-2/checkpoints/step-00000010/state.json", "bert-3/recipe.yaml"):
        (ready / "of" / name).parent.mkdir(parents=True)
        (ready / "of" / name).touch()
    before = len(calls(ready))
    done = run(ready, "launch/ensemble", "of")
    assert done.returncode == 0, done.stderr
    together = "lmrecipes combine of/bert-1 of/bert-2 of/bert-3"
    student = "--student ensemble --student --model.pretrained 'of/soup/model'"
    assert calls(ready)[before:] == [
        "lmrecipes assets fetch smollm2",
        "lmrecipes train ensemble --seed 2 --run-folder of/bert-2 --resume",
        "lmrecipes train ensemble --seed 3 --run-folder of/bert-3",
        "lmrecipes train ensemble --gpt --run-folder of/gpt",
        f"{together} --method soup --to of/soup",
        f"{together} --method average --to of/teacher",
        f"{together} of/gpt --method distil --teacher of/teacher {student} --control --to of/student",
    ]
    assert "of/bert-1 is finished" in done.stdout
    assert not (ready / "of/bert-3/recipe.yaml").exists()


def test_gpus_change_the_operators_and_the_processes(ready: Path) -> None:
    no_gpu = (ready / "fakes/nvidia-smi").read_text()
    executable(ready / "fakes/nvidia-smi", "#!/bin/sh\necho 'GPU 0: a card'\n")
    (ready / "torch.py").write_text("class cuda:\n    device_count = lambda: 4\n")
    (ready / ".venv/setup.stamp").unlink()
    before = len(calls(ready))
    done = run(ready, "launch/quickstart")
    (ready / "torch.py").write_text("class cuda:\n    device_count = lambda: 0\n")
    without_cuda = run(ready, "launch/quickstart")
    (ready / "torch.py").unlink()
    executable(ready / "fakes/nvidia-smi", no_gpu)
    assert done.returncode == 0, done.stderr
    assert calls(ready)[before:] == [
        f"operators --needed --optional cpu_adam {ready / '.venv/torch_extensions'} None",
        "lmrecipes assets fetch --quickstart",
        "lmrecipes train bert_multitask --zero 2 --processes 4",
        "lmrecipes train bert_multitask --zero 2 --processes 2",
    ]
    assert "torch sees none of the GPUs" in without_cuda.stdout


def test_test_script_runs_every_check_even_if_one_fails(ready: Path) -> None:
    tool = '#!/bin/sh\necho "$(basename "$0")" "$@" threads=$OMP_NUM_THREADS >>"{calls}"\nexit {code}\n'
    bin_ = ready / ".venv/bin"
    executable(bin_ / "ruff", tool.format(calls=ready / "calls", code=1))
    executable(bin_ / "mypy", tool.format(calls=ready / "calls", code=0))
    (ready / "pytest.py").write_text("import sys, stand_in\nstand_in.record('pytest', sys.argv[1:])\n")
    threads = f"threads={os.environ.get('OMP_NUM_THREADS', '1')}"
    before = len(calls(ready))
    done = run(ready, "launch/test")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "test: failed: lint format"
    assert calls(ready)[before:] == [
        "lmrecipes assets fetch",
        f"ruff check . {threads}",
        f"ruff format --check . {threads}",
        f"mypy {threads}",
        "pytest",
    ]

    before = len(calls(ready))
    done = run(ready, "launch/test", "tests/data", "-k", "two words")
    assert done.returncode == 0
    assert calls(ready)[before:] == ["lmrecipes assets fetch", "pytest tests/data -k two words"]


def test_too_old_python_and_full_disk_are_named_together_and_nothing_is_made(tmp_path: Path) -> None:
    root = copy_repository(tmp_path / "clone")
    for version in ("3.11", "3.12", "3.13", "3.14"):
        executable(root / f"fakes/python{version}", "#!/bin/sh\nexit 127\n")  # what a version manager's stub does
    executable(root / "fakes/python3", "#!/bin/sh\necho 3.8.10\n")
    executable(root / "fakes/df", "#!/bin/sh\necho Filesystem Blocks Used Available\necho disk 9000000 0 1048576\n")
    before = sorted(root.rglob("*"))
    done = run(root, "launch/setup")
    assert done.returncode == 2
    assert "Python 3.11 or newer is needed, found: python3 is 3.8.10. Fix: install Python 3.11" in done.stderr
    assert f"{root} has 1.0 GB free, .venv needs 4 GB. Fix: free space there" in done.stderr
    assert sorted(root.rglob("*")) == before


def test_full_disk_alone(tmp_path: Path) -> None:
    root = copy_repository(tmp_path / "clone")
    executable(root / "fakes/df", "#!/bin/sh\necho Filesystem Blocks Used Available\necho disk 9000000 0 1048576\n")
    done = run(root, "launch/test", "-k", "anything")
    assert done.returncode == 2
    assert done.stderr.count("setup:") == done.stderr.count(" GB free") == 1
    assert not (root / ".venv").exists()


def test_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = copy_repository(tmp_path / "clone")
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = run(root, "launch/setup")
    assert done.returncode == 2
    assert "no C++ compiler (no-such-compiler) on PATH" in done.stderr
    assert not (root / ".venv").exists()


@pytest.mark.parametrize("script", SCRIPTS[:3])
def test_help_tells_how_to_run(script: str) -> None:
    done = subprocess.run([ROOT / script, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert f"    ./{script}" in done.stdout


def test_unknown_argument_is_refused() -> None:
    done = subprocess.run([ROOT / "launch/setup", "--cpu"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "unknown argument '--cpu'" in done.stderr


def test_ci_runs_the_test_script_and_gives_its_status(tmp_path: Path) -> None:
    root = copy_repository(tmp_path / "clone")
    executable(root / "launch/test", '#!/bin/sh\necho "arguments: $#, input: $(cat | wc -c)"\nexit 7\n')
    (tmp_path / "elsewhere").mkdir()
    command = ["bash", str(root / ".ci/run")]
    done = subprocess.run(
        command,
        cwd=tmp_path / "elsewhere",
        env={**environment(root), "CI": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 7
    assert lines[0].startswith("environment: ")
    assert "GPU: none" in lines[0]
    assert lines[1:] == ["arguments: 0, input: 0"]


def test_build_operators_tells_needed_from_optional() -> None:
    script = f"""
import runpy, sys, types
class Operator:
    def __init__(self, works): self.works = works
    def load(self, verbose): assert self.works, "compiler said no"
package = types.ModuleType("deepspeed.ops.op_builder.all_ops")
package.ALL_OPS = dict(good=Operator(True), bad=Operator(False))
for name in ("deepspeed", "deepspeed.ops", "deepspeed.ops.op_builder"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[package.__name__] = package
runpy.run_path({str(ROOT / "launch/build_operators.py")!r}, run_name="__main__")
"""

    def code(*arguments: str) -> int:
        return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, timeout=60).returncode

    assert code("--needed", "good", "--optional", "good") == 0
    assert code("--needed", "--optional", "bad") == 3
    assert code("--needed", "bad", "--optional", "good") == 1
