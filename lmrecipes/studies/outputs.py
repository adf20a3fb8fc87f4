"""What the cells of a study said of their test rows: kept where it is to be compared row by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lmrecipes.files import written_at_once
from lmrecipes.training.evaluation import Outputs


def write_outputs(folder: Path, key: str, outputs: Mapping[str, Outputs]) -> None:
    """Write the outputs of the cell `key`, by task. The caller holds the study."""
    folder.mkdir(exist_ok=True)
    with written_at_once(folder / key) as made:
        for task, found in outputs.items():
            parts = {name: part for name, part in vars(found).items() if part is not None}
            np.savez(made / f"{task}.npz", **parts)


def read_outputs(folder: Path, key: str) -> dict[str, Outputs]:
    """What `write_outputs` wrote."""
    found = {}
    for path in sorted((folder / key).glob("*.npz")):
        with np.load(path) as kept:
            found[path.stem] = Outputs(**kept)
    return found
