"""Bytes that a rank holds: what belongs to parameters, and what a micro-batch leaves for its backward pass.

Per parameter as measured under DeepSpeed 0.19.8 just before an update; activations as in Korthikanti et al. 2022 (arXiv
2205.05198, section 4.1), tensor by tensor as autograd saves them, with what `transformers` and autocast add.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lmrecipes.planning.numbers import BYTES, Numbers
from lmrecipes.planning.shapes import Product, Shapes
from lmrecipes.recipe import Optimizer

LOGITS = 1 << 27
"""Most bytes of a chunk of logits (`models/cross_entropy.py`)."""
SCALE = 4
"""Bytes of the scale of one fp8 row."""


@dataclass(frozen=True)
class Size:
    """A micro-batch. texts of `time` tokens each, padding included; row: tokens that attention sees together."""

    texts: int
    time: int
    row: int

    @property
    def tokens(self) -> int:
        """That linear layers compute."""
        return self.texts * self.time

    def rows(self, product: Product) -> int:
        """Rows of a product's operand."""
        return self.texts * product.each if product.per == "text" else self.tokens


@dataclass(frozen=True)
class Term:
    """One named number. kind: what it is summed under in a table; formula: in words."""

    kind: str
    name: str
    value: float
    formula: str


def states_of(optimizer: Optimizer) -> int:
    """Numbers that the optimizer keeps for each parameter."""
    return {"adamw": 2, "rmsprop": 1, "sgd": int(optimizer.betas[0] > 0)}[optimizer.name]


def parameter_terms(numbers: Numbers, optimizer: Optimizer, ranks: int) -> Iterator[Term]:
    """Weights, masters, gradients and optimizer states, of one rank."""
    precision, zero = numbers.precision, numbers.zero or 0
    trained, frozen, width = numbers.shapes.trained, numbers.shapes.frozen, numbers.weights
    split = f" / {ranks}" if ranks > 1 else ""
    of_states, of_gradients, of_weights = (ranks if zero >= stage else 1 for stage in (1, 1, 3))
    master = 2 if precision.pure else 4

    def term(kind: str, name: str, count: int, size: float, parts: int) -> Term:
        return Term(kind, name, count * size / parts, f"{size:g} B x {count:,}{split if parts > 1 else ''}")

    yield term("weights", "trained weights", trained, width, of_weights)
    if frozen:
        yield term("weights", "frozen weights", frozen, width, of_weights)
    if zero >= 1:
        name = "master weights" if width < master else "the optimizer's own copy of the weights"
        yield term("masters", name, trained, master, of_states)
    summed = BYTES[precision.accumulated]
    if zero == 1 and width == 2 and summed == 4:
        yield term("gradients", "gradients as backward leaves them", trained, width, 1)
        yield term("gradients", "fp32 sums of gradients, on every rank", trained, summed, 1)
    else:
        yield term("gradients", "gradients", trained, summed if zero >= 1 else width, of_gradients)
    if states := states_of(optimizer):
        yield term("optimizer", f"{states} state(s) of {optimizer.name}", trained, states * master, of_states)
    if precision.pure and precision.rounding == "kahan":
        yield term("optimizer", "what rounding lost (Kahan)", trained, 2, of_states)


def activation_terms(numbers: Numbers, size: Size, fused: bool) -> Iterator[Term]:
    """What a micro-batch's forward pass keeps. fused: attention without scores in memory, as on GPUs."""
    shapes, n = numbers.shapes, size.tokens
    whole = {
        "product inputs": _product_inputs(numbers, size),
        "attention": sum(_attention(numbers, size, fused)),
        "norms": sum(_norms(numbers, n)),
        "activation functions": sum(_functions(numbers, n)),
        "rotary angles": 2.0 * n * shapes.rotary * numbers.stream,
        "dropout masks": float(n * sum(shapes.dropouts)),
    }
    if shapes.checkpointed and shapes.layers:
        one = sum(whole.values()) / shapes.layers
        yield Term("activations", "inputs of the layers", n * shapes.width * numbers.stream * shapes.layers,
                   "tokens x width of each layer: the rest is computed again")  # fmt: skip
        yield Term("activations", "one layer, computed again", one, "what it keeps without checkpointing")
    else:
        formulas = {
            "product inputs": "what each linear layer multiplies, once where several read the same",
            "attention": "queries, keys, values, " + ("output" if fused else "shares of each pair of tokens"),
            "norms": "inputs and moments",
            "activation functions": "inputs",
            "rotary angles": "sines and cosines, of all layers",
            "dropout masks": "1 B each",
        }
        yield from (Term("activations", name, value, formulas[name]) for name, value in whole.items() if value)
    if shapes.averaged:
        yield Term("activations", "mean over tokens", 4.0 * n * shapes.width, "fp32 tokens x width")
    if shapes.tables:
        yield Term("activations", "token ids", 8.0 * n * len(shapes.tables), "8 B a token and table")
    if cast := sum(product.weight * 2 for product in _cast(numbers)):
        yield Term(
            "activations", "rounded weights", float(cast), "autocast keeps those of a pass for its backward pass"
        )


def logits_terms(numbers: Numbers, size: Size) -> Iterator[Term]:
    """The loss over the vocabulary, which goes through chunks of tokens."""
    head = numbers.shapes.language
    if head is None:
        return
    b = numbers.operand(head)
    yield Term("logits", "a chunk of logits", float(min(size.tokens * head.outputs * b, LOGITS)), "at most 128 MiB")
    yield Term("logits", "gradient of hidden states", float(size.tokens * head.inputs * b), "tokens x width")
    if head.trained:
        yield Term("logits", "gradient of the vocabulary", 4.0 * head.weight, "vocabulary x width, summed in fp32")
    if numbers.rounds(head):
        yield Term("logits", "rounded vocabulary", float(head.weight * b), "vocabulary x width")


def _product_inputs(numbers: Numbers, size: Size) -> float:
    kept: dict[tuple[str, int], float] = {}
    own = 0.0
    for product in (product for product in numbers.shapes.products if product.trained):
        width, rows = numbers.operand(product), size.rows(product)
        if numbers.shares(product):
            kept[product.reads, width] = rows * product.inputs * width
        else:
            own += rows * (product.inputs * width + SCALE * (width == 1))
    return own + sum(kept.values())


def _attention(numbers: Numbers, size: Size, fused: bool) -> Iterator[float]:
    for part in numbers.shapes.attentions:
        b, n = numbers.within(part.name), size.tokens
        yield n * (part.heads + 2 * part.keys) * part.width * b
        if fused:
            yield n * part.heads * (part.width * b + 4)
        else:
            yield n * part.heads * size.row * (b + (b + 1) * part.dropout)


def _norms(numbers: Numbers, tokens: int) -> Iterator[float]:
    for norm in numbers.shapes.norms:
        read = numbers.stream if norm.stream else numbers.within(norm.name)
        if norm.rms:
            yield tokens * (norm.width * (4 + (4 if read == 4 else 2)) + 4)
        else:
            yield tokens * (norm.width * read + 2 * read)


def _functions(numbers: Numbers, tokens: int) -> Iterator[float]:
    for function in numbers.shapes.activations:
        yield tokens * function.width * function.saved * numbers.within(function.name)


def _cast(numbers: Numbers) -> list[Product]:
    if numbers.backend != "autocast":
        return []
    return [product for product in numbers.shapes.products if numbers.rounds(product) and product.into]


def average_term(numbers: Numbers, ranks: int) -> Term:
    """The average of the weights over training, where there is one: fp32, beside what the optimizer updates."""
    trained, parts = numbers.shapes.trained, ranks if numbers.zero else 1
    formula = f"4 B x {trained:,}" + (f" / {parts}" if parts > 1 else "")
    return Term("average", "average over training", 4 * trained / parts, formula)


def held(
    numbers: Numbers, optimizer: Optimizer, ranks: int, size: Size, fused: bool, averaged: bool = False
) -> list[Term]:
    """Every term of what one rank holds. averaged: the run keeps an average of its weights."""
    return [
        *parameter_terms(numbers, optimizer, ranks),
        *([average_term(numbers, ranks)] if averaged else []),
        *activation_terms(numbers, size, fused),
        *logits_terms(numbers, size),
    ]


def kinds(shapes: Shapes) -> tuple[str, ...]:
    """Kinds of the terms of `held`, in the order of a table."""
    logits = ("logits",) if shapes.language else ()
    return ("weights", "masters", "gradients", "optimizer", "average", "activations", *logits)
