"""The typed recipe: what a user may say, and nothing else.

A `Recipe` is a closed, frozen tree. It is written as Python (`recipes/<name>/recipe.py`), as YAML with the same fields,
or as flags (`--optimizer.lr 3e-5 --tasks.tweets.weight 0.5`). The string under each field is its help text.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmrecipes.recipe_mixture import ADAPTIVE_LAG, Adaptive, LossWeighting, Mixture, Waypoint
from lmrecipes.recipe_types import Broken, Config, Count, Fraction, NonNegative, Positive, require

__all__ = [
    "ADAPTIVE_LAG", "METRICS", "Adaptive", "Batch", "Checkpoint", "Config", "Evaluation", "Loader", "LossWeighting",
    "Mixture", "Model", "Optimizer", "Precision", "Recipe", "Schedule", "Source", "Task", "TaskKind", "Tracking",
    "Waypoint",
]  # fmt: skip

TaskKind = Literal["regression", "classification", "multi_label"]

METRICS: dict[str, tuple[str, ...]] = {
    "regression": ("spearman", "pearson", "mean_squared_error", "mean_absolute_error"),
    "classification": ("accuracy", "macro_f1", "balanced_accuracy"),
    "multi_label": ("micro_f1", "macro_f1", "average_precision"),
}
"""Metrics of each kind of task; the first is its headline metric."""


class Source(Config):
    """Where a task's rows come from. Exactly one of files, splits, dataset, function, offline is set."""

    files: str | None = None
    """A JSONL, CSV, TSV or Parquet file (or a glob); it is split by `validation_fraction` and `test_fraction`."""
    splits: dict[Literal["train", "validation", "test"], str] | None = None
    """One file (or glob) for each split; splits that are missing are cut from `train`."""
    dataset: str | None = None
    """A `datasets` name on the hub (`owner/name` or `owner/name:config`) or a local dataset folder."""
    function: str | None = None
    """`module:function` that returns the rows: an iterable of dictionaries, or a dictionary of split name to rows. The
    module is looked for in the installed packages, then in the working directory."""
    offline: str | None = None
    """One of the data sets that `lmrecipes assets` lists."""
    text: str = "text"
    """Column of the text."""
    text_pair: str | None = None
    """Column of a second text that the model reads after the first."""
    label: str = "label"
    """Column of the label: a number, a class (its name, or its index where no name is itself a number), or for
    multi_label a list or separated names."""
    label_separator: str = "|"
    """Separates the names of a multi_label cell that is a string."""
    group: str | None = None
    """Column that keeps related rows in the same split (a patient, a document). None: each distinct text is a group."""
    validation_fraction: Fraction = 0.1
    """Share of the groups held out for validation, where the source has no validation split."""
    test_fraction: Fraction = 0.1
    """Share of the groups held out for the test, where the source has no test split."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a row whose text or label is missing, NaN or out of range: stop, or leave out with a count."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        places = ("files", "splits", "dataset", "function", "offline")
        chosen, broken = [place for place in places if getattr(self, place) is not None], []
        if len(chosen) != 1:
            what = f"exactly one of {', '.join(places)} must be set, found {', '.join(chosen) or 'none'}"
            broken.append(Broken("", what, f"keep one of {', '.join(chosen)}" if chosen else "set one of them"))
        if self.splits is not None and "train" not in self.splits:
            broken.append(Broken("splits", "needs a `train` file", "name one under splits.train"))
        if self.validation_fraction + self.test_fraction >= 1:
            what = "validation_fraction + test_fraction must leave rows for training"
            broken.append(Broken("validation_fraction", what, "lower one of the two"))
        require(broken)
        return self


class Task(Config):
    """One task: its source, its head and loss, its metrics and its share of the mixture."""

    kind: TaskKind
    """Head and loss: regression (mean squared error), classification (cross-entropy over one class of several),
    multi_label (binary cross-entropy, any number of labels)."""
    source: Source
    """Where the rows come from."""
    weight: NonNegative = 1.0
    """Share of this task in the mixture, relative to the other tasks' weights; `mixture.unit` says of what."""
    max_epochs: Positive | None = None
    """Most passes over this task's rows in the whole run; then its share flows to the other tasks in proportion to
    their weights. None: `mixture.max_epochs`."""
    loss_factor: NonNegative = 1.0
    """Factor of this task's loss in the total."""
    learning_rate_factor: Positive = 10.0
    """The head learns at `optimizer.lr` times this: it starts from nothing, the trunk does not."""
    labels: tuple[str, ...] | None = None
    """Names of the classes in order. None: the sorted labels of all rows."""
    metrics: tuple[str, ...] | None = None
    """Metrics to report; the first is the headline. None: the defaults of the kind."""
    max_length: Count | None = None
    """Longest text in tokens; longer ones are truncated. None: `model.max_length`."""

    @model_validator(mode="after")
    def _known_metrics(self) -> Self:
        broken = []
        if unknown := [metric for metric in self.metrics or () if metric not in METRICS[self.kind]]:
            what = f"{unknown} are not among {list(METRICS[self.kind])} of kind {self.kind}"
            broken.append(Broken("metrics", what, "name metrics of that kind"))
        if self.labels is not None and self.kind == "regression":
            broken.append(Broken("labels", "a regression task has none", "remove them, or choose another kind"))
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            broken.append(Broken("labels", f"names repeat in {list(self.labels)}", "name each class once"))
        require(broken)
        return self

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics to report, headline first."""
        return self.metrics or METRICS[self.kind]


class Model(Config):
    """The trunk that all tasks share."""

    pretrained: str = "minilm"
    """An asset (`lmrecipes assets`), a hub name, or a folder that `transformers` loads."""
    initialization: Literal["pretrained", "scratch"] = "pretrained"
    """scratch: the same architecture with random weights."""
    pooling: Literal["mean", "first", "last"] = "mean"
    """How the trunk's [tokens, hidden] output becomes one vector for the heads (last: for causal trunks)."""
    max_length: Annotated[int, Field(ge=4)] = 128
    """Longest text in tokens; longer ones are truncated."""
    freeze: tuple[str, ...] = ()
    """Parameters of the trunk that are not trained, by shell patterns: `embeddings.word_embeddings.*`."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """Attention kernel of `transformers`. auto: sdpa on GPUs and for long texts, eager for short ones on a CPU; for
    packed rows on a GPU flash_attention_2 where it is installed, else flex_attention."""
    dropout: Fraction | None = 0.0
    """Dropout inside the trunk. None: as the pretrained configuration says. Only with 0 is the trajectory independent
    of how a step is laid out over ranks and micro-batches."""


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

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw (decoupled weight decay, arXiv 1711.05101) or sgd (with momentum `betas[0]`)."""
    lr: Positive = 3e-4
    """Peak learning rate of the trunk."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    """Decay of the first and second moment."""
    eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NonNegative = 0.01
    """Decay of matrices; biases and norms have none."""
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


class Precision(Config):
    """The only place where precision is said; launch files must agree."""

    compute: Literal["fp32", "bf16", "fp16"] = "bf16"
    """dtype of the matrix products. Master weights, optimizer states, gradient accumulation and reduction are fp32."""


class Evaluation(Config):
    """When and on how much the tasks are evaluated."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps between evaluations on the validation split; 0: none before the end."""
    examples: Count | None = 1500
    """Most rows of a split that each task is evaluated on (chosen by hash, always the same). None: all."""
    micro_examples: Count = 64
    """Examples in one forward pass."""


class Checkpoint(Config):
    """When the run can be resumed from."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints; 0: only when interrupted."""
    keep: Count = 2
    """Newest checkpoints that are kept."""


class Tracking(Config):
    """Where metrics go besides `metrics.jsonl`."""

    log_every: Count = 1
    """Steps between two lines of metrics."""
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
    loss_weighting: LossWeighting = LossWeighting()
    """Factors of the tasks' losses over time."""
    optimizer: Optimizer = Optimizer()
    """Update rule."""
    schedule: Schedule = Schedule()
    """Length and learning rate over time."""
    precision: Precision = Precision()
    """Number formats."""
    evaluation: Evaluation = Evaluation()
    """When to evaluate."""
    checkpoint: Checkpoint = Checkpoint()
    """When to save."""
    tracking: Tracking = Tracking()
    """Where metrics go."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides the order of the data and random initial weights. Splits do not depend on it."""

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
        require(broken + self.mixture.broken_for({name: task.weight for name, task in self.tasks.items()}))
        return self
