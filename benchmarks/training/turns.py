"""Training steps in turn: each side is a process that keeps its model and rests while another one computes.

The parent asks a side for a step by a line on its standard input and reads what the step took, one line of JSON, from
its standard output. What a side's libraries print goes to its standard error, a file.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from lmrecipes.machine import cores


@dataclass(frozen=True)
class Taken:
    """What one optimizer step took. tokens: of texts, padding not counted; computed: positions of the linear layers,
    padding counted; loss: mean over the step's supervised tokens in nats; peak: most memory of the process since its
    first step, in bytes (0: not known)."""

    tokens: int
    computed: int
    loss: float
    seconds: float
    peak: int = 0


class Turns:
    """A side's end."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._began: float | None = None

    def wait(self) -> None:
        """Rest until a step is asked for; the process ends where no more will be. The clock starts then."""
        if not sys.stdin.readline():
            os._exit(0)
        if self._began is None:
            _forget_peak()
        self._began = time.perf_counter()

    def tell(self, tokens: int, computed: int, loss: float) -> None:
        """Stop the clock and answer."""
        assert self._began is not None
        seconds = time.perf_counter() - self._began
        print(json.dumps(asdict(Taken(tokens, computed, loss, seconds, _peak()))), file=self._answers, flush=True)


class Side:
    """The parent's end of one side, which starts at once and loads while others do."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log, self.taken = log, list[Taken]()
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
                env={"OMP_NUM_THREADS": str(cores()), **os.environ, **(environment or {})},
            )  # fmt: skip

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def step(self) -> Taken:
        """The side's next step. Raises RuntimeError with the end of what it has printed where it has died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # then its output has ended too
            print(file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):  # else a library has printed before `Turns` was made
                self.taken.append(Taken(**json.loads(line)))
                return self.taken[-1]
        raise RuntimeError(f"a side ended early:\n{self.log.read_text(encoding='utf-8')[-3000:]}")


@dataclass(frozen=True)
class Rounds:
    """Steps of several sides that were taken side by side, without those of the warm-up: taken[side][round][step]."""

    taken: dict[str, list[list[Taken]]]

    def rates(self, side: str) -> tuple[float, ...]:
        """Useful tokens a second in each round."""
        return tuple(sum(s.tokens for s in steps) / sum(s.seconds for s in steps) for steps in self.taken[side])

    def seconds(self, side: str) -> float:
        """Median seconds of a step."""
        return statistics.median(step.seconds for step in self.steps(side))

    def padding(self, side: str) -> float:
        """Share of the computed positions that hold padding."""
        steps = self.steps(side)
        return 1 - sum(step.tokens for step in steps) / sum(step.computed for step in steps)

    def peak(self, side: str) -> int:
        """Most memory of the process while it trained, bytes."""
        return max(step.peak for step in self.steps(side))

    def steps(self, side: str) -> list[Taken]:
        """All steps that count."""
        return [step for steps in self.taken[side] for step in steps]


def warm_up(name: str, side: Side, steps: int, say: Callable[[str], None]) -> None:
    """Steps that do not count."""
    seconds = [side.step().seconds for _ in range(steps)]
    say(f"warm-up: {name} " + ", ".join(f"{one:.2f} s" for one in seconds))


def take_turns(sides: Mapping[str, Side], rounds: int, steps: int, say: Callable[[str], None]) -> Rounds:
    """Rounds of `steps` steps of each side; every second round in the reverse order."""
    found: dict[str, list[list[Taken]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            found[name].append([sides[name].step() for _ in range(steps)])
        rates = Rounds({name: taken[-1:] for name, taken in found.items()})
        said = ", ".join(f"{name} {rates.rates(name)[0]:,.0f}" for name in sides)
        say(f"round {number + 1}/{rounds}: {said} tokens/s")
    return Rounds(found)


def largest_difference(one: Sequence[Taken], other: Sequence[Taken]) -> float:
    """Largest distance in nats between the losses of two sides' steps, from the first on. They are of the same steps;
    raises ValueError where the tokens differ."""
    if [step.tokens for step in one] != [step.tokens for step in other]:
        raise ValueError("the two sides were not given the same texts")
    return max(abs(a.loss - b.loss) for a, b in zip(one, other, strict=True))


def _peak() -> int:
    """Most memory that this process has held since `_forget_peak`, bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _forget_peak() -> None:
    """Let the peak count from here: loading a model may take more than training it."""
    switch = Path("/proc/self/clear_refs")
    if switch.is_file():
        switch.write_text("5", encoding="utf-8")
