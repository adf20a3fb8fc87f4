"""Preflight: every rule notices its fault, by its id and alone, and names the field, the value and the fix."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.planning.deepspeed_keys import REMOVED, SECTIONS
from lmrecipes.planning.hardware import GPUS, Hardware
from lmrecipes.planning.launch_files import load_file, parse_accelerate, parse_deepspeed
from lmrecipes.planning.launch_pair import launch_pair
from lmrecipes.planning.launch_view import mappings
from lmrecipes.planning.pair_precision import limits, pair_word
from lmrecipes.planning.preflight import RULES, named_json, preflight
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Batch, Optimizer, Precision, Recipe, Source, Task

GPU = Hardware.parse("2xA100")
REMOVE = object()


def recipe_for(precision: str = "bf16", optimizer: str = "adamw", clipping: float = 1.0, **more: Any) -> Recipe:
    return Recipe(
        name="demo",
        tasks={"reviews": Task(kind="classification", source=Source(files="reviews.jsonl"))},
        batch=Batch(examples=64, micro_examples=8),
        optimizer=Optimizer(name=optimizer, gradient_clipping=clipping),
        precision=Precision(compute=precision, **more),
    )


def changed(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with the values at dotted paths replaced, added or removed."""
    data = copy.deepcopy(data)
    for path, value in changes.items():
        *sections, key = path.split(".")
        target = data
        for section in sections:
            target = target.setdefault(section, {})
        if value is REMOVE:
            del target[key]
        else:
            target[key] = value
    return data


def check(
    json_changes: dict[str, Any] | None = None,
    yaml_changes: dict[str, Any] | None = None,
    zero: int = 2,
    precision: str = "bf16",
    recipe: Recipe | None = None,
    hardware: Hardware = GPU,
    said: Recipe | None = None,
) -> list[Problem]:
    """Problems of a pair generated for `recipe` after some changes; `said`: the recipe that it is then used with."""
    recipe = recipe or recipe_for(precision)
    word = precision if recipe.precision.compute != precision else pair_word(recipe.precision)
    pair = launch_pair(recipe, zero, word, 2, "cuda")
    deepspeed = parse_deepspeed(json.dumps(changed(pair.deepspeed, json_changes or {})), f"{pair.name}.json")
    accelerate = parse_accelerate(yaml.safe_dump(changed(pair.accelerate, yaml_changes or {})), f"{pair.name}.yaml")
    return preflight(said or recipe, deepspeed, accelerate, hardware)


PURE = recipe_for(master_weights="none")
BY_LAYER = recipe_for(layers={"*": "fp8", "heads.*": "fp32"}, fp8="emulated")
STATIC = recipe_for("fp16", loss_scaling={"kind": "static", "initial": 1024.0})
ZERO = "zero_optimization"
CPU_OFFLOAD = {"device": "cpu"}

BROKEN_JSON = [
    # id, severity, changes of the JSON, where, other arguments of `check`
    ("ds-unknown-key", "error", {"comms_config": {"a": 1}}, "comms_config", {}),
    ("ds-unknown-key", "error", {"train_micro_batch_size": 4}, "train_micro_batch_size", {}),
    ("ds-unknown-key", "error", {f"{ZERO}.stge": 2}, f"{ZERO}.stge", {}),
    ("ds-unknown-key", "error", {"data_types.grad_acum_dtype": "fp32"}, "data_types.grad_acum_dtype", {}),
    ("ds-unknown-key", "error", {f"{ZERO}.leaf_module": {"class": []}}, f"{ZERO}.leaf_module.class", {}),
    ("ds-unknown-key", "error", {"checkpoint": {"writer": {"typ": "fast"}}}, "checkpoint.writer.typ", {}),
    ("ds-unknown-key", "error", {"dataloader_drop_last": {"yes": 1}}, "dataloader_drop_last", {}),
    ("ds-removed-key", "error", {"amp": {"enabled": True}}, "amp", {}),
    ("ds-removed-key", "error", {"elasticity": {"enabled": False}}, "elasticity", {}),
    ("ds-removed-key", "error", {f"{ZERO}.mics_shard_size": 8}, f"{ZERO}.mics_shard_size", {}),
    ("ds-deprecated", "warning", {f"{ZERO}.cpu_offload": True}, f"{ZERO}.cpu_offload", {}),
    (
        "ds-deprecated",
        "error",
        {f"{ZERO}.cpu_offload": True, f"{ZERO}.offload_optimizer": CPU_OFFLOAD},
        f"{ZERO}.cpu_offload",
        {},
    ),
    (
        "ds-deprecated",
        "warning",
        {
            f"{ZERO}.stage3_gather_16bit_weights_on_model_save": REMOVE,
            f"{ZERO}.stage3_gather_fp16_weights_on_model_save": True,
        },
        f"{ZERO}.stage3_gather_fp16_weights_on_model_save",
        {"zero": 3},
    ),
    ("ds-deprecated", "error", {ZERO: True}, ZERO, {}),
    ("ds-deprecated", "error", {"bf16": REMOVE, "bfloat16": {"enabled": True}}, "bfloat16", {}),
    ("ds-unsupported", "error", {"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel", {}),
    ("ds-unsupported", "error", {"data_efficiency": {"enabled": True}}, "data_efficiency", {}),
    ("ds-unsupported", "error", {f"{ZERO}.zero_quantized_weights": True}, f"{ZERO}.zero_quantized_weights", {}),
    ("ds-unsupported", "error", {"gradient_allreduce_op": "sum"}, "gradient_allreduce_op", {}),
    ("masters-mismatch", "error", {"bf16.bf16_optimizer_states": True}, "bf16.bf16_optimizer_states", {}),
    (
        "masters-mismatch",
        "error",
        {"bf16.bf16_optimizer_states": REMOVE},
        "bf16.bf16_optimizer_states",
        {"recipe": PURE},
    ),
    (
        "masters-mismatch",
        "error",
        {"bf16.bf16_master_weights_and_grads": False},
        "bf16.bf16_master_weights_and_grads",
        {"recipe": PURE},
    ),
    (
        "masters-mismatch",
        "error",
        {"bf16.enabled": False, "torch_autocast": {"enabled": True, "dtype": "bf16"}},
        "torch_autocast.enabled",
        {"recipe": PURE},
    ),
    (
        "masters-mismatch",
        "error",
        {"fp16.fp16_master_weights_and_grads": True},
        "fp16.fp16_master_weights_and_grads",
        {"precision": "fp16"},
    ),
    ("loss-scale", "error", {"fp16.loss_scale": 128}, "fp16.loss_scale", {"precision": "fp16"}),
    ("loss-scale", "error", {"fp16.loss_scale": REMOVE}, "fp16.loss_scale", {"recipe": STATIC, "precision": "fp16"}),
    ("loss-scale", "error", {"fp16.initial_scale_power": 8}, "fp16.initial_scale_power", {"precision": "fp16"}),
    ("loss-scale", "error", {"fp16.loss_scale_window": 10**9}, "fp16.loss_scale_window", {"precision": "fp16"}),
    ("pure-zero0", "error", {f"{ZERO}.stage": 0}, f"{ZERO}.stage", {"recipe": PURE}),
    (
        "pure-offload",
        "error",
        {f"{ZERO}.offload_optimizer": CPU_OFFLOAD},
        f"{ZERO}.offload_optimizer",
        {"recipe": PURE},
    ),
    (
        "pure-accumulation",
        "error",
        {f"{ZERO}.stage": 1},
        "data_types.grad_accum_dtype",
        {"recipe": recipe_for(master_weights="none", accumulation="fp32")},
    ),
    (
        "accumulation-dtype",
        "error",
        {},
        "data_types.grad_accum_dtype",
        {"zero": 0, "said": recipe_for(accumulation="bf16")},
    ),
    ("precision-mismatch", "error", {}, "bf16.enabled", {"said": BY_LAYER}),
    (
        "bf16-grad-accum",
        "error",
        {},
        "data_types.grad_accum_dtype",
        {"said": recipe_for(accumulation="bf16", reduction="fp32")},
    ),
    ("bf16-grad-accum", "error", {}, "communication_data_type", {"said": recipe_for(reduction="bf16")}),
    (
        "bf16-grad-accum",
        "error",
        {"communication_data_type": "bf16"},
        "communication_data_type",
        {"recipe": recipe_for(reduction="fp32")},
    ),
    (
        "bf16-grad-accum",
        "error",
        {"data_types": REMOVE},
        "data_types.grad_accum_dtype",
        {"recipe": recipe_for(accumulation="fp32")},
    ),
    ("ds-value", "error", {"bf16.check_grad_overflow": "yes"}, "bf16.check_grad_overflow", {}),
    ("ds-value", "error", {"gradient_clipping": "1.0"}, "gradient_clipping", {}),
    ("ds-value", "error", {f"{ZERO}.reduce_bucket_size": 0.5}, f"{ZERO}.reduce_bucket_size", {}),
    ("ds-value", "error", {"communication_data_type": "float32"}, "communication_data_type", {}),
    ("ds-value", "error", {f"{ZERO}.offload_optimizer": {"device": "gpu"}}, f"{ZERO}.offload_optimizer.device", {}),
    ("ds-value", "error", {"fp16": True}, "fp16", {}),
    ("ds-value", "error", {"fp16": None}, "fp16", {}),
    ("ds-value", "error", {f"{ZERO}.offload_optimizer": "cpu"}, f"{ZERO}.offload_optimizer", {}),
    ("ds-value", "error", {"fp16.loss_scale": True}, "fp16.loss_scale", {}),
    ("auto-raw", "error", {"gradient_clipping": "auto"}, "gradient_clipping", {}),
    ("auto-raw", "error", {"train_batch_size": "auto"}, "train_batch_size", {}),
    ("auto-raw", "error", {"gradient_accumulation_steps": "auto"}, "gradient_accumulation_steps", {}),
    ("auto-raw", "error", {f"{ZERO}.stage": "auto"}, f"{ZERO}.stage", {}),
    ("auto-raw", "error", {f"{ZERO}.reduce_bucket_size": "auto"}, f"{ZERO}.reduce_bucket_size", {}),
    ("auto-precision", "error", {"bf16.enabled": "auto"}, "bf16.enabled", {}),
    ("auto-precision", "error", {"fp16.enabled": "auto"}, "fp16.enabled", {}),
    ("auto-precision", "error", {"fp16.loss_scale": "auto"}, "fp16.loss_scale", {}),
    ("zero-missing", "error", {ZERO: REMOVE}, ZERO, {}),
    ("zero-missing", "error", {f"{ZERO}.stage": REMOVE}, f"{ZERO}.stage", {}),
    ("zero-missing", "error", {f"{ZERO}.stage": None}, f"{ZERO}.stage", {}),
    ("stage-type", "error", {f"{ZERO}.stage": "3"}, f"{ZERO}.stage", {"zero": 3}),
    ("stage-type", "error", {f"{ZERO}.stage": 4}, f"{ZERO}.stage", {}),
    ("stage-type", "error", {f"{ZERO}.stage": 2.0}, f"{ZERO}.stage", {}),
    ("stage-type", "error", {f"{ZERO}.stage": True}, f"{ZERO}.stage", {}),
    ("batch-identity", "error", {"train_batch_size": 65}, "train_batch_size", {}),
    ("batch-identity", "error", {"train_batch_size": 64.0}, "train_batch_size", {}),
    ("batch-identity", "error", {"gradient_accumulation_steps": 0}, "gradient_accumulation_steps", {}),
    ("batch-identity", "error", {"train_micro_batch_size_per_gpu": "8"}, "train_micro_batch_size_per_gpu", {}),
    ("batch-identity", "error", {"train_micro_batch_size_per_gpu": REMOVE}, "train_micro_batch_size_per_gpu", {}),
    ("ga-mismatch", "error", {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps", {}),
    ("ga-mismatch", "error", {"gradient_accumulation_steps": REMOVE}, "gradient_accumulation_steps", {}),
    ("batch-identity", "error", {"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu", {}),
    (
        "z3-save",
        "error",
        {f"{ZERO}.stage3_gather_16bit_weights_on_model_save": False},
        f"{ZERO}.stage3_gather_16bit_weights_on_model_save",
        {"zero": 3},
    ),
    ("offload-noop", "error", {f"{ZERO}.offload_param": CPU_OFFLOAD}, f"{ZERO}.offload_param", {}),
    ("batch-identity", "error", {"gradient_accumulation_steps": True}, "gradient_accumulation_steps", {}),
    ("ds-value", "error", {"gradient_clipping": True}, "gradient_clipping", {}),
    ("ds-unsupported", "error", {"compile": {"deepcompile": True}}, "compile", {}),
    ("ds-unsupported", "error", {"sequence_parallel_size": 2}, "sequence_parallel_size", {}),
    ("offload-noop", "error", {f"{ZERO}.offload_optimizer": CPU_OFFLOAD}, f"{ZERO}.offload_optimizer", {"zero": 0}),
    (
        "offload-noop",
        "error",
        {f"{ZERO}.offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}},
        f"{ZERO}.offload_optimizer.device",
        {},
    ),
    (
        "offload-noop",
        "error",
        {f"{ZERO}.offload_optimizer": {"device": "nvme"}},
        f"{ZERO}.offload_optimizer.nvme_path",
        {"zero": 3},
    ),
    ("optimizer-twice", "error", {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "optimizer", {}),
    ("scheduler-twice", "error", {"scheduler": {"type": "WarmupLR"}}, "scheduler", {}),
    ("fp16-and-bf16", "error", {"fp16.enabled": True}, "fp16.enabled", {}),
    ("fp16-and-bf16", "error", {"torch_autocast": {"enabled": True}}, "torch_autocast.enabled", {}),
    ("precision-mismatch", "error", {"bf16.enabled": False}, "bf16.enabled", {}),
    ("precision-mismatch", "error", {"bf16.enabled": False, "fp16.enabled": True}, "fp16.enabled", {}),
    ("precision-mismatch", "error", {"bf16.enabled": True}, "bf16.enabled", {"precision": "fp32"}),
    ("precision-mismatch", "error", {"torch_autocast.dtype": REMOVE}, "torch_autocast.enabled", {"zero": 0}),
    (
        "bf16-zero0",
        "error",
        {"torch_autocast": REMOVE, "bf16.enabled": True},
        "bf16.enabled",
        {"zero": 0},
    ),
    (
        "bf16-zero0",
        "error",
        {"torch_autocast": REMOVE, "bf16.enabled": True, "data_types.grad_accum_dtype": "fp32"},
        "bf16.enabled",
        {"zero": 0},
    ),
    ("fp16-zero0", "error", {f"{ZERO}.stage": 0}, "fp16.enabled", {"precision": "fp16"}),
    (
        "autocast-fp16",
        "error",
        {"fp16.enabled": False, "torch_autocast": {"enabled": True, "dtype": "float16"}},
        "torch_autocast.dtype",
        {"precision": "fp16"},
    ),
    ("bf16-grad-accum", "error", {"data_types": REMOVE}, "data_types.grad_accum_dtype", {}),
    ("bf16-grad-accum", "error", {"communication_data_type": REMOVE}, "communication_data_type", {}),
    (
        "bf16-grad-accum",
        "error",
        {"bf16.enabled": False, "torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
        "torch_autocast.enabled",
        {},
    ),
    ("fp16-grad-accum", "error", {"data_types": REMOVE}, "data_types.grad_accum_dtype", {"precision": "fp16"}),
    ("clip-mismatch", "error", {"gradient_clipping": 0.5}, "gradient_clipping", {}),
    ("clip-mismatch", "warning", {"gradient_clipping": REMOVE}, "gradient_clipping", {}),
    (
        "clip-mismatch",
        "error",
        {"gradient_clipping": REMOVE},
        "gradient_clipping",
        {"recipe": recipe_for(clipping=0.25)},
    ),
    (
        "offload-swaps-opt",
        "error",
        {f"{ZERO}.offload_optimizer": CPU_OFFLOAD, "zero_force_ds_cpu_optimizer": True},
        "zero_force_ds_cpu_optimizer",
        {"recipe": recipe_for(optimizer="sgd")},
    ),
    (
        "offload-swaps-opt",
        "error",
        {f"{ZERO}.offload_optimizer": CPU_OFFLOAD, "zero_force_ds_cpu_optimizer": REMOVE},
        "zero_force_ds_cpu_optimizer",
        {},
    ),
    ("precision-hw", "error", {}, "bf16.enabled", {"hardware": Hardware.parse("2xV100")}),
    ("precision-hw", "error", {}, "torch_autocast.enabled", {"hardware": Hardware.parse("2xT4"), "zero": 0}),
    ("precision-hw", "error", {}, "fp16.enabled", {"hardware": Hardware.parse("2xcpu"), "precision": "fp16"}),
]

DS = "deepspeed_config"
BROKEN_YAML = [
    ("yaml-unknown", "error", {"num_procesess": 2}, "num_procesess", {}),
    ("yaml-unknown", "error", {f"{DS}.zero3_init": False}, f"{DS}.zero3_init", {}),
    ("yaml-unknown", "error", {"fsdp_config": {"fsdp_sharding": 1}}, "fsdp_config.fsdp_sharding", {}),
    ("yaml-unknown", "error", {"dynamo_config": "INDUCTOR"}, "dynamo_config", {}),
    ("yaml-distributed-type", "error", {"distributed_type": REMOVE}, "distributed_type", {}),
    ("yaml-distributed-type", "error", {"distributed_type": "DEEPSPED"}, "distributed_type", {}),
    ("yaml-distributed-type", "error", {"distributed_type": "MULTI_GPU"}, "distributed_type", {}),
    ("yaml-distributed-type", "error", {"distributed_type": "FSDP"}, "distributed_type", {}),
    ("yaml-vs-json", "error", {"mixed_precision": "bf16"}, "mixed_precision", {}),
    ("yaml-vs-json", "error", {"mixed_precision": "no"}, "mixed_precision", {}),
    ("yaml-vs-json", "error", {f"{DS}.zero_stage": 2}, f"{DS}.zero_stage", {}),
    ("yaml-vs-json", "error", {f"{DS}.gradient_clipping": None}, f"{DS}.gradient_clipping", {}),
    ("yaml-json-path", "error", {f"{DS}.deepspeed_config_file": "x/zero3.json"}, f"{DS}.deepspeed_config_file", {}),
    ("nproc", "error", {"num_processes": REMOVE}, "num_processes", {}),
    ("nproc", "error", {"num_processes": -1}, "num_processes", {}),
    ("nproc", "error", {"num_processes": "2"}, "num_processes", {}),
    ("nproc", "error", {"num_machines": 0}, "num_machines", {}),
    ("nproc", "error", {"num_machines": 3}, "num_processes", {}),
    ("nproc", "error", {}, "num_processes", {"hardware": Hardware.parse("1xA100")}),
    ("nproc", "warning", {}, "num_processes", {"hardware": Hardware.parse("4xA100")}),
    ("nproc", "warning", {}, "num_processes", {"hardware": Hardware.parse("4xcpu")}),
    ("nproc", "warning", {}, "num_processes", {"hardware": Hardware.parse("1xcpu")}),
    ("yaml-use-cpu", "warning", {"use_cpu": True}, "use_cpu", {}),
    ("z3-init", "error", {f"{DS}.zero3_init_flag": True}, f"{DS}.zero3_init_flag", {"zero": 3}),
    ("z3-init", "warning", {f"{DS}.zero3_init_flag": REMOVE}, f"{DS}.zero3_init_flag", {"zero": 3}),
    (
        "precision-mismatch",
        "error",
        {f"{DS}.deepspeed_config_file": REMOVE, "mixed_precision": "fp16"},
        "mixed_precision",
        {},
    ),
    (
        "yaml-value",
        "error",
        {f"{DS}.deepspeed_config_file": REMOVE, "mixed_precision": "bfloat16"},
        "mixed_precision",
        {},
    ),
    (
        "clip-mismatch",
        "error",
        {f"{DS}.deepspeed_config_file": REMOVE, f"{DS}.gradient_clipping": 0.5},
        f"{DS}.gradient_clipping",
        {},
    ),
    (
        "ga-mismatch",
        "error",
        {f"{DS}.deepspeed_config_file": REMOVE, f"{DS}.gradient_accumulation_steps": 1},
        f"{DS}.gradient_accumulation_steps",
        {},
    ),
]


def case_id(case: tuple) -> str:
    return f"{case[0]}: {case[3]}"


@pytest.mark.parametrize("case", BROKEN_JSON, ids=case_id)
def test_a_broken_json_triggers_exactly_its_rule(case):
    id, severity, changes, where, more = case
    assert_only(check(changes, **more), id, severity, ".json", where)


@pytest.mark.parametrize("case", BROKEN_YAML, ids=case_id)
def test_a_broken_yaml_triggers_exactly_its_rule(case):
    id, severity, changes, where, more = case
    assert_only(check(None, changes, **more), id, severity, ".yaml", where)


def assert_only(problems: list[Problem], id: str, severity: str, suffix: str, where: str) -> None:
    assert [(p.id, p.severity) for p in problems] == [(id, severity)], [str(p) for p in problems]
    file, _, path = problems[0].where.partition(": ")
    assert file.endswith(suffix)
    assert path == where
    assert problems[0].what
    assert problems[0].fix


def test_every_rule_has_a_broken_example():
    covered = {case[0] for case in [*BROKEN_JSON, *BROKEN_YAML]}
    assert covered | {"fp8-hw", "fp16-cpu"} == {id for id, _ in RULES}
    assert len({id for id, _ in RULES}) == len(RULES)


def test_the_clean_pair_has_no_problem():
    assert check() == []


def test_problems_are_collected():
    problems = check(
        {f"{ZERO}.stge": 3, "amp": {}, "gradient_clipping": "auto", "optimizer": {"type": "Adam"}},
        {"mixed_precision": "fp16", "num_processes": 16},
    )
    assert {p.id for p in problems} >= {
        "ds-unknown-key",
        "ds-removed-key",
        "auto-raw",
        "optimizer-twice",
        "yaml-vs-json",
        "nproc",
    }


def test_messages_name_value_and_nearest_word():
    [unknown] = check({f"{ZERO}.overlap_com": True})
    assert "Did you mean `overlap_comm`?" in unknown.fix
    assert "refuses" in unknown.what
    [silent] = check({"gradient_cliping": 1.0})
    assert "silently" in silent.what
    [misplaced] = check({"grad_accum_dtype": "fp32"})
    assert "data_types" in misplaced.fix
    [clip] = check({"gradient_clipping": 0.5})
    assert "0.5" in clip.what
    assert clip.fix == "write 1"
    [accumulation] = check({"gradient_accumulation_steps": 3})
    assert accumulation.fix == "write 4"
    assert accumulation.what.startswith("3, ")
    [absent] = check({"gradient_accumulation_steps": REMOVE})
    assert "missing" in absent.what


def test_messages_say_what_was_found():
    [empty] = check(None, {f"{DS}.zero_stage": None})
    assert "empty field" in empty.what
    [given] = check(None, {f"{DS}.zero_stage": 3})
    assert given.what.startswith("3 ")
    [unknown] = check(None, {"num_procesess": 2})
    assert "refuses" in unknown.what
    assert "Did you mean `num_processes`?" in unknown.fix
    [ignored] = check(None, {f"{DS}.zero_stag": 2})
    assert "silently" in ignored.what
    forced = {f"{ZERO}.offload_optimizer": CPU_OFFLOAD, "zero_force_ds_cpu_optimizer": True}
    [sgd] = check(forced, recipe=recipe_for(optimizer="sgd"))
    assert sgd.what.endswith("becomes Adam")
    [adamw] = check(forced)
    assert "L2" in adamw.what


@pytest.mark.parametrize("word", ["true", "True", 1])
def test_a_switch_that_only_deepspeed_reads_as_on_counts_as_on(word):
    assert [p.id for p in check({"fp16.enabled": word})] == ["ds-value", "fp16-and-bf16"]


@pytest.mark.parametrize(
    "precision",
    [
        {"accumulation": "bf16"},
        {"reduction": "bf16"},
        {"master_weights": "none"},
        {"master_weights": "none", "accumulation": "fp32"},
        {"master_weights": "none", "reduction": "fp32", "rounding": "kahan"},
        {"master_weights": "none", "layers": {"*": "fp8"}, "fp8": "emulated"},
        {"layers": {"*": "fp8"}, "fp8": "emulated"},
        {"compute": "fp16", "loss_scaling": {"kind": "static", "initial": 256.0}},
        {"compute": "fp16", "loss_scaling": {"initial": 2.0, "growth_interval": 5}},
        {"compute": "fp16", "accumulation": "fp16"},
    ],
    ids=str,
)
def test_what_the_recipe_declares_is_what_the_json_says(precision):
    recipe = recipe_for(
        **{"precision": precision.get("compute", "bf16")} | {k: v for k, v in precision.items() if k != "compute"}
    )
    for zero in (1, 2, 3):
        if not list(limits(recipe.precision, zero)):
            assert check(zero=zero, recipe=recipe, precision=recipe.precision.compute) == []


def ids(recipe: Recipe, machine: str) -> list[tuple[str, str, str]]:
    found = preflight(recipe, None, None, Hardware.parse(machine))
    return [(problem.id, problem.severity, problem.where) for problem in found]


def test_fp16_on_a_cpu_is_right_but_slow_without_deepspeed():
    slow = ("fp16-cpu", "warning")
    assert ids(recipe_for("fp16"), "2xcpu") == [(*slow, "precision.compute")]
    assert ids(recipe_for(layers={"*": "fp16"}), "cpu") == [(*slow, "precision.layers")]
    assert ids(recipe_for("fp16"), "A100") == []
    layers = recipe_for(layers={"*": "fp16"})
    assert [p.id for p in check(recipe=layers, hardware=Hardware.parse("2xcpu"))] == ["fp16-cpu"]
    [refused] = check(precision="fp16", hardware=Hardware.parse("2xcpu"))
    assert "DeepSpeed" in refused.what


@pytest.mark.parametrize("rules", [{"layers": {"*": "fp8"}}, {"changes": [{"at": 0.5, "layers": {"*": "fp8_e4m3"}}]}])
def test_fp8_where_the_hardware_has_none(rules):
    for machine, reason in (("A100", "compute capability 8.9"), ("cpu", "a CPU has no fp8")):
        [native] = preflight(recipe_for(fp8="native", **rules), None, None, Hardware.parse(machine))
        assert (native.id, native.severity, native.where) == ("fp8-hw", "error", "precision.fp8")
        assert reason in native.what
        [auto] = preflight(recipe_for(**rules), None, None, Hardware.parse(machine))
        assert (auto.id, auto.severity) == ("fp8-hw", "warning")
        assert "saves no time" in auto.what
        assert ids(recipe_for(fp8="emulated", **rules), machine) == []
    for machine in ("H100", "L40S"):
        assert ids(recipe_for(fp8="native", **rules), machine) == []


def test_layers_in_bf16_need_hardware_for_it_too():
    assert ids(recipe_for("fp32", layers={"heads.*": "bf16"}), "V100") == [
        ("precision-hw", "error", "precision.layers")
    ]
    assert [p.id for p in check(recipe=recipe_for(layers={"a": "fp32"}), hardware=Hardware.parse("2xV100"))] == [
        "precision-hw"
    ]
    assert ids(recipe_for("fp32", layers={"heads.*": "fp16"}), "V100") == []


def test_plain_torch_sums_gradients_in_the_dtype_of_the_weights():
    wrong = [("accumulation-dtype", "error", "precision.accumulation")]
    assert ids(recipe_for(accumulation="bf16"), "2xA100") == wrong
    assert ids(recipe_for(master_weights="none", accumulation="fp32"), "2xA100") == wrong
    assert ids(recipe_for(master_weights="none"), "2xA100") == ids(recipe_for(reduction="bf16"), "2xA100") == []


def test_the_json_decides_what_the_hardware_must_be_able_to():
    problems = check({}, recipe=recipe_for("fp32"), hardware=Hardware.parse("2xV100"))
    assert [p.id for p in problems] == ["precision-mismatch", "precision-hw"]


def test_batch_is_compared_at_the_world_size_of_the_yaml_else_of_the_hardware():
    recipe = recipe_for()
    pair = launch_pair(recipe, 2, "bf16", 4, "cuda")
    settings = parse_deepspeed(json.dumps(pair.deepspeed), "zero2_bf16.json")
    assert preflight(recipe, settings, None, Hardware.parse("4xA100")) == []
    assert [p.id for p in preflight(recipe, settings, None, Hardware.parse("2xA100"))] == ["ga-mismatch"]
    launch = parse_accelerate(yaml.safe_dump(pair.accelerate), "zero2_bf16.yaml")
    assert [p.id for p in preflight(recipe, settings, launch, Hardware.parse("8xA100"))] == ["nproc"]


def test_a_static_loss_scale_makes_the_keys_of_a_dynamic_one_idle():
    idle = {"fp16.initial_scale_power": 8, "fp16.loss_scale_window": 5}
    assert check(idle, recipe=STATIC, precision="fp16") == []


def test_a_complete_train_batch_size_is_accepted():
    assert check({"train_batch_size": 64}) == []


def test_harmless_sections_are_accepted():
    assert check({"tensor_parallel": {"autotp_size": 0}, "data_efficiency": {"enabled": False}, "compile": {}}) == []
    assert check({"wandb": {"enabled": False}, "flops_profiler": {"enabled": True, "profile_step": 2}}) == []
    assert check({f"{ZERO}.reduce_bucket_size": 5e8, "data_types.keep_in_fp32_modules": "auto"}) == []
    assert check({f"{ZERO}.offload_optimizer": {"device": "none"}}, zero=0) == []
    assert check({f"{ZERO}.offload_optimizer": {"pin_memory": False}}, zero=0) == []
    assert check({f"{ZERO}.offload_optimizer": CPU_OFFLOAD}, zero=1) == []
    assert check({f"{ZERO}.offload_param": CPU_OFFLOAD}, zero=3) == []
    assert check({"data_efficiency": {"enabled": False, "seed": 1234}}) == []


def test_an_empty_deepspeed_section_beside_a_given_json_is_accepted():
    assert check(None, {"deepspeed_config": {"zero3_init_flag": False}}) == []


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_optimizer_may_live_on_the_host(optimizer):
    assert check({f"{ZERO}.offload_optimizer": CPU_OFFLOAD}, recipe=recipe_for(optimizer=optimizer)) == []
    forced = {"zero_force_ds_cpu_optimizer": True}  # says nothing without offload
    assert check(forced, recipe=recipe_for(optimizer=optimizer)) == []


def test_without_files_only_the_recipe_and_the_machine_speak():
    assert preflight(recipe_for(), None, None, GPU) == []
    [problem] = preflight(recipe_for(), None, None, Hardware.parse("V100"))
    assert (problem.id, problem.where) == ("precision-hw", "precision.compute")


def test_a_yaml_for_deepspeed_without_any_json_is_refused():
    launch = parse_accelerate("{distributed_type: DEEPSPEED, num_processes: 2, deepspeed_config: {}}", "launch.yaml")
    assert [p.id for p in preflight(recipe_for(), None, launch, GPU)] == ["yaml-json-path"]


def test_a_yaml_that_names_a_json_and_does_not_start_deepspeed():
    text = "{distributed_type: MULTI_GPU, num_processes: 2, deepspeed_config: {deepspeed_config_file: a.json}}"
    launch = parse_accelerate(text, "launch.yaml")
    assert [p.id for p in preflight(recipe_for(), None, launch, GPU)] == ["yaml-distributed-type"]
    assert [p.id for p in check(None, {"distributed_type": "MULTI_GPU", DS: REMOVE})] == ["yaml-distributed-type"]


def test_yaml_fields_that_repeat_the_recipe_are_accepted():
    same = {f"{DS}.deepspeed_config_file": REMOVE, f"{DS}.gradient_accumulation_steps": 4, f"{DS}.gradient_clipping": 1}
    assert check(None, {**same, "mixed_precision": "bf16"}) == []


def test_nvme_with_a_path_is_accepted():
    assert check({f"{ZERO}.offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}, zero=3) == []


def test_multi_cpu_starts_one_process_only():
    launch = parse_accelerate("{distributed_type: MULTI_CPU, num_processes: 2, use_cpu: true}", "ddp.yaml")
    assert [p.id for p in preflight(recipe_for(), None, launch, Hardware.parse("2xcpu"))] == ["nproc"]
    with_mpi = parse_accelerate(
        "{distributed_type: MULTI_CPU, num_processes: 2, mpirun_config: {mpirun_hostfile: hosts}}", "ddp.yaml"
    )
    assert preflight(recipe_for(), None, with_mpi, Hardware.parse("2xcpu")) == []


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        ("{distributed_type: MULTI_CPU, num_processes: 1}", "cpu"),
        ("{distributed_type: 'NO'}", "H100"),
        ("{distributed_type: MULTI_GPU, num_processes: 2, mixed_precision: bf16}", "2xH100"),
        ("{distributed_type: MULTI_GPU, num_processes: 2, mixed_precision: null, fsdp_config: {}}", "2xcpu"),
        ("{distributed_type: MULTI_GPU, num_processes: 2, fp8_config: {fp8_margin: 0, interval: 1}}", "2xcpu"),
    ],
)
def test_launch_files_without_deepspeed_that_are_right(text, machine):
    assert preflight(recipe_for(), None, parse_accelerate(text, "x.yaml"), Hardware.parse(machine)) == []


def test_a_bare_no_means_fp32():
    launch = parse_accelerate("{distributed_type: MULTI_GPU, num_processes: 2, mixed_precision: no}", "x.yaml")
    assert [p.id for p in preflight(recipe_for(), None, launch, GPU)] == ["precision-mismatch"]
    assert preflight(recipe_for("fp32"), None, launch, GPU) == []


def test_an_unreadable_yaml_is_one_problem():
    assert [p.id for p in preflight(recipe_for(), None, parse_accelerate("a: [", "x.yaml"), GPU)] == ["file-syntax"]


@pytest.mark.parametrize(
    ("machine", "precisions"),
    [("cpu", "fp32 bf16"), ("V100", "fp32 fp16"), ("A100", "fp32 bf16 fp16"), ("H100", "fp32 bf16 fp16")],
)
def test_precisions_of_hardware(machine, precisions):
    hardware = Hardware.parse(machine)
    assert [p for p in ("fp32", "bf16", "fp16") if not hardware.why_not(p)] == precisions.split()
    assert not Hardware("cuda", 1).why_not("bf16")


@pytest.mark.parametrize(
    ("text", "id", "where"),
    [
        ('{"steps_per_print": 1, // why\n "x": 1}', "json-dialect", "line 1"),
        ('{"a": 1,\n# note\n "b": 2}', "json-dialect", "line 2"),
        ('{"a": 1,\n/* long\n note */ "b": 2}', "json-dialect", "line 2"),
        ('{"a": [1, 2,],\n "b": 2}', "json-dialect", "line 1"),
        ('{"a": {"b": 1, "b": 2}}', "json-dialect", "a.b"),
        ('{"a": [{"b": 1, "b": 2}]}', "json-dialect", "a[0].b"),
        ('{"a": NaN}', "json-dialect", ""),
        ('{"a": 1', "file-syntax", "line 1, column 8"),
        ("", "file-syntax", "line 1, column 1"),
        ("[1, 2]", "file-syntax", ""),
        ("null", "file-syntax", ""),
    ],
)
def test_a_json_that_is_not_plain_json(text, id, where):
    loaded = parse_deepspeed(text, "folder/some.json")
    assert [p.id for p in loaded.problems] == [id]
    assert loaded.problems[0].where == ("some.json: " + where if where else "some.json")
    assert loaded.readable == (id == "json-dialect")


def test_words_that_look_like_comments_stay_inside_texts():
    loaded = parse_deepspeed(r'{"path": "http://x/*y*/#z", "quote": "\"//", "comma": ",]"}', "x.json")
    assert loaded.problems == ()
    assert loaded.data == {"path": "http://x/*y*/#z", "quote": '"//', "comma": ",]"}


def test_places_stay_exact_behind_a_long_comment():
    loaded = parse_deepspeed('{"a": 1, /* one\ntwo */\n"b" 2}', "x.json")
    assert [p.where for p in loaded.problems] == ["x.json: line 1", "x.json: line 3, column 5"]


def test_a_comment_without_an_end():
    assert [p.id for p in parse_deepspeed('{"a": 1} /* for ever', "x.json").problems] == ["json-dialect"]


def test_reading_goes_on_behind_a_comment():
    pair = launch_pair(recipe_for(), 2, "bf16", 2, "cuda")
    text = json.dumps(changed(pair.deepspeed, {"gradient_clipping": 9.0}), indent=2)
    loaded = parse_deepspeed(text.replace("{\n", "{ // comment\n", 1), "zero2_bf16.json")
    problems = preflight(recipe_for(), loaded, None, GPU)
    assert [p.id for p in problems] == ["json-dialect", "clip-mismatch"]


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("a: [1, 2", "file-syntax"),
        ("- a\n- b", "file-syntax"),
        ("", "file-syntax"),
        ("num_processes: 2\nnum_processes: 4", "yaml-duplicate-key"),
        ("deepspeed_config:\n  zero_stage: 2\n  zero_stage: 3", "yaml-duplicate-key"),
    ],
)
def test_a_yaml_that_cannot_be_meant(text, id):
    assert [p.id for p in parse_accelerate(text, "x.yaml").problems] == [id]


def test_missing_and_binary_files_are_problems(tmp_path):
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "missing.json", binary, tmp_path):
        loaded = load_file(path, "deepspeed")
        assert [p.id for p in loaded.problems] == ["file-unreadable"]
        assert [p.id for p in preflight(recipe_for(), loaded, None, GPU)] == ["file-unreadable"]


def test_the_json_that_a_yaml_names():
    assert named_json(parse_accelerate("deepspeed_config: {deepspeed_config_file: a/b.json}", "x.yaml")) == "a/b.json"
    assert named_json(parse_accelerate("deepspeed_config: 3", "x.yaml")) is None
    assert named_json(parse_accelerate("num_processes: 3", "x.yaml")) is None


ALL_KEYS = {key for keys in SECTIONS.values() for key in keys} | {path.rpartition(".")[2] for path in REMOVED}
RECIPE = recipe_for()
DEEPEST = launch_pair(RECIPE, 3, "bf16", 2, "cuda", offload=True)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), key=st.text(min_size=1), value=st.none() | st.booleans() | st.integers() | st.text())
def test_an_unknown_key_at_any_depth_is_refused(data, key, value):
    section = data.draw(st.sampled_from([path for path, _ in mappings(DEEPEST.deepspeed)]))
    key = key if key not in ALL_KEYS else key + "_"
    path = f"{section}.{key}" if section else key
    broken = copy.deepcopy(DEEPEST.deepspeed)
    target = broken
    for part in section.split(".") if section else ():
        target = target[part]
    target[key] = value
    problems = preflight(RECIPE, parse_deepspeed(json.dumps(broken), "x.json"), None, GPU)
    assert [(p.id, p.where) for p in problems if p.id == "ds-unknown-key"] == [("ds-unknown-key", f"x.json: {path}")]
    assert any(p.severity == "error" for p in problems)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("auto"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=ANYTHING)
def test_no_value_makes_preflight_fail(data, value):
    """Whatever stands at a known key, rules answer with problems, never with an exception."""
    section = data.draw(st.sampled_from(sorted(SECTIONS)))
    key = data.draw(st.sampled_from(sorted(SECTIONS[section])))
    changes = {f"{section}.{key}" if section else key: value}
    accelerate_key = data.draw(st.sampled_from(sorted(DEEPEST.accelerate)))
    deepspeed = parse_deepspeed(json.dumps(changed(DEEPEST.deepspeed, changes)), "x.json")
    accelerate = parse_accelerate(json.dumps(changed(DEEPEST.accelerate, {accelerate_key: value})), "x.yaml")
    assert isinstance(preflight(RECIPE, deepspeed, accelerate, GPU), list)


@pytest.mark.parametrize(
    ("text", "device", "processes", "capability", "memory"),
    [
        ("cpu", "cpu", 1, None, None),
        ("2xcpu", "cpu", 2, None, None),
        ("8xA100-80GB", "cuda", 8, (8, 0), 80),
        ("8xa100-40gb", "cuda", 8, (8, 0), 40),
        ("4xH100", "cuda", 4, (9, 0), 80),
        (" 2 x V100 ", "cuda", 2, (7, 0), 16),
        ("RTX4090", "cuda", 1, (8, 9), 24),
    ],
)
def test_hardware_is_read(text, device, processes, capability, memory):
    hardware = Hardware.parse(text)
    assert (hardware.device, hardware.processes, hardware.compute_capability, hardware.memory_gb) == (
        device,
        processes,
        capability,
        memory,
    )
    assert Hardware.parse(str(hardware)) == hardware


@pytest.mark.parametrize("text", ["", "8x", "0xA100", "8xA1000", "A100-81GB", "cpu-16GB", "8 A100 SXM", "-2xcpu"])
def test_unknown_hardware_is_refused(text):
    with pytest.raises(InputError):
        Hardware.parse(text)


def test_unknown_hardware_gets_a_hint():
    with pytest.raises(InputError, match="Did you mean `H100`"):
        Hardware.parse("8xH1000")
    assert all(Hardware.parse(name).name == name for name in GPUS)


def test_planning_imports_no_framework():
    code = (
        "import sys, lmrecipes.planning.preflight, lmrecipes.planning.launch_pair, lmrecipes.plan\n"
        "print([m for m in ('torch', 'deepspeed', 'accelerate', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
