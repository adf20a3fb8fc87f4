"""Precision on every engine: steps that are not finite, dropped micro-steps, checkpoints, and what is really held.

Two ranks run all cases one after the other (`engines_worker.py`). Those with DeepSpeed's autocast (bf16 at stage 0)
come last: it stays in the process.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Run
from made_runs import engine_config
from tiny import make_recipe

WORKER = ROOT / "tests" / "training" / "engines_worker.py"
LAYERS = {"compute": "bf16", "layers": {"*": "fp8", "encoder.layer.0": "bf16", "heads.*": "fp32"}}
PURE = {"compute": "bf16", "master_weights": "none", "rounding": "kahan"}
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {"compute": "fp32"},
    "bf16": {"compute": "bf16"},
    "fp16": {"compute": "fp16", "loss_scaling": {"initial": 2.0**17}},
    "layers": LAYERS,
    "pure": PURE,
    "reduced": {"compute": "bf16", "reduction": "bf16"},
    "exchanged": {**PURE, "reduction": "fp32"},
}
CASES = [
    "fp32-plain", "bf16-plain", "fp16-plain", "reduced-plain", "layers-plain", "pure-plain", "exchanged-plain",
    "bf16-1", "layers-1", "pure-1", "bf16-2", "bf16-offload", "layers-2", "pure-2", "bf16-3", "layers-3", "pure-3",
    "layers-0", "bf16-0",
]  # fmt: skip
BYTES = {
    "fp32-plain": 16, "bf16-plain": 16, "layers-plain": 16, "pure-plain": 10, "bf16-0": 16,
    "bf16-2": 2 + 16 / 2, "bf16-3": 2 + 18 / 2, "pure-1": 2 + 10 / 2, "pure-2": 2 + 10 / 2,
}  # fmt: skip
"""Held by parameter on each of two ranks just before an update; kahan keeps 2 bytes more than nearest or stochastic.
ZeRO-3 keeps small weights whole besides, here all of them."""


def case(folder: Path, kind: str, engine: str) -> dict[str, Any]:
    """What the worker is told. engine: a ZeRO stage, stage 2 with its optimizer offloaded, or plain."""
    recipe = make_recipe(folder, **{"batch.micro_examples": 4, "precision": KINDS[kind]})
    offload = engine == "offload"
    zero = "2" if offload else engine
    return {"recipe": recipe, "deepspeed": None if zero == "plain" else engine_config(recipe, int(zero), 2, offload)}


def planted(folder: Path) -> dict[str, dict[str, Any]]:
    """What must be refused: the launch says otherwise than the recipe."""
    no_bf16 = {**case(folder, "bf16", "2"), "deepspeed": case(folder, "fp32", "2")["deepspeed"]}
    in_bf16 = case(folder, "bf16", "2")
    del in_bf16["deepspeed"]["data_types"]
    with_masters = {**case(folder, "pure", "2"), "deepspeed": case(folder, "bf16", "2")["deepspeed"]}
    without = {**case(folder, "bf16", "1"), "deepspeed": case(folder, "pure", "1")["deepspeed"]}
    stage_0 = case(folder, "fp32", "0")
    stage_0["recipe"]["precision"] = KINDS["bf16"]
    stage_0["deepspeed"] |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "bf16"}}
    autocast = case(folder, "fp32", "2")
    autocast["recipe"]["precision"] = KINDS["bf16"]
    autocast["deepspeed"]["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return {
        "no bf16": no_bf16,
        "bf16 accumulation": in_bf16,
        "masters": with_masters,
        "no masters": without,
        "cast": {**case(folder, "fp32", "plain"), "cast": "heads.short"},
        "stage 0": stage_0,
        "autocast": autocast,
    }


@pytest.fixture(scope="module")
def said(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the worker found, by case."""
    out = tmp_path_factory.mktemp("engines")
    cases = {name: {**case(tiny, *name.split("-")), "again": name.startswith("pure")} for name in CASES}
    last = {"bf16-0": cases.pop("bf16-0")}
    for name, wrong in planted(tiny).items():
        (last if name == "autocast" else cases)[name] = {**wrong, "planted": True}
    (out / "order.json").write_text(json.dumps({"cases": cases | last, "out": str(out)}))
    done = run("torchrun", "--standalone", "--nproc_per_node=2", WORKER, out / "order.json", cwd=out)
    assert done.returncode == 0, done.stderr[:6000]
    found: dict[str, Any] = json.loads((out / "said.json").read_text())
    return found


def bits(steps: list[dict[str, Any]]) -> list[str]:
    return [step["digest"] for step in steps]


@pytest.mark.parametrize("name", CASES)
def test_an_update_that_is_not_finite_changes_no_bit_on_any_rank(name: str, said: dict[str, Any]) -> None:
    """One rank's micro-batch has a loss that is not a number."""
    for rank in said[name]["ranks"]:
        assert not rank["poisoned"]["applied"]
        assert rank["poisoned"]["grad_norm"] not in (0.0, 1.0)
        assert rank["poisoned"]["digest"] == rank["loaded"]
    assert any(step["applied"] for step in said[name]["trained"])
    assert said[name]["trained"][-1]["digest"] != said[name]["first"]["digest"], "else the test would show nothing"


@pytest.mark.parametrize("name", CASES)
def test_checkpoints_and_dropped_micro_steps_leave_no_trace(name: str, said: dict[str, Any]) -> None:
    """Loaded is what was saved; the steps after it, after a skipped one and after dropped micro-steps, are those that
    followed the save. In fp16 a skipped step lowers the scale, and so changes which of them are applied."""
    assert said[name]["loaded"] == said[name]["first"]["digest"]
    if name != "fp16-plain":
        assert bits(said[name]["after_drops"]) == bits(said[name]["trained"])
    if name.startswith("pure"):
        assert bits(said[name]["resumed"]) == bits(said[name]["trained"]), "in an engine of its own"


@pytest.mark.parametrize("name", CASES)
def test_what_is_held_is_what_is_declared(name: str, said: dict[str, Any]) -> None:
    """The worker has required it; here, that every row was looked at, with its bytes."""
    start, after = ({row["what"]: row for row in said[name][when]} for when in ("start", "after"))
    known = {"weights", "masters", "products", "gradients", "reduction"}
    assert known | {"optimizer", "updates"} == set(start)
    assert start["gradients"]["found"] == start["optimizer"]["found"] == "from the first step on"
    assert known <= set(after)
    assert said[name]["held"]["gradients"] > 0
    if name in BYTES:
        parameters = said["fp32-plain"]["held"]["weights"] / 4
        assert sum(said[name]["held"].values()) / parameters == pytest.approx(BYTES[name], rel=0.06)


def test_gradients_are_reduced_in_the_declared_dtype(said: dict[str, Any]) -> None:
    found = {name: next(row["found"] for row in said[name]["after"] if row["what"] == "reduction") for name in CASES}
    assert {name: dtype for name, dtype in found.items() if dtype != "fp32"} == {
        "reduced-plain": "bf16", "pure-plain": "bf16", "pure-1": "bf16", "pure-2": "bf16", "pure-3": "bf16",
    }  # fmt: skip
    near = said["reduced-plain"]["first"]["grad_norm"] / said["bf16-plain"]["first"]["grad_norm"] - 1
    assert 0 < abs(near) < 0.01


@pytest.mark.parametrize("engine", ["0", "1", "2", "3"])
def test_formats_by_layer_give_one_trajectory(engine: str, said: dict[str, Any]) -> None:
    """fp8, bf16 and fp32 layers in one model."""
    found, wanted = said[f"layers-{engine}"], said["layers-plain"]
    for step, expected in zip([found["first"], *found["trained"]], [wanted["first"], *wanted["trained"]], strict=True):
        assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-6)
        assert step["sums"] == pytest.approx(expected["sums"], rel=1e-6)
    assert abs(wanted["first"]["grad_norm"] / said["fp32-plain"]["first"]["grad_norm"] - 1) > 1e-4, "fp8 is at work"


@pytest.mark.parametrize("engine", ["1", "2", "3"])
def test_runs_without_masters_agree(engine: str, said: dict[str, Any]) -> None:
    """The first gradient to rounding; then stochastic rounding draws by place in a partition."""
    first, wanted = said[f"pure-{engine}"]["first"], said["pure-plain"]["first"]
    assert first["sums"] == pytest.approx(wanted["sums"], rel=1e-6)
    assert first["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=2e-3)
    last, expected = said[f"pure-{engine}"]["trained"][-1], said["pure-plain"]["trained"][-1]
    assert last["sums"] == pytest.approx(expected["sums"], rel=0.05)


def test_fp16_computes_in_fp16_and_scales_its_loss(said: dict[str, Any]) -> None:
    """On a CPU too. A scale of 2**17 overflows; each skip halves it."""
    found, exact = said["fp16-plain"], said["fp32-plain"]["first"]
    assert found["first"]["sums"] == pytest.approx(exact["sums"], rel=0.01)
    assert found["first"]["sums"] != pytest.approx(exact["sums"], rel=1e-6)
    steps = [found["first"], *found["trained"]]
    assert not steps[0]["applied"]
    assert steps[0]["loss_scale"] == 2**17
    for step, following in pairwise(steps):
        assert following["loss_scale"] == step["loss_scale"] / (1 if step["applied"] else 2)
    assert exact["loss_scale"] is None


@pytest.mark.parametrize(
    "name, where, said_of_it",
    [
        ("no bf16", "precision.compute", "products (all modules): declared bf16, found fp32"),
        ("bf16 accumulation", "precision.accumulation", "declared fp32, found bf16"),
        ("masters", "precision.master_weights", "declared bf16, found fp32"),
        ("no masters", "precision.master_weights", "declared fp32, found bf16"),
        ("cast", "precision.master_weights", "(heads.short.linear.weight, heads.short.linear.bias): declared fp32"),
        ("stage 0", "optimizer", "updates (made at the start): declared 0, found 1"),
        ("autocast", "precision.reduction", "declared fp32, found bf16, fp32"),
    ],
)
def test_what_is_otherwise_than_declared_is_refused(
    name: str, where: str, said_of_it: str, said: dict[str, Any]
) -> None:
    """`bf16 accumulation` shows after the first step only; `stage 0` is DeepSpeed's own bf16 there, whose optimizer
    takes a step on gradients of zero when it is made."""
    assert any(line.startswith(where) and said_of_it in line for line in said[name].splitlines())
