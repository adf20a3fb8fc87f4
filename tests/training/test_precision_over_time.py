"""Formats that change during training: on every engine alike, written down, and resumed to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from made_runs import Runs, engine_config, run_cases
from tiny import make_recipe

from lmrecipes.tracking.record import read_metrics

RAISED, CHANGED, CUT, END = 4, 10, 6, 12
"""Steps: layers are raised after the second measurement, the recipe changes others after half of the run."""
PLAN: dict[str, Any] = {
    "compute": "bf16",
    "layers": {"encoder.*": "fp8", "heads.*": "fp32"},
    "changes": [{"at": 0.5, "layers": {"encoder.layer.0": "bf16"}}],
    "raising": {"underflow": 0.2, "streak": 2, "every": 2},
}
ONE_RANK: dict[str, Any] = {
    "compute": "fp32",
    "layers": {"encoder.layer.*": "fp16"},
    "raising": {"overflows": 1, "every": 20},
}
SPOILT = "encoder.layer.1.output.dense"
TIMES = ("time/", "tokens_per_second", "model_flops_utilization", "memory/")


@pytest.fixture(scope="module")
def runs(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Whole, cut and resumed: plain on one rank, ZeRO 2 on two, of a layer with half of its inputs close to zero on the
    last rank. And a layer in fp16 whose inputs are too large on one of two ranks."""
    folder = tmp_path_factory.mktemp("over_time")
    common = {"schedule.steps": 2 * CHANGED, "batch.micro_examples": 4}
    recipe = make_recipe(tiny, **common, precision=PLAN)
    fp16 = make_recipe(tiny, **common, precision=ONE_RANK)

    def cases(name: str, deepspeed: dict[str, Any] | None) -> list[dict[str, Any]]:
        plant = {"layer": SPOILT, "rank": int(deepspeed is not None), "tensor": "inputs", "factor": 1e-12,
                 "steps": list(range(1, END + 1))}  # fmt: skip
        whole = {"name": name, "run": name, "recipe": recipe, "deepspeed": deepspeed, "until": END, "plant": plant}
        cut = {**whole, "name": f"{name}_cut", "run": f"{name}_cut", "until": CUT}
        return [whole, cut, {**cut, "name": f"{name}_resumed", "until": END, "resume": True}]

    plant = {"layer": SPOILT, "rank": 1, "tensor": "inputs", "steps": [3, 4], "factor": 1e6}
    overflow = [
        {"name": name, "run": name, "recipe": fp16, "deepspeed": deepspeed, "until": 6, "plant": plant}
        for name, deepspeed in (("ddp_fp16", None), ("zero2_fp16", engine_config(fp16, 2, 2)))
    ]
    said = run_cases(run, folder, 1, cases("plain", None))
    return Runs(folder, said | run_cases(run, folder, 2, [*cases("zero2", engine_config(recipe, 2, 2)), *overflow]))


def measured(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run without what depends on the clock."""
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in read_metrics(folder / "metrics.jsonl")]


def switches(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "precision.jsonl")


@pytest.mark.parametrize("name", ["plain", "zero2"])
def test_a_run_cut_between_a_raise_and_a_change_is_the_uninterrupted_one(name: str, runs: Runs) -> None:
    """Losses, norms and counters of every step, the changes, and what the next decisions depend on."""
    assert len(measured(runs[name])) == END
    assert measured(runs[f"{name}_cut"]) == measured(runs[name])
    assert switches(runs[f"{name}_cut"]) == switches(runs[name])
    ends = [runs.said[case]["formats"] for case in (name, f"{name}_resumed")]
    assert [state["raised"] for formats in ends for state in formats] == [{SPOILT: "bf16"}] * sum(map(len, ends))
    assert runs.said[f"{name}_cut"]["formats"][0]["raised"], "cut after the layer was raised"


@pytest.mark.parametrize("name, share", [("plain", 0.5), ("zero2", 0.25)])
def test_changes_are_written_down_with_their_reason(name: str, share: float, runs: Runs) -> None:
    """On two ranks, one of which loses half of the inputs, it is a quarter of all."""
    first, *others = switches(runs[name])
    said, reason = first.pop("reason").split("%", 1)
    assert first == {"step": RAISED, "layer": SPOILT, "from": "fp8", "to": "bf16"}
    assert float(said) == pytest.approx(100 * share, abs=5)
    assert reason == " of its inputs were lost as zeros, 2 measurements in a row"
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
             "intermediate.dense", "output.dense")  # fmt: skip
    change = {"step": CHANGED, "from": "fp8", "to": "bf16", "reason": "precision.changes"}
    assert others == [{"layer": f"encoder.layer.0.{part}", **change} for part in parts]
    assert [row["precision/raised"] for row in measured(runs[name])] == [int(s >= RAISED) for s in range(1, END + 1)]


@pytest.mark.parametrize("name", ["ddp_fp16", "zero2_fp16"])
def test_an_overflow_that_one_rank_saw_raises_the_layer_on_all(name: str, runs: Runs) -> None:
    """Step 3 is skipped and not measured; the one after it is, though it is not its turn. Numbers that other layers
    read are not finite either then, which is no reason to raise those."""
    formats = runs.said[name]["formats"]
    assert [state["raised"] for state in formats] == [{SPOILT: "fp32"}] * 2
    reason = "its inputs overflowed in 1 measured steps"
    assert switches(runs[name]) == [{"step": 4, "layer": SPOILT, "from": "fp16", "to": "fp32", "reason": reason}]
    assert [row["skipped_steps"] for row in measured(runs[name])] == [0, 0, 1, 2, 2, 2]
