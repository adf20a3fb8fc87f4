"""Fetching assets: complete or absent, whatever happens. The package is tiny, in a folder that pip is told to use."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lmrecipes import assets
from lmrecipes.archive import BadArchiveError, extract
from lmrecipes.catalogue import Asset, Converted
from lmrecipes.gguf_llama import BadModelError
from lmrecipes.problems import InputError


def tar_bytes(files: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode()))
    return stream.getvalue()


MEMBERS = (
    ("tinypack/data/*.txt", "texts/"),
    ("tinypack/config.json", "config.json"),
    ("tinypack/inner.tar.gz!inner/deep.txt", "deep.txt"),
)


def tiny_package(folder: Path) -> Asset:
    """A wheel that pip accepts, and the asset that describes it."""
    content = {
        "tinypack/__init__.py": "raise SystemExit('never imported')",
        "tinypack/data/a.txt": "alpha",
        "tinypack/data/b.txt": "beta",
        "tinypack/data/more/c.txt": "not wanted",
        "tinypack/config.json": "{}",
        "tinypack/inner.tar.gz": tar_bytes({"inner/deep.txt": "deep", "inner/other.txt": "not wanted"}),
        "tinypack-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tinypack\nVersion: 1.0\n",
        "tinypack-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tinypack-1.0.dist-info/RECORD": "",
    }
    wheel = folder / "tinypack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Asset("tiny", "tinypack", "1.0", wheel.name, digest, False, MEMBERS, "MIT", "Be kind.", "a test", 0.01)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """The tiny asset is the only one, pip sees only its folder, and the cache is empty."""
    (tmp_path / "packages").mkdir()
    asset = tiny_package(tmp_path / "packages")
    monkeypatch.setattr(assets, "ASSETS", (asset,))
    monkeypatch.setenv("LMRECIPES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return asset


def in_cache(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / "assets").iterdir() if path.suffix != ".lock"}


def problem_id(monkeypatch: pytest.MonkeyPatch, asset: Asset) -> str:
    """Id of the one problem that fetching this asset ends with."""
    monkeypatch.setattr(assets, "ASSETS", (asset,))
    with pytest.raises(InputError) as caught:
        assets.fetch(["tiny"])
    (problem,) = caught.value.problems
    assert problem.where == "asset tiny"
    assert "lmrecipes assets fetch tiny" in problem.fix
    return problem.id


def test_fetch_writes_only_the_named_members(tiny: Asset, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    with assets.progress_bar(console) as progress:
        (folder,) = assets.fetch(["tiny"], progress)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(files) == {"texts/a.txt", "texts/b.txt", "config.json", "deep.txt", "manifest.json"}
    assert files["deep.txt"].read_text() == "deep"
    manifest = json.loads(files["manifest.json"].read_text())
    assert manifest["members"]["texts/a.txt"] == {"size": 5, "sha256": hashlib.sha256(b"alpha").hexdigest()}
    assert in_cache(tmp_path) == {"tiny-1.0"}
    assert assets.locate("tiny") == folder
    assert "Licence: MIT. Be kind." in console.file.getvalue()


def test_fetch_again_downloads_nothing(tiny: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    first = assets.fetch(["tiny"])
    monkeypatch.setattr(assets, "_fetch_one", lambda *_: pytest.fail("downloaded again"))
    monkeypatch.setattr(assets, "FileLock", lambda *_: pytest.fail("a read-only cache has no lock"))
    assert assets.fetch(["tiny", "tiny"]) == first * 2


def test_fetch_replaces_what_is_damaged_or_from_another_version(tiny: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = assets.fetch(["tiny"])
    (folder / "texts" / "a.txt").unlink()
    with pytest.raises(InputError):
        assets.locate("tiny")
    assets.fetch(["tiny"])
    assert (folder / "texts" / "a.txt").read_text() == "alpha"
    monkeypatch.setattr(assets, "ASSETS", (replace(tiny, members=MEMBERS[1:2]),))
    assets.fetch(["tiny"])
    assert not (folder / "texts").exists()


def test_verify_names_the_changed_file(tiny: Asset) -> None:
    assert [p.id for p in assets.verify(["tiny"])] == ["asset-absent"]
    (folder,) = assets.fetch(["tiny"])
    assert assets.verify(["tiny"]) == []
    (folder / "texts" / "b.txt").write_text("BETA")
    assert [(p.id, p.where) for p in assets.verify(["tiny"])] == [("asset-changed", "asset tiny: texts/b.txt")]


def test_wrong_hash_leaves_nothing(tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem_id(monkeypatch, replace(tiny, sha256="0" * 64)) == "asset-hash"
    assert in_cache(tmp_path) == set()


def test_missing_member_leaves_nothing(tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for absent in ("tinypack/none.txt", "tinypack/none/*.txt", "tinypack/none.tar.gz!x", "tinypack/inner.tar.gz!x"):
        assert problem_id(monkeypatch, replace(tiny, members=(*MEMBERS, (absent, "x/")))) == "asset-members"
    assert in_cache(tmp_path) == set()


def test_without_network(tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "cache"))
    assert problem_id(monkeypatch, tiny) == "asset-download"
    with pytest.raises(InputError, match=r"pip says: ERROR: No matching distribution found for tinypack==1\.0"):
        assets.fetch(["tiny"])
    assert in_cache(tmp_path) == set()


def test_cache_that_cannot_be_written(tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LMRECIPES_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="LMRECIPES_CACHE"):
        assets.fetch(["tiny"])


def test_interruption_before_the_rename_leaves_nothing(
    tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assets, "sync_tree", interrupt)
        assets.fetch(["tiny"])
    assert in_cache(tmp_path) == set()
    killed = tmp_path / "cache" / "assets" / ".tiny-1.0.abc"  # what a killed process leaves
    killed.mkdir()
    assets.fetch(["tiny"])
    assert in_cache(tmp_path) == {"tiny-1.0"}


def test_two_processes_fetch_once(tiny: Asset, tmp_path: Path) -> None:
    program = f"""
import logging
from lmrecipes import assets
from lmrecipes.catalogue import Asset
logging.basicConfig(level=logging.INFO)
assets.ASSETS = ({tiny!r},)
print(assets.fetch(["tiny"])[0])
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    output = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    assert {out.strip() for out, _ in output} == {str(assets.locate("tiny"))}
    assert sum(log.count("Be kind.") for _, log in output) == 1
    assert in_cache(tmp_path) == {"tiny-1.0"}


def test_unknown_name(tiny: Asset) -> None:
    with pytest.raises(InputError, match="Did you mean `tiny`"):
        assets.locate("tinny")


def test_resolve_model(tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="lmrecipes assets fetch tiny"):
        assets.resolve_model("tiny")
    (folder,) = assets.fetch(["tiny"])
    assert assets.resolve_model("tiny") == str(folder)
    assert assets.resolve_model(str(tmp_path)) == str(tmp_path)
    assert assets.resolve_model("owner/name") == "owner/name"
    monkeypatch.setattr(assets, "ASSETS", (replace(tiny, members=MEMBERS[:1]),))
    assets.fetch(["tiny"])
    with pytest.raises(InputError, match="holds data, not a model"):
        assets.resolve_model("tiny")


def shout(source: Path, folder: Path) -> None:
    (folder / "config.json").write_text(source.read_text().upper())
    (folder / "more.txt").write_text("more")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


RESULTS = (("config.json", sha256("DEEP")), ("more.txt", sha256("more")))


def test_a_converted_asset_holds_the_results_alone(
    tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = replace(tiny, members=MEMBERS[2:], converted=Converted("deep.txt", shout, RESULTS))
    monkeypatch.setattr(assets, "ASSETS", (converted,))
    console = Console(file=io.StringIO(), width=200)
    with assets.progress_bar(console) as progress:
        (folder,) = assets.fetch(["tiny"], progress)
    assert {path.name for path in folder.iterdir()} == {"config.json", "more.txt", "manifest.json"}
    assert assets.verify(["tiny"]) == []
    assert assets.resolve_model("tiny") == str(folder)
    (folder / "more.txt").write_text("less")
    assert [problem.id for problem in assets.verify(["tiny"])] == ["asset-changed"]

    def softly(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("deep")

    # Other results are wanted: what lies in the cache is no longer complete.
    newer = Converted("deep.txt", softly, (("config.json", sha256("deep")),))
    monkeypatch.setattr(assets, "ASSETS", (replace(converted, converted=newer),))
    assert not assets.is_cached(assets.find("tiny"))
    assets.fetch(["tiny"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "manifest.json"}


def test_a_conversion_that_fails_leaves_nothing(tiny: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_module(source: Path, folder: Path) -> None:
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")

    def with_another_model(source: Path, folder: Path) -> None:
        raise BadModelError("not a llama")

    for convert, results, rule in (
        (without_module, RESULTS, "asset-needs"),
        (with_another_model, RESULTS, "asset-members"),
        (shout, (RESULTS[0], ("more.txt", "0" * 64)), "asset-made"),
    ):
        asset = replace(tiny, members=MEMBERS[2:], converted=Converted("deep.txt", convert, results))
        assert problem_id(monkeypatch, asset) == rule
    with pytest.raises(InputError, match="without gguf"):
        monkeypatch.setattr(
            assets, "ASSETS", (replace(tiny, members=MEMBERS[2:], converted=Converted("deep.txt", without_module, ())),)
        )
        assets.fetch(["tiny"])
    assert in_cache(tmp_path) == set()


def test_no_member_is_written_outside(tmp_path: Path) -> None:
    archive = tmp_path / "bad.zip"
    with zipfile.ZipFile(archive, "w") as package:
        package.writestr("data/..", "x")
        package.writestr("data/..\\evil.txt", "x")
    target = tmp_path / "target"
    for members in (("data/*", "texts/"), ("data/..", "../evil.txt"), ("data/..", "/tmp/evil.txt")):
        with pytest.raises(BadArchiveError, match="outside"):
            extract(archive, [members], target)
    assert not target.exists() or not [path for path in target.rglob("*") if path.is_file()]


def test_a_name_may_have_an_exclamation_mark(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar_bytes({"voices/!v/Mr serious": "x", "voices/other": "y"}))
    assert extract(tmp_path / "a.tar.gz", [("voices/!v/*", "v/")], tmp_path / "target") == ["v/Mr serious"]


def test_links_are_no_members(tmp_path: Path) -> None:
    archive = tmp_path / "bad.tar.gz"
    with tarfile.open(archive, "w:gz") as package:
        link = tarfile.TarInfo("data/passwd.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        package.addfile(link)
    with pytest.raises(BadArchiveError, match="no member"):
        extract(archive, [("data/passwd.txt", "a.txt")], tmp_path / "target")


def test_broken_archive(tmp_path: Path) -> None:
    (tmp_path / "bad.whl").write_bytes(b"PK not really")
    with pytest.raises(BadArchiveError, match="not a readable archive"):
        extract(tmp_path / "bad.whl", [("a", "a")], tmp_path / "target")


def test_catalogue() -> None:
    assert set(assets.QUICKSTART) <= {asset.name for asset in assets.ASSETS}
    for asset in assets.ASSETS:
        if asset.absent:
            continue
        assert len(asset.sha256) == 64
        assert asset.sdist == asset.filename.endswith(".tar.gz")
        assert asset.version in asset.filename
        if asset.converted:
            assert asset.converted.source in {name.partition("/")[0] for _, name in asset.members}
            assert all(len(digest) == 64 for _, digest in asset.converted.results)
