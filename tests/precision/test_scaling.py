"""The loss scale over a run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.precision.scaling import LossScale
from lmrecipes.recipe_precision import LossScaling, Precision

STEPS = st.lists(st.booleans(), max_size=60)


def test_only_runs_in_fp16_have_one() -> None:
    assert LossScale.of(Precision(compute="bf16")) is None
    scale = LossScale.of(Precision(compute="fp16"))
    assert scale is not None
    assert scale.value == 65536.0


def test_a_dynamic_scale_falls_at_once_and_grows_after_good_steps() -> None:
    scale, seen = LossScale(LossScaling(initial=8.0, growth_interval=3)), []
    for overflow in (True, False, False, True, False, False, False, False):
        scale.update(overflow)
        seen.append(scale.value)
    assert seen == [4, 4, 4, 2, 2, 2, 4, 4]


def test_a_static_scale_stays() -> None:
    scale = LossScale(LossScaling(kind="static", initial=128.0, growth_interval=1))
    for overflow in (True, False):
        scale.update(overflow)
    assert scale.value == 128


@given(STEPS, STEPS)
def test_a_resumed_scale_goes_on_as_if_never_stopped(before: list[bool], after: list[bool]) -> None:
    whole, resumed = (LossScale(LossScaling(growth_interval=4)) for _ in range(2))
    for overflow in before:
        whole.update(overflow)
    resumed.load_state_dict(whole.state_dict())
    for overflow in after:
        whole.update(overflow)
        resumed.update(overflow)
    assert resumed.state_dict() == whole.state_dict()
    assert whole.value >= 1
