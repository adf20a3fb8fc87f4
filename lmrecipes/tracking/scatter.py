"""Models as points of a picture, a metric against what they cost: SVG for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lmrecipes.tracking.results import number

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 20, 36
"""Space of a picture around its axes, in its own units."""
LEAST = 0.01
"""The y axis spans so much at least: smaller differences are none to look at."""
STEPS = [first * 10**power for power in range(-3, 8) for first in (1, 2, 5)]
MOST_TICKS = 6


@dataclass(frozen=True)
class Point:
    """series: decides the colour. reach: the largest x; interval: the smallest and the largest y; both are drawn as
    lines. label: stands above the point; title: is shown when it is pointed at."""

    series: int
    x: float
    y: float
    title: str
    label: str = ""
    reach: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def right(self) -> float:
        """The end of its horizontal line."""
        return self.x if self.reach is None else self.reach

    @property
    def ends(self) -> tuple[float, float]:
        """Those of its vertical line."""
        return (self.y, self.y) if self.interval is None else self.interval


def scatter(points: Sequence[Point], unit: str, about: str) -> str:
    """Points with their lines; the x axis starts at 0 and is in `unit`, the y axis spans the points."""
    right = 1.15 * max(point.right for point in points) or 1.0
    low, high = min(point.ends[0] for point in points), max(point.ends[1] for point in points)
    middle, half = (low + high) / 2, max(LEAST, high - low) / 2

    def x(value: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * value / right:.1f}"

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - middle + half) / (2 * half)

    parts = []
    for value in (middle - half, middle, middle + half):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="var(--grid)"/>'
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end" fill="var(--muted)">{number(value)}</text>'
        )
    tick = next(step for step in STEPS if right / step <= MOST_TICKS)
    for value in (tick * at for at in range(int(right / tick) + 1)):
        parts.append(
            f'<text x="{x(value)}" y="{HEIGHT - 18}" text-anchor="middle" fill="var(--muted)">{value:.6g}</text>'
        )
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end" fill="var(--muted)">{escape(unit)}</text>'
    )
    for point in points:
        colour, level = f"var(--s{point.series % 6})", f"{y(point.y):.1f}"
        ends = " ".join(f'y{end}="{y(value):.1f}"' for end, value in zip((1, 2), point.ends, strict=True))
        parts.append(
            f"<g><title>{escape(point.title)}</title>"
            f'<line x1="{x(point.x)}" x2="{x(point.x)}" {ends} stroke="{colour}" stroke-width="2" opacity="0.5"/>'
            f'<line x1="{x(point.x)}" x2="{x(point.right)}" y1="{level}" y2="{level}" stroke="{colour}" '
            f'stroke-width="2"/><circle cx="{x(point.x)}" cy="{level}" r="5" fill="{colour}"/>'
            f'<text x="{x(point.x)}" y="{y(point.y) - 9:.1f}" fill="var(--text)">{escape(point.label)}</text></g>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" font-size="12" aria-label="{escape(about)}">'
        f"{''.join(parts)}</svg>"
    )
