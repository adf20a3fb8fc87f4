"""A run that is cut and resumed is the run that was never cut, bit for bit; and what cannot be resumed is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Run
from made_runs import STEPS, Runs, make_runs

from lmrecipes.recipe_precision import Precision
from lmrecipes.run_folder import latest_run
from lmrecipes.tracking.record import read_metrics
from lmrecipes.training.checkpoint import RunState, find_checkpoint, load_checkpoint, save_checkpoint

TIMES = ("time/", "tokens_per_second", "model_flops_utilization", "memory/")


@pytest.fixture(scope="module")
def runs(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return make_runs(run, tiny, tmp_path_factory)


def measured(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run without what depends on the clock."""
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("name", ["plain", "zero2", "zero3"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(name: str, runs: Runs) -> None:
    """Losses, norms, counters of every step, the weights and the evaluation. `zero3` trains with dropout."""
    assert measured(runs[f"{name}_cut"]) == measured(runs[name])
    assert [row["step"] for row in measured(runs[f"{name}_cut"])] == list(range(1, STEPS + 1)), "each step once"
    for file in ("model.safetensors", "heads.safetensors"):
        assert (runs[f"{name}_cut"] / "model" / file).read_bytes() == (runs[name] / "model" / file).read_bytes()
    cut, whole = (json.loads((runs[n] / "evaluation.json").read_text()) for n in (f"{name}_cut", name))
    assert cut["tasks"] == whole["tasks"]


def test_dropout_is_at_work(runs: Runs) -> None:
    """Else the bitwise test of `zero3` would show less than it says."""
    with_masks, without = measured(runs["zero3"]), measured(runs["offload3"])
    assert abs(with_masks[0]["grad_norm"] / without[0]["grad_norm"] - 1) > 0.01


def test_counters_trackers_and_surroundings_continue(runs: Runs) -> None:
    cut, resumed = runs.said["plain_cut"]["state"], runs.said["plain_resumed"]["state"]
    assert (cut["step"], resumed["step"]) == (3, STEPS)
    assert sum(cut["examples"].values()) == 3 * 16
    assert sum(resumed["examples"].values()) == STEPS * 16
    assert resumed["tokens"] == runs.said["plain"]["state"]["tokens"]
    assert resumed["seconds"] > cut["seconds"] > 0
    assert resumed["trackers"]["wandb"]["id"] == cut["trackers"]["wandb"]["id"]
    environment = json.loads((runs["plain_cut"] / "environment.json").read_text())
    assert environment["from_step"] == 3
    assert [before["from_step"] for before in environment["before"]] == [0]


@pytest.mark.parametrize(
    "name, said",
    [
        ("zero3_on_zero2", ["saved with ZeRO stage 2", "resumed with ZeRO stage 3"]),
        ("fp32_on_bf16", ["precision.compute", "started with bf16", "now it is fp32"]),
        ("other_world", ["saved with world size 2", "resumed with world size 1"]),
        ("other_rate", ["optimizer.lr", "started with 0.002", "now it is 0.5"]),
        ("finished", ["has been finished"]),
    ],
)
def test_what_does_not_fit_is_refused_and_both_sides_are_named(name: str, said: list[str], runs: Runs) -> None:
    assert runs.said[name]["failed"] == "InputError"
    assert all(part in runs.said[name]["message"] for part in said), runs.said[name]["message"]


def test_numbers_that_are_not_finite_stop_the_run_and_the_cause_is_named(runs: Runs) -> None:
    assert runs.said["not_finite"]["failed"] == "RunFailed"
    message = runs.said["not_finite"]["message"]
    assert message.startswith("step 4: 3 steps in a row were skipped: the weights of "), message
    assert message.endswith("there is no checkpoint yet")


def test_only_the_newest_checkpoints_are_kept(runs: Runs) -> None:
    assert sorted(p.name for p in (runs["kept"] / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def test_offload_and_optimizers(runs: Runs) -> None:
    """DeepSpeed's CPU Adam is the same rule as torch's; SGD stays SGD.

    Measured over 6 steps: offload at ZeRO-2 changes no loss, ZeRO-3 with it 0.15 % (its linear layers round twice).
    """
    names = {name: runs.said[name]["optimizer"] for name in ("zero2", "offload2", "offload3", "sgd", "sgd_offload")}
    assert names == {
        "zero2": "AdamW", "offload2": "DeepSpeedCPUAdam", "offload3": "DeepSpeedCPUAdam", "sgd": "SGD",
        "sgd_offload": "SGD",
    }  # fmt: skip
    losses = {name: [row["loss"] for row in measured(runs[name])] for name in (*names, "sgd_offload_none")}
    assert losses["offload2"] == pytest.approx(losses["zero2"], rel=1e-6)
    assert losses["offload3"] == pytest.approx(losses["zero2"], rel=1e-2)
    assert losses["sgd_offload"] == pytest.approx(losses["sgd"], rel=1e-6)
    assert losses["sgd_offload_none"] == losses["sgd"]
    assert losses["sgd"] != pytest.approx(losses["zero2"], rel=1e-2)


class Stub:
    """An engine whose state is one file."""

    is_main, rank, zero_stage, world_size = True, 0, None, 1
    recipe = SimpleNamespace(precision=Precision(compute="fp32"))
    fails = False

    def barrier(self) -> None:
        """Alone."""

    def save(self, folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "state.pt").write_bytes(b"weights" * 100)
        if self.fails:
            raise OSError("No space left on device")

    def load(self, folder: Path) -> None:
        self.loaded = folder


def saved(folder: Path, *steps: int, keep: int = 9) -> Any:
    engine: Any = Stub()
    for step in steps:
        save_checkpoint(engine, folder, RunState(step, examples={"a": step}), keep)
    return engine


def test_the_newest_checkpoint_that_is_whole_is_found(tmp_path: Path) -> None:
    engine = saved(tmp_path, 1, 2, 3, 4, 5)
    state = tmp_path / "step-00000005" / "deep" / "state.pt"
    content = bytearray(state.read_bytes())
    content[300] ^= 1  # one bit
    state.write_bytes(content)
    (tmp_path / "step-00000004" / "deep" / "state.pt").unlink()
    (tmp_path / "step-00000003" / "manifest.json").write_text("{")
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000009.tmp")
    found = find_checkpoint(tmp_path)
    assert found == tmp_path / "step-00000001"
    assert load_checkpoint(engine, found).examples == {"a": 1}
    assert engine.loaded == found
    shutil.rmtree(found)
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "none") is None


def test_old_checkpoints_stay_until_the_new_one_stands(tmp_path: Path) -> None:
    engine = saved(tmp_path, 1, 2, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
    engine.fails = True
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(engine, tmp_path, RunState(3), keep=1)
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000002"
    engine.fails = False
    save_checkpoint(engine, tmp_path, RunState(2, seconds=7.0), keep=1)  # the same step once more
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"], "leftovers of the failed one are gone"
    assert load_checkpoint(engine, tmp_path / "step-00000002").seconds == 7.0


def test_a_broken_later_checkpoint_does_not_crowd_out_the_new_one(tmp_path: Path) -> None:
    saved(tmp_path, 1, 8)
    (tmp_path / "step-00000008" / "deep" / "state.pt").unlink()
    saved(tmp_path, 2, keep=1)
    assert find_checkpoint(tmp_path) == tmp_path / "step-00000002"


def test_the_newest_unfinished_run_of_the_recipe_is_resumed(tmp_path: Path) -> None:
    for name in ("tiny-20250101-000000", "tiny-20250101-000001", "tiny-other-20250101-000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").touch()
    (tmp_path / "tiny-20250101-000003").mkdir()  # died before it wrote its recipe
    (tmp_path / "tiny-20250101-000001" / "evaluation.json").touch()
    found = latest_run("tiny", tmp_path)
    assert found is not None
    assert found.path.name == "tiny-20250101-000000"
