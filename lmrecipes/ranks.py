"""Ranks and who started them. Several on this machine are started by the code that `torchrun` calls, in this process.

`torchrun` itself turns every rank's exit code into 1 with a page of traceback, and kills ranks that take more than 30
seconds to save after a signal. Here exit codes come back as they are, and signals are the caller's to send.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]


def run_ranks(arguments: Sequence[str]) -> dict[int, int]:
    """As `torchrun ARGUMENTS`: a rank that fails ends the others. Returns exit codes by rank, none where all are 0."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.run").setLevel(logging.CRITICAL)
    try:
        torchrun.run(torchrun.parse_args(list(arguments)))
    except ChildFailedError as error:
        return {rank: failure.exitcode for rank, failure in error.failures.items()}
    return {}


def send_to_children(number: int) -> None:
    """Send a signal to every process that this one started."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


def stop_with_parent() -> None:
    """Have the kernel send TERM to this process when its parent dies, however that happens (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


def started_by_launcher() -> bool:
    """Whether the parent is a launcher, whose end must end this rank too; a shell may end before its `nohup` jobs."""
    return launcher() != "python"


def launcher() -> str:
    """Which launcher started this process, by the marks that each leaves in the environment."""
    if "LMRECIPES_COMMAND" in os.environ:
        return "lmrecipes train"
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return "accelerate"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    return "deepspeed" if "CROSS_RANK" in os.environ else "python"


def launch_command() -> str:
    """The command line that started the run: the launcher's, where there is one."""
    if "LMRECIPES_COMMAND" in os.environ:
        return os.environ["LMRECIPES_COMMAND"]
    command = sys.orig_argv
    above = {"torchrun": 1, "accelerate": 1, "deepspeed": 2}.get(
        launcher(), 0
    )  # deepspeed's runner starts its launch.py
    with contextlib.suppress(psutil.Error, IndexError):
        command = psutil.Process().parents()[above - 1].cmdline() if above else command
    # A console script shows as `/venv/bin/python /venv/bin/torchrun ...`.
    if len(command) > 1 and Path(command[1]).name in ("torchrun", "accelerate", "deepspeed"):
        command = [Path(command[1]).name, *command[2:]]
    return shlex.join(command)
