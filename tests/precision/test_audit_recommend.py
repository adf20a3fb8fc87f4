"""Rules from formats: exactly what was meant, in few patterns; budgets as they are written; verdicts from numbers."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.precision.audit.judge import Budget, findings, lowest_safe, unsafe
from lmrecipes.precision.audit.numbers import (
    CEILING,
    FLOOR,
    InFormat,
    LayerNumbers,
    Losses,
    TensorNumbers,
    Update,
    decibels,
)
from lmrecipes.precision.audit.recommend import given_by, pure_verdict, recommend, rules_for
from lmrecipes.precision.plan import holders
from lmrecipes.problems import InputError
from lmrecipes.recipe_precision import Precision

PARTS = ("attention.self.query", "attention.output.dense", "output.dense")
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")
PRODUCTS = [
    *(f"encoder.layer.{i}.{part}" for i in range(3) for part in PARTS),
    "heads.tone.linear",
    "heads.topic.linear",
    "language",
]
OTHERS = ["embeddings", "embeddings.words", *(f"encoder.layer.{i}.{part}" for i in range(3) for part in NORMS)]
NAMES = list(dict.fromkeys(holder for name in [*PRODUCTS, *OTHERS] for holder in holders(name)))
FINE = {"fp8_e4m3": 31.5, "fp8_e5m2": 25.6, "bf16": 55.6, "fp16": 73.0}


def tensor(largest: float = 3.0, outlier: float = 2.0, **changed: dict[str, Any]) -> TensorNumbers:
    """A healthy tensor, or one with other numbers in some formats."""
    none = {"overflow": 0.0, "underflow": 0.0, "no_bits": 0.0}
    made = {}
    for name, sqnr in FINE.items():
        numbers = {"sqnr": sqnr, "losses": none, "plain": none} | changed.get(name, {})
        made[name] = InFormat(numbers["sqnr"], Losses(**none | numbers["losses"]), Losses(**none | numbers["plain"]))
    return TensorNumbers(1000, 100, largest, 1.0, 10.0, 3.0, outlier, made)


def layer(name: str = "encoder.layer.0.output.dense", ratio: float = 1e-3, **tensors: TensorNumbers) -> LayerNumbers:
    """A healthy product, or one with other tensors."""
    parts = {key: tensors.get(key, tensor()) for key in ("weight", "input", "gradient", "output")}
    snr = dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "bf16", "fp16"), 30.0)
    return LayerNumbers(name, "product", "Linear", (4, 4), parts, snr, Update(100, ratio, {"bf16": 0.4}, 0.5))


FORMATS = st.sampled_from(["fp8", "fp8_e5m2", "bf16", "fp16", "fp32"])


@settings(deadline=None, max_examples=60)
@given(st.lists(FORMATS, min_size=len(PRODUCTS), max_size=len(PRODUCTS)), st.sets(st.sampled_from(OTHERS)))
def test_rules_give_every_module_exactly_its_format(chosen: list[Any], raised: set[str]) -> None:
    for compute in ("bf16", "fp32"):
        formats = dict(zip(PRODUCTS, chosen, strict=True))
        formats |= {name: "fp32" if name in raised else compute for name in OTHERS}
        precision = Precision(compute=compute, layers=rules_for(formats, set(PRODUCTS), compute))
        found = given_by(precision, NAMES, set(PRODUCTS))
        assert {name: found[name] for name in formats} == formats
        assert len(precision.layers) <= len(formats)


def test_a_family_that_shares_a_format_is_one_rule() -> None:
    formats: dict[str, Any] = {name: "fp8" if name.startswith("encoder") else "bf16" for name in PRODUCTS}
    formats |= dict.fromkeys(OTHERS, "bf16")
    assert rules_for(formats, set(PRODUCTS), "bf16") == {"encoder.layer.*": "fp8"}
    formats |= {name: "bf16" for name in formats if name.startswith("encoder.layer.1.")}
    assert rules_for(formats, set(PRODUCTS), "bf16") == {"encoder.layer.0": "fp8", "encoder.layer.2": "fp8"}
    formats |= {name: "fp8" if name.startswith("encoder") else "bf16" for name in PRODUCTS}
    formats |= {name: "fp32" for name in PRODUCTS if name.endswith("query")}
    rules = rules_for(formats, set(PRODUCTS), "bf16")
    assert rules == {"encoder.layer.*.output.dense": "fp8", "encoder.layer.*.attention.self.query": "fp32"}


def test_a_module_that_holds_others_comes_before_them() -> None:
    formats: dict[str, Any] = dict.fromkeys(PRODUCTS, "bf16") | dict.fromkeys(OTHERS, "bf16") | {"embeddings": "fp32"}
    assert list(rules_for(formats, set(PRODUCTS), "bf16").items()) == [
        ("embeddings", "fp32"), ("embeddings.words", "bf16"),
    ]  # fmt: skip


def test_the_lowest_format_that_the_numbers_allow() -> None:
    candidates = ("fp8", "bf16")
    assert lowest_safe(layer(), candidates, Budget()) == "fp8"
    assert lowest_safe(layer(input=tensor(fp8_e4m3={"sqnr": 16.6})), candidates, Budget()) == "bf16"
    assert lowest_safe(layer(input=tensor(fp8_e4m3={"sqnr": 19.0})), candidates, Budget.parse("loose")) == "fp8"
    # Gradients are judged in E5M2, weights and activations in E4M3.
    assert lowest_safe(layer(gradient=tensor(fp8_e4m3={"sqnr": 0.0})), candidates, Budget()) == "fp8"
    assert lowest_safe(layer(gradient=tensor(fp8_e5m2={"sqnr": 19.0})), candidates, Budget()) == "bf16"
    assert unsafe(layer(gradient=tensor(fp8_e5m2={"losses": {"underflow": 0.02}})), "fp8", Budget())
    assert not unsafe(layer(gradient=tensor(fp8_e5m2={"plain": {"no_bits": 0.9}})), "fp8", Budget())
    assert unsafe(layer(gradient=tensor(fp8_e5m2={"plain": {"no_bits": 0.9}})), "fp8", Budget(scaling="none"))
    assert lowest_safe(layer("language"), candidates, Budget()) == "bf16"
    assert lowest_safe(layer(), (), Budget()) == "fp32"


def test_what_is_wrong_in_any_format_keeps_a_layer_high() -> None:
    assert lowest_safe(layer(ratio=500.0), ("fp8", "bf16"), Budget()) == "fp32"
    assert lowest_safe(layer(input=tensor(largest=math.inf)), ("fp8", "bf16"), Budget()) == "fp32"
    assert lowest_safe(layer(output=tensor(largest=1e5)), ("fp8", "fp16", "bf16"), Budget()) == "bf16"
    far = layer(gradient=tensor(fp16={"plain": {"no_bits": 0.6}}), input=tensor(outlier=1000.0))
    assert [finding.kind for finding in findings([layer(), far])] == ["outlier channel", "small gradient"]


def test_a_gradient_below_sqrt3_of_its_noise_needs_a_higher_format() -> None:
    weak = LayerNumbers(**{**vars(layer()), "gradient_snr": {"fp8": 4.7, "bf16": 4.8}})
    assert lowest_safe(weak, ("fp8", "bf16"), Budget()) == "bf16"


def test_the_block_is_a_precision_that_can_be_pasted() -> None:
    layers = [layer("a.0.dense"), layer("a.1.dense", input=tensor(fp8_e4m3={"sqnr": 3.0}))]
    found = recommend(layers, ["a", "a.0", "a.1", "a.0.dense", "a.1.dense"], ("fp8", "bf16"), Budget())
    pasted = yaml.safe_load(found.yaml("title"))["precision"]
    assert Precision(**pasted) == found.precision
    assert found.formats == {"a.0.dense": "fp8", "a.1.dense": "bf16"} and pasted["layers"] == {"a.0.dense": "fp8"}
    pure = recommend(layers, ["a.0.dense", "a.1.dense"], ("fp8", "bf16"), Budget(), pure=True)
    assert pure.block["master_weights"] == "none" and pure.block["rounding"] == "stochastic"


def test_bf16_weights_may_be_rounded_to_nearest_where_few_updates_are_lost() -> None:
    def with_update(parameters: int, average: float) -> LayerNumbers:
        return LayerNumbers(**{**vars(layer()), "update": Update(parameters, 1e-3, {"bf16": average}, average)})

    few, many = with_update(900, 0.1), with_update(100, 0.9)
    verdict = pure_verdict([few, many])
    assert verdict is not None and verdict.rounding == "nearest" and verdict.on_average == pytest.approx(0.18)
    verdict = pure_verdict([many])
    assert verdict is not None and verdict.rounding == "stochastic" and "90%" in verdict.what
    assert pure_verdict([]) is None


def test_budgets_are_names_and_numbers() -> None:
    assert Budget.parse("normal") == Budget()
    assert Budget.parse("sqnr=28") == Budget(sqnr=28.0)
    found = Budget.parse("strict,underflow=0.02,scaling=none")
    assert (found.sqnr, found.underflow, found.scaling) == (30.0, 0.02, "none")
    for wrong in ("nomal", "normal,sqrn=2", "sqnr=high", "sqnr=-1", "scaling=some", "sqnr=inf", ""):
        with pytest.raises(InputError, match="--budget"):
            Budget.parse(wrong)


def test_ratios_stay_within_their_ends() -> None:
    assert decibels(100.0, 1.0) == 20.0
    assert decibels(1.0, 0.0) == CEILING and decibels(1.0, math.inf) == decibels(0.0, 1.0) == FLOOR
    assert decibels(1.0, math.nan) == FLOOR
