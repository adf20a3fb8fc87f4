"""Proof of the declared dtypes: what the engine really holds, row by row beside what the recipe says.

Looked at twice: when the engine stands, where no optimizer has states yet and no gradient has been seen, and after the
first step. A row that does not agree refuses the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmrecipes.problems import InputError, Problem, listing
from lmrecipes.training import holdings
from lmrecipes.training.engine import Engine

NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float8_e4m3fn: "fp8_e4m3",
    torch.float8_e5m2: "fp8_e5m2",
}
LATER = "from the first step on"
CLASSES = ("weights", "masters", "gradients", "optimizer", "average")
"""Rows of what occupies memory."""
NAMED = 3
"""Names of parameters in a message."""
FIELDS = {
    "weights": "precision.master_weights",
    "masters": "precision.master_weights",
    "products": "precision.compute",
    "gradients": "precision.accumulation",
    "reduction": "precision.reduction",
    "optimizer": "precision.master_weights",
    "updates": "optimizer",
    "average": "averaging.ema_decay",
}
"""What is looked at, and the field that declares it. gradients: as they are summed over micro-batches. reduction: over
ranks. updates: those made before the first step."""


@dataclass(frozen=True)
class Row:
    """bytes: on this rank. where: which of them."""

    what: str
    declared: str
    found: str
    bytes: int
    where: str

    @property
    def agrees(self) -> bool:
        """Whether it is as declared, or not there yet."""
        return self.found in (self.declared, LATER)


def inspect(engine: Engine, after_step: bool) -> list[Row]:
    """Look at the engine's objects on this rank. after_step: a step was made, so that everything must be there."""
    precision = engine.recipe.precision
    kept = "bf16" if precision.pure else "fp32"
    partitioned = bool(engine.zero_stage)
    rows = [*_weights(engine, precision.section if partitioned else kept), _masters(engine, kept), *_products(engine)]
    rows.append(_gradients(engine, precision.accumulated))
    if found := holdings.reduction(engine):
        rows.append(Row("reduction", precision.reduced, _said(found), 0, f"{engine.world_size} ranks"))
    rows += _states(engine, kept)
    if engine.average is not None:
        sizes = holdings.by_dtype(engine.average.values)
        rows.append(Row("average", "fp32", _said(sizes), sum(sizes.values()), "the weights over training"))
    if engine.fresh:
        rows.append(Row("updates", "0", str(holdings.updates(engine)), 0, "made at the start"))
    if after_step:
        rows = [replace(row, found="nothing") if row.found == LATER else row for row in rows]
    return rows


def require(rows: Sequence[Row]) -> None:
    """Raise InputError, naming each row that does not agree with its declaration."""
    problems = []
    for row in rows:
        if not row.agrees:
            what = f"{row.what} ({row.where}): declared {row.declared}, found {row.found}"
            fix = "use a launch pair that `lmrecipes configure` writes for this recipe"
            problems.append(Problem(FIELDS[row.what], what, fix, "precision-proof"))
    if problems:
        raise InputError(problems)


def table(rows: Sequence[Row]) -> str:
    """For the log."""
    lines = [("", "declared", "found", "MB", "of")]
    lines += [(row.what, row.declared, row.found, f"{row.bytes / 1e6:.1f}", row.where) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def bytes_by_class(rows: Sequence[Row]) -> dict[str, int]:
    """Bytes on this rank of each of `CLASSES`."""
    return {name: sum(row.bytes for row in rows if row.what == name) for name in CLASSES}


def _weights(engine: Engine, declared: str) -> Iterator[Row]:
    """A row for each dtype."""
    names: dict[torch.dtype, list[str]] = {}
    tensors: dict[torch.dtype, list[Tensor]] = {}
    held = holdings.weights(engine)
    for name, parts in held.items():
        for part in filter(Tensor.numel, parts):
            tensors.setdefault(part.dtype, []).append(part)
        names.setdefault(parts[0].dtype, []).append(name)
    for dtype in tensors:
        found = names.get(dtype, [])
        some = NAMES.get(dtype) != declared and len(found) < len(held)
        which = listing(found, NAMED) if some else f"{len(found)} parameters"
        yield Row("weights", declared, _said({dtype}), sum(holdings.by_dtype(tensors[dtype]).values()), which)


def _masters(engine: Engine, declared: str) -> Row:
    found = holdings.masters(engine)
    parts = [part for parts in holdings.weights(engine).values() for part in parts]
    if not found:
        return Row("masters", declared, _said({part.dtype for part in parts}), 0, "the weights themselves")
    storages = {part.untyped_storage().data_ptr() for part in parts}
    own = [master for master in found if master.untyped_storage().data_ptr() not in storages]
    size = sum(holdings.by_dtype(own).values())
    return Row(
        "masters", declared, _said({master.dtype for master in found}), size, f"{len(found)} tensors of the optimizer"
    )


def _products(engine: Engine) -> Iterator[Row]:
    """A row for each format: by layer, of the modules that were told it."""
    if engine.layers is None:
        yield Row("products", engine.recipe.precision.compute, _said({holdings.products(engine)}), 0, "all modules")
        return
    formats, modules = engine.layers.formats, engine.layers.products
    real = {name: str(getattr(modules[name], "format", formats[name])) for name in modules}
    for format in dict.fromkeys(engine.told[name] for name in real):
        names = [name for name in real if engine.told[name] == format]
        found = Counter(real[name] for name in names)
        yield Row("products", format, ", ".join(sorted(found)), 0, f"{len(names)} modules")


def _gradients(engine: Engine, declared: str) -> Row:
    seen = engine.gradients
    if seen is None:
        return Row("gradients", declared, LATER, 0, "summed over micro-batches")
    return Row("gradients", declared, _said(seen.dtypes), seen.bytes, "summed over micro-batches")


def _states(engine: Engine, declared: str) -> Iterator[Row]:
    """A row for each state of the optimizer."""
    states = holdings.states(engine)
    if not states and engine.fresh:
        yield Row("optimizer", declared, LATER, 0, "states")
    for name, tensors in states.items():
        found = holdings.by_dtype(tensors)
        yield Row("optimizer", declared, _said(set(found)), sum(found.values()), name)


def _said(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(sorted(NAMES.get(dtype, str(dtype)) for dtype in dtypes))
