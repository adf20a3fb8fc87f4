"""What an optimizer step costs in a precision: arithmetic, traffic of memory, bytes held. Every number is a named term.

FLOPs: 2 for each weight and row of a product, twice as many backward (Kaplan et al. 2020, arXiv 2001.08361, section
2.1), and 4 for each pair of tokens and number of a head in attention (Narayanan et al. 2021, arXiv 2104.04473,
appendix). Traffic: every operand read once and every result written once by each operation, as if nothing stayed in a
cache; kernels that fuse operations move less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lmrecipes.planning.kept import Size, Term, held, states_of
from lmrecipes.planning.numbers import BYTES, Numbers
from lmrecipes.planning.shapes import Product
from lmrecipes.recipe import Optimizer

UPDATE = {"adamw": 14, "rmsprop": 8, "sgd": 4}
"""FLOPs of an update for each parameter: multiplications, additions, a root and a division count as one each."""
CLIPPING = 3
"""FLOPs for each gradient: its square, its sum, its scaling."""


@dataclass(frozen=True)
class Run:
    """How the step is computed. ranks: of data parallelism; accumulation: micro-batches of a rank and step; fused:
    attention that keeps no scores; averaged: weights are averaged over training."""

    size: Size
    optimizer: Optimizer
    ranks: int = 1
    accumulation: int = 1
    fused: bool = False
    averaged: bool = False


@dataclass(frozen=True)
class Cost:
    """Of one rank and optimizer step. flops, moved: per step; network: bytes that a rank sends, by the best ring;
    held: at the end of a forward pass, just before an update."""

    flops: tuple[Term, ...]
    moved: tuple[Term, ...]
    network: tuple[Term, ...]
    held: tuple[Term, ...]

    @property
    def intensity(self) -> float:
        """FLOPs for each byte moved."""
        return total(self.flops) / total(self.moved)


def total(terms: tuple[Term, ...], kind: str | None = None) -> float:
    """Sum of the terms, or of those of one kind."""
    return sum(term.value for term in terms if kind in (None, term.kind))


def cost(numbers: Numbers, run: Run) -> Cost:
    """Every term of a step."""
    return Cost(
        tuple(_flops(numbers, run)),
        tuple(_moved(numbers, run)),
        tuple(_network(numbers, run)),
        tuple(held(numbers, run.optimizer, run.ranks, run.size, run.fused, run.averaged)),
    )


def _flops(numbers: Numbers, run: Run) -> Iterator[Term]:
    shapes, size, times = numbers.shapes, run.size, run.accumulation
    products = _all_products(numbers)
    forward: dict[str, float] = {}
    backward: dict[str, float] = {}
    for product in products:
        once = 2.0 * size.rows(product) * product.weight * times
        format, wide = numbers.multiplied(product), numbers.precision.compute
        forward[format] = forward.get(format, 0) + once
        of_weight = wide if numbers.operand(product) == 1 else format
        backward[format] = backward.get(format, 0) + once * product.into
        backward[of_weight] = backward.get(of_weight, 0) + once * product.trained
    for name, work in (("forward", forward), ("backward", backward)):
        for format, value in sorted(work.items()):
            if value:
                per = "2 a weight and row" + (", for inputs and for weights" if name == "backward" else "")
                yield Term(format, f"products {name} in {format}", value, per)
    attention: dict[str, float] = {}
    for part in shapes.attentions:
        format = "fp32" if numbers.within(part.name) == 4 else numbers.precision.compute
        once = 4.0 * size.tokens * size.row * part.heads * part.width * times
        attention[format] = attention.get(format, 0) + once
    for format, value in attention.items():
        yield Term(format, f"attention forward in {format}", value, "4 a pair of tokens and number of a head")
        yield Term(format, f"attention backward in {format}", 2 * value, "twice the forward pass")
    if shapes.checkpointed:
        inside = [p for p in shapes.products if p.per == "token"]
        again = sum(2.0 * size.rows(p) * p.weight * times for p in inside) + sum(attention.values())
        yield Term(numbers.precision.compute, "layers computed again", again, "the forward pass of each layer")
    rounded = sum(_rounded_values(numbers, run))
    if rounded:
        yield Term("fp32", "rounding to fp8", 3.0 * rounded, "3 a value: largest of its row, scaling, rounding")
    owned = _updated(numbers, run)
    name = run.optimizer.name
    yield Term("fp32", "update", float(owned * UPDATE[name]), f"{UPDATE[name]} a parameter ({name})")
    yield Term("fp32", "norm and clipping", float(owned * CLIPPING), f"{CLIPPING} a gradient")


def _moved(numbers: Numbers, run: Run) -> Iterator[Term]:
    shapes, size, times = numbers.shapes, run.size, run.accumulation
    products, n = _all_products(numbers), run.size.tokens
    weights = sum(p.weight * numbers.operand(p) * (1 + p.into) for p in products)
    yield Term("weights", "weights read", float(weights * times), "by each product forward, and backward for its input")
    passes = 1 if numbers.backend == "autocast" else 2
    cast = sum(p.weight * (numbers.weights + numbers.operand(p)) * passes for p in products if numbers.rounds(p))
    if cast:
        how = "once a pass" if passes == 1 else "forward and backward"
        yield Term("rounding", "weights rounded", float(cast * times), f"read wide, written narrow, {how}")
    if values := sum(_rounded_values(numbers, run, weights=False)):
        wide = BYTES[numbers.precision.compute]
        passes, how = (2 * wide + 1, "read for the largest, read again, written")
        if not numbers.native:
            passes, how = passes + 1 + wide, f"{how}; read and written wide again, as the product is emulated"
        yield Term("rounding", "activations and gradients rounded to fp8", values * float(passes), how)
    yield Term(
        "activations", "operands and results of products", _operands(numbers, run), "forward, and for each gradient"
    )
    yield Term("activations", "norms and activation functions", float(_elementwise(numbers, n) * times),
               "read and written forward; input and gradient read, gradient written backward")  # fmt: skip
    scores = queries = 0.0
    for part in shapes.attentions:
        b = numbers.within(part.name)
        queries += 3.0 * n * 2 * (part.heads + part.keys) * part.width * b
        scores += 0.0 if run.fused else 12.0 * n * part.heads * size.row * b
    if queries:
        yield Term("activations", "queries, keys, values", queries * times, "once forward, twice backward")
    if scores:
        yield Term("activations", "attention scores", scores * times, "4 passes over them forward, 8 backward")
    if (head := shapes.language) is not None:
        b = numbers.operand(head)
        yield Term(
            "logits", "logits", 5.0 * n * head.outputs * b * times, "written, softmax in place, read by 2 products"
        )
    gradient, summed = numbers.weights, BYTES[numbers.precision.accumulated]
    added = shapes.trained * (times * gradient + (times - 1) * (gradient + 2 * summed))
    yield Term("gradients", "gradients", float(added), "written by each micro-batch, added to the sum")
    yield Term(
        "update", "update", float(_updated(numbers, run) * _update_bytes(numbers, run)), "each state read and written"
    )


def _network(numbers: Numbers, run: Run) -> Iterator[Term]:
    if run.ranks == 1:
        return
    zero, trained, share = numbers.zero or 0, numbers.shapes.trained, (run.ranks - 1) / run.ranks
    size = BYTES[numbers.precision.reduced]
    often = run.accumulation if zero >= 2 else 1
    way = 2 if zero == 0 else 1
    yield Term("network", "gradients reduced", way * share * trained * size * often, f"{way} x (ranks - 1) / ranks")
    if zero in (1, 2):
        yield Term("network", "weights gathered", share * trained * numbers.weights, "after the update")
    if zero == 3:
        all_weights = trained + numbers.shapes.frozen
        yield Term("network", "weights gathered", 2 * share * all_weights * numbers.weights * run.accumulation,
                   "before each layer, forward and backward")  # fmt: skip


def _all_products(numbers: Numbers) -> tuple[Product, ...]:
    head = numbers.shapes.language
    return (*numbers.shapes.products, *([head] if head is not None else []))


def _updated(numbers: Numbers, run: Run) -> int:
    """Parameters that one rank updates."""
    return -(-numbers.shapes.trained // run.ranks) if numbers.zero else numbers.shapes.trained


def _update_bytes(numbers: Numbers, run: Run) -> int:
    """Bytes that the update of a parameter reads and writes."""
    precision = numbers.precision
    master = 2 if precision.pure else 4
    kahan = 2 * master if precision.pure and precision.rounding == "kahan" else 0
    narrow = numbers.weights if numbers.zero and numbers.weights < master else 0
    return BYTES[precision.accumulated] + 2 * master + 2 * master * states_of(run.optimizer) + kahan + narrow


def _rounded_values(numbers: Numbers, run: Run, weights: bool = True) -> Iterator[float]:
    """Values that products in fp8 round in a step: operands forward, the gradient and the weight again backward."""
    for product in _all_products(numbers):
        if numbers.operand(product) == 1:
            rows = run.size.rows(product)
            values = rows * product.inputs + rows * product.outputs * product.into
            values += product.weight * (1 + product.into) if weights else 0
            yield float(values * run.accumulation)


def _operands(numbers: Numbers, run: Run) -> float:
    moved = 0.0
    for product in _all_products(numbers):
        into, out = numbers.operand(product), BYTES[numbers.precision.compute]
        if numbers.format(product.name) == "fp32":
            out = 4
        once = run.size.rows(product) * (product.inputs * into + product.outputs * out)
        moved += once * (1 + product.into + product.trained) * run.accumulation
    return moved


def _elementwise(numbers: Numbers, tokens: int) -> int:
    shapes = numbers.shapes
    norms = sum(norm.width * numbers.stream for norm in shapes.norms)
    functions = sum(part.width * numbers.within(part.name) * (1 + part.gated) for part in shapes.activations)
    return 5 * tokens * (norms + functions)
