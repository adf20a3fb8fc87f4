"""Small pieces of HTML that the sections of the report are made of."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from lmrecipes.files import json_text


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


def document(title: str, body: Sequence[str], charts: Any, style: str, script: str) -> str:
    """A page that needs no network: plotly.js (4.8 MB), the charts' data as JSON in the element `charts`, and a script
    that draws them. Empty parts of the body are left out."""
    from plotly.offline import get_plotlyjs  # takes 0.2 s, and this module is imported for every run

    data = json_text(charts).replace("<", "\\u003c")  # so that no name in the data can end the script element
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>",
            *(part for part in body if part),
            f'</main>\n<script type="application/json" id="charts">{data}</script>',
            f"<script>{get_plotlyjs()}</script>\n<script>{script}</script>\n</body>\n</html>\n",
        ]
    )
