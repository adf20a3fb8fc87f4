"""The engine: the one file that knows Accelerate's and DeepSpeed's objects (`zero.py` knows DeepSpeed's insides,
`accelerator.py` their settings).

It promises the loop one meaning of a step whatever runs below (one process, DDP, ZeRO 0-3): gradients are *summed* over
micro-batches and ranks. DDP and DeepSpeed average over ranks, so the local loss is multiplied by the world size first;
DeepSpeed's division by the accumulation is switched off. And an update that is not finite is never applied.

How it computes follows from the recipe alone. *Uniform*: fp32 weights and autocast under plain torch, DDP and ZeRO 0,
DeepSpeed's 16-bit section with fp32 masters under ZeRO 1-3. *By layer*: fp32 weights everywhere, every module sees to
its own arithmetic. *Pure*: weights, gradients and optimizer states in bf16.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmrecipes.data.batches import MicroBatch, Texts, texts_to
from lmrecipes.inference.arithmetic import HALF, Arithmetic
from lmrecipes.planning.batch import BatchPlan, plan_batch
from lmrecipes.precision.layers import Layers, install
from lmrecipes.precision.plan import layer_formats
from lmrecipes.precision.scaling import LossScale
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_precision import LayerFormat
from lmrecipes.training import holdings, zero
from lmrecipes.training.accelerator import (
    for_this_world,
    prepare_environment,
    single_process_defaults,
    start_accelerator,
    zero_stage_of,
)
from lmrecipes.training.averaging import WeightAverage
from lmrecipes.training.optimizers import make_optimizer, offloads_optimizer, parameter_groups
from lmrecipes.training.processes import Ranks
from lmrecipes.training.reduction import reduce_in, total_norm
from lmrecipes.training.saved_state import load_state, save_state


@dataclass(frozen=True)
class StepResult:
    """grad_norm: global L2 norm before clipping; applied: False where gradients were not finite: then weights and
    optimizer states are as before the step. loss_scale: the one it was computed with, None where there is none."""

    grad_norm: float
    applied: bool
    loss_scale: float | None


class Engine(Ranks):
    """Processes, devices, the wrapped model and its optimizer."""

    def __init__(self, recipe: Recipe, deepspeed: dict[str, Any] | None) -> None:
        """Join the process group. `deepspeed`: a complete DeepSpeed configuration, or None for plain torch or DDP.

        layers, told: the modules of a run by layer, and the formats that they were told. gradients: as seen before
        the first update. fresh: no update yet, in this process or before. average: see `averaging`.
        """
        prepare_environment()
        self.recipe = recipe
        self.deepspeed = deepspeed
        if deepspeed is not None:
            self.deepspeed = deepspeed = for_this_world(deepspeed, recipe)
            single_process_defaults()
        self.accelerator = start_accelerator(recipe, deepspeed)
        self.model: Any = None
        self.optimizer: Any = None
        self.layers: Layers | None = None
        self.told: dict[str, LayerFormat] = {}
        self._compute = recipe.precision.compute
        self.scale = LossScale.of(recipe.precision) if deepspeed is None else None
        self.fresh = True
        self.gradients: holdings.Gradients | None = None
        self.average: WeightAverage | None = None
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() != self.world_size:
            raise RuntimeError(
                f"Accelerate believes in {self.world_size} process(es), torch.distributed in "
                f"{torch.distributed.get_world_size()}"
            )

    @property
    def zero_stage(self) -> int | None:
        """ZeRO stage, None without DeepSpeed."""
        return zero_stage_of(self.deepspeed)

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
        """Whether the weights that compute are 16-bit themselves, with fp32 masters elsewhere or none."""
        if self.deepspeed is None:
            return self.recipe.precision.pure
        return bool(self.model.fp16_enabled() or self.model.bfloat16_enabled())

    @property
    def compute_dtype(self) -> torch.dtype:
        """dtype of the matrix products that have no format of their own."""
        return HALF.get(self._compute, torch.float32)

    @property
    def arithmetic(self) -> Arithmetic:
        """How the live model computes, but for formats by layer."""
        dtype = self.compute_dtype
        return Arithmetic(self.device, dtype, dtype != torch.float32 and not self.holds_half)

    @contextmanager
    def uniformly(self) -> Iterator[None]:
        """Within: a run by layer computes in one format, that of its weights. Other runs compute as ever."""
        if self.layers is None:
            yield
            return
        compute = self._compute
        self._compute = "bf16" if self.recipe.precision.pure else "fp32"
        try:
            with self.layers.uniformly(self._compute):
                yield
        finally:
            self._compute = compute

    def prepare(self, model: nn.Module) -> None:
        """Wrap the model (a `MultiTaskModel` in fp32) and make its optimizer."""
        precision = self.recipe.precision
        zero.match_partitioned(model)
        if precision.by_layer:
            self.layers = install(model, precision, self.device)
            self.told = layer_formats(precision, list(self.layers.modules))
        groups = parameter_groups(model, self.recipe)
        if not groups:
            raise InputError(Problem("model.freeze", "no parameter is left to train", "free some of them", "freeze"))
        if self.deepspeed is None:
            Arithmetic(self.device, self.compute_dtype, not precision.pure).place(model)
        optimizer = make_optimizer(groups, self.recipe, self.device, offloads_optimizer(self.deepspeed))
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if self.deepspeed is not None:
            zero.skip_at_smallest_scale(self.model)
        elif self.world_size > 1:
            reduce_in(self.model, HALF.get(precision.reduced, torch.float32))
        self.model.train()  # `from_pretrained` returns a model in evaluation mode, without dropout
        self.owners = [group["owner"] for group in groups]
        self.average = WeightAverage.of(self)

    def use_formats(self, formats: Mapping[str, LayerFormat]) -> None:
        """From now on modules compute in these formats (of a run by layer; between two steps, alike on every rank)."""
        assert self.layers is not None
        self.layers.use(formats)
        self.told |= formats

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """See `MultiTaskModel.losses`."""
        with self._called():
            out: tuple[Tensor, Tensor] = self.model(batch.to(self.device))
        return out

    def micro_step(self, batch: MicroBatch, last: bool) -> Tensor:
        """Forward and backward of one micro-batch; `last` of the step on this rank. Returns the tasks' loss sums."""
        if self.deepspeed is not None:
            self.model.set_gradient_accumulation_boundary(is_boundary=last)
            loss, sums = self.forward(batch)
            self.model.backward(loss * self.world_size, scale_wrt_gas=False)
            return sums
        factor = self.world_size * (self.scale.value if self.scale else 1.0)
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            loss, sums = self.forward(batch)
            (loss * factor).backward()
        return sums

    def apply(self, rates: Mapping[str, float]) -> StepResult:
        """Clip, update and clear the gradients; where they are not finite, only clear them. `rates`: learning rate of
        every part of the model, see `schedule.rates`."""
        for group, owner in zip(self.optimizer.param_groups, self.owners, strict=True):
            group["lr"] = rates[owner]
        if self.gradients is None:
            self.gradients = holdings.gradients(self)
        self.fresh = False
        result = self._apply_partitioned() if self.zero_stage else self._apply_whole()
        if self.average is not None and result.applied:
            self.average.update()
        return result

    def _apply_whole(self) -> StepResult:
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        scale = self.scale.value if self.scale else None
        if scale is not None:
            for parameter in parameters:
                parameter.grad.mul_(1 / scale)
        norm = total_norm([p.grad for p in parameters])
        finite = math.isfinite(float(norm))
        if finite and self.deepspeed is not None:
            self.model.step()
        elif finite:
            nn.utils.clip_grads_with_norm_(parameters, self.recipe.optimizer.gradient_clipping, norm)
            self.optimizer.step()
        self.clear_gradients()
        if self.scale is not None:
            self.scale.update(overflow=not finite)
        return StepResult(float(norm), finite, scale)

    def _apply_partitioned(self) -> StepResult:
        """DeepSpeed looks for numbers that are not finite itself from stage 1 on."""
        scale = zero.loss_scale(self.model)
        self.model.step()
        applied = self.model.was_step_applied()
        if not applied:  # DeepSpeed 0.19 keeps fp32 sums beside an offloaded optimizer: no later step would be finite
            self.clear_gradients()
        return StepResult(float(self.model.get_global_grad_norm()), applied, scale)

    def averaged(self) -> AbstractContextManager[None]:
        """Within: the model is the average over training, where the recipe keeps one. Every rank must enter."""
        return self.average.in_place() if self.average is not None else nullcontext()

    def clear_gradients(self) -> None:
        """Drop what was accumulated since the last update."""
        if self.deepspeed is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            zero.clear_gradients(self.model, self.zero_stage or 0)

    def predict(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Predictions of every head, see `MultiTaskModel.predictions`. Every rank must call it equally often."""
        with self._resting(), self._called():
            out: dict[str, Tensor] = self.model(batch.to(self.device), "predictions")
        return out

    def vectors(self, batch: MicroBatch | Texts) -> Tensor:
        """The trunk's vectors [texts, hidden]. Every rank must call it equally often."""
        here = batch.to(self.device) if isinstance(batch, MicroBatch) else texts_to(batch, self.device)
        with self._resting(), self._called():
            out: Tensor = self.model(here, "vectors")
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

    def _called(self) -> AbstractContextManager[object]:
        """Within: the wrapped model is called. DeepSpeed and formats by layer cast by themselves."""
        alone = self.deepspeed is None and self.layers is None
        return self.arithmetic.products() if alone else nullcontext()

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

    def full_parameters(self, trained_only: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and persistent buffer whole, from the master weights, fp32 on the CPU; or the trained alone.

        Gathers one at a time: every rank must iterate to the end.
        """
        yield from holdings.whole_weights(self, trained_only)
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

    def save(self, folder: Path) -> None:
        """Write the training state into `folder`, see `saved_state`; every rank takes part."""
        save_state(self, folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; every rank takes part."""
        load_state(self, folder)

    def release(self) -> None:
        """Give up the model and what Accelerate keeps for the process: another engine can start in its place."""
        from accelerate.state import AcceleratorState

        self.model = self.optimizer = self.layers = self.average = None
        self.accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)

    def close(self) -> None:
        """Give up the model and leave the process group: its threads must not outlive the interpreter, which calls
        `std::terminate` where an engine that is still held keeps them."""
        self.release()
        gc.collect()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
