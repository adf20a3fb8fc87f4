"""MNIST's files: images become rows of ids, labels come from the file beside them, and broken files are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from lmrecipes.data.encode import encode_tasks
from lmrecipes.data.sources import open_rows
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe, Source, Task

IMAGES = np.random.default_rng(0).integers(0, 256, (90, 4, 3)).astype(np.uint8)
LABELS = (np.arange(90) % 10).astype(np.uint8)


def idx(values: np.ndarray) -> bytes:  # type: ignore[type-arg]
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4) for size in values.shape)
    return head + values.tobytes()


def write(folder: Path, images: bytes, labels: bytes, name: str = "train-{}-{}-ubyte") -> Path:
    for what, content in (("images-idx3", images), ("labels-idx1", labels)):
        path = folder / name.format(*what.split("-"))
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return folder / name.format("images", "idx3")


def rows_of(path: Path) -> list[dict[str, object]]:
    task = Task(kind="classification", source=Source(files=str(path), ids="ids"))
    return [block.row(i) for block in open_rows("t", task)["all"].blocks for i in range(len(block))]


@pytest.mark.parametrize("name", ["train-{}-{}-ubyte", "train-{}-{}-ubyte.gz", "emnist-{}.{}-ubyte"])
def test_images_are_rows_of_ids(name: str, tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path, idx(IMAGES), idx(LABELS), name))
    assert np.array_equal([row["ids"] for row in rows], IMAGES.reshape(90, 12))
    assert [row["label"] for row in rows] == LABELS.tolist()


def test_a_perceptron_reads_them(tmp_path: Path, no_assets: Path) -> None:
    paths = {}
    for split, part in {"train": slice(0, 60), "test": slice(60, 90)}.items():
        paths[split] = str(write(tmp_path, idx(IMAGES[part]), idx(LABELS[part]), split + "-{}-{}-ubyte"))
    task = {"kind": "classification", "source": {"splits": paths, "ids": "ids"}}
    recipe = {"name": "r", "tasks": {"t": task}, "model": {"mlp": {"hidden": [4], "inputs": 12}}}
    found = encode_tasks(Recipe.model_validate(recipe), progress=False)["t"]
    assert found.labels == tuple("0123456789")
    assert np.array_equal(found.splits["test"].tokens.reshape(-1, 12), IMAGES[60:].reshape(-1, 12))
    assert found.splits["test"].targets.tolist() == LABELS[60:].tolist()


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (b"nonsense", idx(LABELS), "is not an IDX file of unsigned bytes in 3"),
        (idx(LABELS), idx(LABELS), "is not an IDX file of unsigned bytes in 3"),
        (idx(IMAGES)[:-5], idx(LABELS), "ends within image 89 of 90"),
        (idx(IMAGES), idx(LABELS[:-1]), "a label for each of the 90 images"),
    ],
)
def test_broken_files_are_named(images: bytes, labels: bytes, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, images, labels)
    with pytest.raises(InputError, match=said) as caught:
        rows_of(path)
    assert caught.value.problems[0].where == "tasks.t.source.files"


def test_labels_must_lie_beside_them(tmp_path: Path) -> None:
    path = write(tmp_path, idx(IMAGES), idx(LABELS))
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="train-labels-idx1-ubyte"):
        rows_of(path)
