"""The part of a recipe that says which model is trained, and how it computes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lmrecipes.recipe_inputs import AudioFrontEnd, ImageFrontEnd
from lmrecipes.recipe_types import Broken, Config, Count, Fraction, Positive, require

MINILM = "minilm"


class Lora(Config):
    """Low-rank adapters beside frozen weights (arXiv 2106.09685), by `peft`."""

    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the update; 0: no adapters, the trunk's own weights are trained."""
    alpha: Positive = 32.0
    """The update is multiplied by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout before the adapters. Only with 0 is the trajectory independent of how a step is laid out."""
    targets: tuple[str, ...] = ()
    """Linear layers that get an adapter, by the end of their name (`q_proj`). Empty: all of the trunk's."""
    dora: bool = False
    """Learn magnitude and direction apart (DoRA, arXiv 2402.09353)."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) (arXiv 2312.03732)."""


class Mlp(Config):
    """A multi-layer perceptron on rows of intensities, for small experiments: no tokens, no attention, no downloads."""

    hidden: tuple[Count, ...] = ()
    """Widths of its linear layers, which are named `layers.0`, `layers.1`, ...; each is followed by max(0, x). The last
    width is what the heads read. Empty: the trunk is a model of `transformers`."""
    inputs: Count = 784
    """Values of a row, exactly: a task's `source.ids`."""
    levels: Annotated[int, Field(ge=2)] = 256
    """Values run from 0 to levels - 1, and are read as shares of that."""


class Model(Config):
    """The trunk that all tasks share."""

    pretrained: str = MINILM
    """An asset (`lmrecipes assets`), a hub name, or a folder that `transformers` loads."""
    initialization: Literal["pretrained", "scratch"] = "pretrained"
    """scratch: the same architecture with random weights."""
    config: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """A `transformers` configuration to start from random weights, in place of `pretrained`: `model_type` and what
    differs from its defaults. The size of the vocabulary and the special tokens follow the tokenizer."""
    mlp: Mlp = Mlp()
    """A multi-layer perceptron with random weights, in place of a model of `transformers`."""
    image: ImageFrontEnd = ImageFrontEnd()
    """How images become positions of the trunk, where a task has some."""
    audio: AudioFrontEnd = AudioFrontEnd()
    """How audio becomes positions of the trunk, where a task has some."""
    tokenizer: str | None = None
    """An asset, a hub name or a folder. None: that of `pretrained`."""
    tokenizer_vocabulary: Annotated[int, Field(ge=0)] = 0
    """Train a byte-level BPE tokenizer of this many tokens on the tasks' training texts, for a model that starts from
    random weights. 0: none."""
    chat_template: str | None = None
    """A file with a Jinja chat template. None: the tokenizer's own."""
    pooling: Literal["mean", "first", "last"] = "mean"
    """How the trunk's [tokens, hidden] output becomes one vector for the heads (last: for causal trunks)."""
    max_length: Annotated[int, Field(ge=4)] = 128
    """Longest text in tokens; longer ones are truncated."""
    freeze: tuple[str, ...] = ()
    """Parameters of the trunk that are not trained, by shell patterns: `embeddings.word_embeddings.*`."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """Attention kernel of `transformers`. auto: sdpa on GPUs and for long texts, eager for short ones on a CPU; for
    packed rows on a GPU flash_attention_2 where it is installed, else flex_attention."""
    lora: Lora = Lora()
    """Train low-rank adapters in place of the trunk's weights."""
    activation_checkpointing: bool = False
    """Keep only each layer's input for the backward pass, which computes the layer again: less memory, a third more
    time."""
    compile: bool = False
    """Compile each layer by `torch.compile`; the first steps take minutes longer."""
    liger: Literal["auto", "on", "off"] = "auto"
    """Liger's fused kernels for norms and gates. auto: on a GPU where `liger-kernel` is installed."""
    dropout: Fraction | None = 0.0
    """Dropout inside the trunk. None: as the pretrained configuration says. Only with 0 is the trajectory independent
    of how a step is laid out over ranks and micro-batches."""

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        broken = []
        if self.config and "model_type" not in self.config:
            what = "does not say which kind of model it configures"
            broken.append(Broken("config", what, "add model_type, for example llama or gpt2"))
        if self.config and "pretrained" in self.model_fields_set and self.pretrained != MINILM:
            what = f"given together with model.pretrained ({self.pretrained})"
            broken.append(Broken("config", what, "keep one of them; `tokenizer` names a tokenizer"))
        if self.config and self.tokenizer is None and not self.tokenizer_vocabulary and "vocab_size" not in self.config:
            what = "a model from a configuration has no tokenizer of its own"
            broken.append(Broken("tokenizer", what, "name one, or set model.tokenizer_vocabulary to train one"))
        if self.tokenizer is not None and self.tokenizer_vocabulary:
            what = "a tokenizer is both named and to be trained"
            broken.append(Broken("tokenizer_vocabulary", what, "remove model.tokenizer or model.tokenizer_vocabulary"))
        if (self.tokenizer or self.tokenizer_vocabulary) and not self.from_scratch:
            what = "pretrained weights know the tokens of their own tokenizer only"
            broken.append(Broken("tokenizer", what, "remove it, or set model.initialization to scratch"))
        if 0 < self.tokenizer_vocabulary < 512:
            what = f"byte-level tokenizers need 256 tokens for the bytes alone, found {self.tokenizer_vocabulary}"
            broken.append(Broken("tokenizer_vocabulary", what, "set it to 512 or more"))
        if not self.lora.rank and self.lora != Lora() and not self.from_scratch:
            what = "adapters are described, but with rank 0 there are none and every weight is trained"
            broken.append(Broken("lora.rank", what, "set it, for example to 16, or remove the rest of model.lora"))
        if self.lora.rank and self.from_scratch:
            what = "adapters beside random weights that are never trained"
            broken.append(Broken("lora.rank", what, "set model.lora.rank to 0, or start from pretrained weights"))
        if self.lora.rank and self.freeze:
            broken.append(Broken("freeze", "with model.lora.rank the whole trunk is frozen", "remove one of them"))
        require(broken + self._not_of_mlp())
        return self

    def _not_of_mlp(self) -> list[Broken]:
        """Settings that a multi-layer perceptron has no use for."""
        if not self.mlp.hidden:
            what = "says how rows are read, but without hidden layers there is no multi-layer perceptron"
            return [Broken("mlp.hidden", what, "name the widths, or remove model.mlp")] if self.mlp != Mlp() else []
        plain = Model()
        what, fix = "is of a model of `transformers`, and the trunk is model.mlp", "remove it, or remove model.mlp"
        return [
            Broken(field, what, fix)
            for field, value in self
            if field not in ("mlp", "freeze", "initialization") and value != getattr(plain, field)
        ]

    @property
    def longest(self) -> int:
        """Most tokens of a text, where its task does not say."""
        return self.mlp.inputs if self.mlp.hidden else self.max_length

    @property
    def from_scratch(self) -> bool:
        """Whether weights are random at the start."""
        return bool(self.config or self.mlp.hidden) or self.initialization == "scratch"
