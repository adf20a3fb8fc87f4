"""What the benchmarks share: numbers taken in turn, targets, and the tables that a benchmark writes into its README."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmrecipes.machine import cores, gpus

OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Settings of the caller that decide how threads wait for each other, and so how long a step takes."""


@dataclass(frozen=True)
class Pairs:
    """Two things measured in turn on a machine whose speed drifts: `ours[i]` and `bare[i]` were taken side by side."""

    ours: tuple[float, ...]
    bare: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """ours / bare of each pair."""
        return [a / b for a, b in zip(self.ours, self.bare, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios: what drifts from pair to pair cancels."""
        return statistics.median(self.ratios)


def interleave(rounds: int, ours: Callable[[], float], bare: Callable[[], float], say: Callable[[str], None]) -> Pairs:
    """Measure both `rounds` times in turn; every second pair starts with `bare`."""
    taken: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(rounds):
        for name in ("ours", "bare") if number % 2 == 0 else ("bare", "ours"):
            taken[name].append(ours() if name == "ours" else bare())
        a, b = taken["ours"][-1], taken["bare"][-1]
        say(f"pair {number + 1}/{rounds}: ours {a:.2f}, bare {b:.2f}, ratio {a / b:.3f}")
    return Pairs(tuple(taken["ours"]), tuple(taken["bare"]))


def in_turn(
    rounds: int, measures: Mapping[str, Callable[[], float]], say: Callable[[str], None]
) -> dict[str, tuple[float, ...]]:
    """Take each measure once a round, in the given order and every second round in the reverse one."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in list(measures) if number % 2 == 0 else reversed(list(measures)):
            taken[name].append(measures[name]())
        say(f"round {number + 1}/{rounds}: " + ", ".join(f"{name} {values[-1]:.4g}" for name, values in taken.items()))
    return {name: tuple(values) for name, values in taken.items()}


@dataclass(frozen=True)
class Target:
    """A number that is to be at least `wanted`."""

    what: str
    reached: float
    wanted: float

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.reached >= self.wanted


def targets_table(targets: Sequence[Target]) -> str:
    """Targets and what was reached, as Markdown."""
    rows = [
        [target.what, f"{target.wanted:,.4g}", f"{target.reached:,.4g}", "met" if target.met else "missed"]
        for target in targets
    ]
    return markdown_table(["target", "at least", "reached", ""], rows)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rule = ["-", *["-:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])


def measured_on(packages: Sequence[str] = ("torch", "deepspeed", "accelerate")) -> str:
    """Hardware, versions of packages and date of a measurement, one line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    device = f"{cores()} cores of {model}" + "".join(f", {name}" for name, _, _ in gpus())
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    openmp = "".join(f"; {name}={os.environ[name]}" for name in OPENMP if name in os.environ)
    return f"Measured on {device}; {versions}{openmp}; {time.strftime('%Y-%m-%d')}."
