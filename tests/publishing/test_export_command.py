"""`lmrecipes export`: what lies in the folder, what a hub is asked for and gets, and how it says that it cannot."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Run
from exported_run import copy_of, make_exported_run
from fake_hub import TOKEN, FakeHub, fake_hub

from lmrecipes.cli import run as command
from lmrecipes.files import link_or_copy
from lmrecipes.run_folder import RunFolder

WHOLE = {
    "README.md", "chat_template.jinja", "config.json", "generation_config.json", "heads.json", "heads.safetensors",
    "model.safetensors", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
ADAPTER = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "heads.json",
    "heads.safetensors", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_exported_run(tmp_path_factory.mktemp("adapted"), lora=True)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as found:
        yield found


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def push(run: Run, hub: FakeHub | None, cwd: Path, *args: str, **environment: str) -> tuple[int, str, str, float]:
    """Exit code, what it says on stdout and stderr, seconds. Its own process: the hub's address is read at import."""
    settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cwd / "home"), "HF_TOKEN": TOKEN}
    settings |= {"HF_ENDPOINT": hub.address} if hub else {}
    began = time.monotonic()
    done = run("lmrecipes", "export", *args, cwd=cwd, **{**settings, **environment})
    return done.returncode, done.stdout, done.stderr, time.monotonic() - began


@pytest.mark.parametrize(("flags", "files"), [((), WHOLE), (("--adapter",), ADAPTER)])
def test_the_folder_holds_what_loads(
    flags: tuple[str, ...], files: set[str], adapted: RunFolder, tmp_path: Path
) -> None:
    assert command(["export", str(adapted.path), "--to", str(tmp_path / "new" / "model"), *flags]) == 0
    assert names(tmp_path / "new" / "model") == files
    assert names(tmp_path) == {f"new/model/{name}" for name in files}, "nothing else is left"


def test_a_run_without_an_adapter_says_so(
    adapted: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import shutil

    mine = copy_of(adapted, tmp_path / "run")
    shutil.rmtree(mine.model / "adapter")
    assert command(["export", str(mine.path), "--to", str(tmp_path / "new"), "--adapter"]) == 2
    assert "export-adapter" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


def test_all_that_is_wrong_with_the_flags_is_said_at_once(
    adapted: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(["export", str(adapted.path), "--private"]) == 2
    said = capfd.readouterr().err
    assert "export-to" in said
    assert "export-private" in said


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_a_push_makes_a_repository_and_one_commit(
    kind: str, run: Run, hub: FakeHub, adapted: RunFolder, tmp_path: Path
) -> None:
    flags = ["--adapter"] if kind == "adapter" else ["--private"]
    code, out, err, _ = push(run, hub, tmp_path, str(adapted.path), "--push-to-hub", "owner/name", *flags)
    assert code == 0, err
    assert out.split() == [f"{hub.address}/owner/name"]
    assert [(c["name"], c["organization"], c["visibility"]) for c in hub.created] == [
        ("name", "owner", "public" if kind == "adapter" else "private")
    ]
    (commit,) = hub.commits
    assert commit.keys() == (ADAPTER if kind == "adapter" else WHOLE)
    source = adapted.model / "adapter" if kind == "adapter" else adapted.model
    weights = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
    assert commit[weights] == (source / weights).read_bytes()
    card = commit["README.md"].decode()
    assert "# owner/name" in card
    assert 'from_pretrained("owner/name")' in card or 'PeftModel.from_pretrained(base, "owner/name")' in card
    assert hub.cards, "the hub was asked whether it understands the front matter"
    assert not list(adapted.path.glob(".export-*")), "nothing is left beside the run"


def test_a_push_can_leave_a_folder_too(run: Run, hub: FakeHub, adapted: RunFolder, tmp_path: Path) -> None:
    args = [str(adapted.path), "--to", "mine", "--push-to-hub", "owner/name"]
    code, out, err, _ = push(run, hub, tmp_path, *args)
    assert code == 0, err
    assert out.split() == ["mine", f"{hub.address}/owner/name"]
    assert {name: (tmp_path / "mine" / name).read_bytes() for name in WHOLE} == hub.commits[0]


def test_a_repository_that_is_there_gets_another_commit(
    run: Run, hub: FakeHub, adapted: RunFolder, tmp_path: Path
) -> None:
    hub.refuse["/api/repos/create"] = 409
    code, out, err, _ = push(run, hub, tmp_path, str(adapted.path), "--push-to-hub", "owner/name")
    assert code == 0, err
    assert out.split() == [f"{hub.address}/owner/name"]
    assert len(hub.commits) == 1


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_TOKEN": ""}, "no token for the hub"),
        ({"HF_TOKEN": "hf_wrong"}, "run `hf auth login` again"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the network"),
    ],
)
def test_what_cannot_work_is_said_at_once_and_leaves_nothing(
    environment: dict[str, str], said: str, run: Run, hub: FakeHub, adapted: RunFolder, tmp_path: Path
) -> None:
    args = [str(adapted.path), "--to", "mine", "--push-to-hub", "owner/name"]
    code, out, err, seconds = push(run, hub, tmp_path, *args, **environment)
    assert (code, out) == (2, "")
    assert err.count("error hub --push-to-hub") == 1
    assert said in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "mine").exists()
    assert not hub.created
    assert seconds < 20


@pytest.mark.parametrize("name", ["name", "a/b/c", "owner/na me"])
def test_a_name_that_the_hub_cannot_have(name: str, adapted: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    assert command(["export", str(adapted.path), "--push-to-hub", name]) == 2
    assert "OWNER/NAME" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("path", "status", "fix"),
    [
        ("/api/repos/create", 403, "write access"),
        ("/api/models/owner/name/commit/main", 500, "push again"),
    ],
)
def test_what_the_hub_refuses_is_said_and_the_folder_stays(
    path: str, status: int, fix: str, run: Run, hub: FakeHub, adapted: RunFolder, tmp_path: Path
) -> None:
    hub.refuse[path] = status
    hub.refuse["/api/models/owner/name"] = 404  # is it there already?
    args = [str(adapted.path), "--to", "mine", "--push-to-hub", "owner/name"]
    code, out, err, _ = push(run, hub, tmp_path, *args)
    assert (code, out) == (2, "")
    assert "owner/name was not written" in err
    assert fix in err
    assert names(tmp_path / "mine") == WHOLE
    assert not hub.commits


def test_a_staged_copy_takes_no_room(adapted: RunFolder, tmp_path: Path) -> None:
    source = adapted.model / "model.safetensors"
    link_or_copy(str(source), str(tmp_path / "copy"))
    if source.stat().st_dev == tmp_path.stat().st_dev:
        assert source.samefile(tmp_path / "copy")


def test_the_verified_facts_travel_with_the_model(adapted: RunFolder, tmp_path: Path) -> None:
    assert command(["export", str(adapted.path), "--to", str(tmp_path / "new")]) == 0
    assert json.loads((tmp_path / "new" / "heads.json").read_text())["verified"]["tokens"] == 48
