"""The planner's numbers beside measurement: bytes per parameter, saved activations, counted FLOPs; and their logic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lmrecipes.data.batches import Bucket, MicroBatch, Packed, TaskRows
from lmrecipes.models.heads import HeadSpec
from lmrecipes.models.loading import load_trunk
from lmrecipes.models.mlp import random_trunk
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.models.shapes import shapes_of
from lmrecipes.planning.by_precision import BY_LAYER, COMPARED, compare
from lmrecipes.planning.cost import Run, cost, total
from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.kept import Size, activation_terms, parameter_terms
from lmrecipes.planning.numbers import Numbers
from lmrecipes.planning.shapes import perceptron, transformer
from lmrecipes.precision.held import activation_bytes
from lmrecipes.precision.layers import install
from lmrecipes.recipe import Mlp, Model, Optimizer, Precision, Recipe

BERT = {
    "model_type": "bert", "vocab_size": 90, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 256, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 90, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = {
    "model_type": "llama", "vocab_size": 90, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 160,
}  # fmt: skip
MODELS = {"bert": BERT, "gpt2": GPT2, "llama": LLAMA}
SIZE = Size(4, 32, 32)
ADAM = Optimizer()


def precision(**fields: Any) -> Precision:
    return Precision.model_validate(fields)


def recipe_of(config: dict[str, Any]) -> Recipe:
    tasks: dict[str, Any] = {"score": {"kind": "regression", "source": {"files": "x.jsonl"}}}
    if config is not BERT:
        tasks["words"] = {"kind": "language_modelling", "source": {"files": "x.jsonl"}}
    recipe = Recipe.model_validate({"name": "r", "tasks": tasks})
    return recipe.model_copy(update={"model": Model(config=config, max_length=32)})  # no text is read: no tokenizer


def model_of(recipe: Recipe) -> MultiTaskModel:
    of_tokens = "words" in recipe.tasks
    trunk = load_trunk(recipe.model, 0, "auto", language=of_tokens)
    specs = {"score": HeadSpec("regression", (), (0.0,), 1.0)}
    return MultiTaskModel(
        trunk, {**specs, **({"words": HeadSpec("language_modelling", (), (), 1.0)} if of_tokens else {})}
    )


def batch_of(model: MultiTaskModel) -> MicroBatch:
    """SIZE, packed, every token followed by another."""
    rows, time = SIZE.texts, SIZE.time
    ids = torch.arange(rows * time).view(rows, time) % 90
    places = torch.arange(time).expand(rows, -1).contiguous()
    documents = torch.arange(rows)[:, None].expand(-1, time).contiguous()
    texts = Packed(ids, None, places, documents, None, torch.full((rows,), time), time)
    tasks = {"score": TaskRows(torch.arange(rows), torch.ones(rows), 1.0, rows)}
    if "words" in model.tasks:
        tasks["words"] = TaskRows(torch.arange(rows * time), ids.flatten(), 1.0, rows)
    return MicroBatch(texts, tasks)


# Bytes per parameter


HELD = {
    # (precision, zero): bytes of a parameter on one rank of two, as measured under DeepSpeed 0.19.8
    ("fp32", None): 16.0,
    ("fp32", 1): 12.0,
    ("fp32", 2): 12.0,
    ("fp32", 3): 10.0,
    ("bf16", None): 16.0,
    ("bf16", 0): 16.0,
    ("bf16", 1): 14.0,
    ("bf16", 2): 10.0,
    ("bf16", 3): 9.0,
    ("bf16 sums", 1): 9.0,
    ("bf16 sums", 2): 9.0,
    ("bf16 sums", 3): 8.0,
    ("pure", None): 8.0,
    ("pure", 1): 6.0,
    ("pure", 2): 6.0,
    ("pure", 3): 5.0,
    ("kahan", None): 10.0,
    ("fp8", None): 16.0,
    ("fp8", 3): 10.0,
}
PRECISIONS = {
    "fp32": precision(compute="fp32"),
    "bf16": precision(),
    "bf16 sums": precision(accumulation="bf16"),
    "pure": precision(master_weights="none"),
    "kahan": precision(master_weights="none", rounding="kahan"),
    "fp8": precision(layers={"*": "fp8"}),
}
ENCODER = transformer(2, 64, 4, 256, 90, 64, {"t": 1})


@pytest.mark.parametrize(("case", "wanted"), HELD.items(), ids=str)
def test_bytes_per_parameter_are_those_that_were_measured(case: tuple[str, int | None], wanted: float) -> None:
    name, zero = case
    terms = tuple(parameter_terms(Numbers(PRECISIONS[name], zero, ENCODER), ADAM, ranks=2))
    assert total(terms) / ENCODER.trained == pytest.approx(wanted)


def test_the_optimizer_decides_over_its_states() -> None:
    numbers = Numbers(PRECISIONS["fp32"], None, ENCODER)
    for optimizer, states in ((ADAM, 8), (Optimizer(name="rmsprop"), 4), (Optimizer(name="sgd"), 4),
                              (Optimizer(name="sgd", betas=(0.0, 0.9)), 0)):  # fmt: skip
        terms = tuple(parameter_terms(numbers, optimizer, 1))
        assert total(terms, "optimizer") == states * ENCODER.trained


# Activations


RUNS = {
    "fp32": ("plain", precision(compute="fp32")),
    "bf16 autocast": ("autocast", precision()),
    "bf16 weights": ("plain", precision(master_weights="none")),
    "fp8 by layer": ("layers", precision(layers=BY_LAYER | {"language": "bf16"})),
    "mixed layers": ("layers", precision(layers={"*": "fp8", "language": "fp32", "*.0.*": "bf16", "*.1.mlp": "fp32"})),
    "fp16 layers": ("layers", precision(layers={"*": "fp16", "language": "bf16"})),
    "pure fp8": ("layers", precision(master_weights="none", layers={"*": "fp8", "language": "bf16"})),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("model", MODELS)
def test_saved_activations_are_those_that_are_measured(model: str, name: str) -> None:
    """The trunk and the mean that heads read, of a micro-batch in the layout that a CPU runs."""
    how, chosen = RUNS[name]
    recipe = recipe_of(MODELS[model])
    module = model_of(recipe)
    if chosen.pure:
        module.to(torch.bfloat16)
    if how == "layers":
        known = {**chosen.layers}
        if model == "bert":
            known.pop("language", None)
            known = {k: v for k, v in known.items() if k != "*.1.mlp"}
        else:
            known.pop("embeddings", None)
        chosen = chosen.model_copy(update={"layers": known})
        install(module, chosen, torch.device("cpu"))
    texts = batch_of(module).texts

    def run() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            vectors: torch.Tensor = module(texts)
            return vectors.float().sum()

    measured = activation_bytes(run, module)
    terms = tuple(activation_terms(Numbers(chosen, None, shapes_of(recipe)), SIZE, fused=False))
    assert total(terms) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("name", ["fp32", "bf16 autocast", "bf16 weights"])
def test_a_perceptrons_activations(name: str) -> None:
    how, chosen = RUNS[name]
    spec = HeadSpec("classification", tuple("abcdefghij"), (0.0,) * 10, 1.0)
    model = MultiTaskModel(random_trunk(Mlp(hidden=(128, 64)), 0), {"digits": spec})
    if chosen.pure:
        model.to(torch.bfloat16)
    rows = 64
    texts = [Bucket(torch.arange(rows * 784).view(rows, 784) % 256, None, None)]
    batch = MicroBatch(texts, {"digits": TaskRows(torch.arange(rows), torch.arange(rows) % 10, 1.0, rows)})

    def run() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            loss: torch.Tensor = model(batch)[0]
            return loss

    shapes = perceptron(784, (128, 64), {"digits": 10})
    planned = total(tuple(activation_terms(Numbers(chosen, None, shapes), Size(rows, 1, 1), False)))
    assert planned == pytest.approx(activation_bytes(run, model), rel=0.03)


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer() -> None:
    deep = transformer(24, 64, 4, 256, 90, 64, {"t": 1})
    plain = total(tuple(activation_terms(Numbers(PRECISIONS["fp32"], None, deep), SIZE, False)))
    again = Numbers(PRECISIONS["fp32"], None, replace(deep, checkpointed=True))
    assert total(tuple(activation_terms(again, SIZE, False))) < plain / 5
    work = {False: 0.0, True: 0.0}
    for on in work:
        numbers = Numbers(PRECISIONS["fp32"], None, replace(deep, checkpointed=on))
        work[on] = total(cost(numbers, Run(SIZE, ADAM)).flops)
    assert 1.2 < work[True] / work[False] < 1.34


# FLOPs


@pytest.mark.parametrize("model", MODELS)
def test_flops_are_those_that_torch_counts(model: str) -> None:
    recipe = recipe_of(MODELS[model])
    module = model_of(recipe)
    with FlopCounterMode(display=False) as counter:
        loss, _ = module(batch_of(module))
        loss.backward()
    terms = cost(Numbers(precision(compute="fp32"), None, shapes_of(recipe)), Run(SIZE, ADAM)).flops
    planned = sum(term.value for term in terms if term.name.startswith(("products", "attention")))
    # torch does not count `addmm_`, by which the chunked loss adds up the gradient of the vocabulary
    unseen = 2 * SIZE.tokens * 64 * 90 if "words" in recipe.tasks else 0
    assert planned == pytest.approx(counter.get_total_flops() + unseen, rel=1e-3)


def test_flops_of_adapters_leave_out_gradients_of_frozen_weights(tiny_gpt: Path) -> None:
    whole = shapes_of(recipe_of(LLAMA))
    adapted = shapes_of(
        Recipe.model_validate({
            "name": "r",
            "tasks": {"words": {"kind": "language_modelling", "source": {"files": "x.jsonl"}}},
            "model": {"pretrained": str(tiny_gpt / "model"), "lora": {"rank": 2}},
        })
    )  # fmt: skip
    shares = []
    for shapes in (whole, adapted):
        terms = cost(Numbers(precision(compute="fp32"), None, shapes), Run(SIZE, ADAM)).flops
        forward, backward = (
            sum(t.value for t in terms if t.name.startswith(f"products {way}")) for way in ("forward", "backward")
        )
        shares.append(backward / forward)
    assert shares[0] == pytest.approx(2)
    assert 1 < shares[1] < 1.3


def test_fp8_multiplies_in_fp8_only_where_the_hardware_does() -> None:
    chosen = precision(layers={"*": "fp8"})
    by_format = []
    for native in (True, False):
        terms = cost(Numbers(chosen, None, ENCODER, native), Run(SIZE, ADAM)).flops
        by_format.append({kind: total(terms, kind) for kind in ("fp8", "bf16")})
    assert by_format[1]["fp8"] == 0
    assert by_format[0]["fp8"] + by_format[0]["bf16"] == by_format[1]["bf16"]
    attention = 3 * 4 * SIZE.tokens * SIZE.row * 64 * 2
    assert by_format[0]["fp8"] == pytest.approx(2 * (by_format[0]["bf16"] - attention)), "weights' gradients stay wide"


# The whole


def moved(chosen: Precision, **run: Any) -> dict[str, float]:
    """Terms of a step of a perceptron 4 - 3 - 2 (23 numbers) on 5 rows."""
    numbers = Numbers(chosen, run.pop("zero", None), perceptron(4, (3,), {"t": 2}))
    found = cost(numbers, Run(Size(5, 1, 1), ADAM, **run))
    return {term.name: term.value for term in (*found.moved, *found.network)}


def test_bytes_moved_by_hand() -> None:
    assert moved(precision(compute="fp32")) == {
        "weights read": 4 * (12 + 2 * 6),
        "operands and results of products": 4 * 5 * (2 * (4 + 3) + 3 * (3 + 2)),
        "norms and activation functions": 4 * 5 * 5 * 3,
        "gradients": 4 * 23,
        "update": (4 + 8 + 16) * 23,
    }
    mixed = moved(precision())
    assert mixed["weights rounded"] == (4 + 2) * (12 + 6)
    assert mixed["weights read"] == 2 * (12 + 2 * 6)
    assert moved(precision(master_weights="none", rounding="kahan"))["update"] == (2 + 4 + 8 + 4) * 23
    assert moved(precision(), zero=2)["update"] == (4 + 8 + 16 + 2) * 23
    assert moved(precision(compute="fp32"), accumulation=3)["gradients"] == 4 * (3 + 2 * 3) * 23
    native, emulated = (
        cost(Numbers(precision(layers={"*": "fp8"}), None, ENCODER, native), Run(SIZE, ADAM)).moved
        for native in (True, False)
    )
    assert total(native, "rounding") < total(emulated, "rounding")


def test_bytes_sent_by_hand() -> None:
    reduced, gathered = "gradients reduced", "weights gathered"
    assert moved(precision(), ranks=4)[reduced] == 2 * 0.75 * 4 * 23
    assert gathered not in moved(precision(), ranks=4)
    zero2 = moved(precision(reduction="bf16"), zero=2, ranks=4, accumulation=3)
    assert (zero2[reduced], zero2[gathered]) == (3 * 0.75 * 2 * 23, 0.75 * 2 * 23)
    assert moved(precision(), zero=3, ranks=4, accumulation=3)[gathered] == 3 * 2 * 0.75 * 2 * 23


@given(
    zero=st.sampled_from([None, 1, 2, 3]), ranks=st.integers(1, 8), accumulation=st.integers(1, 4),
    name=st.sampled_from(sorted(COMPARED)), fused=st.booleans(),
)  # fmt: skip
def test_every_number_is_a_named_term(zero: int | None, ranks: int, accumulation: int, name: str, fused: bool) -> None:
    found = cost(Numbers(COMPARED[name], zero, ENCODER), Run(SIZE, ADAM, ranks, accumulation, fused))
    for terms in (found.flops, found.moved, found.network, found.held):
        assert all(term.value >= 0 and term.name and term.formula for term in terms)
        assert len({term.name for term in terms}) == len(terms)
    assert bool(found.network) == (ranks > 1)
    assert found.intensity == total(found.flops) / total(found.moved)
    twice = cost(Numbers(COMPARED[name], zero, ENCODER), Run(SIZE, ADAM, ranks, 2 * accumulation, fused))
    assert total(twice.flops) > total(found.flops)
    assert total(twice.held) == total(found.held)


def test_less_precision_holds_and_moves_less() -> None:
    shapes = transformer(6, 384, 12, 1536, 30522, 512, {"t": 1})
    recipe = Recipe.model_validate({"name": "r", "tasks": {"t": {"kind": "regression", "source": {"files": "x"}}}})
    plan = compare(recipe, shapes, Hardware.parse("8xA100"), 2)
    rows = {row.name: row for row in plan.rows}
    held = {name: total(row.cost.held) for name, row in rows.items()}
    moved = {name: total(row.cost.moved) for name, row in rows.items()}
    assert held["fp32"] > held["bf16 mixed"] > held["pure bf16, kahan"] > held["pure bf16, nearest"]
    assert held["pure bf16, nearest"] == held["pure bf16, stochastic"]
    assert moved["fp32"] > moved["bf16 mixed"] > moved["pure bf16, nearest"]
    assert [row.name for row in plan.rows if row.own] == ["bf16 mixed"]
    assert not any(row.why_not for row in plan.rows)


def test_the_recipes_own_precision_is_marked_or_added() -> None:
    def owned(zero: int | None = None, machine: str = "cpu", **fields: Any) -> tuple[list[str], dict[str, str]]:
        content = {"name": "r", "tasks": {"t": {"kind": "regression", "source": {"files": "x"}}}, "precision": fields}
        plan = compare(Recipe.model_validate(content), ENCODER, Hardware.parse(machine), zero)
        return [row.name for row in plan.rows if row.own], {row.name: row.why_not for row in plan.rows if row.why_not}

    assert owned(compute="fp16", loss_scaling={"initial": 8.0}) == (["fp16 mixed"], {})
    assert owned(master_weights="none", rounding="kahan")[0] == ["pure bf16, kahan"]
    assert owned(layers={"*": "bf16"})[0] == ["this recipe's"]
    assert owned(changes=[{"at": 0.5, "layers": {"*": "bf16"}}])[0] == ["this recipe's"]
    assert owned(accumulation="fp32")[0] == ["bf16 mixed"]
    own, refused = owned(zero=0, machine="2xA100", reduction="bf16")
    assert own == ["this recipe's"]
    assert set(refused) == {"fp16 mixed", *(name for name in COMPARED if name.startswith("pure"))}
    assert set(owned(zero=2, machine="2xcpu")[1]) == {"fp16 mixed"}


def test_the_batch_is_the_recipes() -> None:
    content = {"name": "r", "tasks": {"t": {"kind": "regression", "source": {"files": "x"}}}, "batch": {"examples": 96}}
    recipe = Recipe.model_validate(content)

    def run(machine: str, length: int | None = None, recipe: Recipe = recipe) -> tuple[int, int, Size, bool]:
        made = compare(recipe, ENCODER, Hardware.parse(machine), None, length).run
        return made.ranks, made.accumulation, made.size, made.fused

    assert run("2xcpu") == (2, 2, Size(24, 128, 128), False)
    assert run("cpu", 20) == (1, 3, Size(32, 20, 128), False)
    assert run("A100", 20) == (1, 3, Size(32, 20, 20), True)
