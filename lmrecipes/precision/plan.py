"""Which module computes in which format at which point of a run. Pure: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from lmrecipes.precision.formats import HIGHER
from lmrecipes.recipe_precision import LayerFormat, Precision


def layer_formats(
    precision: Precision, names: Sequence[str], share_done: float = 0.0, raised: Mapping[str, LayerFormat] | None = None
) -> dict[str, LayerFormat]:
    """The format in force of each named module.

    The last rule that matches the module, or one that holds it, decides; without one it is `compute`. share_done: share
    of the run's steps that are done, step / steps: rules of a change hold from its `at` on. raised: modules that must
    compute at least in this format.
    """
    rules = list(_rules(precision, share_done))
    formats = {name: _decided(name, rules, precision.compute) for name in names}
    for name, format in (raised or {}).items():
        if name in formats and height(format) > height(formats[name]):
            formats[name] = format
    return formats


def unmatched(precision: Precision, names: Sequence[str]) -> list[str]:
    """Patterns, of any time, that match no module and no module that holds one."""
    known = {holder for name in names for holder in holders(name)}
    patterns = dict.fromkeys(pattern for pattern, _ in _rules(precision, 1.0))
    return [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in known)]


def reaches(pattern: str, name: str) -> bool:
    """Whether a rule with this pattern is also one for the module."""
    return any(fnmatchcase(holder, pattern) for holder in holders(name))


def holders(name: str) -> list[str]:
    """A module's name and those of the modules that hold it, outermost first: a, a.b, a.b.c."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def height(format: str) -> int:
    """How high a format stands: 0 for the fp8 formats, 1 for those of 16 bits, 2 for fp32."""
    return 2 if format not in HIGHER else height(HIGHER[format]) - 1


def turning_points(precision: Precision) -> list[float]:
    """Shares of the run at which formats may be others than before, from 0 on."""
    return sorted({0.0, *(change.at for change in precision.changes)})


def _rules(precision: Precision, share_done: float) -> Iterator[tuple[str, LayerFormat]]:
    yield from precision.layers.items()
    for change in precision.changes:
        if change.at <= share_done:
            yield from change.layers.items()


def _decided(name: str, rules: Sequence[tuple[str, LayerFormat]], default: LayerFormat) -> LayerFormat:
    for pattern, format in reversed(rules):
        if reaches(pattern, name):
            return format
    return default
