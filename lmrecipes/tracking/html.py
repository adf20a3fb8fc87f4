"""Small pieces of HTML that the sections of the report are made of."""

from __future__ import annotations

from html import escape


def table(heads: str, rows: str) -> str:
    """A card with a table of these cells."""
    return f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def section(title: str, content: str) -> str:
    """A part of the page under a heading, which is escaped."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def disc(series: int) -> str:
    """The coloured disc of a task or a run."""
    return f'<i class="key" style="--c:var(--s{series % 6})"></i>'


def compact(value: float) -> str:
    """1234567 -> `1.23 M`."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}"
