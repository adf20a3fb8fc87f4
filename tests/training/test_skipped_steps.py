"""Steps whose numbers are not finite: skipped, counted, and a streak of them stops the run with its cause."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Run
from made_runs import Runs, engine_config, run_cases
from tiny import make_recipe

from lmrecipes.recipe_precision import Precision
from lmrecipes.tracking.record import read_metrics
from lmrecipes.training.checkpoint import RunState, left_behind, save_checkpoint

TIMES = ("time/", "tokens_per_second", "model_flops_utilization", "memory/")
DENSE = "encoder.layer.1.output.dense"
END = 8
SPOILT = [4, 5, 6]


@pytest.fixture(scope="module")
def runs(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Whole, spoilt from step 4 on, and resumed: plain on one rank, ZeRO 2 and 3 on two. fp16 whose loss scale is too
    large. A learning rate that spoils the weights."""
    folder = tmp_path_factory.mktemp("skipped")
    common = {"schedule.steps": 20, "batch.micro_examples": 4, "model.dropout": 0.1}
    bf16 = make_recipe(tiny, **common, **{"precision.compute": "bf16"})
    fp16 = make_recipe(tiny, **common, **{"precision.compute": "fp16", "checkpoint.every": 1, "checkpoint.keep": 99})
    dynamic = {**fp16, "precision": {"compute": "fp16", "loss_scaling": {"initial": 2.0**19}}}
    static = {**fp16, "precision": {"compute": "fp16", "loss_scaling": {"initial": 2.0**40, "kind": "static"}}}

    def cases(name: str, deepspeed: dict[str, Any] | None, tensor: str, rank: int) -> list[dict[str, Any]]:
        whole = {"name": name, "run": name, "recipe": bf16, "deepspeed": deepspeed, "until": END}
        spoilt = {**whole, "name": f"{name}_spoilt", "run": f"{name}_spoilt"}
        plant = {"layer": DENSE, "rank": rank, "tensor": tensor, "steps": SPOILT}
        return [whole, {**spoilt, "plant": plant}, {**spoilt, "name": f"{name}_resumed", "resume": True}]

    def case(name: str, recipe: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"name": name, "run": name, "recipe": recipe, "deepspeed": None, **more}

    said = run_cases(
        run, folder, 1,
        [
            *cases("plain", None, "activations", 0),
            case("dynamic", dynamic, until=2 * END),
            case("static", static),
            case("weights", {**bf16, "optimizer": {"lr": 1e38}}),
        ],
    )  # fmt: skip
    two, three = engine_config(bf16, 2, 2), engine_config(bf16, 3, 2)
    both = [*cases("zero2", two, "activations", 1), *cases("zero3", three, "gradients", 1)]
    return Runs(folder, said | run_cases(run, folder, 2, both))


def measured(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run without what depends on the clock."""
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize(
    "name, cause",
    [
        ("plain", rf"the activations of {DENSE} are not finite \([\d,]+ of [\d,]+ values, rank 0, micro-batch 0\)"),
        ("zero2", rf"the activations of {DENSE} are not finite \([\d,]+ of [\d,]+ values, rank 1, micro-batch 0\)"),
        ("zero3", rf"the gradients of {DENSE} are not finite \([\d,]+ of [\d,]+ values, rank 1, micro-batch 0\)"),
    ],
)
def test_a_streak_stops_the_run_with_cause_and_checkpoint_and_it_can_go_on(name: str, cause: str, runs: Runs) -> None:
    """Resumed without what spoilt it, the run is the one that nothing ever spoilt, bit for bit, dropout included."""
    said = runs.said[f"{name}_spoilt"]
    assert said["failed"] == "RunFailed"
    checkpoint = rf"saved \S+/{name}_spoilt/checkpoints/step-00000003: from before the first of them"
    pattern = rf"step {SPOILT[-1]}: 3 steps in a row were skipped: {cause}; {checkpoint}"
    assert re.fullmatch(pattern, said["message"]), said["message"]
    assert measured(runs[f"{name}_spoilt"]) == measured(runs[name])
    assert len(measured(runs[name])) == END
    for run in (name, f"{name}_resumed"):
        assert runs.said[run]["state"]["skipped_steps"] == 0
    whole, resumed = (runs.said[run]["state"] for run in (name, f"{name}_resumed"))
    assert all(whole[part] == resumed[part] for part in ("examples", "tokens", "skips_in_a_row"))


def test_a_loss_scale_that_is_too_large_falls_and_training_goes_on(runs: Runs) -> None:
    rows = measured(runs["dynamic"])
    skipped = [row["grad_norm"] is None for row in rows]
    assert skipped[:2] == [True, True]
    assert skipped.count(False) >= END
    assert [row["skipped_steps"] for row in rows] == [sum(skipped[:step]) for step in range(1, 2 * END + 1)]
    assert [row["loss_scale"] for row in rows] == [2.0 ** (19 - sum(skipped[:step])) for step in range(2 * END)]
    assert runs.said["dynamic"]["state"]["skipped_steps"] == sum(skipped)
    dtypes = json.loads((runs["dynamic"] / "environment.json").read_text())["dtypes"]
    assert {row["found"] for row in dtypes if row["what"] == "optimizer"} == {"fp32"}, "looked at after an update"


def test_a_skipped_step_changes_no_weight(runs: Runs) -> None:
    first_applied = [row["grad_norm"] is None for row in measured(runs["dynamic"])].index(False) + 1

    def weights(step: int) -> dict[str, torch.Tensor]:
        path = runs["dynamic"] / "checkpoints" / f"step-{step:08d}" / "engine.pt"
        model: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
        return model

    first, last, applied = weights(1), weights(first_applied - 1), weights(first_applied)
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert any(not torch.equal(last[name], applied[name]) for name in first)


def test_a_static_loss_scale_that_is_too_large(runs: Runs) -> None:
    """The heads' outputs are the first that backward meets. There is nothing to go back to before step 1."""
    message = runs.said["static"]["message"]
    assert message.startswith("step 3: 3 steps in a row were skipped: the gradients of heads."), message
    assert ".linear are not finite (" in message


def test_weights_that_are_spoilt_are_not_saved(runs: Runs) -> None:
    message = runs.said["weights"]["message"]
    assert message.startswith("step 4: 3 steps in a row were skipped: the weights of "), message
    assert message.endswith("there is no checkpoint yet")
    assert "checkpoints" not in runs.said["weights"]["left"]


class Stub:
    """An engine whose state is one number."""

    is_main, rank, zero_stage, world_size = True, 0, None, 1
    recipe = SimpleNamespace(precision=Precision(compute="fp32"))
    weights = "one"

    def barrier(self) -> None:
        """Alone."""

    def broadcast(self, value: Any) -> Any:
        return value

    def save(self, folder: Path) -> None:
        (folder / "weights").write_text(self.weights)


def test_a_checkpoint_of_the_step_is_kept_and_later_ones_go(tmp_path: Path) -> None:
    engine: Any = Stub()
    for step in (2, 4, 5, 6):
        save_checkpoint(engine, tmp_path, RunState(step), keep=9)
    engine.weights = "two"
    said = left_behind(engine, tmp_path, RunState(4), keep=2)
    assert said == f"saved {tmp_path}/step-00000004: from before the first of them"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
    assert (tmp_path / "step-00000004" / "weights").read_text() == "one"
    (tmp_path / "step-00000004" / "weights").write_text("half of it")
    left_behind(engine, tmp_path, RunState(4, skips_in_a_row=1), keep=2)
    assert (tmp_path / "step-00000004" / "weights").read_text() == "two", "the one there was broken"
    assert json.loads((tmp_path / "step-00000004" / "state.json").read_text())["skips_in_a_row"] == 1


def test_what_is_left_where_nothing_can_be_saved(tmp_path: Path) -> None:
    engine: Any = Stub()
    assert left_behind(engine, tmp_path, RunState(0), keep=2) == "there is no checkpoint yet"
    save_checkpoint(engine, tmp_path, RunState(2), keep=2)
    assert left_behind(engine, tmp_path, None, keep=2) == "the newest checkpoint is step-00000002"
