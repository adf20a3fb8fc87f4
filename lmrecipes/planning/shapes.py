"""A model as data: what it multiplies, what it normalises, what it looks up. The planner counts on it. No torch.

Names are those that `precision.layers` knows. `models/shapes.py` reads them from a recipe's model; `transformer` and
`perceptron` make them from numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Product:
    """A linear layer: [rows, inputs] times its weight.

    reads: products that name the same tensor read the same one. stream: that tensor comes from a norm or from the
    residual stream, and so is in fp32 under autocast; else from another product. per: whether rows are tokens or texts.
    trained: the weight. into: whether a gradient flows on into the input. each: rows of a text, of a product per text:
    more than one of a front end, which is counted as if every example had an image and a clip.
    """

    name: str
    inputs: int
    outputs: int
    reads: str
    stream: bool
    bias: bool = True
    per: Literal["token", "text"] = "token"
    trained: bool = True
    into: bool = True
    each: int = 1

    @property
    def weight(self) -> int:
        """Its numbers, without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Attention:
    """Products between tokens: heads of a width, which share fewer keys and values where `keys` < heads."""

    name: str
    heads: int
    keys: int
    width: int
    dropout: bool = False


@dataclass(frozen=True)
class Norm:
    """width: numbers of a token that go through. rms: `transformers`' RMS norms are computed in fp32, step by step."""

    name: str
    width: int
    rms: bool = False
    stream: bool = True


@dataclass(frozen=True)
class Activation:
    """width: numbers of a token. saved: tensors of this width that it keeps for its backward pass, those that a product
    keeps too not counted. gated: the result is multiplied by another product's."""

    name: str
    width: int
    saved: int = 1
    gated: bool = False


@dataclass(frozen=True)
class Shapes:
    """The model. tables: looked up, not multiplied, as (name, numbers). language: the product with the vocabulary, by a
    weight of its own or that of a table. trained, frozen: all numbers of the model, each once. dropouts: widths of the
    tensors that go through dropout outside attention. rotary: width of the angles that all layers turn queries and keys
    by. averaged: heads read the mean of a text's tokens. width: of the residual stream. longest: positions of the
    longest example, where some hold more than a text. Of front ends only the products are known, no norms and no
    attention."""

    width: int
    trained: int
    frozen: int
    products: tuple[Product, ...]
    attentions: tuple[Attention, ...] = ()
    norms: tuple[Norm, ...] = ()
    activations: tuple[Activation, ...] = ()
    tables: tuple[tuple[str, int], ...] = ()
    dropouts: tuple[int, ...] = ()
    rotary: int = 0
    averaged: bool = False
    language: Product | None = None
    checkpointed: bool = False
    longest: int = 0

    @property
    def layers(self) -> int:
        """Attention layers, of which each is checkpointed as a whole."""
        return len(self.attentions)


def perceptron(inputs: int, hidden: tuple[int, ...], heads: dict[str, int]) -> Shapes:
    """A multi-layer perceptron, with one linear head for each task."""
    widths = (inputs, *hidden)
    layers = tuple(
        Product(f"layers.{number}", wide, narrow, f"layers.{number}", number == 0, per="text", into=number > 0)
        for number, (wide, narrow) in enumerate(zip(widths, hidden, strict=False))
    )
    products = layers + head_products(hidden[-1], heads, stream=False)
    last = Activation(layers[-1].name, hidden[-1])  # the others' results are kept as the next product's input
    return Shapes(hidden[-1], _weights(products), 0, products, activations=(last,))


def transformer(
    layers: int, width: int, heads: int, inner: int, vocabulary: int, positions: int, tasks: dict[str, int]
) -> Shapes:
    """An encoder as BERT: norms behind the sums, exact GELU, learned positions, two segments."""
    products: list[Product] = []
    attentions, norms, activations = [], [Norm("embeddings.LayerNorm", width)], []
    for number in range(layers):
        name = f"encoder.layer.{number}"
        own = f"{name}.attention"
        products += [Product(f"{own}.self.{part}", width, width, own, True) for part in ("query", "key", "value")]
        products += [
            Product(f"{own}.output.dense", width, width, f"{own}.output", False),
            Product(f"{name}.intermediate.dense", width, inner, f"{name}.intermediate", True),
            Product(f"{name}.output.dense", inner, width, f"{name}.output", False),
        ]
        attentions.append(Attention(f"{own}.self", heads, heads, width // heads))
        norms += [Norm(f"{own}.output.LayerNorm", width), Norm(f"{name}.output.LayerNorm", width)]
        activations.append(Activation(f"{name}.intermediate.intermediate_act_fn", inner))
    everything = (*products, *head_products(width, tasks, stream=True))
    tables = (("word", vocabulary * width), ("position", positions * width), ("segment", 2 * width))
    numbers = _weights(everything) + sum(size for _, size in tables) + 2 * width * len(norms)
    return Shapes(
        width, numbers, 0, everything, tuple(attentions), tuple(norms), tuple(activations),
        tuple((f"embeddings.{name}", size) for name, size in tables),
    )  # fmt: skip


def head_products(width: int, tasks: dict[str, int], stream: bool) -> tuple[Product, ...]:
    """The linear heads on a pooled vector: tasks by name, with so many outputs."""
    return tuple(
        Product(f"heads.{task}.linear", width, outputs, f"heads.{task}", stream, per="text")
        for task, outputs in tasks.items()
    )


def _weights(products: tuple[Product, ...]) -> int:
    return sum(product.weight + product.outputs * product.bias for product in products)
