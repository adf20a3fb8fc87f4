"""A recipe's model as `planning/shapes` wants it: built without numbers, on torch's meta device, and run once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lmrecipes.assets import resolve_model
from lmrecipes.data.inputs import Spec, longest_example
from lmrecipes.models.encoders import dummy
from lmrecipes.models.front_ends import front_ends
from lmrecipes.models.inputs import input_specs, modalities_of
from lmrecipes.models.loading import load_trunk
from lmrecipes.models.trunk import Trunk
from lmrecipes.planning.shapes import Activation, Attention, Norm, Product, Shapes, head_products
from lmrecipes.planning.shapes import perceptron as perceptron_of
from lmrecipes.recipe import Modality, Model, Recipe

ROWS, TIME = 2, 8
"""Of the texts that the model reads on the meta device."""
STEP_BY_STEP = ("NewGELUActivation", "FastGELUActivation")
"""Written in single operations, each of which keeps what it needs."""


def shapes_of(recipe: Recipe, outputs: dict[str, int] | None = None) -> Shapes:
    """What the recipe's model computes. outputs: of heads whose number of labels only the data tells, else 1 each.

    Nothing is downloaded but the model's configuration. Raises InputError as `load_trunk` does.
    """
    heads = {name: (outputs or {}).get(name, 1) for name, task in recipe.tasks.items() if not task.of_tokens}
    if recipe.model.mlp.hidden:
        return perceptron_of(recipe.model.mlp.inputs, recipe.model.mlp.hidden, heads)
    language = any(task.of_tokens for task in recipe.tasks.values())
    trunk = on_meta(recipe.model, language)
    shapes = traced(trunk, recipe.model)
    own = head_products(shapes.width, heads, stream=True)
    trained = sum(product.weight + product.outputs for product in own)
    specs = input_specs(recipe.model, modalities_of(recipe))
    inputs = inputs_on_meta(recipe, trunk)
    of_inputs = [weight for front_end in inputs.values() for weight in front_end.parameters()]
    read = [product for name, part in inputs.items() for product in _input_products(name, part, specs[name])]
    return replace(
        shapes,
        products=(*shapes.products, *read, *own),
        trained=shapes.trained + trained + sum(weight.numel() for weight in of_inputs if weight.requires_grad),
        frozen=shapes.frozen + sum(weight.numel() for weight in of_inputs if not weight.requires_grad),
        longest=longest_example(recipe, specs) if specs else 0,
        averaged=bool(heads) and recipe.model.pooling == "mean",
        checkpointed=recipe.model.activation_checkpointing,
        language=_language(trunk) if language else None,
    )


def traced(trunk: Trunk, model: Model) -> Shapes:
    """The trunk alone, on the meta device, after one run of it."""
    seen: list[_Call] = []
    width = trunk.hidden_size
    module = trunk.model.eval()
    inputs = torch.empty(ROWS, TIME, width, device="meta", requires_grad=True)
    with _watched(module, seen):
        # A whole mask: what makes one of less asks for values, which there are none of.
        module(inputs_embeds=inputs, attention_mask=torch.zeros(ROWS, 1, TIME, TIME, device="meta"))
    norms = {id(call.output.grad_fn) for call in seen if _is_norm(call.module)}
    weights = list(trunk.whole.parameters())
    return Shapes(
        width,
        sum(weight.numel() for weight in weights if weight.requires_grad),
        sum(weight.numel() for weight in weights if not weight.requires_grad),
        tuple(_products(seen, norms)),
        tuple(_attentions(module, model)),
        tuple(_norms(seen, width)),
        tuple(_activations(seen)),
        tuple((name, m.weight.numel()) for name, m in module.named_modules() if isinstance(m, nn.Embedding)),
        tuple(call.width for call in seen if isinstance(call.module, nn.Dropout) and call.module.p > 0),
        _head_width(module) if any("Rotary" in type(part).__name__ for part in module.modules()) else 0,
    )


@dataclass
class _Call:
    """One module that ran."""

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor

    @property
    def width(self) -> int:
        """Numbers of a token that it read."""
        return self.input.numel() // (ROWS * TIME)


def on_meta(model: Model, language: bool) -> Trunk:
    """The recipe's trunk without numbers; its attention is the plain one, which every model has. A tokenizer that is
    still to be trained has as many tokens as it is asked for."""
    words, config = model.tokenizer_vocabulary, model.config
    if words and config:
        config = {"vocab_size": words, **config}
    changes = {"initialization": "scratch", "attention": "eager", "config": config, "tokenizer_vocabulary": 0}
    tokenizer = resolve_model(model.tokenizer) if model.tokenizer else None
    with torch.device("meta"):
        trunk = load_trunk(model.model_copy(update=changes), 0, "buckets", False, language, tokenizer)
        if words and not config:
            trunk.whole.resize_token_embeddings(words, mean_resizing=False)
    return trunk


def inputs_on_meta(recipe: Recipe, trunk: Trunk) -> dict[Modality, nn.Module]:
    """The recipe's front ends without numbers. Raises InputError for an encoder that cannot be one."""
    specs = input_specs(recipe.model, modalities_of(recipe))
    with torch.device("meta"):
        return front_ends(recipe.model, specs, trunk, 0)


def _input_products(modality: Modality, front_end: nn.Module, spec: Spec) -> Iterator[Product]:
    """What a front end multiplies for one image, or for the longest clip."""
    seen: list[_Call] = []
    with _watched(front_end, seen), torch.device("meta"):
        front_end.eval()(dummy(spec))
    norms = {id(call.output.grad_fn) for call in seen if _is_norm(call.module)}
    for call in seen:
        if not isinstance(call.module, nn.Linear | nn.Conv1d | nn.Conv2d):
            continue
        weight, name = call.module.weight, f"inputs.{modality}.{call.name}"
        outputs, inputs = weight.shape[0], weight[0].numel()
        stream = id(call.input.grad_fn) in norms or call.input.grad_fn is None
        yield Product(
            name, inputs, outputs, name, stream, call.module.bias is not None, "text", weight.requires_grad,
            call.input.requires_grad, call.output.numel() // outputs,
        )  # fmt: skip


@contextmanager
def _watched(model: nn.Module, seen: list[_Call]) -> Iterator[None]:
    """Note each leaf module that runs within, in order."""

    def noted(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                seen.append(_Call(name, module, args[0], output))

        return note

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if not any(module.children()):
                hooks.callback(module.register_forward_hook(noted(name)).remove)
        yield


def _products(seen: list[_Call], norms: set[int]) -> Iterator[Product]:
    names: dict[int, str] = {}
    for call in seen:
        if not isinstance(call.module, nn.Linear | Conv1D):
            continue
        weight = call.module.weight
        inputs, outputs = weight.shape if isinstance(call.module, Conv1D) else weight.shape[::-1]
        reads = names.setdefault(id(call.input), call.name)
        stream = id(call.input.grad_fn) in norms or call.input.grad_fn is None
        bias, trained = call.module.bias is not None, weight.requires_grad
        yield Product(call.name, inputs, outputs, reads, stream, bias, trained=trained)


def _attentions(model: nn.Module, settings: Model) -> Iterator[Attention]:
    config: Any = model.config
    config = config.get_text_config()
    heads = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    for name, module in model.named_modules():
        inside = (type(part).__name__ for part in module.modules() if part is not module)
        if "Attention" in type(module).__name__ and not any("Attention" in part for part in inside):
            yield Attention(name, heads, keys, _head_width(model), dropout=bool(settings.dropout))


def _head_width(model: nn.Module) -> int:
    config: Any = model.config
    config = config.get_text_config()
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _norms(seen: list[_Call], width: int) -> Iterator[Norm]:
    for call in seen:
        if _is_norm(call.module):
            rms = not isinstance(call.module, nn.LayerNorm)
            yield Norm(call.name, call.width, rms, stream=call.input.shape[-1] == width)


def _activations(seen: list[_Call]) -> Iterator[Activation]:
    read = {id(call.input) for call in seen if isinstance(call.module, nn.Linear | Conv1D)}
    for call in seen:
        if type(call.module).__module__ in ("transformers.activations", "torch.nn.modules.activation"):
            name = type(call.module).__name__
            gated = id(call.output) not in read
            saved = 4 if name in STEP_BY_STEP else 0 if name == "ReLU" and not gated else 1
            yield Activation(call.name, call.width, saved + 2 * gated, gated)


def _language(trunk: Trunk) -> Product:
    output = trunk.whole.get_output_embeddings()
    words, width = output.weight.shape
    return Product(
        "language", width, words, "language", True, output.bias is not None, "token", output.weight.requires_grad
    )


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
