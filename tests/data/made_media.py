"""Images and clips as files, of kinds that differ."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image


def png(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def wav(samples: NDArray[Any], rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """The bytes of a clip [samples] or [samples, channels]."""
    stream = BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def tone(hz: float, seconds: float, rate: int) -> NDArray[np.float64]:
    """A sine."""
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def write_rows(folder: Path, rows: int, several: bool = True) -> list[dict[str, Any]]:
    """Rows whose `image` and `audio` name files of differing kinds below `folder`: sizes 12 to 27 pixels, 0.1 to 0.19
    s, one or two channels, two rates. several: every third lacks its image, its clip or its text."""
    random, found = np.random.default_rng(0), []
    for i in range(rows):
        shape = (12 + i % 16, 12 + i % 7) + ((3,) if i % 2 else ())
        name, kind = (f"i{i}.png", "PNG") if i % 3 else (f"i{i}.jpg", "JPEG")
        (folder / name).write_bytes(png(random.integers(0, 256, shape, dtype=np.uint8), kind))
        rate, clip = (8000, f"a{i}.wav") if i % 2 else (11025, f"a{i}.flac")
        samples = random.normal(0, 0.1, (round(rate * (0.1 + 0.01 * (i % 10))), 1 + i % 2))
        (folder / clip).write_bytes(wav(samples, rate, "WAV" if i % 2 else "FLAC"))
        row: dict[str, Any] = {"text": f"row number {i}", "image": name, "audio": clip, "label": i % 3, "group": i}
        if several and i % 3 == 0:
            row[("text", "image", "audio")[i // 3 % 3]] = None
        found.append(row)
    return found
