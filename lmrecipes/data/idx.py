"""Files in the IDX format of MNIST: images as rows of ids, with the labels of the file beside them.

`train-images-idx3-ubyte` (or `.gz`, or with a point before `idx3`) goes with `train-labels-idx1-ubyte`. The format: two
zero bytes, a byte for the type of the values (8: unsigned bytes), one for the number of dimensions, each size as a
big-endian int32, then the values (yann.lecun.com/exdb/mnist). Fashion-MNIST, EMNIST and KMNIST come in it too.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from lmrecipes.data.columns import Wanted
from lmrecipes.data.rows import Rows, in_blocks
from lmrecipes.problems import InputError, Problem

IDX = ".idx"
"""What stands for the suffix of these files, which have none."""
_IMAGES = re.compile(r"(.*)images([.-])idx3-ubyte(\.gz)?")
_BYTES = 8


def is_idx(path: Path) -> bool:
    """Whether a file's name says that it holds images in IDX."""
    return _IMAGES.fullmatch(path.name) is not None


def read_idx(path: Path, wanted: Wanted, where: str) -> Iterator[Rows]:
    """Blocks of rows with the columns ids (the intensities of an image, line by line) and label."""
    return in_blocks(_images(path, where), wanted, str(path), lambda number: f"{path} image {number}")


def _images(path: Path, where: str) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    labels = path.with_name(_IMAGES.sub(r"\1labels\2idx1-ubyte\3", path.name))
    try:
        with ExitStack() as files:
            images_file, labels_file = (files.enter_context(_open(file)) for file in (path, labels))
            count, *sides = _sizes(images_file, path, 3, where)
            if _sizes(labels_file, labels, 1, where) != [count]:
                what = f"{labels} does not hold a label for each of the {count:,} images of {path.name}"
                raise InputError(Problem(where, what, "fetch the files again", "file-broken"))
            size = int(np.prod(sides))
            for number in range(count):
                image, label = images_file.read(size), labels_file.read(1)
                if len(image) < size or not label:
                    raise EOFError(f"it ends within image {number:,} of {count:,}")
                yield number, size, {"ids": np.frombuffer(image, np.uint8), "label": label[0]}
    except (OSError, EOFError) as error:
        raise InputError(Problem(where, f"{path}: {error}", "fetch the files again", "file-broken")) from None


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path))
    return path.open("rb")


def _sizes(file: IO[bytes], path: Path, dimensions: int, where: str) -> list[int]:
    """The sizes that a file's head says. Raises InputError for another format."""
    head = file.read(4)
    if head != bytes([0, 0, _BYTES, dimensions]):
        what = f"{path} is not an IDX file of unsigned bytes in {dimensions} dimension(s): it begins with {head.hex()}"
        raise InputError(Problem(where, what, "name images of MNIST or its kin", "file-broken"))
    return [int.from_bytes(file.read(4)) for _ in range(dimensions)]
