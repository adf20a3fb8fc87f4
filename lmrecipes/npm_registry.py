"""Downloads a package of the npm registry: by npm where it is installed, else as npm would, for it may not be there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

PUBLIC = "https://registry.npmjs.org/"
_SECONDS = 60  # without an answer


class DownloadError(Exception):
    """The package did not arrive; says why."""


def download(package: str, version: str, target: Path) -> None:
    """Put the package's archive into the folder `target`, with the user's registry. Raises DownloadError.

    A registry that is a folder holds the archive itself (`NAME-VERSION.tgz`, without the scope), for machines without a
    network.
    """
    registry = _registry(package)
    name = f"{package.rpartition('/')[2]}-{version}.tgz"
    if "://" not in registry:
        try:
            shutil.copyfile(Path(registry).expanduser() / name, target / name)
        except OSError as error:
            raise DownloadError(f"npm's registry is a folder, without the package: {error}") from error
    elif npm := shutil.which("npm"):
        _by_npm(npm, f"{package}@{version}", target)
    else:
        _directly(f"{registry.rstrip('/')}/{package}/-/{name}", target / name)


def _registry(package: str) -> str:
    """What the user's settings name as the registry of a package: the environment, ~/.npmrc, or the public one."""
    chosen = {name.lower(): value for name, value in os.environ.items() if name.lower().startswith("npm_config_")}
    file = Path(chosen.get("npm_config_userconfig") or "~/.npmrc").expanduser()
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    lines = dict(re.findall(r"^\s*([^#;=\s]+)\s*=\s*\"?([^\"\s]+)", text, re.MULTILINE))
    scoped = lines.get(f"{package.partition('/')[0]}:registry")
    return scoped or chosen.get("npm_config_registry") or lines.get("registry") or PUBLIC


def _by_npm(npm: str, wanted: str, target: Path) -> None:
    """With all of npm's settings (proxy, certificates, keys), which it alone knows."""
    command = [npm, "pack", wanted, "--pack-destination", str(target), "--loglevel", "error"]
    found = subprocess.run(command, cwd=target, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if found.returncode:
        lines = [line.strip() for line in found.stderr.splitlines() if line.strip()]
        raise DownloadError(f"the download failed; npm says: {lines[-1] if lines else 'nothing'}")


def _directly(address: str, file: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as answer, file.open("wb") as stream:
            shutil.copyfileobj(answer, stream)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{address} answers {error.code} {error.reason}") from error
    except OSError as error:  # URLError, time-outs, a connection that is cut
        raise DownloadError(f"no network, or npm's registry does not answer ({address}): {error}") from error
