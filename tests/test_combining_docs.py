"""docs/combining.md: its commands are valid, and what it says of numbers and methods holds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import tyro

from lmrecipes.combine.averaging import FOLDS
from lmrecipes.combine.bootstrap import RESAMPLES
from lmrecipes.combine.calibration import BINS
from lmrecipes.combine.members import BATCH
from lmrecipes.combine.options import CombineOptions, Method, check_options

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "combining.md").read_text()
LINES = re.findall(r"^ {4}lmrecipes combine (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_a_command_is_valid(line: str) -> None:
    check_options(tyro.cli(CombineOptions, args=shlex.split(line)))


def test_numbers_and_methods() -> None:
    shown = {word for line in LINES for word in re.findall(r"--method (\w+)", line)} | {"average"}
    assert shown == set(get_args(Method))
    assert all(f"| `{method}` |" in TEXT for method in get_args(Method))
    assert f"{RESAMPLES:,} bootstrap draws" in TEXT
    assert f"{FOLDS} folds" in TEXT
    assert f"{BINS} bins" in TEXT
    assert f"batches of {BATCH}" in TEXT
