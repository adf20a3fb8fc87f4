"""Formats by layer on a live model: each module sees to its own arithmetic, whatever engine runs it.

Weights stay as they are. Products with weights are computed by layers that read their format at each call
(`precision/linear.py`); all else by autocast in the regions of modules whose format differs from what surrounds them
(`precision/regions.py`). So formats change between two steps, in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lmrecipes.models.language import LanguageHead
from lmrecipes.precision.formats import COUNTS, TENSORS
from lmrecipes.precision.linear import FORMATTED, FormatConv1D, FormatLinear
from lmrecipes.precision.plan import holders, layer_formats, reaches, turning_points, unmatched
from lmrecipes.precision.regions import Region
from lmrecipes.precision.rounding import DTYPES
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe_precision import Compute, LayerFormat, Precision

NATIVE_CAPABILITY = (8, 9)
"""Of the first CUDA devices that multiply fp8 numbers (Ada, Hopper)."""


def install(model: nn.Module, precision: Precision, device: torch.device) -> Layers:
    """Make a model's layers compute in the formats of the run's first step. To be called before it is wrapped.

    Layers change their class and nothing else: parameters, names, hooks and references to them stay. Raises InputError
    for patterns that match nothing or no product, for a language-model head in fp8, and where fp8 must be native and
    cannot be.
    """
    problems = problems_of(model, precision)
    uses_fp8 = any(format.startswith("fp8") for _, format in _all_rules(precision))
    missing = native_missing(precision, device)
    if uses_fp8 and precision.fp8 == "native" and missing is not None:
        problems.append(Problem("precision.fp8", f"native, but {missing}", "set it to auto or emulated", "fp8-native"))
    if problems:
        raise InputError(problems)
    for module in canonical(model).values():
        module.__class__ = FORMATTED.get(type(module), type(module))
    native = precision.fp8 != "emulated" and missing is None
    layers = Layers(model, precision, device, native)
    layers.use(layer_formats(precision, list(layers.modules)))
    return layers


def problems_of(model: nn.Module, precision: Precision) -> list[Problem]:
    """What is wrong with the rules of layers for this model, wherever it runs."""
    names = list(canonical(model))
    products = [name for name, module in canonical(model).items() if _multiplies(module)]
    return [*_unknown(precision, names), *_without_product(precision, names, products), *_language(precision, names)]


def canonical(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by the names that a user knows: those of the trunk's model without prefix, `heads.TASK...`, `language`.

    The model itself and what holds the whole trunk have no name. Nor has the layer in the language-model head: its
    weight is the head's own, and it runs in generation alone.
    """
    paths = dict(model.named_modules())
    unnamed = {"", "trunk", "trunk.model", "language.output"}
    if not list(paths.get("inputs", nn.Module()).children()):
        unnamed.add("inputs")  # the model reads texts only
    return {path.removeprefix("trunk.model."): module for path, module in paths.items() if path not in unnamed}


def native_missing(precision: Precision, device: torch.device) -> str | None:
    """Why products in fp8 cannot be the hardware's own; None where they can."""
    needs = f"needs a CUDA device of compute capability {NATIVE_CAPABILITY[0]}.{NATIVE_CAPABILITY[1]}"
    if device.type != "cuda":
        return f"it {needs}, and this run computes on {device.type}"
    if (found := torch.cuda.get_device_capability(device)) < NATIVE_CAPABILITY:
        return f"it {needs}, {torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}"
    if precision.compute != "bf16":
        return f"the hardware's products come out in bf16, found compute = {precision.compute}"
    return None


class Layers:
    """The formats in force. `modules`: all that have a name; `products`: those that multiply with a weight, the
    language-model head among them."""

    def __init__(self, model: nn.Module, precision: Precision, device: torch.device, native: bool) -> None:
        self.modules = canonical(model)
        self.products = {name: module for name, module in self.modules.items() if _multiplies(module)}
        self.native = native
        self._pure = precision.pure
        self._compute = precision.compute
        self._device = device
        self._formats: dict[str, LayerFormat] = dict.fromkeys(self.modules, precision.compute)
        self._parents = _parents(self.modules)
        self._regions: dict[str, Region] = {}
        self._counts: Tensor | None = None
        self._root: Region | None = None
        if not self._pure:
            compute = DTYPES[self._compute]
            self._root = Region(model, device.type, compute, compute)
        self._set()

    @property
    def formats(self) -> dict[str, LayerFormat]:
        """In force for each product."""
        return {name: self._formats[name] for name in self.products}

    def use(self, formats: Mapping[str, LayerFormat]) -> None:
        """Compute in these formats from now on; modules that are not named stay as they are. Between steps."""
        changed = {name: format for name, format in formats.items() if self._formats[name] != format}
        if changed:
            self._formats |= changed
            self._set()

    @contextmanager
    def uniformly(self, format: Compute) -> Iterator[None]:
        """Within: all modules and what surrounds them compute in one format."""
        before = self._compute, self._formats
        self._compute, self._formats = format, dict.fromkeys(self.modules, format)
        self._set()
        try:
            yield
        finally:
            self._compute, self._formats = before
            self._set()

    def measure(self, on: bool) -> None:
        """Count what rounding loses from now on, or no longer; what was counted is forgotten."""
        shape = len(self.products), len(TENSORS), len(COUNTS)
        self._counts = torch.zeros(shape, dtype=torch.float64, device=self._device) if on else None
        for row, module in enumerate(self.products.values()):
            if isinstance(module, FormatLinear | FormatConv1D):
                module.counts = None if self._counts is None else self._counts[row]

    def statistics(self) -> Tensor:
        """What was counted since the last call on this rank: float64 [products, 3 tensors, 3 counts] of `TENSORS` and
        `COUNTS`. Zeros for the language-model head, and for a layer that had nothing to do."""
        if self._counts is None:
            raise RuntimeError("nothing is measured: call measure(True) before the step")
        found = self._counts.clone()
        self._counts.zero_()
        return found

    def _set(self) -> None:
        """Tell every product its format, and put regions where they are needed."""
        if self._root is not None:
            self._root.dtype = self._root.surrounding = DTYPES[self._compute]
        for name, module in self.modules.items():
            surrounding = self._region(self._parents[name])
            if isinstance(module, FormatLinear | FormatConv1D):
                module.format, module.native = self._formats[name], self.native
                of_head = name.startswith("heads.") and module.format == "fp32"  # logits are not rounded
                module.compute = torch.float32 if of_head and not self._pure else surrounding
            elif not self._pure:
                self._enclose(name, self._region(name), surrounding)

    def _region(self, name: str | None) -> torch.dtype:
        """dtype in which a module computes all but products in fp16 and fp8; of the whole model for None."""
        if self._pure or name is None:
            return DTYPES[self._compute]
        format = self._formats[name]
        whole = format in ("fp32", "bf16") or isinstance(self.modules[name], LanguageHead)
        return DTYPES[format if whole else self._compute]

    def _enclose(self, name: str, dtype: torch.dtype, surrounding: torch.dtype) -> None:
        present = self._regions.get(name)
        if present is not None and present.rule != (dtype, surrounding):
            self._regions.pop(name).remove()
            present = None
        if present is None and dtype != surrounding:
            self._regions[name] = Region(self.modules[name], self._device.type, dtype, surrounding)


def _multiplies(module: nn.Module) -> bool:
    """Whether a module is a product with a weight that can have a format of its own."""
    known = (*FORMATTED, *FORMATTED.values(), LanguageHead)
    return type(module) in known


def _parents(modules: Mapping[str, nn.Module]) -> dict[str, str | None]:
    """The nearest named module that holds each and is called itself: lists of layers never are."""
    called = {name for name, module in modules.items() if not isinstance(module, nn.ModuleList | nn.ModuleDict)}
    return {
        name: next((holder for holder in reversed(holders(name)[:-1]) if holder in called), None) for name in modules
    }


def _all_rules(precision: Precision) -> list[tuple[str, LayerFormat]]:
    """(pattern, format) of any time."""
    return [*precision.layers.items(), *(rule for change in precision.changes for rule in change.layers.items())]


def _unknown(precision: Precision, names: list[str]) -> list[Problem]:
    problems = []
    for pattern in unmatched(precision, names):
        what = f"{pattern!r} matches no module.{did_you_mean(pattern, names)}"
        fix = f"name modules of this model: {listing(sorted(names, key=lambda name: name.count('.')))}"
        problems.append(Problem("precision.layers", what, fix, "precision-layers"))
    return problems


def _without_product(precision: Precision, names: list[str], products: list[str]) -> list[Problem]:
    problems, unknown = [], unmatched(precision, names)
    for pattern, format in dict.fromkeys(_all_rules(precision)):
        low = format == "fp16" or format.startswith("fp8")
        if low and pattern not in unknown and not any(reaches(pattern, name) for name in products):
            what = f"{pattern!r} is to be {format}, which is for products with weights, and there is none in it"
            fix = f"set it to bf16 or fp32, or name linear layers: {listing(products)}"
            problems.append(Problem("precision.layers", what, fix, "precision-products"))
    return problems


def _language(precision: Precision, names: list[str]) -> list[Problem]:
    for share in turning_points(precision):
        format = layer_formats(precision, names, share).get("language", "fp32")
        if format.startswith("fp8"):
            what = (
                f"language would be {format} from {share:.0%} of the run on: its product is the loss itself, computed "
            )
            what += "in chunks of tokens that are never rounded to fp8"
            fix = "add a rule for language: bf16 after those that match it"
            return [Problem("precision.layers", what, fix, "precision-language")]
    return []
