"""The typed recipe: what a user may say, and nothing else.

A `Recipe` is a closed, frozen tree. It is written as Python (`recipes/<name>/recipe.py`), as YAML with the same fields,
or as flags (`--optimizer.lr 3e-5 --tasks.tweets.weight 0.5`). The string under each field is its help text.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmrecipes.recipe_inputs import AudioAugment, AudioFrontEnd, Augment, ImageAugment, ImageFrontEnd, Modality, Rates
from lmrecipes.recipe_mixture import ADAPTIVE_LAG, Adaptive, LossWeighting, Mixture, Waypoint
from lmrecipes.recipe_model import Lora, Mlp, Model
from lmrecipes.recipe_precision import Change, LayerFormat, LossScaling, Precision, Raising
from lmrecipes.recipe_serving import LatencyBudget
from lmrecipes.recipe_task import METRICS, TOKEN_KINDS, ChatFormat, Source, Task, TaskKind, TaskLoss
from lmrecipes.recipe_types import Broken, Config, Count, Fraction, NonNegative, Positive, require

__all__ = [
    "ADAPTIVE_LAG", "METRICS", "TOKEN_KINDS", "Adaptive", "AudioAugment", "AudioFrontEnd", "Augment", "Averaging",
    "Batch", "Change", "ChatFormat", "Checkpoint", "Config", "Distillation", "Evaluation", "Gate", "ImageAugment",
    "ImageFrontEnd", "LatencyBudget", "LayerFormat", "Loader", "Lora", "LossScaling", "LossWeighting", "Mixture",
    "Mlp", "Modality", "Model", "Optimizer", "Precision", "Raising", "Rates", "Recipe", "Schedule", "Source", "Task",
    "TaskKind", "TaskLoss", "Tracking", "Waypoint",
]  # fmt: skip


class Batch(Config):
    """The global batch of one optimizer step, over all ranks: exact, and never changed by the number of processes."""

    examples: Count = 64
    """Examples per optimizer step."""
    micro_examples: Count = 32
    """Most examples that one device computes at once; accumulation follows from it."""
    layout: Literal["auto", "padded", "buckets", "grouped", "packed"] = "auto"
    """How a micro-batch's texts lie in memory; losses and gradients are the same. padded: one rectangle. buckets: a few
    rectangles of similar length, one after the other. grouped: the same rectangles in one pass, only attention goes by
    rectangle. packed: texts end to end, kept apart by the attention kernel. auto: packed, on a GPU with a kernel for it
    and on a CPU with `model.max_length` up to 256; else grouped; buckets where the model's code allows neither."""
    length_buckets: Count = 8
    """Rectangles of texts of similar length in a micro-batch (buckets, grouped): more of them, less padding."""


class Loader(Config):
    """How batches are made; changes nothing but speed."""

    workers: Annotated[int, Field(ge=0)] = 1
    """Threads that assemble batches ahead; 0: none, each batch is made when it is needed."""
    prefetch: Count = 2
    """Steps that are assembled ahead."""


class Optimizer(Config):
    """Update rule."""

    name: Literal["adamw", "rmsprop", "sgd"] = "adamw"
    """adamw (decoupled weight decay, arXiv 1711.05101; Adam where `weight_decay` is 0), rmsprop (second moment by
    `betas[1]`) or sgd (with momentum `betas[0]`)."""
    lr: Positive = 3e-4
    """Peak learning rate of the trunk."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    """Decay of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.01
    """Decay of matrices; biases and norms have none. adamw takes it from the weights themselves; rmsprop and sgd add it
    to the gradient (L2), as torch's do."""
    gradient_clipping: Positive = 1.0
    """Largest global gradient norm."""


class Schedule(Config):
    """Length of the run, in optimizer steps, and the learning rate over it."""

    steps: Count = 500
    """Optimizer steps."""
    warmup_fraction: Fraction = 0.06
    """Share of the steps in which the rate rises linearly from 0."""
    decay: Literal["linear", "cosine", "constant"] = "linear"
    """Shape after the warm-up."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Rate at the end, as a share of the peak."""


class Distillation(Config):
    """Learning from what a finished run says of the training rows, beside their labels (arXiv 1503.02531)."""

    teacher: str | None = None
    """The folder of a finished run that has the recipe's tasks with labels: a single model or a combination. None: no
    teacher."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the teacher in the loss of each task with labels; the rest is the labels'."""
    temperature: Positive = 2.0
    """Logits of teacher and student are divided by it in the teacher's part, whose loss is multiplied by its square.
    Of tasks of kind regression there is none: the student learns from the teacher's numbers."""


class Averaging(Config):
    """Averages of the weights over training."""

    ema_decay: Fraction = 0.0
    """After every step the average becomes decay x average + (1 - decay) x weights; early on decay is
    (1 + step) / (10 + step) where that is less. Evaluations and the exported model are then of the average. 0: none."""


class Evaluation(Config):
    """When and on how much the tasks are evaluated."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps between evaluations on the validation split; 0: none before the end."""
    examples: Count | None = 1500
    """Most rows of a split that each task is evaluated on (chosen by hash, always the same). None: all."""
    micro_examples: Count = 64
    """Examples in one forward pass."""
    start: bool = False
    """Evaluate the test split before the first step too: what the model knew already stands beside the results."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Texts of the validation split that each language-modelling or chat task continues at every evaluation."""
    sample_tokens: Count = 48
    """Most tokens of a continuation."""


class Checkpoint(Config):
    """When the run can be resumed from."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints; 0: only when interrupted."""
    keep: Count = 2
    """Newest checkpoints that are kept."""


class Gate(Config):
    """A bar that a recipe must clear: its test metrics are no worse than those of the same recipe at another precision,
    by more than a margin, over several seeds."""

    reference: Precision = Precision(compute="fp32")
    """The precision that it is held against."""
    seeds: Annotated[int, Field(ge=2)] = 5
    """Runs of each side, with seeds from `seed` on; the two sides are paired by seed."""
    margin: Positive = 0.01
    """How much worse a task's headline metric may be on average: in the metric's own units, of a perplexity as a share
    of the reference's."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the one-sided paired t-test on the differences that decides (non-inferiority)."""
    tasks: tuple[str, ...] = ()
    """Tasks that are held to it. Empty: all."""


class Tracking(Config):
    """Where metrics go besides `metrics.jsonl`."""

    log_every: Count = 1
    """Steps between two lines of metrics."""
    cosines_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two measurements of how the tasks' gradients on the shared trunk agree (their cosines); each
    computes the step's examples once more, in two passes a task. 0: none."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online with a key and a network, else offline. `wandb sync` uploads an offline run later."""
    wandb_project: str = "lmrecipes"
    """wandb project."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run folder."""


class Recipe(Config):
    """What to train. Where it runs is the launch configuration's business."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the recipe; run folders start with it."""
    description: str = ""
    """One line for people."""
    tasks: Annotated[dict[str, Task], Field(min_length=1)]
    """The tasks by name."""
    model: Model = Model()
    """The shared trunk."""
    mixture: Mixture = Mixture()
    """How often each task is drawn."""
    batch: Batch = Batch()
    """The global batch of a step."""
    loader: Loader = Loader()
    """How batches are made."""
    loss_normalization: Literal["constant_predictor", "none"] = "constant_predictor"
    """constant_predictor: each task's loss is divided by that of the best constant prediction on its training data
    (entropy, variance), so that every task starts near 1."""
    token_loss: Literal["pooled", "per_task"] = "pooled"
    """How language-modelling and chat tasks, which share one head, enter the step's loss. pooled: one mean over
    the supervised tokens of all, so that a domain counts by its share of the mixture. per_task: the mean of each."""
    loss_weighting: LossWeighting = LossWeighting()
    """Factors of the tasks' losses over time."""
    optimizer: Optimizer = Optimizer()
    """Update rule."""
    schedule: Schedule = Schedule()
    """Length and learning rate over time."""
    precision: Precision = Precision()
    """Number formats."""
    distillation: Distillation = Distillation()
    """A teacher."""
    averaging: Averaging = Averaging()
    """Averages of the weights."""
    gates: dict[str, Gate] = Field(default_factory=dict)
    """Bars that the results must clear, by name; `lmrecipes gate` measures, and exits with 1 where one is not met."""
    latency: dict[str, LatencyBudget] = Field(default_factory=dict)
    """How fast and how exact the finished model must answer, by name; `lmrecipes latency` measures, and exits with 1
    where it does not."""
    evaluation: Evaluation = Evaluation()
    """When to evaluate."""
    checkpoint: Checkpoint = Checkpoint()
    """When to save."""
    tracking: Tracking = Tracking()
    """Where metrics go."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides the order of the data and random initial weights. Splits do not depend on it."""

    @property
    def longest_text(self) -> int:
        """Tokens of the longest text that a task may hold."""
        return max(task.max_length or self.model.longest for task in self.tasks.values())

    @model_validator(mode="after")
    def _usable(self) -> Self:
        broken = [
            Broken(f"tasks.{name}", "a task's name may hold letters, digits, `_` and `-` only", "rename it")
            for name in self.tasks
            if not name.replace("_", "").replace("-", "").isalnum()
        ]
        if self.mixture.adaptive.method != "off" and self.loader.prefetch > ADAPTIVE_LAG:
            what = (
                f"with adaptive weights at most {ADAPTIVE_LAG} steps are assembled ahead, found {self.loader.prefetch}"
            )
            broken.append(Broken("loader.prefetch", what, f"set loader.prefetch to {ADAPTIVE_LAG} or less"))
        if self.mixture.replay and self.loss_weighting.method != "static":
            what = "mixture.replay repeats the loss factors of an earlier run, so that none are computed"
            broken.append(Broken("loss_weighting.method", what, "set loss_weighting.method to static"))
        kinds = {task.kind for task in self.tasks.values()}
        if self.evaluation.samples and not kinds.intersection(TOKEN_KINDS):
            what = "texts are continued by a language model, but no task is of language modelling or chat"
            broken.append(Broken("evaluation.samples", what, "set it to 0, or add such a task"))
        for name, gate in self.gates.items():
            if unknown := [task for task in gate.tasks if task not in self.tasks]:
                what = f"{', '.join(unknown)}: no such task"
                broken.append(Broken(f"gates.{name}.tasks", what, f"name some of {', '.join(self.tasks)}"))
        if self.model.compile and self.precision.by_layer:
            what = "true, but formats by layer change what a module computes, and compiled layers do not follow"
            broken.append(Broken("model.compile", what, "set it to false, or remove precision.layers and changes"))
        if self.distillation.teacher is not None and kinds <= set(TOKEN_KINDS):
            what = "learns from predicted labels, and no task has labels"
            broken.append(Broken("distillation.teacher", what, "remove it, or add such a task"))
        if self.tracking.cosines_every and len(self.tasks) < 2:
            what = "compares the gradients of tasks, and there is one only"
            broken.append(Broken("tracking.cosines_every", what, "set it to 0, or add a task"))
        if self.model.chat_template is not None and "chat" not in kinds:
            broken.append(Broken("model.chat_template", "no task is of kind chat", "remove it, or add such a task"))
        broken += self._not_of_mlp() if self.model.mlp.hidden else self._without_tokenizer()
        require(broken + self.mixture.broken_for({name: task.weight for name, task in self.tasks.items()}))
        return self

    def _not_of_mlp(self) -> list[Broken]:
        """What a multi-layer perceptron cannot be trained on."""
        broken = []
        for name, task in self.tasks.items():
            if task.source.ids is None:
                held = " and ".join(task.source.media) or "texts"
                what = f"model.mlp reads rows of intensities, and the task has {held}"
                broken.append(Broken(f"tasks.{name}.source.ids", what, "name their column, or remove model.mlp"))
            if task.of_tokens:
                what = f"model.mlp has no language-model head, and the task is of kind {task.kind}"
                broken.append(Broken(f"tasks.{name}.kind", what, "choose a kind with labels, or remove model.mlp"))
            if task.max_length is not None:
                what = f"rows of model.mlp have exactly model.mlp.inputs ({self.model.mlp.inputs}) values"
                broken.append(Broken(f"tasks.{name}.max_length", what, "remove it"))
        if self.batch.layout not in ("auto", "padded"):
            what = f"{self.batch.layout}, but rows of model.mlp are equally long: they are one rectangle"
            broken.append(Broken("batch.layout", what, "set it to auto, or padded"))
        return broken

    def _without_tokenizer(self) -> list[Broken]:
        """Tasks that need a tokenizer where there is none, or none that could be trained."""
        ids = [name for name, task in self.tasks.items() if task.source.ids is not None]
        need = [name for name, task in self.tasks.items() if task.needs_tokenizer]
        if self.model.tokenizer_vocabulary and ids:
            what = f"ids of another tokenizer than the one to be trained are read by {', '.join(ids)}"
            return [Broken("model.tokenizer_vocabulary", what, "name the tokenizer that gave them: model.tokenizer")]
        if self.model.config and not (self.model.tokenizer or self.model.tokenizer_vocabulary) and need:
            what = f"needed by {', '.join(need)}"
            return [Broken("model.tokenizer", what, "name one, or set model.tokenizer_vocabulary to train one")]
        return []
