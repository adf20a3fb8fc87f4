"""The service in a process of its own on a free port of this machine, for whoever measures it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from lmrecipes.problems import RunFailed
from lmrecipes.serving.options import ServeOptions

START_SECONDS = 300.0
"""Longest that a service may take to load its model."""


@contextmanager
def service(run: Path, precision: str, options: ServeOptions) -> Iterator[int]:
    """Within: a run is served, warm, at this port. Afterwards it has ended. Raises RunFailed where it does not start.

    The socket is made here and inherited, so that no one else can take the port in between.
    """
    with socket.create_server((options.host, 0), backlog=1024) as listener:
        port, handle = listener.getsockname()[1], listener.fileno()
        asked = {"run": str(run), "precision": precision, "handle": handle, "options": asdict(options)}
        command = [sys.executable, "-m", "lmrecipes.serving.process", json.dumps(asked)]
        threads = {"OMP_NUM_THREADS": str(options.threads)}
        process = subprocess.Popen(command, pass_fds=[handle], env={**os.environ, **threads})
    try:
        _wait(process, options.host, port)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(options.drain_seconds + 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a GET."""
    connection = HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _wait(process: subprocess.Popen[bytes], host: str, port: int) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RunFailed(f"the service ended with exit code {process.returncode} before it was ready")
        try:
            if get(host, port, "/ready")[0] == 200:
                return
        except OSError:  # it is still loading: connections wait in the socket's queue, until they time out
            pass
        time.sleep(0.05)
    raise RunFailed(f"the service was not ready within {START_SECONDS:g} s")


def main(asked: dict[str, Any]) -> int:
    """What the process does."""
    from lmrecipes.inference.row_predictor import open_predictor
    from lmrecipes.launching import quieten
    from lmrecipes.serving.app import serve

    quieten()
    options, run = ServeOptions(**asked["options"]), Path(asked["run"])
    predictor = open_predictor(run, asked["precision"], options.threads, options.max_batch)
    return serve(predictor, options, run.name, socket.socket(fileno=asked["handle"]))


if __name__ == "__main__":
    from lmrecipes.launching import guarded

    sys.exit(guarded(lambda: main(json.loads(sys.argv[1]))))
