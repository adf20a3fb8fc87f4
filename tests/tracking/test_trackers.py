"""Trackers are mirrors: complete where they can be, and never in the way of the run."""

import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from lmrecipes.recipe import Tracking
from lmrecipes.tracking import trackers as module
from lmrecipes.tracking.samples import Sample
from lmrecipes.tracking.trackers import Trackers

STEPS = 12
METRICS = {
    step: {
        "loss": 1 / step,
        "loss/valence": 0.5 / step,
        "loss/icd-10": 2.0 / step,
        "lr": 3e-4,
        "tokens/valence": 1000 * step,
        "share/valence": 0.25,
        "time/step": 0.1,
    }
    | ({"eval/valence/spearman": 0.1 * step, "eval/icd-10/macro_f1": 0.05 * step} if step % 4 == 0 else {})
    for step in range(1, STEPS + 1)
}
SAMPLES = {
    step: [
        Sample(step, "law", "Art. 1\n", f"after {step}", "All `people` ```are\n free"),
        Sample(step, "chat", "<|user|>**Hi**", f"# after {step}", "Hello! \N{WAVING HAND SIGN}"),
    ]
    for step in range(4, STEPS + 1, 4)
}
RECIPE = {"name": "toy", "optimizer": {"lr": 3e-4}, "tasks": {"valence": {"kind": "regression"}}}


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials and no settings of whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def wandb_records(folder: Path) -> Iterator[Any]:
    """Records of a `run-*.wandb` file: protocol buffers in LevelDB's log format (pieces in blocks of 32 KiB)."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, payload = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, piece = struct.unpack("<IHB", data[at : at + 7])
        payload += data[at + 7 : at + 7 + length]
        at += 7 + length
        if piece in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(payload)
            payload = b""
            yield record


def wandb_history(folder: Path) -> dict[int, dict[str, float]]:
    """Metrics by step, without wandb's own (`_runtime`, ...) and the table of samples."""
    return {
        step: {name: value for name, value in row.items() if not name.startswith(("_", "samples/"))}
        for step, row in wandb_rows(folder).items()
    }


def wandb_rows(folder: Path) -> dict[int, dict[str, Any]]:
    """All that was logged, by step."""
    history: dict[int, dict[str, Any]] = {}
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            history.setdefault(items["_step"], {}).update(items)
    return history


def wandb_run(folder: Path) -> Any:
    return next(record.run for record in wandb_records(folder) if record.WhichOneof("record_type") == "run")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def record_run(folder: Path, tracking: Tracking, steps: range, resume: dict[str, Any] | None = None) -> dict[str, Any]:
    trackers = Trackers.start(tracking, folder, RECIPE, "toy-1", resume)
    for step in steps:
        trackers.log(METRICS[step], step)
        if step in SAMPLES:
            trackers.samples(SAMPLES[step], step)
    trackers.summary({"test/valence/spearman": 0.77})
    trackers.finish(timeout=120)
    return trackers.state()


def sampled_rows(folder: Path) -> list[list[Any]]:
    """Rows of a run's table of samples, part by part as wandb would upload them."""
    artifacts = [record.artifact for record in wandb_records(folder) if record.WhichOneof("record_type") == "artifact"]
    kinds = {(artifact.name, artifact.type) for artifact in artifacts}
    assert kinds == {(f"run-{wandb_run(folder).run_id}-incr-samples", "wandb-run-incremental-table")}
    paths = [Path(artifact.manifest.contents[0].local_path) for artifact in artifacts]
    assert all(folder.parent in path.parents for path in paths), "in the run folder, not in the user's home"
    parts = [json.loads(path.read_text()) for path in paths]
    assert all(part["columns"] == ["step", "task", "prompt", "continuation", "reference"] for part in parts)
    return [row for part in parts for row in part["data"]]


def test_wandb_offline_holds_every_metric_and_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    record_run(tmp_path, Tracking(wandb="offline", tensorboard=False), range(1, STEPS + 1))
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert wandb_history(folder) == {step: {"step": step, **metrics} for step, metrics in METRICS.items()}
    run = wandb_run(folder)
    config = {
        update.key: json.loads(update.value_json) for update in run.config.update if not update.key.startswith("_")
    }
    assert config == RECIPE
    assert (run.display_name, run.project) == ("toy-1", "lmrecipes")
    summary = {u.key: u.value_json for r in wandb_records(folder) for u in r.summary.update if u.key}
    assert json.loads(summary["test/valence/spearman"]) == 0.77
    assert not warnings(caplog) and capfd.readouterr() == ("", ""), "silent on the console"


def test_the_wandb_table_of_samples_grows(tmp_path: Path) -> None:
    tracking = Tracking(wandb="offline", tensorboard=False)
    state = record_run(tmp_path / "first", tracking, range(1, 9))
    record_run(tmp_path / "second", tracking, range(9, STEPS + 1), resume=state)
    for part, steps in (("first", [4, 8]), ("second", [12])):
        (folder,) = (tmp_path / part / "wandb").glob("offline-run-*")
        logged = {step: row["samples/_type"] for step, row in wandb_rows(folder).items() if "samples/_type" in row}
        assert logged == dict.fromkeys(steps, "incremental-table-file")
        assert sampled_rows(folder) == [list(astuple(sample)) for step in steps for sample in SAMPLES[step]]
    assert "WANDB_DATA_DIR" not in os.environ


def test_a_resumed_run_has_the_same_wandb_id(tmp_path: Path) -> None:
    tracking = Tracking(wandb="offline", tensorboard=False)
    state = record_run(tmp_path / "first", tracking, range(1, 9))
    state = json.loads(json.dumps(state))  # as a checkpoint stores it
    assert record_run(tmp_path / "second", tracking, range(7, STEPS + 1), resume=state) == state
    folders = [next((tmp_path / part / "wandb").glob("offline-run-*")) for part in ("first", "second")]
    assert {wandb_run(folder).run_id for folder in folders} == {state["wandb"]["id"]}
    assert wandb_history(folders[0]) | wandb_history(folders[1]) == wandb_history(folders[0]) | {
        step: {"step": step, **METRICS[step]} for step in range(7, STEPS + 1)
    }
    other = record_run(tmp_path / "other", tracking, range(1, 2))
    assert other["wandb"]["id"] != state["wandb"]["id"]


def test_state_is_known_before_wandb_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(module.Wandb, "start", lambda self: gate.wait(60))
    monkeypatch.setattr(module.Wandb, "finish", lambda self: None)
    trackers = Trackers.start(Tracking(wandb="offline", tensorboard=False), tmp_path, RECIPE, "toy", None)
    assert trackers.state()["wandb"]["id"]
    gate.set()
    trackers.finish()


def test_start_imports_neither_library_and_off_never_does(tmp_path: Path) -> None:
    program = f"""
import sys, threading
from pathlib import Path
from lmrecipes.recipe import Tracking
from lmrecipes.tracking import trackers
assert not {{"wandb", "torch", "accelerate", "tensorboard"}} & set(sys.modules), "imported with the module"
run = trackers.Trackers.start(Tracking(wandb="off", tensorboard=False), Path({str(tmp_path)!r}), {{}}, "toy", None)
run.log({{"loss": 1.0}}, 1); run.summary({{}}); run.finish()
assert not {{"wandb", "torch", "accelerate", "tensorboard"}} & set(sys.modules), "imported although off"
assert run.state() == {{}}
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert not list(tmp_path.iterdir())


def test_tensorboard_holds_every_metric_and_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record_run(tmp_path, Tracking(wandb="off"), range(1, STEPS + 1))
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == {name for metrics in METRICS.values() for name in metrics}
    for name in events.Tags()["scalars"]:
        points = {event.step: event.value for event in events.Scalars(name)}
        assert points == pytest.approx({step: m[name] for step, m in METRICS.items() if name in m}, rel=1e-6)
    assert events.Tags()["tensors"] == ["recipe/text_summary", "samples/law/text_summary", "samples/chat/text_summary"]
    texts = {
        event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors("samples/law/text_summary")
    }
    assert list(texts) == [4, 8, 12]
    assert "**continuation**\n\n````\nafter 8\n````" in texts[8]
    assert "````\nAll `people` ```are\n free\n````" in texts[8], "a fence that the text does not end"


def test_tensorboard_of_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record_run(tmp_path, Tracking(wandb="off"), range(1, 10))
    record_run(tmp_path, Tracking(wandb="off"), range(7, STEPS + 1))
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, STEPS + 1))


class FakeTracker:
    """Keeps what it is given; `gate` blocks the named method, `fail` makes it raise."""

    name = "fake"

    def __init__(self, block: str = "", fail: str = "") -> None:
        self.gate = threading.Event()
        self.reached = threading.Event()
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.sampled: list[tuple[int, list[Sample]]] = []
        self.final: dict[str, Any] = {}
        self.finished = False
        self._block = block
        self._fail = fail

    def _called(self, method: str) -> None:
        if method == self._block:
            self.reached.set()
            assert self.gate.wait(60)
        if method == self._fail:
            self.reached.set()
            raise RuntimeError(f"{method} went wrong")

    def start(self) -> None:
        self._called("start")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._called("log")
        self.lines.append((step, dict(metrics)))

    def samples(self, samples: Sequence[Sample], step: int) -> None:
        self._called("samples")
        self.sampled.append((step, list(samples)))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._called("summary")
        self.final.update(values)

    def finish(self) -> None:
        self._called("finish")
        self.finished = True


@pytest.mark.parametrize("method", ["start", "samples", "log"])
def test_log_returns_while_a_tracker_is_blocked(method: str) -> None:
    blocked, free = FakeTracker(block=method), FakeTracker()
    trackers = Trackers([blocked, free])
    trackers.samples(SAMPLES[4], 0)
    trackers.log(METRICS[1], 1)
    assert blocked.reached.wait(60)
    for step in range(2, STEPS + 1):  # the test hangs here where a blocked tracker blocks the run
        trackers.log(METRICS[step], step)
        if step in SAMPLES:
            trackers.samples(SAMPLES[step], step)
    assert not blocked.lines
    blocked.gate.set()
    trackers.finish()
    for tracker in (blocked, free):
        assert tracker.lines == list(METRICS.items()) and tracker.finished
        assert tracker.sampled == [(0, SAMPLES[4]), *SAMPLES.items()]


def test_log_takes_a_copy() -> None:
    tracker = FakeTracker(block="start")
    trackers = Trackers([tracker])
    metrics = {"loss": 1.0}
    trackers.log(metrics, 1)
    metrics["loss"] = 2.0
    tracker.gate.set()
    trackers.finish()
    assert tracker.lines == [(1, {"loss": 1.0})]


def test_a_full_queue_drops_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    tracker = FakeTracker(block="start")
    trackers = Trackers([tracker], capacity=5)
    for step in range(1, 13):
        trackers.log(METRICS[step], step)
    trackers.summary({"done": 1})
    tracker.gate.set()
    trackers.finish()
    (warning,) = warnings(caplog)
    dropped = STEPS - len(tracker.lines)
    assert f"{dropped} lines" in warning and dropped in (7, 8), "closing a full queue may cost one line more"
    assert tracker.final == {"done": 1} and tracker.finished, "final values are never dropped"


@pytest.mark.parametrize("method", ["start", "log", "samples", "summary", "finish"])
def test_a_tracker_that_raises_is_reported_once_and_switched_off(method: str, caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = FakeTracker(fail=method), FakeTracker()
    trackers = Trackers([broken, sound])
    for step in METRICS:
        trackers.log(METRICS[step], step)
    trackers.samples(SAMPLES[12], 12)
    trackers.summary({"done": 1})
    trackers.finish()
    trackers.finish()
    trackers.log({"loss": 1.0}, 99)
    (warning,) = warnings(caplog)
    assert f"{method} went wrong" in warning
    assert len(sound.lines) == STEPS and sound.finished and sound.final == {"done": 1}


def test_finish_gives_up_on_a_tracker_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    hanging, sound = FakeTracker(block="log"), FakeTracker()
    trackers = Trackers([hanging, sound])
    for step in METRICS:
        trackers.log(METRICS[step], step)
    trackers.finish(timeout=1.0)
    assert not hanging.finished and sound.finished
    (warning,) = warnings(caplog)
    assert "did not finish in time" in warning
    hanging.gate.set()


class Settings:
    """The part of wandb's settings that `auto` reads."""

    mode = "online"
    api_key: str | None = "0" * 40
    identity_token_file = None

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_auto_is_online_with_a_key_and_a_network(server: int) -> None:
    assert module._wandb_mode(Settings(server)) == "online"


def test_auto_is_offline_without_a_network(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert module._wandb_mode(Settings(server)) == "offline"


def test_auto_is_offline_without_a_key_and_online_with_netrc(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(server)
    settings.api_key = None
    assert module._wandb_mode(settings) == "offline"
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1:{server} login user password {'a' * 40}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert module._wandb_mode(settings) == "online"


def test_auto_follows_the_environment(server: int) -> None:
    settings = Settings(server)
    settings.mode = "disabled"
    assert module._wandb_mode(settings) == "disabled"


def test_auto_checks_the_proxy_that_wandb_would_use(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(server)
    settings.base_url = "http://wandb.invalid"
    assert module._wandb_mode(settings) == "offline"
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{server}")
    assert module._wandb_mode(settings) == "online"


def test_a_wandb_that_cannot_go_online_records_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    init = wandb.init

    def unreachable(**options: Any) -> Any:
        if options["mode"] == "online":
            raise wandb.errors.CommError("no route to host")
        return init(**options)

    monkeypatch.setattr(wandb, "init", unreachable)
    record_run(tmp_path, Tracking(wandb="online", tensorboard=False), range(1, STEPS + 1))
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert len(wandb_history(folder)) == STEPS
    (warning,) = warnings(caplog)
    assert "no route to host" in warning
