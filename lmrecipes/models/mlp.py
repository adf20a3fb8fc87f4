"""A multi-layer perceptron as a trunk: rows of intensities in place of texts.

Its linear layers are `layers.0`, `layers.1`, ..., which is how `precision.layers` names them; the last layer of the
network is a task's head, `heads.TASK`. A model is a folder with `config.json` and `model.safetensors`, which lmrecipes
alone reads: `transformers` has no such architecture.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmrecipes.data.batches import Texts
from lmrecipes.data.permutation import hash_key
from lmrecipes.files import write_json
from lmrecipes.models.attention import Choice
from lmrecipes.models.trunk import Inserted, Trunk
from lmrecipes.recipe import Mlp

KIND = "lmrecipes_mlp"
"""`model_type` in config.json."""


@dataclass(frozen=True)
class MlpConfig:
    """What a perceptron's weights are of, under the names that configurations of `transformers` use."""

    inputs: int
    vocab_size: int
    hidden_sizes: tuple[int, ...]
    model_type: str = KIND

    @property
    def hidden_size(self) -> int:
        """Width of what it gives."""
        return self.hidden_sizes[-1]

    def get_text_config(self) -> Self:
        """Itself."""
        return self


class Perceptron(nn.Module):
    """Linear layers, each followed by max(0, x)."""

    def __init__(self, config: MlpConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.inputs, *config.hidden_sizes)
        self.layers = nn.ModuleList(
            nn.Linear(wide, narrow) for wide, narrow in zip(widths, config.hidden_sizes, strict=False)
        )

    def initialise(self, seed: int) -> Self:
        """Weights by He et al. 2015 (arXiv 1502.01852, eq. 10), biases 0."""
        generator = torch.Generator().manual_seed(hash_key(seed, "trunk"))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        return self

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        """Intensities int64 [rows, inputs] -> the last layer's [rows, hidden], in a tuple as models of `transformers`
        give it."""
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        hidden = (input_ids / (self.config.vocab_size - 1)).to(first.weight.dtype)
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        return (hidden,)


class MlpTrunk(Trunk):
    """Reads rows of `inputs` ids each, all of one length; returns one vector for each row."""

    def __init__(self, model: Perceptron) -> None:
        super().__init__(model, "mean", Choice("padded", "no"))
        self.exactly: int = model.config.inputs

    def _use(self, attention: str) -> None:
        """There is none."""

    def forward(self, texts: Texts, inserted: Inserted = ()) -> Tensor:
        """One vector for each row: [rows, hidden]. The one token that stands for no row is read as a row of zeros.
        Nothing is ever inserted."""
        assert isinstance(texts, list)
        rows = torch.cat([bucket.input_ids.expand(-1, self.exactly) for bucket in texts])
        hidden: Tensor = self.model(rows)[0]
        return hidden

    def pool(self, texts: Texts, hidden: Tensor) -> Tensor:
        """[rows, hidden] as it is."""
        return hidden


def random_trunk(mlp: Mlp, seed: int) -> MlpTrunk:
    """The trunk that a recipe describes, the same for every world size."""
    return MlpTrunk(Perceptron(MlpConfig(mlp.inputs, mlp.levels, mlp.hidden)).initialise(seed))


def save_perceptron(config: MlpConfig, weights: dict[str, Tensor], folder: Path) -> None:
    """Write a model's two files."""
    write_json(folder / "config.json", asdict(config))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


def is_perceptron(folder: Path | str) -> bool:
    """Whether `save_perceptron` wrote this folder."""
    config = Path(folder) / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == KIND


def load_perceptron(folder: Path | str) -> Perceptron:
    """Read what `save_perceptron` wrote, in fp32."""
    saved: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = Perceptron(MlpConfig(**{**saved, "hidden_sizes": tuple(saved["hidden_sizes"])}))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"), assign=True)
    return model.eval()
