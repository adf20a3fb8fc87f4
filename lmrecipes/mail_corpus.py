"""The thousands of small files of asset `spam` as one JSONL file, which is quick to write to disk and to check."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "mails.jsonl"


def convert(source: Path, folder: Path) -> None:
    """Write FILE: a line {group, text} for each `group/NUMBER.*.json` below `source`, in the order of their names."""
    with (folder / FILE).open("w", encoding="ascii", newline="\n") as stream:
        for file in sorted(source.glob("*/*.json")):
            mail = json.loads(file.read_text(encoding="utf-8"))
            stream.write(json.dumps({"group": mail["group"], "text": mail["text"]}) + "\n")
