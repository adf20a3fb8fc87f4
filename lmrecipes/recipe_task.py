"""The parts of a recipe that say what is learned: a task, and where its rows come from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from lmrecipes.recipe_inputs import MEDIA, Augment, Modality, Rates
from lmrecipes.recipe_types import Broken, Config, Count, Fraction, NonNegative, Positive, require

TaskKind = Literal["regression", "classification", "multi_label", "language_modelling", "chat"]
TaskLoss = Literal["auto", "cross_entropy", "binary_cross_entropy", "mean_squared_error"]
TOKEN_KINDS: tuple[TaskKind, ...] = ("language_modelling", "chat")
"""Kinds whose loss is of tokens, by the trunk's own language-model head; the others label a whole text."""

METRICS: dict[str, tuple[str, ...]] = {
    "regression": ("spearman", "pearson", "mean_squared_error", "mean_absolute_error"),
    "classification": ("accuracy", "macro_f1", "balanced_accuracy"),
    "multi_label": ("micro_f1", "macro_f1", "average_precision"),
    "language_modelling": ("perplexity", "bits_per_byte", "token_accuracy"),
    "chat": ("perplexity", "bits_per_byte", "token_accuracy"),
}
"""Metrics of each kind of task; the first is its headline metric."""


class ChatFormat(Config):
    """How the rows of a chat task say a conversation."""

    layout: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion"] = "auto"
    """messages: a list of {role, content} (OpenAI). sharegpt: a list of {from, value}. alpaca: instruction, input and
    output. prompt_completion: two texts, or two lists of {role, content}. auto: what the columns' names say."""
    turns: str | None = None
    """Column of the list of turns. None: `messages`, or for sharegpt `conversations`."""
    prompt: str | None = None
    """Column of what the user says. None: `instruction` (alpaca) or `prompt`."""
    context: str | None = None
    """Column of a text that follows the prompt, where it is not empty. None: `input` (alpaca), where there is one."""
    completion: str | None = None
    """Column of what the assistant says. None: `output` (alpaca) or `completion`."""
    system: str | None = None
    """Column of the system prompt. None: `system`, where there is one."""
    system_prompt: str | None = None
    """System prompt of conversations that have none. None: what the chat template does then."""


class Source(Config):
    """Where a task's rows come from. Exactly one of files, splits, dataset, function, offline is set."""

    files: str | None = None
    """A JSONL, CSV, TSV or Parquet file, a `.txt` file as one document, or MNIST's images in IDX (columns `ids` and
    `label`, of the labels' file beside them); or a glob. Its rows are split by `validation_fraction` and
    `test_fraction`."""
    splits: dict[Literal["train", "validation", "test"], str] | None = None
    """One file (or glob) for each split; splits that are missing are cut from `train`."""
    dataset: str | None = None
    """A `datasets` name on the hub (`owner/name` or `owner/name:config`) or a local dataset folder."""
    function: str | None = None
    """`module:function` that returns the rows: an iterable of dictionaries, or a dictionary of split name to rows. The
    module is looked for in the installed packages, then in the working directory."""
    offline: str | None = None
    """One of the data sets that `lmrecipes assets` lists."""
    text: str | None = None
    """Column of the text (of a chat task see `chat`). None: `text`, or no text where `ids`, `image` or `audio` is
    named."""
    text_pair: str | None = None
    """Column of a second text that the model reads after the first."""
    ids: str | None = None
    """Column of ready token ids (lists of integers from 0), read in place of a text as they are: no tokenizer adds to
    them. In JSONL and Parquet files, `datasets`, functions and offline data. Of `model.mlp` the intensities."""
    image: str | None = None
    """Column of an image: a path (relative to the file that names it, of other sources to the working directory), the
    bytes of a PNG, JPEG or other file that Pillow reads, a Pillow image, an array of intensities [height, width] or
    [height, width, channels], or {bytes, path} as `datasets` has it. Read together with the text, where `text` is
    named too."""
    audio: str | None = None
    """Column of a clip: a path (as of `image`), the bytes of a WAV, FLAC, OGG or other file that libsndfile reads, or
    {array, sampling_rate}, {bytes, path} as `datasets` has it."""
    label: str = "label"
    """Column of the label: a number, a class (its name, or its index where no name is itself a number), or for
    multi_label a list or separated names."""
    label_separator: str = "|"
    """Separates the names of a multi_label cell that is a string."""
    chat: ChatFormat = ChatFormat()
    """Of a chat task: how rows say a conversation."""
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
        if self.ids is not None:
            for field in ("text", "text_pair", *MEDIA):
                if getattr(self, field) is None:
                    continue
                what = f"names another input, but rows are read from the ids in the column {self.ids!r}"
                broken.append(Broken(field, what, "remove it, or remove ids"))
        if self.validation_fraction + self.test_fraction >= 1:
            what = "validation_fraction + test_fraction must leave rows for training"
            broken.append(Broken("validation_fraction", what, "lower one of the two"))
        if self.text_pair is not None and self.media and self.text is None:
            what = "names a second text, but rows are read from " + " and ".join(self.media)
            broken.append(Broken("text_pair", what, "name the first text too, or remove it"))
        require(broken)
        return self

    @property
    def media(self) -> tuple[Modality, ...]:
        """The modalities beside text that rows hold, in order."""
        return tuple(modality for modality in MEDIA if getattr(self, modality) is not None)

    @property
    def text_column(self) -> str | None:
        """The column of the text that rows hold, if they hold one."""
        return self.text or (None if self.ids is not None or self.media else "text")

    @property
    def inputs(self) -> int:
        """How many modalities a row may hold. Of several, a row may lack some, but not all."""
        return len(self.media) + (self.text_column is not None)


class Task(Config):
    """One task: its source, its head and loss, its metrics and its share of the mixture."""

    kind: TaskKind
    """Head and loss: regression (mean squared error), classification (cross-entropy over one class of several),
    multi_label (binary cross-entropy, any number of labels), language_modelling (cross-entropy of each next token),
    chat (the same, of the assistant's tokens only)."""
    source: Source
    """Where the rows come from."""
    loss: TaskLoss = "auto"
    """Of a classification task: cross_entropy (auto), binary_cross_entropy (a sigmoid for each class against the rest)
    or mean_squared_error (of the outputs against 1 for the class and 0 for the others). The class is always the largest
    output. Other kinds have one loss."""
    weight: NonNegative = 1.0
    """Share of this task in the mixture, relative to the other tasks' weights; `mixture.unit` says of what."""
    max_epochs: Positive | None = None
    """Most passes over this task's rows in the whole run; then its share flows to the other tasks in proportion to
    their weights. None: `mixture.max_epochs`."""
    loss_factor: NonNegative = 1.0
    """Factor of this task's loss in the total."""
    learning_rate_factor: Positive = 10.0
    """The head learns at `optimizer.lr` times this: it starts from nothing, the trunk does not. Language modelling and
    chat use the trunk's own head, which learns as the trunk does."""
    rates: Rates = Rates()
    """Learning rate of the head over the run."""
    augment: Augment = Augment()
    """Random changes of its training images and clips."""
    labels: tuple[str, ...] | None = None
    """Names of the classes in order. None: the sorted labels of all rows."""
    metrics: tuple[str, ...] | None = None
    """Metrics to report; the first is the headline. None: the defaults of the kind."""
    max_length: Count | None = None
    """Longest text in tokens. Longer ones are truncated; of language modelling cut into texts that long. None:
    `model.max_length`."""
    supervise: Literal["assistant", "last_assistant"] = "assistant"
    """Of a chat task: whether every turn of the assistant carries loss, or the last one only."""
    max_masked_fraction: Fraction = 0.05
    """Of a chat task: rows whose supervised tokens are all cut off by `max_length` are left out with a count; where
    they are more than this share, the run does not start."""

    @model_validator(mode="after")
    def _known_metrics(self) -> Self:
        broken = []
        if unknown := [metric for metric in self.metrics or () if metric not in METRICS[self.kind]]:
            what = f"{unknown} are not among {list(METRICS[self.kind])} of kind {self.kind}"
            broken.append(Broken("metrics", what, "name metrics of that kind"))
        if self.labels is not None and self.kind in ("regression", *TOKEN_KINDS):
            broken.append(Broken("labels", f"a {self.kind} task has none", "remove them, or choose another kind"))
        if self.source.chat != ChatFormat() and self.kind != "chat":
            what = f"says how conversations are written, but the task is of kind {self.kind}"
            broken.append(Broken("source.chat", what, "remove it, or set kind to chat"))
        if self.kind != "chat" and self.supervise != "assistant":
            what = f"says which turns of a conversation count, but the task is of kind {self.kind}"
            broken.append(Broken("supervise", what, "remove it, or set kind to chat"))
        if self.loss != "auto" and self.kind != "classification":
            what = f"{self.loss} is a choice of classification tasks, and the task is of kind {self.kind}"
            broken.append(Broken("loss", what, "remove it"))
        if self.source.ids is not None and self.kind == "chat":
            what = "a chat task's loss is of what the assistant says, which ids alone do not show"
            broken.append(Broken("source.ids", what, "give conversations, or set kind to language_modelling"))
        if self.kind in TOKEN_KINDS and self.learning_rate_factor != 10:
            what = f"is of a head, and a {self.kind} task has none of its own"
            broken.append(Broken("learning_rate_factor", what, "remove it, or set optimizer.lr"))
        if self.source.text_pair is not None and self.kind in TOKEN_KINDS:
            what = f"a {self.kind} task reads one text"
            broken.append(Broken("source.text_pair", what, "remove it, or choose another kind"))
        if self.kind in TOKEN_KINDS and self.rates != Rates():
            what = f"is of a head, and a {self.kind} task has none of its own"
            broken.append(Broken("rates", what, "remove it, or set schedule"))
        if self.source.media and self.kind in TOKEN_KINDS:
            what = f"a {self.kind} task reads texts only"
            broken.append(Broken(f"source.{self.source.media[0]}", what, "remove it, or choose another kind"))
        for modality in MEDIA:
            if modality not in self.source.media and getattr(self.augment, modality) != getattr(Augment(), modality):
                what = f"changes its {modality} inputs, and the task has none"
                broken.append(Broken(f"augment.{modality}", what, f"remove it, or name source.{modality}"))
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            broken.append(Broken("labels", f"names repeat in {list(self.labels)}", "name each class once"))
        require(broken)
        return self

    @property
    def of_tokens(self) -> bool:
        """Whether the loss is of tokens."""
        return self.kind in TOKEN_KINDS

    @property
    def labels_texts(self) -> bool:
        """Whether it labels a text that a bag of words can read."""
        return self.source.text_column is not None and not self.of_tokens

    @property
    def needs_tokenizer(self) -> bool:
        """Whether texts are made tokens, or tokens texts again (to count bytes, to show samples)."""
        return self.source.text_column is not None or self.of_tokens

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics to report, headline first."""
        return self.metrics or METRICS[self.kind]
