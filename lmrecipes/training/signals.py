"""Signals that ask a run to stop: noted when they come, obeyed between two steps by all ranks alike."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType


class Interrupted(Exception):
    """A signal asked the run to stop; it was saved. `number` is the signal's."""

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}; saved {checkpoint}")
        self.number = number


class Signals:
    """asked: number of the last signal that asked this process to stop, or 0."""

    asked = 0

    def listen(self) -> None:
        """From now on note what would have ended the process."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
