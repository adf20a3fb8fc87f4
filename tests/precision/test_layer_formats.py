"""Which rule decides, for which module, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.precision.formats import FORWARD
from lmrecipes.precision.plan import height, holders, layer_formats, reaches, turning_points, unmatched
from lmrecipes.recipe_precision import Precision

NAMES = [
    "embeddings", "embeddings.word", "encoder", "encoder.layer.0", "encoder.layer.0.query", "encoder.layer.10",
    "encoder.layer.10.query", "heads.a", "heads.a.linear",
]  # fmt: skip


def test_the_last_rule_that_matches_a_module_or_its_holder_decides() -> None:
    """Order counts, not how exact a pattern is."""
    rules = {"*": "fp8", "encoder.layer.0": "bf16", "heads.*": "fp32"}
    formats = layer_formats(Precision(layers=rules), NAMES)
    assert formats["embeddings.word"] == formats["encoder.layer.10.query"] == "fp8"
    assert formats["encoder.layer.0"] == formats["encoder.layer.0.query"] == "bf16"
    assert formats["heads.a"] == formats["heads.a.linear"] == "fp32"
    later = layer_formats(Precision(layers={"*.query": "fp32", "encoder": "fp16"}), NAMES)
    assert later["encoder.layer.0.query"] == "fp16", "the holder's rule comes last"


def test_modules_without_a_rule_compute_as_the_run() -> None:
    """And a layer's number is not a prefix."""
    formats = layer_formats(Precision(compute="fp32", layers={"encoder.layer.1": "fp8", "*.0": "bf16"}), NAMES)
    assert formats["encoder.layer.10"] == formats["embeddings"] == "fp32"
    assert formats["encoder.layer.0.query"] == "bf16"


def test_changes_hold_from_their_step_on() -> None:
    """In the step before, the rules are the former ones."""
    changes = ({"at": 0.3, "layers": {"*.query": "bf16"}}, {"at": 0.8, "layers": {"encoder": "fp32"}})
    precision = Precision(layers={"*": "fp8"}, changes=changes)
    seen = [layer_formats(precision, NAMES, step / 10)["encoder.layer.0.query"] for step in range(10)]
    assert seen == ["fp8"] * 3 + ["bf16"] * 5 + ["fp32"] * 2
    assert layer_formats(precision, NAMES, 0.9)["heads.a"] == "fp8"
    assert turning_points(precision) == [0.0, 0.3, 0.8]


@given(steps=st.integers(1, 5000), data=st.data())
def test_a_change_at_a_step_starts_with_that_step(steps: int, data: st.DataObject) -> None:
    """Whatever floating point makes of the share."""
    step = data.draw(st.integers(0, steps - 1))
    precision = Precision(changes=({"at": step / steps, "layers": {"encoder": "fp32"}},))
    assert layer_formats(precision, NAMES, step / steps)["encoder"] == "fp32"
    if step:
        assert layer_formats(precision, NAMES, (step - 1) / steps)["encoder"] == "bf16"


def test_raised_layers_are_never_lowered() -> None:
    """What was raised wins over lower rules, and yields to higher ones; names of other models are passed over."""
    precision = Precision(layers={"encoder": "fp8", "heads": "fp32"})
    raised = {"encoder.layer.0.query": "bf16", "heads.a.linear": "bf16", "elsewhere": "fp32"}
    formats = layer_formats(precision, NAMES, raised=raised)
    assert formats["encoder.layer.0.query"] == "bf16" and formats["encoder.layer.10.query"] == "fp8"
    assert formats["heads.a.linear"] == "fp32"
    assert set(formats) == set(NAMES)


def test_heights_follow_the_ladder() -> None:
    """fp8 below 16 bits below fp32."""
    assert {name: height(name) for name in FORWARD} == {
        "fp8": 0, "fp8_e4m3": 0, "fp8_e5m2": 0, "bf16": 1, "fp16": 1, "fp32": 2
    }  # fmt: skip


@pytest.mark.parametrize("pattern", ["encoder.layers.0", "head", "*.key"])
def test_patterns_that_match_nothing_are_found(pattern: str) -> None:
    """In rules and in changes; a holder that is no module of the list still counts."""
    assert unmatched(Precision(layers={pattern: "fp32", "encoder.layer": "fp8"}), NAMES) == [pattern]
    late = Precision(changes=({"at": 0.9, "layers": {pattern: "fp32", "heads": "fp32"}},))
    assert unmatched(late, NAMES) == [pattern]


def test_a_pattern_reaches_all_below_what_it_matches() -> None:
    """But not what is beside it."""
    assert holders("a.b.c") == ["a", "a.b", "a.b.c"]
    assert reaches("a.b", "a.b.c") and reaches("a.?", "a.b.c") and not reaches("a.b", "a.bc.d")
