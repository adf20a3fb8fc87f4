"""An audit's run: a recipe trained for a few steps by plain torch in fp32, or a run's weights, then audited steps."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmrecipes.data.permutation import hash_key
from lmrecipes.data.stream import Step
from lmrecipes.precision.audit.measure import Audit, Sampling
from lmrecipes.precision.audit.numbers import LayerNumbers
from lmrecipes.precision.layers import canonical
from lmrecipes.problems import InputError, Problem, RunFailed
from lmrecipes.recipe import Precision, Recipe, Tracking
from lmrecipes.run_folder import RunFolder
from lmrecipes.training.checkpoint import find_checkpoint
from lmrecipes.training.loop import Start, Training
from lmrecipes.training.losses import weighted
from lmrecipes.training.schedule import learning_rate, rates_beside

AFTER = 8
"""Steps that a recipe is trained for before it is audited: heads start at zero and send no gradient down until then."""
MOMENTS = 4
"""Steps that fill the optimizer's moments, with the weights at rest, where a run's weights come without them."""
LEAST_RATE = 1e-2
"""Share of the peak learning rate that an audited step has at least: an update at rate 0 could not be measured."""


@dataclass(frozen=True)
class Found:
    """What was measured. weights: where they come from; names: of all modules."""

    weights: str
    optimizer: str
    from_step: int
    layers: list[LayerNumbers]
    names: list[str]


def measure(
    recipe: Recipe, run: RunFolder | None, steps: int, after: int | None, rows: int, moved: Callable[[int, int], None]
) -> Found:
    """Audit `steps` steps of a recipe, or of a run with its weights. Writes nothing that stays.

    after: steps before those. moved: called with (done, total). Raises InputError, and RunFailed where the loss is
    not finite.
    """
    with tempfile.TemporaryDirectory(prefix="lmrecipes-audit-") as folder:
        training = Training(exact(recipe), Start(run=Path(folder) / "run"))
        try:
            return _measured(training, run, steps, after, rows, moved)
        finally:
            training.engine.close()


def _measured(
    training: Training, run: RunFolder | None, steps: int, after: int | None, rows: int,
    moved: Callable[[int, int], None],
) -> Found:  # fmt: skip
    weights, optimizer, first = "as the recipe starts, trained", "as trained", 0
    with_moments = False
    if run is not None:
        weights, first, with_moments = load_weights(training, run)
        optimizer = "as saved" if with_moments else "moments of a few steps"
    if after is None:
        after = AFTER if run is None else 0 if with_moments else MOMENTS
    if run is None:
        weights = f"{weights} for {after} step(s)"
    audit = Audit(training.engine.module, Sampling(rows=rows, seed=training.recipe.seed))
    for number in range(after + steps):
        moved(number, after + steps)
        at = first + number
        step = training.stream.step(at)
        if number < after:
            rate = 0.0 if run is not None and not with_moments else rate_of(training.recipe, at)
            plain_step(training, step, at, rate)
        else:
            if number == after:
                audit.weights()
            audited_step(training, audit, step, at)
    moved(after + steps, after + steps)
    factors = schedule_factors(training.recipe)
    names = list(canonical(training.engine.module))
    return Found(weights, optimizer, first + after, audit.numbers(factors), names)


def plain_step(training: Training, step: Step, number: int, rate: float) -> None:
    """A step of the recipe, at a learning rate of its own."""
    _forward_and_backward(training, step, number)
    training.engine.apply(rates_beside(training.recipe, rate))


def audited_step(training: Training, audit: Audit, step: Step, number: int) -> None:
    """A step of the recipe, measured."""
    rate = rate_of(training.recipe, number)
    with audit.watching(len(step.micro_batches)):
        _forward_and_backward(training, step, number)
    audit.gradients()
    training.engine.apply(rates_beside(training.recipe, rate))
    audit.updates(training.recipe.optimizer.lr / rate)


def rate_of(recipe: Recipe, step: int) -> float:
    """The learning rate of a step, also past the schedule's end."""
    peak = recipe.optimizer.lr
    return max(learning_rate(recipe.schedule, peak, min(step, recipe.schedule.steps)), LEAST_RATE * peak)


def schedule_factors(recipe: Recipe) -> list[float]:
    """Learning rates over the peak, at up to 200 places of the schedule."""
    steps = recipe.schedule.steps
    return [learning_rate(recipe.schedule, 1.0, at) for at in range(0, steps, max(1, steps // 200))]


def load_weights(training: Training, run: RunFolder) -> tuple[str, int, bool]:
    """Put a run's weights into the model: those of its newest checkpoint, or of the exported model. Returns where they
    come from, the step, and whether the optimizer's state came along."""
    checkpoint = find_checkpoint(run.checkpoints)
    if checkpoint is not None:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        step, zero = int(manifest["step"]), manifest["fits_to"]["ZeRO stage"]
        name = f"checkpoint {checkpoint.name}"
        if zero == "none" and not _recipe_is_pure(run):
            training.engine.load(checkpoint)
            return name, step, True
        weights = _saved_weights(checkpoint, zero)
        if weights is not None:
            training.engine.module.load_state_dict(weights, strict=False)
            return f"{name}, without its optimizer's state", step, False
    if (run.model / "config.json").is_file():
        if training.recipe.model.lora.rank:
            what = "its exported model has the adapters merged into the weights, and there is no checkpoint"
            raise InputError(Problem(str(run.path), what, "audit its recipe, or keep a checkpoint", "audit-weights"))
        from lmrecipes.inference.exported import load_exported

        exported = load_exported(run.model).model.state_dict()
        training.engine.module.load_state_dict(exported)
        return "the exported model", training.recipe.schedule.steps, False
    what, fix = "holds no complete checkpoint and no exported model", "let it write one, or audit its recipe"
    raise InputError(Problem(str(run.path), what, fix, "audit-weights"))


def _recipe_is_pure(run: RunFolder) -> bool:
    """Whether the run keeps bf16 weights: then the optimizer's state is not that of fp32 ones."""
    from lmrecipes.recipe_files import recipe_from_yaml

    return recipe_from_yaml(run.recipe).precision.pure


def _saved_weights(checkpoint: Path, zero: Any) -> dict[str, Tensor] | None:
    """The trained weights of a checkpoint in fp32, None where they cannot be read without the engine that wrote it."""
    if zero == "none":
        saved: dict[str, Tensor] = torch.load(checkpoint / "engine.pt", map_location="cpu", weights_only=True)["model"]
        return saved
    if zero == 0:
        return None
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    found: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag="engine")
    return found


def exact(recipe: Recipe) -> Recipe:
    """The recipe in fp32 on plain torch, without what writes, compiles or computes activations twice."""
    attention = "auto" if recipe.model.attention == "flash_attention_2" else recipe.model.attention
    model = recipe.model.model_copy(
        update={"compile": False, "activation_checkpointing": False, "liger": "off", "attention": attention}
    )
    return recipe.model_copy(
        update={
            "precision": Precision(compute="fp32"),
            "tracking": Tracking(wandb="off", tensorboard=False),
            "model": model,
        }
    )


def _forward_and_backward(training: Training, step: Step, number: int) -> None:
    engine, factors = training.engine, training.steering.factors(number + 1)
    micro_batches: Sequence[Any] = [weighted(m, factors) for m in step.micro_batches] if factors else step.micro_batches
    total = torch.zeros((), device=engine.device)
    for i, micro in enumerate(micro_batches):
        if training.draws_dropout:
            torch.manual_seed(hash_key(training.recipe.seed, "dropout", number, i, engine.rank))
        total += engine.micro_step(micro, last=i == len(micro_batches) - 1).sum()
    if not bool(torch.isfinite(total)):
        raise RunFailed(f"step {number + 1}: the loss is {float(total)} in fp32, so that no format can be judged")
