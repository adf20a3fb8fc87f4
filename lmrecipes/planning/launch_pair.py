"""Writes launch configurations: a DeepSpeed JSON and the Accelerate YAML that uses it, complete and concrete.

The pair says where and how a recipe runs, never what it trains: no optimizer, no scheduler, no "auto". Both files are
derived from the recipe, so that `lmrecipes check` finds nothing to say about them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lmrecipes.files import write_text_atomically
from lmrecipes.planning.batch import plan_batch
from lmrecipes.planning.hardware import Device, Hardware
from lmrecipes.planning.pair_precision import WORDS, PairWord, limits, pair_word, precision_of, precision_settings
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Precision, Recipe

Stage = Literal[0, 1, 2, 3]
Kind = tuple[Stage, PairWord, bool]
"""ZeRO stage, precision and offload of a pair."""

BUCKET_ELEMENTS = 50_000_000
"""Elements of one reduce or gather bucket: 100 MB in 16 bits, a fifth of DeepSpeed's default."""

STEPS_PER_PRINT = 1_000_000_000
"""DeepSpeed's own progress lines: never; metrics.jsonl is the record."""


STANDARD_PAIRS: tuple[Kind, ...] = (
    (1, "bf16", False),
    (2, "bf16", False),
    (3, "bf16", False),
    (1, "fp16", False),
    (2, "fp16", False),
    (3, "fp16", False),
    (2, "bf16", True),
    (3, "bf16", True),
)
"""The pairs in the folder of a recipe whose layers compute alike."""

BY_LAYER_PAIRS: tuple[Kind, ...] = (
    (1, "fp32", False),
    (2, "fp32", False),
    (3, "fp32", False),
    (2, "fp32", True),
    (3, "fp32", True),
)
"""Of a recipe whose layers have formats of their own."""

PURE_PAIRS: tuple[Kind, ...] = ((1, "pure_bf16", False), (2, "pure_bf16", False), (3, "pure_bf16", False))
"""Of a recipe without fp32 master weights."""


@dataclass(frozen=True)
class LaunchPair:
    """A launch configuration: `<name>.json` for DeepSpeed and `<name>.yaml` for Accelerate."""

    name: str
    deepspeed: dict[str, Any]
    accelerate: dict[str, Any]


def standard_pairs(precision: Precision) -> tuple[Kind, ...]:
    """The pairs that the folder of a recipe of this precision holds: those that can run."""
    pairs = PURE_PAIRS if precision.pure else BY_LAYER_PAIRS if precision.by_layer else STANDARD_PAIRS
    return tuple(kind for kind in pairs if not list(limits(precision_of(precision, kind[1]), kind[0], kind[2])))


def pair_name(zero: int, precision: str, offload: bool = False) -> str:
    """Name of a pair, for example `zero2_bf16` or `zero3_bf16_offload`."""
    return f"zero{zero}_{precision}" + ("_offload" if offload else "")


def launch_pair(
    recipe: Recipe,
    zero: Stage,
    precision: PairWord,
    processes: int,
    device: Device,
    offload: bool = False,
    json_path: str | None = None,
) -> LaunchPair:
    """The launch configuration of a recipe.

    zero: ZeRO stage: 0 nothing, 1 optimizer states, 2 and gradients, 3 and parameters are split over the ranks.
    precision: `pair_word(recipe.precision)`, or another word for a run with `--precision` flags that say so.
    processes: ranks in all, on one machine.
    offload: optimizer states (and at stage 3 the parameters) live in the memory of the host.
    json_path: how the YAML names the JSON, relative to where the run starts; default `recipes/<recipe>/<pair>.json`.

    Raises InputError for what cannot run right: fp16 at stage 0 (DeepSpeed#8393) or on a CPU, offload at stage 0, and
    the `limits` of DeepSpeed.
    """
    name = pair_name(zero, precision, offload)
    _refuse_what_cannot_run(recipe, zero, precision, processes, device, offload)
    deepspeed = {
        **_batch_settings(recipe, processes),
        "gradient_clipping": recipe.optimizer.gradient_clipping,
        **precision_settings(zero, precision_of(recipe.precision, precision)),
        "zero_optimization": _zero_settings(zero, device, offload),
        "zero_allow_untested_optimizer": True,
        # With true and offload Accelerate replaces the run's optimizer: SGD by Adam, decoupled weight decay by L2.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": STEPS_PER_PRINT,
        "wall_clock_breakdown": False,
    }
    accelerate = {
        **_yaml_settings("DEEPSPEED", processes),
        # No use_cpu: Accelerate does not pass it on under DeepSpeed, and one file serves GPUs and CPUs.
        "deepspeed_config": {
            "deepspeed_config_file": json_path or f"recipes/{recipe.name}/{name}.json",
            "zero3_init_flag": False,
        },
    }
    return LaunchPair(name, deepspeed, accelerate)


def plain_ddp_yaml(processes: int, device: Device) -> dict[str, Any]:
    """The Accelerate YAML for plain data parallelism without DeepSpeed (`ddp.yaml`).

    It is MULTI_GPU on a CPU too: of MULTI_CPU, `accelerate launch` starts one process only (without mpirun), whatever
    num_processes says. MULTI_GPU starts all of them through torch's launcher, and the script finds the device itself.
    """
    return {**_yaml_settings("MULTI_GPU" if processes > 1 else "NO", processes), "use_cpu": device == "cpu"}


def own_pair(recipe: Recipe, zero: Stage | None, hardware: Hardware, offload: bool = False) -> LaunchPair | None:
    """The pair of the recipe's own precision on a machine; None without DeepSpeed."""
    if zero is None:
        return None
    return launch_pair(recipe, zero, pair_word(recipe.precision), hardware.processes, hardware.device, offload)


def write_pair(pair: LaunchPair, folder: str | Path) -> tuple[Path, Path]:
    """Write `<name>.json` and `<name>.yaml` into the folder; returns their paths. Neither file is ever half-written."""
    paths = Path(folder) / f"{pair.name}.json", Path(folder) / f"{pair.name}.yaml"
    write_text_atomically(paths[0], json.dumps(pair.deepspeed, indent=2) + "\n")
    write_text_atomically(paths[1], yaml.safe_dump(pair.accelerate, sort_keys=False))
    return paths


def write_ddp_yaml(processes: int, device: Device, folder: str | Path) -> Path:
    """Write `plain_ddp_yaml` as `ddp.yaml` into the folder; returns its path."""
    path = Path(folder) / "ddp.yaml"
    write_text_atomically(path, yaml.safe_dump(plain_ddp_yaml(processes, device), sort_keys=False))
    return path


def _refuse_what_cannot_run(
    recipe: Recipe, zero: int, precision: PairWord, processes: int, device: str, offload: bool
) -> None:
    problems = []

    def refuse(where: str, what: str, fix: str, id: str) -> None:
        problems.append(Problem(where, what, fix, id=id))

    if zero not in (0, 1, 2, 3):
        refuse("zero", f"{zero!r} is not a ZeRO stage", "use 0, 1, 2 or 3", "stage-type")
    if precision not in WORDS:
        refuse("precision", f"{precision!r} is not known", f"use one of {', '.join(WORDS)}", "precision-mismatch")
    else:
        for limit in limits(precision_of(recipe.precision, precision), zero, offload):
            refuse(limit.field, limit.what, limit.fix, limit.id)
    if processes < 1:
        refuse("processes", f"{processes} processes were asked for", "use 1 or more", "nproc")
    if precision == "fp16" and zero == 0:
        what = (
            "fp16 at ZeRO stage 0 steps with gradients divided by a scale that backward never applied (DeepSpeed#8393)"
        )
        refuse("precision.compute", what, "use stage 1, 2 or 3, or bf16", "fp16-zero0")
    if precision == "fp16" and device == "cpu":
        refuse(
            "precision.compute", "DeepSpeed refuses fp16 on a CPU", "use bf16 or fp32, or plain torch", "precision-hw"
        )
    if offload and zero == 0:
        what = "ZeRO stage 0 splits nothing, so there is nothing to offload"
        refuse("offload", what, "use --zero 1, 2 or 3, or leave out --offload", "offload-noop")
    if problems:
        raise InputError(problems)


def _batch_settings(recipe: Recipe, processes: int) -> dict[str, int]:
    """Micro-batch and accumulation; DeepSpeed derives train_batch_size from them, so it cannot contradict."""
    plan = plan_batch(recipe.batch.examples, recipe.batch.micro_examples, processes)
    return {
        "train_micro_batch_size_per_gpu": plan.micro_examples,
        "gradient_accumulation_steps": plan.accumulation,
    }


def _zero_settings(zero: int, device: str, offload: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"stage": zero}
    if zero == 0:
        return settings
    settings |= {
        "overlap_comm": device == "cuda",
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_partitions": True,
        "allgather_bucket_size": BUCKET_ELEMENTS,
        "round_robin_gradients": False,
    }
    if zero == 3:
        settings |= {
            "sub_group_size": 1_000_000_000,
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if offload:
        host = {"device": "cpu", "pin_memory": device == "cuda"}
        settings["offload_optimizer"] = dict(host)
        if zero == 3:
            settings["offload_param"] = dict(host)
    return settings


def _yaml_settings(distributed_type: str, processes: int) -> dict[str, Any]:
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": distributed_type,
        "num_machines": 1,
        "num_processes": processes,
        "machine_rank": 0,
        "main_training_function": "main",
        "rdzv_backend": "static",
        "same_network": True,
    }
