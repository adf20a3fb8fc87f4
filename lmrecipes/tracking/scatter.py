"""Models as points of a picture, a metric against what they cost: SVG for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lmrecipes.tracking.results import number

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 14, 36
"""Space of a picture around its axes, in its own units."""


@dataclass(frozen=True)
class Point:
    """series: decides the colour. label: stands beside the point; title: is shown when it is pointed at."""

    series: int
    x: float
    y: float
    interval: tuple[float, float]
    title: str
    label: str = ""


def scatter(points: Sequence[Point], unit: str, about: str) -> str:
    """Points with their intervals; the x axis starts at 0 and is in `unit`, the y axis spans the intervals."""
    right = 1.15 * max(point.x for point in points) or 1.0
    low, high = min(point.interval[0] for point in points), max(point.interval[1] for point in points)
    low, high = (low, high) if high > low else (low - 0.005, high + 0.005)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / right

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = []
    for value in (low, (low + high) / 2, high):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="var(--grid)"/>'
            f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end" fill="var(--muted)">{number(value)}</text>'
        )
    for value in (0.0, right / 3, 2 * right / 3):
        parts.append(
            f'<text x="{x(value):.1f}" y="{HEIGHT - 14}" text-anchor="middle" fill="var(--muted)">{value:.3g}</text>'
        )
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 14}" text-anchor="end" fill="var(--muted)">{escape(unit)}</text>'
    )
    for point in points:
        colour, at, beside = f"var(--s{point.series % 6})", f"{x(point.x):.1f}", f"{x(point.x) + 8:.1f}"
        ends = " ".join(f'y{end}="{y(value):.1f}"' for end, value in zip((1, 2), point.interval, strict=True))
        parts.append(
            f"<g><title>{escape(point.title)}</title>"
            f'<line x1="{at}" x2="{at}" {ends} stroke="{colour}" stroke-width="2" opacity="0.5"/>'
            f'<circle cx="{at}" cy="{y(point.y):.1f}" r="5" fill="{colour}"/>'
            f'<text x="{beside}" y="{y(point.y) + 4:.1f}" fill="var(--text)">{escape(point.label)}</text></g>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" font-size="12" aria-label="{escape(about)}">'
        f"{''.join(parts)}</svg>"
    )
