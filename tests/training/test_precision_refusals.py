"""What hardware cannot compute is refused by name before anything is trained; what it can agrees between engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Run
from made_runs import engine_config
from tiny import make_recipe
from trajectories import WORKER, Rows

from lmrecipes import machine
from lmrecipes.cli import run as command
from lmrecipes.planning.hardware import Hardware
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_precision import Precision
from lmrecipes.training.accelerator import refuse_precision

TOLERANCE = 0.03


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A YAML recipe in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(make_recipe(tiny)))
    return tmp_path / "tiny.yaml"


@pytest.mark.parametrize("launch", [["--zero", "1"], ["--processes", "2", "--zero", "2"], ["--zero", "3"]])
def test_fp16_under_deepspeed_on_a_cpu_is_refused_by_name(
    launch: list[str], recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain torch and DDP compute in fp16 on a CPU: see test_precision_engines."""
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert command(["train", str(recipe), "--precision.compute", "fp16", *launch]) == 2
    stderr = capsys.readouterr().err
    assert "precision-hw" in stderr
    assert "fp16" in stderr
    assert "CPU" in stderr
    assert not list(Path("runs").glob("tiny-*")), "refused before a run folder exists"


def test_fp16_without_zero_stages_is_refused(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: (("H100", (9, 0), 80.0),))
    assert command(["train", str(recipe), "--precision.compute", "fp16", "--zero", "0"]) == 2
    assert "fp16-zero0" in capsys.readouterr().err


@pytest.mark.parametrize("launch", [[], ["--zero", "2"]])
@pytest.mark.parametrize("gpu, capability", [("T4", (7, 5)), ("V100", (7, 0)), ("P100", (6, 0))])
def test_bf16_on_old_gpus_is_refused_by_name(
    gpu: str,
    capability: tuple[int, int],
    launch: list[str],
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ((gpu, capability, 16.0),))
    assert command(["train", str(recipe), "--precision.compute", "bf16", *launch]) == 2
    stderr = capsys.readouterr().err
    assert "compute capability 8.0" in stderr
    assert f"{gpu} has {capability[0]}.{capability[1]}" in stderr


def test_the_bounds_of_each_precision() -> None:
    ampere, turing = Hardware("cuda", 1, (8, 0)), Hardware("cuda", 1, (7, 5))
    cpu, unknown = Hardware("cpu", 1), Hardware("cuda", 1)
    for allowed in (
        (ampere, "bf16"),
        (ampere, "fp16"),
        (turing, "fp16"),
        (cpu, "bf16"),
        (cpu, "fp32"),
        (unknown, "bf16"),
    ):
        assert allowed[0].why_not(allowed[1]) == "", allowed
    assert turing.why_not("bf16")
    assert cpu.why_not("fp16")
    assert cpu.why_not("fp16", deepspeed=False) == ""


STAGES = {stage: {"zero_optimization": {"stage": stage}} for stage in (0, 1, 2)}
OFFLOADED = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize("deepspeed", [None, STAGES[1]])
def test_the_engine_itself_refuses(deepspeed: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a recipe is started without our launcher: a rank asks torch itself."""
    bf16, fp16 = Precision(compute="bf16"), Precision(compute="fp16")
    if deepspeed is not None:
        with pytest.raises(InputError, match=r"fp16 under DeepSpeed needs a CUDA device"):
            refuse_precision(fp16, deepspeed, False)
    else:
        refuse_precision(fp16, deepspeed, False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(InputError, match=r"bf16 needs compute capability 8\.0, Tesla T4 has 7\.5"):
        refuse_precision(bf16, deepspeed, True)
    refuse_precision(fp16, deepspeed, True)
    refuse_precision(bf16, deepspeed, False)


@pytest.mark.parametrize(
    "said, deepspeed, id",
    [
        ({"master_weights": "none"}, STAGES[0], "pure-zero0"),
        ({"master_weights": "none", "accumulation": "fp32"}, None, "accumulation-dtype"),
        ({"accumulation": "bf16"}, None, "accumulation-dtype"),
        ({"accumulation": "bf16"}, STAGES[0], "accumulation-dtype"),
        ({"master_weights": "none", "accumulation": "fp32"}, STAGES[1], "pure-accumulation"),
        ({"master_weights": "none"}, OFFLOADED, "pure-offload"),
    ],
)
def test_what_an_engine_cannot_hold_is_refused_by_it(
    said: dict[str, Any], deepspeed: dict[str, Any] | None, id: str
) -> None:
    precision = Precision.model_validate(said)
    with pytest.raises(InputError) as refused:
        refuse_precision(precision, deepspeed, False)
    assert [problem.id for problem in refused.value.problems] == [id]
    refuse_precision(precision, STAGES[2], False)
    refuse_precision(Precision(), deepspeed, False)


def test_bf16_trajectories_agree(tiny: Path, run: Run, tmp_path: Path) -> None:
    """Ten steps of plain torch and DDP (autocast) and ZeRO 0-3 in bf16 on two ranks.

    Largest distance to fp32, relative, as measured: autocast (DDP, ZeRO-0) loss 0.1 %, gradient norm 0.8 %; weights
    held in bf16 (ZeRO 1-3) loss 1.1 %, norm 4.2 %. The tolerance is three times that, two times for norms.
    """
    recipe = make_recipe(tiny, **{"precision.compute": "bf16", "batch.micro_examples": 8})
    fp32 = make_recipe(tiny, **{"batch.micro_examples": 8})
    cases: dict[str, Any] = {"fp32": {"recipe": fp32, "deepspeed": None}, "ddp": {"recipe": recipe, "deepspeed": None}}
    for zero in (1, 2, 3, 0):  # 0 last: DeepSpeed's autocast stays in the process, and the proof refuses what follows
        cases[f"zero{zero}"] = {"recipe": recipe, "deepspeed": engine_config(recipe, zero, 2)}
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"cases": cases, "out": str(tmp_path)}))
    done = run("torchrun", "--standalone", "--nproc_per_node=2", WORKER, order, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rows: dict[str, Rows] = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in cases}
    assert Recipe.model_validate(recipe).precision.compute == "bf16"
    worst = {}
    for name in cases:
        for key in ("loss", "grad_norm"):
            pairs = [(row[key], wanted[key]) for row, wanted in zip(rows[name], rows["fp32"], strict=True)]
            worst[name, key] = max(abs(a / b - 1) for a, b in pairs)
    for name in cases:
        assert worst[name, "loss"] < TOLERANCE
        assert worst[name, "grad_norm"] < 3 * TOLERANCE
        assert (worst[name, "loss"] > 1e-5) == (name != "fp32"), "bf16 is at work"
