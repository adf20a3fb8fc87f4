"""How the processes of a run start: Accelerate's and DeepSpeed's settings, and what they cannot do."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from lmrecipes.inference.arithmetic import HALF
from lmrecipes.planning.batch import plan_batch
from lmrecipes.planning.pair_precision import limits
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_precision import Precision
from lmrecipes.training.optimizers import offloads_optimizer

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others before it gives up."""


def start_accelerator(recipe: Recipe, deepspeed: dict[str, Any] | None) -> Any:
    """Join the process group. Raises InputError where the engine or the hardware has no such arithmetic.

    Accelerate is told of no mixed precision but DeepSpeed's section: its own would train in fp32 where fp16 is asked
    for on a CPU.
    """
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs

    cuda = torch.cuda.is_available()
    refuse_precision(recipe.precision, deepspeed, cuda)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    distributed = "LOCAL_RANK" in os.environ
    process_group = [InitProcessGroupKwargs(backend="nccl" if cuda else "gloo", timeout=TIMEOUT)] if distributed else []
    if deepspeed is None:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        once = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # gradients are not held twice
        return Accelerator(
            mixed_precision="no",
            cpu=not cuda,
            kwargs_handlers=[once, *process_group],
            step_scheduler_with_optimizer=False,
        )
    section = next((h for h in HALF if deepspeed.get(h, {}).get("enabled")), "no")
    plugin = DeepSpeedPlugin(hf_ds_config=deepspeed, zero3_init_flag=False)
    return Accelerator(
        mixed_precision=section,
        gradient_accumulation_steps=deepspeed["gradient_accumulation_steps"],
        deepspeed_plugin=plugin,
        kwargs_handlers=process_group,
        step_scheduler_with_optimizer=False,
    )


def prepare_environment() -> None:
    """Settings that must stand before DeepSpeed is imported: its accelerator, and where it builds operators."""
    extensions = Path(sys.prefix) / "torch_extensions"
    if extensions.is_dir():
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(extensions))
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    binaries = str(Path(sys.executable).parent)
    if binaries not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = binaries + os.pathsep + os.environ.get("PATH", "")


def single_process_defaults() -> None:
    """DeepSpeed wants a process group even for one process started by plain `python`."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(alone)


def for_this_world(deepspeed: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The configuration with micro-batch and accumulation derived for the processes that really run."""
    plan = plan_batch(recipe.batch.examples, recipe.batch.micro_examples, int(os.environ.get("WORLD_SIZE", "1")))
    derived = {
        "train_micro_batch_size_per_gpu": plan.micro_examples,
        "gradient_accumulation_steps": plan.accumulation,
    }
    return {**{k: v for k, v in deepspeed.items() if k != "train_batch_size"}, **derived}


def zero_stage_of(deepspeed: dict[str, Any] | None) -> int | None:
    """ZeRO stage of a configuration, None without DeepSpeed."""
    return int(deepspeed["zero_optimization"]["stage"]) if deepspeed is not None else None


def refuse_precision(precision: Precision, deepspeed: dict[str, Any] | None, cuda: bool) -> None:
    """Raise InputError where the hardware or the engine has no such arithmetic."""
    limited = limits(precision, zero_stage_of(deepspeed), offloads_optimizer(deepspeed))
    problems = [Problem(limit.field, limit.what, limit.fix, limit.id) for limit in limited]
    if problems := [*_hardware(precision.compute, deepspeed, cuda), *problems]:
        raise InputError(problems)


def _hardware(half: str, deepspeed: dict[str, Any] | None, cuda: bool) -> Iterator[Problem]:
    where = "precision.compute"
    if half == "fp16" and deepspeed is not None and not cuda:
        what = "fp16 under DeepSpeed needs a CUDA device and none is here (DeepSpeed's CPU accelerator has no fp16)"
        yield Problem(where, what, "use bf16 or fp32, or start without DeepSpeed", "precision-hw")
    if half == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        what = f"bf16 needs compute capability 8.0, {name} has {capability[0]}.{capability[1]}"
        yield Problem(where, what, "use fp16 or fp32", "precision-hw")
