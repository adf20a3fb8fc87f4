"""The typed recipe: what a user may say, and nothing else.

A `Recipe` is a closed, frozen tree. It is written as Python (`recipes/<name>/recipe.py`), as YAML with the same fields,
or as flags (`--optimizer.lr 3e-5 --tasks.tweets.weight 0.5`). The string under each field is its help text.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]

TaskKind = Literal["regression", "classification", "multi_label"]

METRICS: dict[str, tuple[str, ...]] = {
    "regression": ("spearman", "pearson", "mean_squared_error", "mean_absolute_error"),
    "classification": ("accuracy", "macro_f1", "balanced_accuracy"),
    "multi_label": ("micro_f1", "macro_f1", "average_precision"),
}
"""Metrics of each kind of task; the first is its headline metric."""


class Config(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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
        chosen = [place for place in places if getattr(self, place) is not None]
        if len(chosen) != 1:
            raise ValueError(f"exactly one of {', '.join(places)} must be set, found {', '.join(chosen) or 'none'}")
        if self.splits is not None and "train" not in self.splits:
            raise ValueError("splits needs a `train` file")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must leave rows for training")
        return self


class Task(Config):
    """One task: its source, its head and loss, its metrics and its share of the mixture."""

    kind: TaskKind
    """Head and loss: regression (mean squared error), classification (cross-entropy over one class of several),
    multi_label (binary cross-entropy, any number of labels)."""
    source: Source
    """Where the rows come from."""
    weight: Positive = 1.0
    """Share of this task in the mixture, relative to the other tasks' weights."""
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
        unknown = [m for m in self.metrics or () if m not in METRICS[self.kind]]
        if unknown:
            raise ValueError(f"metrics {unknown} are not among {list(METRICS[self.kind])} of kind {self.kind}")
        if self.labels is not None and self.kind == "regression":
            raise ValueError("labels: a regression task has none")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError("labels: names repeat")
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
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel of `transformers`. auto: sdpa on GPUs and for long texts, eager for short ones on a CPU."""
    dropout: Fraction | None = 0.0
    """Dropout inside the trunk. None: as the pretrained configuration says. Only with 0 is the trajectory independent
    of how a step is laid out over ranks and micro-batches."""


class Mixture(Config):
    """How often each task is drawn."""

    unit: Literal["examples"] = "examples"
    """What the weights count."""
    temperature: Annotated[float, Field(ge=1)] | None = None
    """None: the tasks' weights are the shares. T: each weight is multiplied by rows ** (1 / T); 1 is proportional to
    size, larger is flatter."""


class Batch(Config):
    """The global batch of one optimizer step, over all ranks: exact, and never changed by the number of processes."""

    examples: Count = 64
    """Examples per optimizer step."""
    micro_examples: Count = 32
    """Most examples that one device computes at once; accumulation follows from it."""
    length_buckets: Count = 4
    """Rectangles of texts of similar length that a micro-batch is computed in: more of them, less padding."""


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
    loss_normalization: Literal["constant_predictor", "none"] = "constant_predictor"
    """constant_predictor: each task's loss is divided by that of the best constant prediction on its training data
    (entropy, variance), so that every task starts near 1."""
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
        for name in self.tasks:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"tasks: name {name!r} may hold letters, digits, `_` and `-` only")
        return self
