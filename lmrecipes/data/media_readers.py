"""What reads the image and the clip of a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmrecipes.data.audio import AudioReader
from lmrecipes.data.conversations import BadRow
from lmrecipes.data.images import ImageReader
from lmrecipes.data.inputs import ImageSpec, Specs, own_specs
from lmrecipes.data.media_cells import Read, ReadMedia, lacks
from lmrecipes.recipe import Model, Source
from lmrecipes.recipe_inputs import Modality

MOST_HELD = 2**25
"""Bytes of images and clips that are read before they are written."""


class MediaReaders:
    """Reads the media of a source's rows. specs: how; None: as our own front ends do by default, which is as good where
    only the rows' splits and mistakes are asked for."""

    def __init__(self, source: Source, specs: Specs | None = None) -> None:
        self.readers: dict[Modality, Read] = {}
        row = 1
        for modality in source.media:
            spec = (specs or own_specs(Model()))[modality]
            column = getattr(source, modality)
            if isinstance(spec, ImageSpec):
                self.readers[modality] = ImageReader(column, spec)
                row += spec.height * spec.width * spec.channels
            else:
                self.readers[modality] = AudioReader(column, spec)
                row += 2 * math.ceil(spec.longest_samples * max(1, spec.mels) / max(1, spec.hop))
        self.at_once = max(1, MOST_HELD // row)

    def __call__(self, row: Mapping[str, Any], folder: Path | None) -> dict[Modality, ReadMedia] | BadRow:
        """The media that a row has, or why it is bad (not raised: threads read)."""
        try:
            return {
                modality: read(row[modality], folder)
                for modality, read in self.readers.items()
                if not lacks(row[modality])
            }
        except BadRow as reason:
            return reason
