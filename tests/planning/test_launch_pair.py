"""Launch pairs: complete and concrete, equal in meaning for every number of processes, accepted by both programs."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.launch_files import load_file
from lmrecipes.planning.launch_pair import (
    STANDARD_PAIRS,
    launch_pair,
    pair_name,
    plain_ddp_yaml,
    standard_pairs,
    write_ddp_yaml,
    write_pair,
)
from lmrecipes.planning.pair_precision import pair_word, precision_of, word_in_name
from lmrecipes.planning.preflight import named_json, preflight
from lmrecipes.problems import InputError
from lmrecipes.recipe import Batch, Optimizer, Precision, Recipe, Source, Task

ROOT = Path(__file__).resolve().parents[2]
RUNNABLE = [
    (zero, precision, offload)
    for zero in (0, 1, 2, 3)
    for precision in ("fp32", "bf16", "fp16")
    for offload in (False, True)
    if not (zero == 0 and (offload or precision == "fp16"))
]


def recipe_for(precision: str = "bf16", optimizer: str = "adamw", examples: int = 64, micro: int = 8) -> Recipe:
    return Recipe(
        name="demo",
        tasks={"reviews": Task(kind="classification", source=Source(files="reviews.jsonl"))},
        batch=Batch(examples=examples, micro_examples=micro),
        optimizer=Optimizer(name=optimizer, gradient_clipping=0.5),
        precision=Precision(compute=precision),
    )


def with_precision(**precision: Any) -> Recipe:
    return recipe_for().model_copy(update={"precision": Precision.model_validate(precision)})


BF16_SUMS = with_precision(accumulation="bf16")
PURE = with_precision(master_weights="none")
PURE_FP32_SUMS = with_precision(master_weights="none", accumulation="fp32")
BY_LAYER = with_precision(layers={"*": "fp8", "heads.*": "fp32"})
STATIC = with_precision(compute="fp16", loss_scaling={"kind": "static", "initial": 1024.0})
GROWING = with_precision(compute="fp16", loss_scaling={"initial": 256.0, "growth_interval": 7})
DECLARED = [(recipe, zero) for recipe in (BF16_SUMS, PURE, BY_LAYER, STATIC, GROWING) for zero in (1, 2, 3)]
DECLARED += [(BY_LAYER, 0), (PURE_FP32_SUMS, 2), (PURE_FP32_SUMS, 3), (with_precision(reduction="bf16"), 0)]


@pytest.mark.parametrize(("zero", "precision", "offload"), RUNNABLE)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("machine", ["2xcpu", "2xA100", "2xH100"])
def test_generated_pairs_are_clean(tmp_path, zero, precision, offload, optimizer, machine):
    hardware = Hardware.parse(machine)
    recipe = recipe_for(precision, optimizer)
    if precision == "fp16" and hardware.device == "cpu":
        with pytest.raises(InputError, match="fp16 on a CPU"):
            launch_pair(recipe, zero, precision, 2, "cpu", offload)
        return
    pair = launch_pair(recipe, zero, precision, 2, hardware.device, offload)
    files = write_pair(pair, tmp_path)
    assert preflight(recipe, load_file(files[0], "deepspeed"), load_file(files[1], "accelerate"), hardware) == []


@pytest.mark.parametrize(("zero", "precision"), [(2, "bf16"), (3, "bf16"), (1, "fp32")])
def test_pairs_for_gpus_serve_a_cpu_too(tmp_path, zero, precision):
    recipe = recipe_for(precision)
    files = write_pair(launch_pair(recipe, zero, precision, 2, "cuda"), tmp_path)
    cpu = Hardware.parse("2xcpu")
    assert preflight(recipe, load_file(files[0], "deepspeed"), load_file(files[1], "accelerate"), cpu) == []


@pytest.mark.parametrize("processes", [1, 2, 3, 8, 64])
def test_batch_is_the_recipe_plan_for_every_world_size(processes):
    recipe = recipe_for(examples=60, micro=8)
    settings = launch_pair(recipe, 2, "bf16", processes, "cuda").deepspeed
    micro, steps = settings["train_micro_batch_size_per_gpu"], settings["gradient_accumulation_steps"]
    assert micro <= 8
    assert micro * steps * processes >= 60 > (micro - 1) * steps * processes
    assert "train_batch_size" not in settings


def test_settings_are_concrete_and_leave_training_to_the_recipe():
    settings = launch_pair(recipe_for(), 3, "bf16", 2, "cuda", offload=True).deepspeed
    assert '"auto"' not in json.dumps(settings)
    assert not {"optimizer", "scheduler"} & set(settings)
    assert settings["gradient_clipping"] == 0.5
    assert settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert settings["zero_optimization"]["overlap_comm"] is True
    assert settings["zero_optimization"]["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert settings["bf16"]["enabled"] is True
    assert settings["fp16"] == {"enabled": False}
    assert settings["data_types"]["grad_accum_dtype"] == settings["communication_data_type"] == "fp32"
    assert settings["zero_allow_untested_optimizer"] is True


def test_the_word_of_a_pair():
    assert [pair_word(recipe.precision) for recipe in (BF16_SUMS, PURE, BY_LAYER, STATIC)] == [
        "bf16",
        "pure_bf16",
        "fp32",
        "fp16",
    ]
    pure_layers = with_precision(master_weights="none", layers={"*": "fp8"})
    assert pair_word(pure_layers.precision) == "pure_bf16"
    names = ["zero2_pure_bf16", "zero3_bf16_offload", "zero1_fp32", "ddp", "bf16"]
    assert [word_in_name(name) for name in names] == ["pure_bf16", "bf16", "fp32", None, "bf16"]


def test_another_word_than_the_recipes_is_for_a_run_with_flags():
    assert precision_of(STATIC.precision, "fp16") is STATIC.precision
    assert precision_of(STATIC.precision, "bf16") == Precision(compute="bf16")
    assert precision_of(BY_LAYER.precision, "pure_bf16") == Precision(master_weights="none")
    assert (
        launch_pair(PURE, 2, "bf16", 2, "cuda").deepspeed == launch_pair(recipe_for(), 2, "bf16", 2, "cuda").deepspeed
    )


def test_pure_bf16_says_so_in_full():
    pair = launch_pair(PURE, 2, "pure_bf16", 2, "cuda")
    assert pair.name == "zero2_pure_bf16"
    assert pair.deepspeed["bf16"] == {
        "enabled": True,
        "check_grad_overflow": True,
        "bf16_master_weights_and_grads": True,
        "bf16_optimizer_states": True,
    }
    assert pair.deepspeed["data_types"] == {"grad_accum_dtype": "bf16"}
    assert pair.deepspeed["communication_data_type"] == "bf16"


def test_sums_and_loss_scale_come_from_the_recipe():
    sums = launch_pair(with_precision(accumulation="bf16", reduction="fp32"), 2, "bf16", 2, "cuda").deepspeed
    assert (sums["data_types"]["grad_accum_dtype"], sums["communication_data_type"]) == ("bf16", "fp32")
    stage0 = launch_pair(with_precision(reduction="bf16"), 0, "bf16", 2, "cuda").deepspeed
    assert stage0["communication_data_type"] == "bf16"
    assert launch_pair(STATIC, 2, "fp16", 2, "cuda").deepspeed["fp16"]["loss_scale"] == 1024
    scaled = launch_pair(GROWING, 2, "fp16", 2, "cuda").deepspeed["fp16"]
    assert (scaled["loss_scale"], scaled["initial_scale_power"], scaled["loss_scale_window"]) == (0, 8, 7)


def test_formats_by_layer_stand_on_fp32_weights():
    for zero in (0, 1, 2, 3):
        settings = launch_pair(BY_LAYER, zero, "fp32", 2, "cuda").deepspeed
        assert settings["bf16"] == settings["fp16"] == {"enabled": False}
        assert "torch_autocast" not in settings


def test_each_kind_of_recipe_has_standard_pairs():
    assert standard_pairs(BF16_SUMS.precision) == STANDARD_PAIRS
    assert {word for _, word, _ in standard_pairs(BY_LAYER.precision)} == {"fp32"}
    assert [(zero, word) for zero, word, _ in standard_pairs(PURE.precision)] == [
        (1, "pure_bf16"),
        (2, "pure_bf16"),
        (3, "pure_bf16"),
    ]
    assert [zero for zero, _, _ in standard_pairs(PURE_FP32_SUMS.precision)] == [2, 3]


def test_bf16_at_stage_0_is_torch_autocast():
    settings = launch_pair(recipe_for(), 0, "bf16", 2, "cpu").deepspeed
    assert settings["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert settings["bf16"] == settings["fp16"] == {"enabled": False}


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_optimizer_of_the_run_is_never_replaced(offload, optimizer):
    pair = launch_pair(recipe_for(optimizer=optimizer), 2, "bf16", 2, "cuda", offload)
    assert pair.deepspeed["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(
    ("arguments", "id"),
    [
        ({"zero": 0, "precision": "fp16"}, "fp16-zero0"),
        ({"zero": 2, "precision": "fp16", "device": "cpu"}, "precision-hw"),
        ({"zero": 0, "offload": True}, "offload-noop"),
        ({"zero": 4}, "stage-type"),
        ({"precision": "fp8"}, "precision-mismatch"),
        ({"processes": 0}, "nproc"),
        ({"zero": 0, "precision": "pure_bf16"}, "pure-zero0"),
        ({"precision": "pure_bf16", "offload": True}, "pure-offload"),
        ({"zero": 1, "precision": "pure_bf16", "recipe": PURE_FP32_SUMS}, "pure-accumulation"),
        ({"zero": 0, "recipe": BF16_SUMS}, "accumulation-dtype"),
    ],
)
def test_what_cannot_run_is_refused(arguments, id):
    with pytest.raises(InputError) as refusal:
        launch_pair(
            **{"recipe": recipe_for(), "zero": 2, "precision": "bf16", "processes": 2, "device": "cuda"} | arguments
        )
    assert [problem.id for problem in refusal.value.problems] == [id]


def test_every_refusal_is_collected():
    with pytest.raises(InputError) as refusal:
        launch_pair(recipe_for(), 0, "fp16", 0, "cpu", offload=True)
    assert {p.id for p in refusal.value.problems} == {"fp16-zero0", "precision-hw", "offload-noop", "nproc"}


def test_names_and_paths(tmp_path):
    assert pair_name(2, "bf16") == "zero2_bf16"
    assert pair_name(3, "bf16", offload=True) == "zero3_bf16_offload"
    pair = launch_pair(recipe_for(), 2, "bf16", 2, "cpu")
    assert pair.accelerate["deepspeed_config"]["deepspeed_config_file"] == "recipes/demo/zero2_bf16.json"
    here = launch_pair(recipe_for(), 2, "bf16", 2, "cpu", json_path="somewhere/zero2_bf16.json")
    files = write_pair(here, tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["zero2_bf16.json", "zero2_bf16.yaml"]
    assert json.loads(files[0].read_text()) == here.deepspeed
    assert yaml.safe_load(files[1].read_text()) == here.accelerate
    assert named_json(load_file(files[1], "accelerate")) == "somewhere/zero2_bf16.json"
    assert sorted(p.name for p in files[0].parent.iterdir()) == ["zero2_bf16.json", "zero2_bf16.yaml"]


def test_writing_replaces_a_pair(tmp_path):
    for examples in (64, 128):
        pair = launch_pair(recipe_for(examples=examples), 2, "bf16", 2, "cpu")
        file, _ = write_pair(pair, tmp_path)
    assert json.loads(file.read_text())["gradient_accumulation_steps"] == 8


@pytest.mark.parametrize(("processes", "device"), [(1, "cpu"), (2, "cpu"), (8, "cuda")])
def test_plain_ddp_is_clean(tmp_path, processes, device):
    path = write_ddp_yaml(processes, device, tmp_path)
    assert path.name == "ddp.yaml"
    assert yaml.safe_load(path.read_text()) == plain_ddp_yaml(processes, device)
    hardware = Hardware(device, processes, (8, 0) if device == "cuda" else None)
    assert preflight(recipe_for(), None, load_file(path, "accelerate"), hardware) == []


ACCEPT = """
import json, os, sys, warnings
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin
from deepspeed.runtime.config import DeepSpeedConfig

for name in sys.argv[1:]:
    settings, launch = DeepSpeedConfig(name + ".json"), load_config_from_file(name + ".yaml")
    os.environ["ACCELERATE_CONFIG_DS_FIELDS"] = ",".join(launch.deepspeed_config)
    os.environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = str(launch.deepspeed_config["zero3_init_flag"]).lower()
    plugin = DeepSpeedPlugin(hf_ds_config=name + ".json")
    print("RESULT" + json.dumps({
        "stage": [int(settings.zero_optimization_stage), plugin.zero_stage],
        "accumulation": [settings.gradient_accumulation_steps, plugin.gradient_accumulation_steps],
        "bf16": settings.bfloat16_config.enabled, "fp16": settings.float16_config.enabled,
        "autocast": str(settings.torch_autocast_dtype), "clip": settings.gradient_clipping,
        "type": launch.distributed_type.value, "processes": launch.num_processes,
        "zero_init": plugin.zero3_init_flag,
        "pure": [getattr(settings.bfloat16_config, "bf16_" + key)
                 for key in ("master_weights_and_grads", "optimizer_states")],
        "sums": settings.grad_accum_dtype, "reduced": str(settings.communication_data_type),
        "scale": settings.float16_config.loss_scale,
    }))
"""


def test_deepspeed_and_accelerate_accept_every_pair(tmp_path):
    names = []
    for zero, precision, offload in RUNNABLE:
        pair = launch_pair(recipe_for(precision), zero, precision, 2, "cuda", offload)
        write_pair(pair, tmp_path)
        names.append(str(tmp_path / pair.name))
    for number, (recipe, zero) in enumerate(DECLARED):
        folder = tmp_path / str(number)
        write_pair(launch_pair(recipe, zero, pair_word(recipe.precision), 2, "cuda"), folder)
        names.append(str(folder / pair_name(zero, pair_word(recipe.precision))))
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-c", ACCEPT, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(results) == len(RUNNABLE) + len(DECLARED)
    for (recipe, _), result in zip(DECLARED, results[len(RUNNABLE) :], strict=True):
        declared = recipe.precision
        sums = {None: None, "fp32": "torch.float32", "bf16": "torch.bfloat16"}
        assert result["pure"] == [declared.pure, declared.pure]
        if declared.section != "bf16" or result["stage"][0] > 0:
            assert result["sums"] == declared.accumulated
        assert result["reduced"] == sums[declared.reduced]
        assert result["scale"] == (1024 if recipe is STATIC else 0)
    for (zero, precision, _), result in zip(RUNNABLE, results, strict=False):
        del result["pure"], result["sums"], result["reduced"], result["scale"]
        assert result == {
            "stage": [zero, zero],
            "accumulation": [4, 4],
            "bf16": precision == "bf16" and zero > 0,
            "fp16": precision == "fp16",
            "autocast": "torch.bfloat16" if precision == "bf16" and zero == 0 else "None",
            "clip": 0.5,
            "type": "DEEPSPEED",
            "processes": 2,
            "zero_init": False,
        }


@pytest.mark.parametrize("kind", ["pair", "ddp"])
def test_accelerate_launch_starts_every_rank(tmp_path, kind):
    if kind == "pair":
        pair = launch_pair(recipe_for(), 2, "bf16", 2, "cpu", json_path="not/there/yet.json")
        path = write_pair(pair, tmp_path)[1]
    else:
        path = write_ddp_yaml(2, "cpu", tmp_path)
    script = tmp_path / "script.py"
    names = "RANK WORLD_SIZE ACCELERATE_USE_DEEPSPEED ACCELERATE_DEEPSPEED_CONFIG_FILE ACCELERATE_MIXED_PRECISION"
    script.write_text(
        "import json, os, pathlib\n"
        f"found = {{name: os.environ.get(name) for name in {names.split()}}}\n"
        "pathlib.Path(f'rank{found[\"RANK\"]}.json').write_text(json.dumps(found))\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--config_file", str(path), str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in ("0", "1"):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == {
            "RANK": rank,
            "WORLD_SIZE": "2",
            "ACCELERATE_USE_DEEPSPEED": "true" if kind == "pair" else None,
            "ACCELERATE_DEEPSPEED_CONFIG_FILE": "not/there/yet.json" if kind == "pair" else None,
            "ACCELERATE_MIXED_PRECISION": "no",
        }


def recipe_of(folder: Path) -> Recipe:
    return runpy.run_path(str(folder / "recipe.py"), run_name="recipe_under_test")["recipe"]()


YAMLS = sorted(path.relative_to(ROOT) for path in ROOT.glob("recipes/*/*.yaml"))


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_committed_launch_files_are_clean_on_gpus_and_on_a_cpu(path):
    launch = load_file(ROOT / path, "accelerate")
    recipe = recipe_of((ROOT / path).parent)
    json_path = named_json(launch)
    settings = load_file(ROOT / json_path, "deepspeed") if json_path else None
    if settings is not None:
        assert json_path == str(path.with_suffix(".json"))
        assert settings.readable
        precision = precision_of(recipe.precision, word_in_name(path.stem))
        recipe = recipe.model_copy(update={"precision": precision})
    processes = launch.data["num_processes"]
    machines = [Hardware("cuda", processes, (8, 0))]
    if "fp16" not in path.stem:
        machines.append(Hardware("cpu", processes))
    for machine in machines:
        problems = preflight(recipe, settings, launch, machine)
        assert [problem for problem in problems if problem.id not in ("fp8-hw", "fp16-cpu")] == []
        assert not any(problem.severity == "error" for problem in problems)


def test_every_committed_json_has_its_yaml():
    for path in ROOT.glob("recipes/*/zero*.json"):
        assert path.with_suffix(".yaml").exists(), path


def test_default_recipe_has_a_pair():
    folder = ROOT / "recipes" / "bert_multitask"
    if not (folder / "recipe.py").exists():
        pytest.skip("recipes/bert_multitask is not there")
    assert list(folder.glob("zero*.json"))
