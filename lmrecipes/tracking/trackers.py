"""Mirrors of `metrics.jsonl` in wandb and TensorBoard. This is the one file that knows these two libraries.

A mirror is never worth a run: each has its own bounded queue and daemon thread, `log` only puts a line into the queue,
a mirror that raises is reported once and switched off, and one that falls behind loses lines, which are counted.

Accelerate's trackers are not used (accelerate 1.15): `WandBTracker` raises unless Accelerate's `PartialState` exists,
and `TensorBoardTracker` creates it, which under a launcher starts a process group, here from a thread. They are one
call around the libraries each, and the second flushes the disk at every line and writes the recipe as a second run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import socket
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from lmrecipes.recipe import Tracking
from lmrecipes.tracking.samples import COLUMNS, Sample

log = logging.getLogger(__name__)

QUEUE_LINES = 4096
"""Lines that a mirror may be behind: at most 20 MB (5 KB each); covers a 90 s start of wandb at 40 steps/s."""
FINISH_SECONDS = 30.0
"""Longest wait at the end of a run for what the mirrors still have to write."""
REACHABLE_SECONDS = 3.0
"""Longest wait for a TCP connection to wandb before `auto` goes offline."""


class Tracker(Protocol):
    """One foreign tracker. All methods are called from one thread, `start` first; any of them may block or raise."""

    name: str

    def start(self) -> None:
        """Import the library and open the run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record the metrics of a step."""

    def samples(self, samples: Sequence[Sample], step: int) -> None:
        """Record how the model continued some texts after a step."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the final values of the run."""

    def finish(self) -> None:
        """Write what is left and close."""


class Trackers:
    """All mirrors of a run, on rank 0. No method raises because of a mirror, and only `finish` may wait for one."""

    def __init__(
        self, trackers: Sequence[Tracker], state: dict[str, Any] | None = None, capacity: int = QUEUE_LINES
    ) -> None:
        self._state = state or {}
        self._mirrors = [_Mirror(tracker, capacity) for tracker in trackers]

    @classmethod
    def start(
        cls,
        tracking: Tracking,
        run_folder: Path,
        recipe: Mapping[str, Any],
        run_name: str,
        resume: Mapping[str, Any] | None = None,
    ) -> Self:
        """Start the mirrors that the recipe asks for; the libraries are imported in their threads, not here.

        run_folder: holds `wandb/` and `tensorboard/`.
        recipe: the resolved recipe, stored with the run.
        resume: what `state` returned before; the same wandb run is continued.
        """
        run_folder.mkdir(parents=True, exist_ok=True)
        state = dict(resume or {})
        trackers: list[Tracker] = []
        if tracking.tensorboard:
            trackers.append(TensorBoard(run_folder / "tensorboard", recipe))
        if tracking.wandb != "off":
            run_id = state.setdefault("wandb", {"id": uuid.uuid4().hex[:12]})["id"]
            trackers.append(Wandb(tracking.wandb, tracking.wandb_project, run_name, run_id, run_folder, recipe))
        return cls(trackers, state)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue the metrics of a step for every mirror, under exactly these names."""
        for mirror in self._mirrors:
            mirror.put("log", dict(metrics), step)

    def samples(self, samples: Sequence[Sample], step: int) -> None:
        """Queue the samples of a step, of which there is at least one, for every mirror."""
        for mirror in self._mirrors:
            mirror.put("samples", tuple(samples), step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values (for example of `evaluation.json`); written when the run finishes."""
        for mirror in self._mirrors:
            mirror.summary.update(values)

    def finish(self, timeout: float = FINISH_SECONDS) -> None:
        """Write what is queued and close, in `timeout` seconds at most for all mirrors together. Twice is fine."""
        deadline = time.monotonic() + timeout
        for mirror in self._mirrors:
            mirror.close()
        for mirror in self._mirrors:
            mirror.join(deadline)
        self._mirrors = []

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores so that a resumed run continues the same wandb run; pass it as `resume`."""
        return {name: dict(values) for name, values in self._state.items()}


class _Mirror:
    """A tracker behind a queue and a thread of its own: one that blocks delays neither the run nor the others."""

    def __init__(self, tracker: Tracker, capacity: int) -> None:
        self.summary: dict[str, Any] = {}
        self._tracker = tracker
        self._lines: queue.Queue[tuple[Literal["log", "samples"], Any, int] | None] = queue.Queue(capacity)
        self._dropped = 0
        self._off = False
        self._thread = threading.Thread(target=self._work, name=f"mirror-{tracker.name}", daemon=True)
        self._thread.start()

    def put(self, method: Literal["log", "samples"], what: Any, step: int) -> None:
        """Have the tracker's thread call this method of it, unless it is too far behind."""
        if self._off:
            return
        try:
            self._lines.put_nowait((method, what, step))
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Say that no line follows, without waiting."""
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            with contextlib.suppress(queue.Empty):  # the thread may have taken one just now
                self._lines.get_nowait()
                self._dropped += 1
            self._lines.put_nowait(None)  # there is room: only this thread puts

    def join(self, deadline: float) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            left = self._lines.qsize()
            log.warning(
                "%s did not finish in time, about %d lines are not in it; metrics.jsonl has all",
                self._tracker.name,
                left,
            )
        if self._dropped:
            log.warning(
                "%s was too slow, %d lines are not in it; metrics.jsonl has all", self._tracker.name, self._dropped
            )

    def _work(self) -> None:
        try:
            self._tracker.start()
            while (line := self._lines.get()) is not None:
                method, what, step = line
                getattr(self._tracker, method)(what, step)
            if self.summary:
                self._tracker.summary(self.summary)
            self._tracker.finish()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a foreign library may raise anything, the run goes on
            self._off = True
            log.warning(
                "%s is switched off: %s: %s (metrics.jsonl goes on)", self._tracker.name, type(error).__name__, error
            )


class TensorBoard:
    """TensorBoard event files; the step is the axis."""

    name = "tensorboard"

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self._folder = folder
        self._recipe = recipe
        self._writer: Any = None

    def start(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make_writer = SummaryWriter

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._opened(step)
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(name, value, global_step=step)

    def samples(self, samples: Sequence[Sample], step: int) -> None:
        self._opened(step)
        for task in dict.fromkeys(sample.task for sample in samples):
            text = "\n\n---\n\n".join(_as_markdown(sample) for sample in samples if sample.task == task)
            self._writer.add_text(f"samples/{task}", text, global_step=step)

    def _opened(self, first_step: int) -> None:
        if self._writer is not None:
            return
        # purge_step hides the scalars that an attempt before the resume wrote at this step and later.
        resumed = any(self._folder.glob("events.out.tfevents.*"))
        purge = first_step if resumed else None
        self._writer = self._make_writer(str(self._folder), purge_step=purge, flush_secs=10)
        if not resumed:
            import yaml

            text = yaml.safe_dump(dict(self._recipe), sort_keys=False, allow_unicode=True)
            # As text: add_hparams would write a second run into the folder, and takes flat scalars only.
            self._writer.add_text("recipe", f"```yaml\n{text}```", global_step=0)

    def summary(self, values: Mapping[str, Any]) -> None:
        """TensorBoard has no final values; the last evaluation is in its curves."""

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _as_markdown(sample: Sample) -> str:
    """The parts of a sample under their names, verbatim."""
    parts = {"prompt": sample.prompt, "continuation": sample.continuation, "reference": sample.reference}
    # A fence of more backticks than the text has in a row: nothing in a text ends it.
    fence = "`" * max([3, *(len(run) + 1 for text in parts.values() for run in re.findall("`+", text))])
    return "\n\n".join(f"**{name}**\n\n{fence}\n{text}\n{fence}" for name, text in parts.items())


class Wandb:
    """A wandb run, online or offline, with its files under the run folder."""

    name = "wandb"

    def __init__(
        self,
        mode: Literal["auto", "online", "offline"],
        project: str,
        run_name: str,
        run_id: str,
        run_folder: Path,
        recipe: Mapping[str, Any],
    ) -> None:
        self._asked = mode
        self._open = {
            "project": project,
            "name": run_name,
            "id": run_id,
            "dir": str(run_folder),
            "config": dict(recipe),
        }
        self._data = str(run_folder / "wandb")
        self._run: Any = None
        self._table: Any = None

    def start(self) -> None:
        import wandb

        # Tables wait there for their upload; wandb has no setting for it, and else puts them into the user's home.
        os.environ.setdefault("WANDB_DATA_DIR", self._data)
        mode = _wandb_mode(wandb.setup().settings) if self._asked == "auto" else self._asked
        # finish_timeout also bounds wandb's hook at the exit of the process, which else waits for uploads for ever.
        settings = wandb.Settings(silent=True, console="off", save_code=False, finish_timeout=FINISH_SECONDS)
        # create_new: a run of our own, also where the process has one open.
        options: dict[str, Any] = {**self._open, "settings": settings, "reinit": "create_new"}
        if mode == "online":
            try:
                self._run = wandb.init(**options, mode=mode, resume="allow")
                return
            except (wandb.Error, OSError) as error:
                log.warning("wandb cannot go online (%s); it records offline, `wandb sync` uploads it later", error)
                mode = "offline"
        # Offline the id alone continues the run: wandb ignores `resume` there.
        self._run = wandb.init(**options, mode=mode)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        # A resumed run repeats the steps after its checkpoint. Online, wandb ignores steps that it has already: the
        # same recipe gives the same values again, so nothing is lost.
        self._run.log({"step": step, **metrics}, step=step)

    def samples(self, samples: Sequence[Sample], step: int) -> None:
        import wandb

        # Each call uploads the rows since the last one, and wandb shows those of a run's last 100 calls as one table.
        # Logged whole, the table would be uploaded again with every evaluation.
        if self._table is None:
            self._table = wandb.Table(columns=list(COLUMNS), log_mode="INCREMENTAL")
        for sample in samples:
            self._table.add_data(*astuple(sample))
        self._run.log({"samples": self._table}, step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def finish(self) -> None:
        import wandb

        self._run.finish()
        # wandb 0.31 only posts the end of a run to its service process, which writes the file's last blocks some
        # milliseconds later (for a short run: all of them). teardown waits for that process.
        wandb.teardown()
        if os.environ.get("WANDB_DATA_DIR") == self._data:
            del os.environ["WANDB_DATA_DIR"]


def _wandb_mode(settings: Any) -> Any:
    """Mode for `auto`: what WANDB_MODE says, else online with a key and a network, else offline."""
    if settings.mode != "online":
        return settings.mode
    return "online" if _has_key(settings) and _reachable(settings.base_url) else "offline"


def _has_key(settings: Any) -> bool:
    """Whether wandb would find credentials without asking: in its environment variables, its settings, or netrc."""
    if settings.api_key or settings.identity_token_file:
        return True
    try:
        # wandb's own reader: it knows under which host names a key may be stored.
        from wandb.sdk.lib.wbauth import read_netrc_auth
    except ImportError:
        return False
    return read_netrc_auth(host=settings.base_url) is not None


def _reachable(url: str) -> bool:
    """Whether a TCP connection to the server, or to the proxy that the environment names for it, opens at once."""
    target = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = target.port or (80 if target.scheme == "http" else 443)
    try:
        with socket.create_connection((target.hostname or "", port), timeout=REACHABLE_SECONDS):
            return True
    except OSError:
        return False
