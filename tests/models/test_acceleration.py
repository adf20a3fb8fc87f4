"""Memory and time savers change no loss and no gradient, and say what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmrecipes.models import acceleration
from lmrecipes.models.acceleration import checkpoint_activations, compile_layers, use_liger
from lmrecipes.models.adapters import adapt
from lmrecipes.models.attention import KERNEL, Block, Blocks, register
from lmrecipes.problems import InputError
from lmrecipes.recipe import Lora

CUDA = torch.device("cuda")


def make(kind: str = "llama", attention: str = "sdpa") -> Any:
    from transformers import AutoConfig, AutoModel

    register()
    fields: dict[str, Any] = {
        "llama": {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48},
        "bert": {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48},
        "gpt2": {"n_layer": 3, "n_head": 4, "n_embd": 32},
    }[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=97, use_cache=False, pad_token_id=0, **fields)
    for dropout in ("hidden_dropout_prob", "attention_probs_dropout_prob", "embd_pdrop", "attn_pdrop", "resid_pdrop"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    model = AutoModel.from_config(config).train()
    model.pooler = None
    model.set_attn_implementation(attention)
    return model


def passed(model: Any, rows: int = 3, time: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs and gradients, as the trunk runs a model."""
    inputs = model.get_input_embeddings()(torch.arange(rows * time)[None] * 7 % 97)
    options: dict[str, Any] = {"attention_mask": None, "position_ids": torch.arange(time).repeat(rows)[None]}
    if model.config._attn_implementation == KERNEL:
        options["blocks"] = Blocks([Block(rows, time)])
    hidden = model(inputs_embeds=inputs, **options).last_hidden_state
    model.zero_grad()
    hidden.square().sum().backward()
    return hidden.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert torch.allclose(found[0], wanted[0], atol=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert torch.allclose(found[1][name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max())), name


def prepared(kind: str, attention: str, change: Callable[[Any], None]) -> Any:
    model = make(kind, attention)
    change(model)
    return model


def as_it_is(model: Any) -> None:
    pass


def embeddings_frozen(model: Any) -> None:
    for parameter in model.get_input_embeddings().parameters():
        parameter.requires_grad_(False)


def with_adapters(model: Any) -> None:
    adapt(model, Lora(rank=2), seed=0)


@pytest.mark.parametrize("change", [as_it_is, embeddings_frozen, with_adapters])
@pytest.mark.parametrize("attention", ["sdpa", KERNEL])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_checkpoints_change_nothing(kind: str, attention: str, change: Callable[[Any], None]) -> None:
    model = prepared(kind, attention, change)
    wanted = passed(model)
    layers = sum(isinstance(module, nn.Linear) for module in model.modules())
    checkpoint_activations(model)
    assert_equal(passed(model), wanted)
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == layers


def test_checkpoints_keep_less() -> None:
    """Bytes that the forward pass keeps for the backward pass."""

    def kept(model: Any) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        inputs = model.get_input_embeddings()(torch.arange(20 * 32)[None] % 97).detach().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(inputs_embeds=inputs)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        return sum(size for at, size in sizes.items() if at not in weights)

    model = make()
    before = kept(model)
    checkpoint_activations(model)
    assert kept(model) < before / 4
    model.eval()
    assert kept(model) > before / 2, "only in training"


def test_a_model_that_cannot_checkpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match=r"model.activation_checkpointing: LlamaModel does not support it"):
        checkpoint_activations(model)


@pytest.fixture
def counters() -> Any:
    """Graphs compiled by a backend that runs them as they are: what is compiled, without the minutes."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", KERNEL])
def test_compiled_layers(attention: str, checkpointed: bool, counters: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(attention=attention)
    shapes = [(3, 8), (4, 9), (5, 7), (2, 16), (6, 6)]
    wanted = [passed(model, *shape) for shape in shapes]
    names = list(model.state_dict())
    if checkpointed:
        checkpoint_activations(model)
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled(self, backend=counters))
    compile_layers(model)
    assert list(model.state_dict()) == names
    frames = []
    for shape, right in zip(shapes, wanted, strict=True):
        assert_equal(passed(model, *shape), right)
        frames.append(counters.frame_count)
    assert frames[1] == frames[-1], "compiled for the first shape and for any other"
    assert frames[0] == (4 if attention == KERNEL else 3), (
        "norm, feed-forward, attention in one or two parts: all layers"
    )


def test_compiled_for_real() -> None:
    """By torch's own compiler, one small part."""
    torch._dynamo.reset()
    model = make()
    wanted = passed(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.layers[0]), "children", lambda self: iter([self.mlp]))
        compile_layers(model)
    assert_equal(passed(model), wanted)
    assert sum(module._compiled_call_impl is not None for module in model.modules()) == 3
    torch._dynamo.reset()


def test_liger_off_and_absent() -> None:
    cpu = torch.device("cpu")
    assert use_liger(make(), "off", CUDA) == "no Liger kernels (switched off)"
    assert use_liger(make(), "auto", cpu) == "no Liger kernels (no CUDA device)"
    with pytest.raises(InputError, match=r"need a CUDA device, and this run computes on cpu\. Fix: set it to auto"):
        use_liger(make(), "on", cpu)


def test_liger_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "find_spec", lambda name: None)
    assert use_liger(make(), "auto", CUDA) == "no Liger kernels (not installed)"
    with pytest.raises(InputError, match=r"the package is not installed\. Fix: pip install liger-kernel"):
        use_liger(make(), "on", CUDA)


@pytest.mark.parametrize("setting", ["auto", "on"])
def test_liger_changes_this_model_only(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that does what Liger's function does, but computes what was computed before."""
    from transformers.models.llama import modeling_llama

    given = {}

    def apply(model: Any, settings: dict[str, bool]) -> None:
        given.update(settings)
        kept = type(model.norm).forward
        modeling_llama.LlamaRMSNorm = None  # type: ignore[assignment, misc]
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = (lambda self, hidden: kept(self, hidden)).__get__(module)

    monkeypatch.setattr(acceleration, "find_spec", lambda name: name)
    monkeypatch.setattr("transformers.integrations.liger.apply_liger_kernel", apply)
    model, norm = make(), modeling_llama.LlamaRMSNorm
    assert use_liger(model, setting, CUDA) == "Liger kernels in LlamaRMSNorm"
    assert given == {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    assert modeling_llama.LlamaRMSNorm is norm, "other models are as they were"
    monkeypatch.setattr("transformers.integrations.liger.apply_liger_kernel", lambda model, settings: None)
    assert use_liger(make("gpt2"), setting, CUDA) == "no Liger kernels for GPT2Model"
