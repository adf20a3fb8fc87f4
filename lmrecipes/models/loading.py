"""A recipe's trunk: pretrained or from scratch, frozen in part or with adapters, in the run's layout."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from lmrecipes.assets import resolve_model
from lmrecipes.data.layout import LayoutName
from lmrecipes.data.permutation import hash_key
from lmrecipes.data.tokenizer import load_tokenizer, model_problem
from lmrecipes.models.acceleration import checkpoint_activations, compile_layers, use_liger
from lmrecipes.models.adapters import adapt
from lmrecipes.models.attention import choose, own_attention, register
from lmrecipes.models.mlp import random_trunk
from lmrecipes.models.trunk import Trunk
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Modality, Model

DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout",
    "activation_dropout", "hidden_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop", "embedding_dropout",
    "mlp_dropout",
)  # fmt: skip
"""Names that `transformers` configurations give to dropout rates."""


def load_trunk(
    model: Model, seed: int, layout: LayoutName | Literal["auto"] = "buckets", half: bool = False,
    language: bool = False, tokenizer: str | None = None,
) -> Trunk:  # fmt: skip
    """Load (or initialise from scratch) the trunk of a recipe in fp32, to run in a layout, in 16 bits or not.

    language: with its language-model head. tokenizer: whose tokens a model from a configuration knows. Raises
    InputError where the model cannot be loaded, has no such head or cannot run in the layout.
    """
    from transformers import AutoConfig

    if model.mlp.hidden:
        trunk = random_trunk(model.mlp, seed)
        freeze(trunk.model, model.freeze)
        return trunk
    attention = own_attention(model)
    name = str(model.config["model_type"]) if model.config else resolve_model(model.pretrained)
    try:
        config = _own_configuration(model, tokenizer) if model.config else AutoConfig.from_pretrained(name)
        if not model.config and (model.tokenizer or model.tokenizer_vocabulary):
            assert tokenizer is not None
            config.update(_vocabulary(tokenizer))
        _prepare(config, model.dropout)
        whole = _weights(model, name, config, seed, attention, language)
    except (ImportError, OSError, ValueError) as error:
        raise InputError(_problem(model, name, error)) from None
    if hasattr(config, "use_cache"):
        whole.config.use_cache = False
    freeze(whole.base_model, model.freeze)
    adapted = adapt(whole, model.lora, seed) if model.lora.rank else None
    register()
    return Trunk(whole, model.pooling, choose(model, layout, whole.base_model, half), adapted)


def _problem(model: Model, name: str, error: Exception) -> Problem:
    """A model that cannot be made, as a problem with a fix."""
    if not model.config:
        return model_problem(name, error)
    return Problem("model.config", f"{name}: {error}", "correct its settings, or take another model_type", "config")


def accelerate(trunk: Trunk, model: Model, device: torch.device) -> str:
    """Switch on what the recipe asks for to save memory and time. Returns a line that says what is used."""
    said = [use_liger(trunk.whole, model.liger, device)]
    if model.activation_checkpointing:
        checkpoint_activations(trunk.model)
        said.append("activation checkpointing")
    if model.compile:
        compile_layers(trunk.model)
        said.append("compiled layers")
    return ", ".join(said)


def require_positions(model: nn.Module, longest: int, first_position: int, modalities: Sequence[Modality] = ()) -> None:
    """Raise InputError where examples may be longer than the model was made for; it would fail, or read nonsense.

    longest: tokens of the longest text, or positions of the longest example with what it holds of these modalities.
    """
    places = getattr(model.config, "max_position_embeddings", None)
    if places is not None and longest > (known := places - first_position):
        what = f"{longest} tokens, but the model knows {known} positions"
        fix = f"set it (and each tasks.X.max_length) to {known} or less, or use another model"
        if modalities:
            beside = " and ".join(modalities)
            what = f"an example's text, {beside} may take {longest} positions together, but the model knows {known}"
            fix = f"make it (and each tasks.X.max_length) less, or what is read of {beside}, or use another model"
        raise InputError(Problem("model.max_length", what, fix, "max-length"))


def _own_configuration(model: Model, tokenizer: str | None) -> Any:
    """The `transformers` configuration that the recipe writes itself, for the tokens of its tokenizer."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    kind = str(model.config["model_type"])
    if kind not in CONFIG_MAPPING:
        what = f"`transformers` has no model of type {kind!r}.{did_you_mean(kind, CONFIG_MAPPING)}"
        fix = "name one, for example llama, gpt2, qwen3 or bert"
        raise InputError(Problem("model.config.model_type", what, fix, "config-unknown"))
    known, unknown = CONFIG_MAPPING[kind]().to_dict(), []
    for key in model.config:
        if key in DROPOUTS:
            what = "model.dropout decides over every rate of dropout"
            unknown.append(Problem(f"model.config.{key}", what, "set model.dropout instead", "config-unknown"))
        elif key not in known:
            what = f"{kind} has no setting {key!r}.{did_you_mean(key, known)}"
            unknown.append(Problem(f"model.config.{key}", what, "remove it, or correct its name", "config-unknown"))
    words = {} if tokenizer is None else _vocabulary(tokenizer)
    size = model.config.get("vocab_size")
    if words and isinstance(size, int) and size < words["vocab_size"]:
        what = f"{size}, but the tokenizer has {words['vocab_size']} tokens"
        unknown.append(Problem("model.config.vocab_size", what, "remove it", "config-vocabulary"))
    if unknown:
        raise InputError(unknown)
    try:
        return CONFIG_MAPPING[kind](**{**words, **model.config})
    except StrictDataclassError as error:
        raise ValueError(f"{error.__cause__ or error}") from None


def _vocabulary(tokenizer: str) -> dict[str, Any]:
    """What a configuration says of the tokenizer."""
    words = load_tokenizer(tokenizer)
    ids = {key: getattr(words, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {"vocab_size": len(words), **ids}


def _prepare(config: Any, dropout: float | None) -> None:
    """fp32, and dropout as the recipe says. Raises ValueError for an encoder-decoder."""
    if dropout is not None:
        for field in DROPOUTS:
            if isinstance(getattr(config, field, None), (int, float)):
                setattr(config, field, dropout)
    if config.is_encoder_decoder:
        raise ValueError("it is an encoder-decoder; a trunk is an encoder or a decoder")
    config.dtype = torch.float32


def _weights(model: Model, name: str, config: Any, seed: int, attention: str, language: bool) -> Any:
    """The model in fp32."""
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if language and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError("it has no language-model head, which language_modelling and chat tasks need")
    kind = AutoModelForCausalLM if language else AutoModel
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attention}
    if model.from_scratch:
        torch.manual_seed(hash_key(seed, "trunk"))
        return kind.from_config(config, **options)
    whole, found = kind.from_pretrained(name, config=config, output_loading_info=True, **options)
    if absent := sorted(key for key in found["missing_keys"] if not key.startswith("pooler.")):
        raise ValueError(f"its file lacks {len(absent)} weights of the model ({listing(absent, 3)})")
    return whole


def freeze(module: nn.Module, patterns: tuple[str, ...]) -> None:
    """Stop training the parameters whose names match. Raises InputError for a pattern that matches nothing."""
    names = [name for name, _ in module.named_parameters()]
    problems = []
    for pattern in patterns:
        chosen = fnmatch.filter(names, pattern)
        if not chosen:
            problems.append(
                Problem(
                    "model.freeze", f"{pattern!r} matches no parameter", f"names are like {listing(names, 4)}", "freeze"
                )
            )
        for name in chosen:
            module.get_parameter(name).requires_grad_(False)
    if problems:
        raise InputError(problems)
