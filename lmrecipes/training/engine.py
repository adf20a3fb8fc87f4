"""The engine: the one file that knows Accelerate and DeepSpeed.

It promises the loop one meaning of a step whatever runs below (one process, DDP, ZeRO 0-3): gradients are *summed* over
micro-batches and ranks. DDP and DeepSpeed average over ranks, so the local loss is multiplied by the world size first;
DeepSpeed's division by the accumulation is switched off.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmrecipes.data.batches import MicroBatch, Texts, texts_to
from lmrecipes.inference.arithmetic import HALF, Arithmetic
from lmrecipes.planning.batch import BatchPlan, plan_batch
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.training.optimizers import make_optimizer, offloads_optimizer, parameter_groups

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others before it gives up."""


@dataclass(frozen=True)
class StepResult:
    """grad_norm: global L2 norm before clipping; applied: False where non-finite gradients made the step be skipped."""

    grad_norm: float
    applied: bool
    loss_scale: float | None


class Engine:
    """Processes, devices, the wrapped model and its optimizer."""

    def __init__(self, recipe: Recipe, deepspeed: dict[str, Any] | None) -> None:
        """Join the process group. `deepspeed`: a complete DeepSpeed configuration, or None for plain torch or DDP."""
        prepare_environment()
        self.recipe = recipe
        self.deepspeed = deepspeed
        if deepspeed is not None:
            self.deepspeed = deepspeed = _for_this_world(deepspeed, recipe)
            _single_process_defaults()
        self.accelerator = _accelerator(recipe, deepspeed)
        self.model: Any = None
        self.optimizer: Any = None
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() != self.world_size:
            raise RuntimeError(
                f"Accelerate believes in {self.world_size} process(es), torch.distributed in "
                f"{torch.distributed.get_world_size()}"
            )

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """This process's number."""
        return int(self.accelerator.process_index)

    @property
    def is_main(self) -> bool:
        """Rank 0: the one that prints and writes."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device(self.accelerator.device)

    @property
    def zero_stage(self) -> int | None:
        """ZeRO stage, None without DeepSpeed."""
        return int(self.deepspeed["zero_optimization"]["stage"]) if self.deepspeed is not None else None

    @property
    def plan(self) -> BatchPlan:
        """The global batch on this world."""
        return plan_batch(self.recipe.batch.examples, self.recipe.batch.micro_examples, self.world_size)

    @property
    def module(self) -> Any:
        """The model without its wrappers."""
        return self.model.module if hasattr(self.model, "module") else self.model

    @property
    def holds_half(self) -> bool:
        """Whether the model's own weights are 16-bit (with fp32 masters elsewhere), rather than cast when used."""
        return self.deepspeed is not None and bool(self.model.fp16_enabled() or self.model.bfloat16_enabled())

    @property
    def compute_dtype(self) -> torch.dtype:
        """dtype of the matrix products."""
        return HALF.get(self.recipe.precision.compute, torch.float32)

    @property
    def arithmetic(self) -> Arithmetic:
        """How the live model computes."""
        dtype = self.compute_dtype
        return Arithmetic(self.device, dtype, dtype != torch.float32 and not self.holds_half)

    def prepare(self, model: nn.Module) -> None:
        """Wrap the model (a `MultiTaskModel` in fp32) and make its optimizer."""
        if self.zero_stage == 3:
            _match_partitioned(model)
        groups = parameter_groups(model, self.recipe)
        if not groups:
            what, fix = "no parameter is left to train", "free some of them"
            raise InputError(Problem("model.freeze", what, fix, "freeze"))
        optimizer = make_optimizer(groups, self.recipe.optimizer, self.device, offloads_optimizer(self.deepspeed))
        if self.deepspeed is None:
            model.to(self.device)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.model.train()  # `from_pretrained` returns a model in evaluation mode, without dropout
        self.factors = [group["factor"] for group in groups]

    def micro_step(self, batch: Any, last: bool) -> Tensor:
        """Forward and backward of one micro-batch; `last` of the step on this rank. Returns the tasks' loss sums."""
        batch = batch.to(self.device)
        if self.deepspeed is not None:
            self.model.set_gradient_accumulation_boundary(is_boundary=last)
            loss, sums = self.model(batch)
            self.model.backward(loss * self.world_size, scale_wrt_gas=False)
        else:
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, sums = self.model(batch)
                self.accelerator.backward(loss * self.world_size)
        return sums

    def apply(self, lr: float) -> StepResult:
        """Clip, update and clear the gradients. `lr`: the trunk's learning rate."""
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = lr * factor
        limit = self.recipe.optimizer.gradient_clipping
        if self.deepspeed is None:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            scaler = self.accelerator.scaler
            scale = float(scaler.get_scale()) if scaler is not None else None
            return StepResult(float(norm), not self.accelerator.optimizer_step_was_skipped, scale)
        norm = None
        if self.zero_stage == 0 and not self.holds_half:
            norm = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        self.model.step()
        norm = self.model.get_global_grad_norm() if norm is None else norm
        scale = float(self.model.loss_scale()) if self.model.fp16_enabled() else None
        return StepResult(float(norm), self.model.was_step_applied(), scale)

    def predict(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Predictions of every head, see `MultiTaskModel.predictions`. Every rank must call it equally often."""
        with self._resting():
            out: dict[str, Tensor] = self.model(batch.to(self.device), "predictions")
        return out

    def vectors(self, texts: Texts) -> Tensor:
        """The trunk's vectors [texts, hidden]. Every rank must call it equally often."""
        with self._resting():
            out: Tensor = self.model(texts_to(texts, self.device), "vectors")
        return out

    def outputs(self, ids: list[int]) -> Tensor:
        """What the model as `transformers` saves it gives for a text, in its own attention and the run's arithmetic:
        fp32 on the CPU, logits [time, vocabulary], or without a language-model head [time, hidden]. Every rank must
        call it with the same text."""
        with self._alone() as whole:
            out: Tensor = whole(input_ids=torch.tensor([ids], device=self.device))[0][0]
        return out.float().cpu()

    def generate(self, prompts: list[list[int]], most: int) -> list[list[int]]:
        """The likeliest continuation of each prompt, token by token: at most `most` tokens, without the end of text.
        Every rank must call it with the same prompts."""
        found = []
        with self._alone() as whole:
            end = whole.generation_config.eos_token_id
            ends = {end} if isinstance(end, int) else set(end or ())
            for prompt in prompts:
                ids = torch.tensor([prompt], device=self.device)
                # Not sampled: the settings that a pretrained model brings for sampling are put back to none.
                out = whole.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, use_cache=True,
                    temperature=None, top_p=None, top_k=None, pad_token_id=next(iter(ends), 0),
                )  # fmt: skip
                found.append([token for token in out[0, len(prompt) :].tolist() if token not in ends])
        return found

    @contextmanager
    def _resting(self) -> Iterator[None]:
        """Without gradients and dropout."""
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train()

    @contextmanager
    def _alone(self) -> Iterator[Any]:
        """The model as `transformers` knows it, to be called without the wrappers' own forward."""
        trunk = self.module.trunk
        with self._resting(), trunk.native(), self.arithmetic.products():
            yield trunk.whole

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, on every rank."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable object, on every rank."""
        if self.world_size == 1:
            return [value]
        out: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(out, value)
        return out

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable object, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            torch.distributed.barrier()

    def full_parameters(self, trained_only: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and persistent buffer whole, from the fp32 master weights, on the CPU; or the trained alone.

        Gathers one at a time: every rank must iterate to the end.
        """
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.module.named_parameters():
            if trained_only and not parameter.requires_grad:
                continue
            full = safe_get_full_fp32_param(parameter) if self.deepspeed is not None and self.zero_stage else None
            if full is None:
                with GatheredParameters([parameter]) if self.zero_stage == 3 else nullcontext():
                    full = parameter.detach().clone()
            yield name, full.detach().float().cpu()
        if trained_only:
            return
        parameters = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        for name, tensor in self.module.state_dict().items():
            if name not in parameters:
                yield name, tensor.detach().cpu()

    @contextmanager
    def loading_whole(self) -> Iterator[None]:
        """Within: `from_pretrained` loads a whole model on this rank alone, under ZeRO-3 too."""
        from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
        try:
            yield
        finally:
            if self.zero_stage == 3:
                set_hf_deepspeed_config(self.accelerator.state.deepspeed_plugin.dschf)

    @property
    def _frozen(self) -> set[str]:
        """Names of the state dict that training does not change; a checkpoint need not hold them."""
        return {name for name, p in self.module.named_parameters(remove_duplicate=False) if not p.requires_grad}

    def save(self, folder: Path) -> None:
        """Write the trained weights and the optimizer's state into `folder`; every rank takes part."""
        frozen = self._frozen
        if self.deepspeed is not None:
            self.model.save_checkpoint(
                str(folder), tag="engine", save_latest=False, exclude_frozen_parameters=bool(frozen)
            )
        elif self.is_main:
            scaler = self.accelerator.scaler
            state = {
                "model": {name: weight for name, weight in self.module.state_dict().items() if name not in frozen},
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            torch.save(state, folder / "engine.pt")

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        if self.deepspeed is not None:
            self.model.load_checkpoint(str(folder), tag="engine", load_module_strict=not self._frozen)
            return
        state = torch.load(folder / "engine.pt", map_location="cpu", weights_only=True)
        missing, unknown = self.module.load_state_dict(state["model"], strict=False)
        if lost := [*unknown, *(set(missing) - self._frozen)]:
            raise RuntimeError(f"{folder} is of another model: {', '.join(sorted(lost)[:3])}")
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def release(self) -> None:
        """Give up the model and what Accelerate keeps for the process: another engine can start in its place."""
        from accelerate.state import AcceleratorState

        self.model = self.optimizer = None
        self.accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)

    def close(self) -> None:
        """Leave the process group."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


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


def _single_process_defaults() -> None:
    """DeepSpeed wants a process group even for one process started by plain `python`."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(alone)


def _for_this_world(deepspeed: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The configuration with micro-batch and accumulation derived for the processes that really run."""
    plan = plan_batch(recipe.batch.examples, recipe.batch.micro_examples, int(os.environ.get("WORLD_SIZE", "1")))
    derived = {
        "train_micro_batch_size_per_gpu": plan.micro_examples,
        "gradient_accumulation_steps": plan.accumulation,
    }
    return {**{k: v for k, v in deepspeed.items() if k != "train_batch_size"}, **derived}


def _accelerator(recipe: Recipe, deepspeed: dict[str, Any] | None) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

    cuda = torch.cuda.is_available()
    half = recipe.precision.compute
    refuse_precision(half, cuda, deepspeed is not None)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    distributed = "LOCAL_RANK" in os.environ
    process_group = [InitProcessGroupKwargs(backend="nccl" if cuda else "gloo", timeout=TIMEOUT)] if distributed else []
    if deepspeed is None:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        return Accelerator(
            mixed_precision="no" if half == "fp32" else half,
            cpu=not cuda,
            kwargs_handlers=process_group,
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


def refuse_precision(half: str, cuda: bool, deepspeed: bool) -> None:
    """Raise InputError where the hardware has no such arithmetic."""
    where, engine = "precision.compute", "DeepSpeed" if deepspeed else "Accelerate"
    if half == "fp16" and not cuda:
        silent = "DeepSpeed's CPU accelerator has no fp16" if deepspeed else "Accelerate would silently train in fp32"
        raise InputError(
            Problem(
                where,
                f"fp16 under {engine} needs a CUDA device and none is here ({silent})",
                "use bf16 or fp32",
                "precision-hw",
            )
        )
    if half == "bf16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        raise InputError(
            Problem(
                where,
                f"bf16 needs compute capability 8.0, {name} has {capability[0]}.{capability[1]}",
                "use fp16 or fp32",
                "precision-hw",
            )
        )


def _match_partitioned(model: nn.Module) -> None:
    """Give the heads the dtype of the trunk: under ZeRO-3 `transformers` loads it partitioned and in 16 bits already,
    and DeepSpeed asserts one dtype. At the other stages DeepSpeed casts the whole model, with the same result."""
    partitioned = {parameter.dtype for parameter in model.parameters() if hasattr(parameter, "ds_id")}
    for parameter in model.parameters():
        if len(partitioned) == 1 and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(next(iter(partitioned)))
