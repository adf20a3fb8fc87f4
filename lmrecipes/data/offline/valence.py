"""Sentences and how they feel, as rated by people (asset `vader`)."""

from __future__ import annotations

import html
from pathlib import Path

from lmrecipes.data.offline.grouping import Row, join_duplicates


def vader_valence(folder: Path) -> list[Row]:
    """Sentences and their mean valence over the raters, from -4 to 4. Group: the review or article; a tweet or a film
    snippet is its own."""
    rows: list[Row] = []
    for file in sorted(folder.glob("*_GroundTruth.txt")):
        domain = file.name.partition("_")[0]
        for line in file.read_text(encoding="utf-8").splitlines():
            number, valence, text = line.split("\t")
            while (unescaped := html.unescape(text)) != text:  # some are escaped twice: `&amp;amp;`
                text = unescaped
            if text := " ".join(text.split()):
                rows.append({"text": text, "label": float(valence), "group": f"{domain}-{number.partition('_')[0]}"})
    return join_duplicates(rows)
