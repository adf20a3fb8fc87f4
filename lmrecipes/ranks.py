"""Several ranks on this machine, by the same torch launcher that `torchrun` calls, in this process.

`torchrun` itself turns every rank's exit code into 1 with a page of traceback, and kills ranks that take more than 30
seconds to save after a signal. Here exit codes come back as they are, and signals are the caller's to send.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Sequence


def run_ranks(arguments: Sequence[str]) -> dict[int, int]:
    """As `torchrun ARGUMENTS`, which `python -m torch.distributed.run ARGUMENTS` is. Exit codes by rank, empty where all are 0.

    A rank that fails ends the others. torch raises its one exception where any did.
    """
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
    import psutil

    for child in psutil.Process().children():
        child.send_signal(number)


def stop_with_parent() -> None:
    """Have the kernel send TERM to this process when its parent dies, however that happens (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG


def started_by_launcher() -> bool:
    """Whether the parent is a launcher, whose end must end this rank too; a shell may end before its `nohup` jobs."""
    return any(mark in os.environ for mark in ("LMRECIPES_COMMAND", "TORCHELASTIC_RUN_ID", "CROSS_RANK"))
