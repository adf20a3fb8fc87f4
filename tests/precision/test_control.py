"""Which layers change their format when: by the recipe, and because their numbers did not fit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lmrecipes.precision.control import BY_RECIPE, Control, Switch
from lmrecipes.precision.plan import height
from lmrecipes.recipe_precision import Precision

NAMES = ["embeddings", "layer", "layer.0", "layer.0.dense", "layer.1", "layer.1.dense", "heads.a", "heads.a.linear"]
PRODUCTS = ["layer.0.dense", "layer.1.dense", "heads.a.linear"]
FP8: dict[str, Any] = {"layers": {"layer": "fp8", "heads": "fp32"}}


def control(steps: int = 10, **raising: Any) -> Control:
    return Control(Precision(**FP8, raising=raising), steps, NAMES, PRODUCTS)


def seen(*layers: dict[str, tuple[int, int]], values: int = 100) -> NDArray[np.float64]:
    """Statistics of the products: of each, (underflown, overflown) by tensor."""
    statistics = np.zeros((len(PRODUCTS), 3, 3))
    for row, found in zip(statistics, layers, strict=False):
        row[:, 0] = values
        for tensor, (underflown, overflown) in found.items():
            row[("inputs", "weights", "gradients").index(tensor), 1:] = underflown, overflown
    return statistics


FINE: dict[str, tuple[int, int]] = {}
OVER = {"gradients": (0, 1)}


def test_a_layer_is_raised_after_so_many_measured_steps_with_overflow() -> None:
    made = control(overflows=2)
    assert made.decide(1, seen(OVER, FINE)) == []
    assert made.decide(2, seen(FINE, FINE)) == [], "they need not follow each other"
    reason = "its gradients overflowed in 2 measured steps"
    assert made.decide(3, seen(OVER, OVER)) == [Switch(3, "layer.0.dense", "fp8", "bf16", reason)]
    assert made.formats_at(3) == {
        "embeddings": "bf16", "layer": "fp8", "layer.0": "fp8", "layer.0.dense": "bf16", "layer.1": "fp8",
        "layer.1.dense": "fp8", "heads.a": "fp32", "heads.a.linear": "fp32",
    }  # fmt: skip
    assert made.decide(4, seen(OVER, OVER))[0].layer == "layer.1.dense"
    assert made.decide(5, seen(OVER, FINE))[0].to == "fp32", "it is counted anew in its new format"
    assert made.decide(6, seen(OVER, FINE)) == [], "there is nothing above fp32"


def test_underflow_counts_in_a_row_and_one_good_measurement_starts_again() -> None:
    made = control(underflow=0.2, streak=3)
    bad, edge = {"inputs": (21, 0)}, {"inputs": (20, 0)}
    for step, found in enumerate([bad, bad, edge, bad, bad], start=1):
        assert made.decide(step, seen(FINE, found)) == []
    made.decide(6, seen(bad, {}, values=0))  # not one value: neither good nor bad
    reason = "21.0% of its inputs were lost as zeros, 3 measurements in a row"
    assert made.decide(7, seen(FINE, bad)) == [Switch(7, "layer.1.dense", "fp8", "bf16", reason)]


def test_each_tensor_has_its_own_share() -> None:
    """Of all values together it would be a third of 30%."""
    made = control(underflow=0.2, streak=1)
    (switch,) = made.decide(1, seen({"gradients": (30, 0)}))
    assert switch.reason.startswith("30.0% of its gradients")


def test_straight_to_fp32() -> None:
    (switch,) = control(overflows=1, to="fp32").decide(1, seen(OVER))
    assert (switch.was, switch.to) == ("fp8", "fp32")


def test_nothing_raises_where_nothing_is_asked_for() -> None:
    everything = dict.fromkeys(("inputs", "weights", "gradients"), (100, 100))
    assert control(overflows=1).decide(1, seen(FINE, {"weights": (100, 0)})) == []
    assert control(underflow=0.5, streak=1).decide(1, seen(FINE, {"weights": (0, 100)})) == []
    assert control(overflows=1).decide(1, seen(FINE, FINE, everything)) == [], "heads.a.linear computes in fp32"


def test_when_it_measures() -> None:
    assert [number for number in range(1, 13) if control(overflows=1, every=4).measures(number)] == [4, 8, 12]
    assert control(overflows=1, every=4).measures(6, after_skip=True)
    assert not control().measures(10, after_skip=True)


@pytest.mark.parametrize("steps, at, begins", [(10, 0.8, 8), (100, 0.07, 7), (7, 0.8, 6), (3, 1 / 3, 1), (10, 0.0, 0)])
def test_a_change_holds_from_its_place_on(steps: int, at: float, begins: int) -> None:
    """After 80% of 7 steps: 5.6 of them are done after the sixth."""
    precision = Precision(**FP8, changes=[{"at": at, "layers": {"layer.1": "bf16"}}])
    made = Control(precision, steps, NAMES, PRODUCTS)
    assert [made.formats_at(done)["layer.1.dense"] for done in range(steps)] == [
        "fp8" if done < begins else "bf16" for done in range(steps)
    ]
    found = {step: (made.rules_from(step), made.decide(step)) for step in range(1, steps + 1)}
    said = {step: parts for step, parts in found.items() if any(parts)}
    wanted = ({"layer.1": "bf16"}, [Switch(begins, "layer.1.dense", "fp8", "bf16", BY_RECIPE)])
    assert said == ({begins: wanted} if begins else {})
    assert begins or made.rules_from(0) == {"layer.1": "bf16"}


def test_a_later_change_does_not_lower_a_raised_layer() -> None:
    precision = Precision(
        layers={"layer": "bf16"}, raising={"overflows": 1},
        changes=[{"at": 0.5, "layers": {"layer": "fp8"}}, {"at": 0.7, "layers": {"layer": "fp32"}}],
    )  # fmt: skip
    made = Control(precision, 10, NAMES, PRODUCTS)
    assert [(s.layer, s.was, s.to) for s in made.decide(4, seen(OVER))] == [("layer.0.dense", "bf16", "fp32")]
    at_change = made.decide(5)
    assert [(s.layer, s.was, s.to, s.raised) for s in at_change] == [("layer.1.dense", "bf16", "fp8", False)]
    assert made.decide(7)[0].layer == "layer.1.dense", "layer.0.dense has been there already"


def test_raised_in_the_step_before_a_change() -> None:
    """What is written is what the layer goes from and to, and why it would have gone there without the change."""
    precision = Precision(**FP8, raising={"overflows": 1}, changes=[{"at": 0.5, "layers": {"layer.0": "fp32"}}])
    first, second = Control(precision, 10, NAMES, PRODUCTS).decide(5, seen(OVER, OVER))
    assert (first.layer, first.was, first.to) == ("layer.0.dense", "fp8", "fp32")
    assert (second.layer, second.was, second.to) == ("layer.1.dense", "fp8", "bf16")


RULES = st.dictionaries(st.sampled_from(["*", "layer", "layer.0", "heads.*"]),
                        st.sampled_from(["fp32", "bf16", "fp16", "fp8", "fp8_e5m2"]), min_size=1)  # fmt: skip
PRECISIONS = st.builds(
    lambda layers, places, rules, raising: Precision(
        layers=layers, raising=raising,
        changes=[{"at": at / 12, "layers": rule} for at, rule in zip(sorted(places), rules, strict=False)],
    ),
    RULES, st.sets(st.integers(0, 11), max_size=2), st.lists(RULES, min_size=2, max_size=2),
    st.fixed_dictionaries({"overflows": st.integers(0, 2), "underflow": st.sampled_from([0.1, 0.5, 1.0]),
                           "streak": st.integers(1, 3), "every": st.integers(1, 3),
                           "to": st.sampled_from(["next", "fp32"])}),
)  # fmt: skip
COUNTED = st.tuples(st.sampled_from([0, 10, 100]), st.integers(0, 30), st.sampled_from([0, 0, 0, 5]))
MEASURED = st.lists(COUNTED, min_size=9, max_size=9).map(lambda found: np.array(found, float).reshape(3, 3, 3))


def run(made: Control, measured: list[NDArray[np.float64]], steps: range) -> list[Switch]:
    """These steps, with what is measured in each."""
    taken = (made.decide(step, measured[step - 1] if made.measures(step) else None) for step in steps)
    return [switch for switches in taken for switch in switches]


@given(PRECISIONS, st.lists(MEASURED, min_size=12, max_size=12), st.integers(1, 12))
def test_a_resumed_run_decides_as_the_uninterrupted_one(
    precision: Precision, measured: list[NDArray[np.float64]], cut: int
) -> None:
    whole, before, after = (Control(precision, 12, NAMES, PRODUCTS) for _ in range(3))
    switches = run(whole, measured, range(1, 13))
    done = run(before, measured, range(1, cut + 1))
    after.restore(json.loads(json.dumps(before.state())))
    assert after.formats_at(cut) == before.formats_at(cut)
    assert done + run(after, measured, range(cut + 1, 13)) == switches
    assert after.state() == whole.state()


@given(PRECISIONS, st.lists(MEASURED, min_size=12, max_size=12))
def test_what_is_written_down_is_what_holds_and_nothing_raised_is_lowered(
    precision: Precision, measured: list[NDArray[np.float64]]
) -> None:
    made = Control(precision, 12, NAMES, PRODUCTS)
    formats = {name: made.formats_at(0)[name] for name in PRODUCTS}
    lowest: dict[str, int] = {}
    for step in range(1, 13):
        for switch in run(made, measured, range(step, step + 1)):
            assert switch.step == step
            assert switch.was == formats[switch.layer] != switch.to
            formats[switch.layer] = switch.to
            if switch.raised:
                assert height(switch.to) > height(switch.was)
                lowest[switch.layer] = height(switch.to)
        assert {name: made.formats_at(step)[name] for name in PRODUCTS} == formats
        assert all(height(formats[layer]) >= low for layer, low in lowest.items())
