"""Real runs whose weights and loss factors follow the losses: one plan and one order of samples for every world, cut,
resumed and replayed alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from made_runs import Runs, engine_config, run_cases
from test_resume import measured
from tiny import make_recipe

STEPS = 30
ODM = {"mixture.adaptive": {"method": "odm", "every": 4}, "loss_weighting": {"method": "famo", "every": 3}}
ADO = {"mixture.adaptive": {"method": "ado", "every": 3}, "loss_weighting": {"method": "uncertainty", "every": 5}}


@pytest.fixture(scope="module")
def runs(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """On one rank: both methods whole, one of them cut and resumed, replayed. On two: DDP and ZeRO-2, and a resume of
    what one rank began."""
    folder = tmp_path_factory.mktemp("adaptive")
    common = {"schedule.steps": STEPS, "batch.micro_examples": 8, "evaluation.examples": 20}
    odm, ado, off = (make_recipe(tiny, **common, **more) for more in (ODM, ADO, {}))
    replay = make_recipe(tiny, **common, **{"mixture.replay": str(folder / "odm" / "plan.jsonl")})

    def case(name: str, recipe: dict[str, Any], run: str | None = None, **more: Any) -> dict[str, Any]:
        return {"name": name, "run": run or name, "recipe": recipe, "deepspeed": None, **more}

    def smaller(recipe: dict[str, Any]) -> dict[str, Any]:
        """Other micro-batches than one rank has, so that sums are taken in another order."""
        return {**recipe, "batch": {**recipe["batch"], "micro_examples": 3}}

    said = run_cases(
        run, folder, 1,
        [
            case("odm", odm),
            case("cut", odm, until=14),
            case("resumed", odm, "cut", resume=True),
            case("moved", odm, until=14),
            case("replay", replay),
            case("replay_cut", replay, until=14),
            case("replay_resumed", replay, "replay_cut", resume=True),
            case("ado", ado),
            case("off", off, until=2),
            case("other_batch", {**replay, "batch": {"examples": 17, "micro_examples": 8}}),
        ],
    )  # fmt: skip
    said |= run_cases(
        run, folder, 2,
        [
            case("odm2", smaller(odm)),
            case("moved2", {**smaller(odm), "loader": {"workers": 2, "prefetch": 8}}, "moved", resume=True),
            case("ado2", smaller(ado)),
            case("odm_zero2", odm, deepspeed=engine_config(odm, 2, 2)),
        ],
    )  # fmt: skip
    return Runs(folder, said)


def plan(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "plan.jsonl").read_text().splitlines()]


def sampled(folder: Path) -> list[dict[str, Any]]:
    """What each step held: examples and tokens of each task, and the shares in force."""
    held = ("examples/", "tokens/", "share/", "weight/")
    return [{key: value for key, value in row.items() if key.startswith(held)} for row in measured(folder)]


@pytest.mark.parametrize("name", ["odm", "ado"])
def test_weights_and_factors_change_as_the_plan_says(name: str, runs: Runs) -> None:
    entries, rows = plan(runs[name]), measured(runs[name])
    weights = [entry for entry in entries if entry["kind"] == "weights"]
    factors = [entry for entry in entries if entry["kind"] == "loss_factors"]
    assert len(weights) >= 3
    assert len(factors) >= 4
    for row in rows:
        first = (row["step"] - 1) * 16
        in_force = next((entry["weights"] for entry in reversed(weights) if entry["start"] <= first), None)
        shares = {task: row[f"weight/{task}"] for task in ("short", "long", "rare")}
        if in_force is None:
            assert shares == pytest.approx({"short": 0.6, "long": 0.37, "rare": 0.03})
        else:
            total = sum(in_force.values())
            assert shares == pytest.approx({task: weight / total for task, weight in in_force.items()})
        used = next((entry["factors"] for entry in reversed(factors) if entry["from_step"] <= row["step"]), None)
        logged = {task: row[f"loss_factor/{task}"] for task in ("short", "long", "rare")}
        assert logged == (used or dict.fromkeys(logged, 1.0))
    drawn = {task: rows[-1][f"examples/{task}"] - rows[-9][f"examples/{task}"] for task in ("short", "long", "rare")}
    for task, share in shares.items():
        assert drawn[task] / (8 * 16) == pytest.approx(share, abs=0.1), "what is drawn follows"


def test_the_loss_stays_comparable(runs: Runs) -> None:
    """`loss` is summed with the recipe's own scales: a factor of the weighting is no part of it."""
    with_factors, without = measured(runs["odm"]), measured(runs["off"])
    assert with_factors[0]["loss"] == without[0]["loss"]
    assert [key for key in without[0] if key.startswith(("weight/", "loss_factor/"))] == []


@pytest.mark.parametrize("name, other", [("odm", "odm2"), ("odm", "odm_zero2"), ("ado", "ado2")])
def test_one_plan_and_one_order_of_samples_in_every_world(name: str, other: str, runs: Runs) -> None:
    assert plan(runs[other]) == plan(runs[name])
    assert sampled(runs[other]) == sampled(runs[name])
    losses, wanted = ([row["loss"] for row in measured(runs[run])] for run in (other, name))
    assert losses == pytest.approx(wanted, rel=1e-4)
    assert losses != wanted, "the sums were taken in another order"


def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(runs: Runs) -> None:
    """The cut lies in the middle of a round of both methods."""
    assert (runs["cut"] / "plan.jsonl").read_bytes() == (runs["odm"] / "plan.jsonl").read_bytes()
    assert measured(runs["cut"]) == measured(runs["odm"])
    saved = runs.said["cut"]["state"]["steering"]
    assert 0 < len(saved["plan"]) < len(plan(runs["odm"]))


def test_a_run_resumes_in_another_world_with_another_loader(runs: Runs) -> None:
    assert plan(runs["moved"]) == plan(runs["odm"])
    assert sampled(runs["moved"]) == sampled(runs["odm"])


@pytest.mark.parametrize("name", ["replay", "replay_cut"])
def test_a_replay_is_the_run_itself_to_the_last_bit(name: str, runs: Runs) -> None:
    assert measured(runs[name]) == measured(runs["odm"])
    assert (runs[name] / "plan.jsonl").read_bytes() == (runs["odm"] / "plan.jsonl").read_bytes()


def test_a_plan_that_does_not_fit_is_refused(runs: Runs) -> None:
    assert runs.said["other_batch"]["failed"] == "InputError"
    assert "plan.jsonl: line " in runs.said["other_batch"]["message"]
    assert "is not where a step of batch.examples=17 begins" in runs.said["other_batch"]["message"]
    assert not runs["other_batch"].exists(), "before a run folder is made"


def test_a_run_without_adaptive_weights_has_no_plan(runs: Runs) -> None:
    assert not (runs["off"] / "plan.jsonl").exists()
    assert runs.said["off"]["state"]["steering"] == {}
