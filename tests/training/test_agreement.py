"""Noise-corrected cosines: they find the true ones under noise, and say nothing where there is only noise."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.training.agreement import Measurement, Sums, lowest, measured, standard_error, sums_of

WIDTH = 400


def measurements(count: int, angle: float, noise: float, seed: int = 0, examples: int = 8) -> list[Measurement]:
    """Of tasks one and other, whose true gradients have this angle, and of a third with none; noise: its length for
    each half, where the true gradients have length 1."""
    rng = np.random.default_rng(seed)
    true = {name: np.zeros(WIDTH) for name in ("one", "other", "none")}
    true["one"][0] = 1.0
    true["other"][:2] = math.cos(angle), math.sin(angle)
    found = []
    for step in range(1, count + 1):
        halves = {
            name: [(g + noise * rng.normal(size=WIDTH) / math.sqrt(WIDTH)) / 2 for _ in range(2)]
            for name, g in true.items()
        }
        whole = {name: sum(parts) for name, parts in halves.items()}
        names = list(true)
        found.append(
            Measurement(
                step, 0.5, dict.fromkeys(names, examples),
                {name: float(np.linalg.norm(g)) for name, g in whole.items()},
                {name: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for name, (a, b) in halves.items()},
                {name: 4 * float(a @ b) for name, (a, b) in halves.items()},
                {a: {b: float(whole[a] @ whole[b]) for b in names[at + 1 :]} for at, a in enumerate(names[:-1])},
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0, math.pi])
def test_the_true_cosine_is_found_under_noise_five_times_the_signal(angle: float) -> None:
    found = measurements(300, angle, 5.0)
    sums = sums_of(found)
    corrected, error = sums.corrected("one", "other"), standard_error(found, "one", "other")
    assert corrected is not None and error is not None
    assert abs(corrected - math.cos(angle)) < 4 * error and error < 0.1
    plain = sums.plain("one", "other")
    assert plain == pytest.approx(math.cos(angle) / (1 + 25 / 2), abs=0.02)  # what noise leaves of it
    assert sums.plain("one", "one") == pytest.approx(1 / 26, abs=0.02)


def test_the_standard_error_covers_what_other_measurements_find() -> None:
    errors, values = [], []
    for seed in range(60):
        found = measurements(30, 1.0, 3.0, seed)
        errors.append(standard_error(found, "one", "other"))
        values.append(sums_of(found).corrected("one", "other"))
    known = [error for error in errors if error is not None]
    assert np.mean(known) == pytest.approx(np.std(values), rel=0.35)


def test_a_task_without_signal_has_no_cosine_but_a_plain_one() -> None:
    found = [one for one in measurements(40, 1.0, 5.0) if one.signal["none"] < 0]
    sums = sums_of(found)
    assert sums.corrected("one", "none") is None and sums.corrected("none", "one") is None
    assert sums.plain("one", "none") == pytest.approx(0, abs=0.05)
    assert standard_error(found, "one", "none") is None
    assert sums.plain("one", "unknown") is None and sums.plain("unknown", "unknown") is None


def test_the_order_of_a_pair_does_not_matter_and_the_lowest_is_named() -> None:
    sums = sums_of(measurements(200, 2.5, 1.0))
    assert sums.corrected("one", "other") == sums.corrected("other", "one")
    least = lowest(sums)
    assert least is not None and least[:2] == ("one", "other") and least[2] < -0.7
    assert lowest(Sums()) is None


def test_few_measurements_have_no_standard_error() -> None:
    assert standard_error(measurements(4, 0.5, 0.1), "one", "other") is None


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12))
def test_sums_go_on_where_they_were_saved(count: int, cut: int) -> None:
    found = measurements(count, 0.5, 1.0)
    cut = min(cut, count)
    again = Sums(**json.loads(json.dumps(vars(sums_of(found[:cut])))))
    for one in measured([one.as_dict() for one in found[cut:]]):
        again.add(one)
    assert again == sums_of(found)


def test_tasks_that_a_step_lacks_are_left_out_of_it() -> None:
    whole = measurements(6, 0.5, 0.1)
    found = [
        *whole[:3],
        *(Measurement(o.step, o.seconds, {"one": 8}, {"one": 1.0}, {}, {"one": 1.0}, {}) for o in whole[3:]),
    ]
    assert sums_of(found).pairs == sums_of(whole[:3]).pairs
    assert sums_of(found).count == 6
