"""Front ends: how images and clips become positions of the trunk, beside the tokens that it looks up.

A front end gives one vector for each position that its inputs take: [positions, hidden], of the size of the trunk's own
looked-up embeddings at the start, so that a pretrained trunk reads them as it reads words. The bias of its last norm is
what all positions of a modality share.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmrecipes.data.inputs import FLOOR, AudioSpec, ImageSpec, Spec
from lmrecipes.data.media import Media
from lmrecipes.data.permutation import hash_key
from lmrecipes.models.encoders import load_encoder
from lmrecipes.models.trunk import Trunk
from lmrecipes.recipe import Model
from lmrecipes.recipe_inputs import ImageFrontEnd, Modality

PLACES = 0.5
"""Standard deviation of the vectors of rows and columns at the start, beside patches of about 1."""


def front_ends(model: Model, specs: Mapping[Modality, Spec], trunk: Trunk, seed: int) -> dict[Modality, nn.Module]:
    """One for each specification, alike on every rank; beside a trunk without numbers also without. Raises InputError
    for an encoder that cannot be loaded."""
    hidden, empty = trunk.hidden_size, next(trunk.model.parameters()).is_meta
    made: dict[Modality, nn.Module] = {}
    scale = trunk.embedding_scale() if specs else 1.0
    for modality, spec in specs.items():
        settings, own_seed = getattr(model, modality), hash_key(seed, "inputs", modality)
        if settings.pretrained is not None:
            made[modality] = load_encoder(modality, settings, spec, model.dropout, hidden, scale, own_seed, empty)
        elif isinstance(spec, ImageSpec):
            made[modality] = Patches(spec, settings, hidden, scale, own_seed)
        else:
            made[modality] = Frames(spec, hidden, scale, own_seed)
    return made


class Patches(nn.Module):
    """Square patches of an image, each with the place of its row and its column (arXiv 2010.11929)."""

    def __init__(self, spec: ImageSpec, settings: ImageFrontEnd, hidden: int, scale: float, seed: int) -> None:
        super().__init__()
        self.patch, self.overlap = settings.patch, settings.overlap
        self.side = self.patch + 2 * self.overlap
        self.patches = nn.Linear(self.side**2 * spec.channels, hidden)
        self.rows = nn.Parameter(torch.empty(spec.height // self.patch, hidden))
        self.columns = nn.Parameter(torch.empty(spec.width // self.patch, hidden))
        self.norm = nn.LayerNorm(hidden)
        if not self.rows.is_meta:
            generator = torch.Generator().manual_seed(seed)
            _start(self.patches, self.norm, scale, generator)
            for places in (self.rows, self.columns):
                nn.init.normal_(places, std=PLACES, generator=generator)

    def forward(self, media: Media) -> Tensor:
        """Images uint8 [k, height, width, channels], row by row."""
        values = media.values.permute(0, 3, 1, 2) / 127.5 - 1
        values = F.pad(values, (self.overlap,) * 4, mode="replicate")
        cut = values.unfold(2, self.side, self.patch).unfold(3, self.side, self.patch)
        flat = cut.permute(0, 2, 3, 1, 4, 5).flatten(3)  # [k, rows, columns, inputs]
        out = self.patches(flat.to(self.patches.weight.dtype)) + self.rows[:, None] + self.columns
        found: Tensor = self.norm(out)
        return found.flatten(0, 2)


class Frames(nn.Module):
    """Stacked log-mel frames of a clip; where in the clip they are, the trunk's own positions tell."""

    def __init__(self, spec: AudioSpec, hidden: int, scale: float, seed: int) -> None:
        super().__init__()
        self.frames = nn.Linear(spec.stack * spec.mels, hidden)
        self.norm = nn.LayerNorm(hidden)
        if not self.frames.weight.is_meta:
            _start(self.frames, self.norm, scale, torch.Generator().manual_seed(seed))

    def forward(self, media: Media) -> Tensor:
        """Positions float32 [positions, stack * mels]: powers from silence to loud become -2 to 2."""
        values = 2 - 4 * media.values / FLOOR
        out: Tensor = self.norm(self.frames(values.to(self.frames.weight.dtype)))
        return out


def _start(linear: nn.Linear, norm: nn.LayerNorm, scale: float, generator: torch.Generator) -> None:
    """Weights that keep the variance of what they multiply, and a norm that leaves vectors of this size."""
    nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)
    nn.init.zeros_(linear.bias)
    nn.init.constant_(norm.weight, scale)
