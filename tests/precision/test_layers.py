"""Formats on live models: where they apply, what they leave as it was, and that every engine gives the same weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Run
from torch import nn

from lmrecipes.models.language import LanguageHead
from lmrecipes.precision.layers import Layers, install
from lmrecipes.precision.linear import FormatConv1D, FormatLinear
from lmrecipes.precision.plan import layer_formats
from lmrecipes.problems import InputError
from lmrecipes.recipe_precision import Precision

WORKER = ROOT / "tests" / "precision" / "layers_worker.py"
CPU = torch.device("cpu")
ENGINES = ("plain", "ddp", "0", "1", "2", "3")


class Seen(nn.Module):
    """Notes in which arithmetic it is called, and with which dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.dtype | None, torch.dtype]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input."""
        on = torch.is_autocast_enabled("cpu")
        self.calls.append((torch.get_autocast_dtype("cpu") if on else None, x.dtype))
        return x


class Block(nn.Module):
    """A layer with an inner one."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.linear, self.after = Seen(), nn.Linear(16, 16), Seen()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[k, 16] -> [k, 16]."""
        return self.after(self.linear(self.before(x)))


def blocks(precision: Precision, count: int = 3) -> tuple[Any, Layers]:
    """Layers 0, 1, ... in a row."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(*[Block() for _ in range(count)])
    return model, install(model, precision, CPU)


def test_layers_keep_parameters_names_hooks_and_references() -> None:
    """Only the class changes; what `transformers` and peft hold is still what runs."""
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU())
    linear, weight, names = model[0], model[0].weight, list(model.state_dict())
    calls: list[str] = []
    linear.register_forward_hook(lambda *_: calls.append("hook"))
    install(model, Precision(layers={"*": "fp8"}), CPU)
    model(torch.randn(2, 16))
    assert model[0] is linear and type(linear) is FormatLinear and linear.weight is weight
    assert list(model.state_dict()) == names and calls == ["hook"]


def test_regions_enclose_fp32_and_bf16_modules_whole() -> None:
    """fp32: autocast off and inputs raised; fp8: only the product, the rest is the run's own."""
    half = torch.bfloat16
    model, _ = blocks(Precision(compute="bf16", layers={"0": "fp8", "1": "fp32"}))
    out = model(torch.randn(4, 16))
    assert model[0].before.calls == [(half, torch.float32)] and model[0].after.calls == [(half, half)]
    assert model[1].before.calls == model[1].after.calls == [(None, torch.float32)]
    assert model[2].before.calls == [(half, torch.float32)] and out.dtype is half
    assert not torch.is_autocast_enabled("cpu")
    model, _ = blocks(Precision(compute="fp32", layers={"1": "bf16", "2.linear": "fp8"}))
    out = model(torch.randn(4, 16))
    assert model[1].before.calls == [(half, torch.float32)] and model[1].after.calls == [(half, half)]
    assert model[2].before.calls == model[2].after.calls == [(None, torch.float32)], "raised on leaving 1"
    assert out.dtype is torch.float32


def test_products_in_an_fp32_module_come_out_in_fp32() -> None:
    """Whatever they are computed in: attention wants one dtype of its three inputs."""
    model, _ = blocks(Precision(layers={"*": "fp32", "0.linear": "fp8", "1.linear": "bf16", "2.linear": "fp16"}))
    model(torch.randn(4, 16))
    assert [block.after.calls for block in model] == [[(None, torch.float32)]] * 3


def test_an_exception_leaves_no_region_open() -> None:
    """The next step starts from a clean state."""
    model, _ = blocks(Precision(compute="bf16", layers={"1": "fp32"}))
    with pytest.raises(RuntimeError):
        model(torch.randn(4, 5))
    handle = model[1].after.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(torch.randn(4, 16))
    handle.remove()
    assert not torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()
    model(torch.randn(4, 16))
    assert model[1].before.calls[-1] == (None, torch.float32)


def test_formats_change_in_place() -> None:
    """As if the model had been made with the later ones; those in force are told."""
    precision = Precision(layers={"*": "fp8"}, changes=({"at": 0.5, "layers": {"1": "fp32", "2": "fp16"}},))
    model, layers = blocks(precision)
    x = torch.randn(4, 16)
    first = model(x)
    layers.use(layer_formats(precision, list(layers.modules), 0.5))
    assert layers.formats == {"0.linear": "fp8", "1.linear": "fp32", "2.linear": "fp16"}
    fresh, _ = blocks(Precision(layers={"*": "fp8", "1": "fp32", "2": "fp16"}))
    assert torch.equal(model(x), fresh(x))
    layers.use(layer_formats(precision, list(layers.modules), 0.0))
    assert torch.equal(model(x), first)


def test_pure_runs_have_products_alone() -> None:
    """bf16 leaves and no autocast; each product gives bf16 to what follows."""
    model, _ = blocks(Precision(master_weights="none", layers={"0": "fp8", "1": "fp32"}))
    model.to(torch.bfloat16)
    out = model(torch.randn(4, 16, dtype=torch.bfloat16))
    assert all(block.after.calls == [(None, torch.bfloat16)] for block in model)
    out.sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.bfloat16}


def test_statistics_are_of_the_steps_between_two_readings() -> None:
    """By product, in order; off again they cost nothing and are refused."""
    model, layers = blocks(Precision(layers={"1": "fp16"}), count=2)
    x = torch.ones(4, 16)
    with pytest.raises(RuntimeError):
        layers.statistics()
    layers.measure(True)
    for _ in range(2):
        model(x).sum().backward()
    found = layers.statistics()
    assert found.shape == (2, 3, 3) and found.dtype is torch.float64
    assert found[:, :, 0].tolist() == [[128, 512, 128]] * 2
    assert float(layers.statistics().sum()) == 0
    layers.measure(False)
    assert model[0].linear.counts is None


@pytest.mark.parametrize(
    ("precision", "problem"),
    [
        ({"layers": {"encoder": "fp32"}}, "precision-layers"),
        ({"layers": {"0.before": "fp8"}}, "precision-products"),
        ({"layers": {"0": "fp8"}, "fp8": "native"}, "fp8-native"),
        ({"changes": ({"at": 0.5, "layers": {"0": "fp8"}},), "fp8": "native"}, "fp8-native"),
    ],
)
def test_what_cannot_be_is_refused(precision: dict[str, Any], problem: str) -> None:
    """With the reason, before anything is changed."""
    model: Any = nn.Sequential(Block())
    with pytest.raises(InputError) as caught:
        install(model, Precision(**precision), CPU)
    assert [found.id for found in caught.value.problems] == [problem]
    assert type(model[0].linear) is nn.Linear
    install(model, Precision(layers={"0": "bf16"}, fp8="native"), CPU)


def test_the_language_model_head_keeps_its_tied_weight() -> None:
    """It has a region and no other layer; fp8 is refused, also where a pattern means all."""
    from transformers import GPT2Config, GPT2LMHeadModel

    causal = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    model: Any = nn.Module()
    model.trunk = nn.ModuleDict({"model": causal.transformer})
    model.language = LanguageHead(causal)
    for rules in ({"*": "fp8"}, {"*": "bf16", "language": "fp8_e4m3"}):
        with pytest.raises(InputError) as caught:
            install(model, Precision(layers=rules), CPU)
        assert [found.id for found in caught.value.problems] == ["precision-language"]
    layers = install(model, Precision(layers={"*": "fp8", "language": "fp32"}), CPU)
    assert list(layers.products) == ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj", "language"]
    assert all(type(layers.products[name]) is FormatConv1D for name in list(layers.products)[:-1])
    assert type(causal.lm_head) is nn.Linear and model.language.output is causal.lm_head
    assert model.language.weight is causal.transformer.wte.weight
    hidden = torch.randn(5, 16, dtype=torch.bfloat16, requires_grad=True)
    loss, _ = model.language(hidden, torch.arange(5), torch.ones(5))
    exact = nn.functional.cross_entropy(hidden.float() @ model.language.weight.t(), torch.arange(5), reduction="sum")
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)


def test_adapters_are_products_of_their_own() -> None:
    """peft's layers beside a frozen one: only the frozen one in fp8."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    whole = BertModel(config, add_pooling_layer=False)
    get_peft_model(whole, LoraConfig(r=4, target_modules=["query"]))
    model: Any = nn.Module()
    model.trunk = nn.ModuleDict({"model": whole})
    layers = install(model, Precision(compute="bf16", layers={"*.base_layer": "fp8"}), CPU)
    low = [name for name, format in layers.formats.items() if format == "fp8"]
    assert low == ["encoder.layer.0.attention.self.query.base_layer"]
    assert "encoder.layer.0.attention.self.query.lora_A.default" in layers.products
    with torch.autocast("cpu", torch.bfloat16):
        whole(input_ids=torch.randint(32, (2, 5))).last_hidden_state.float().sum().backward()
    trained = {name for name, p in whole.named_parameters() if p.grad is not None}
    assert trained and all("lora" in name for name in trained)


@pytest.mark.parametrize("place", ["0", "1"])
def test_within_uniformly_nothing_is_rounded_and_then_all_is_as_before(place: str) -> None:
    """Outermost products too, whether the model is called or what it holds, as an export does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), Block())
    x = torch.randn(4, 16)
    exact = model(x), model[int(place)](x)
    layers = install(model, Precision(compute="bf16", layers={place: "fp8"}), CPU)
    rounded = model(x)
    with layers.uniformly("fp32"):
        assert torch.equal(model(x), exact[0]) and torch.equal(model[int(place)](x), exact[1])
    assert rounded.dtype is torch.bfloat16 and torch.equal(model(x), rounded)


def test_uniform_fp32_is_what_torch_computes() -> None:
    """Bit for bit, gradients too."""
    plain, (model, _) = nn.Sequential(*[Block() for _ in range(3)]), blocks(Precision(compute="fp32"))
    plain.load_state_dict(model.state_dict())
    x = torch.randn(7, 16)
    for network in (plain, model):
        network(x).square().sum().backward()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_every_engine_gives_the_same_weights(run: Run, tmp_path: Path) -> None:
    """Mixed fp32, bf16, fp16 and fp8 layers whose formats change twice, 30 steps, two ranks against two micro-batches:
    bit for bit on plain torch, DDP and ZeRO 0-3, with and without checkpointing.

    BERT under ZeRO-3 alone is compared by its losses: DeepSpeed's hooks change the order in which autograd adds up the
    gradients of a hidden state that query, key and value read; so it does for plain fp32 layers.
    """
    found = {}
    for engine in ENGINES:
        out = tmp_path / f"{engine}.json"
        launch = [sys.executable] if engine == "plain" else ["torchrun", "--standalone", "--nproc_per_node=2"]
        done = run(*launch, WORKER, engine, out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        found[engine] = json.loads(out.read_text())
    for case, (weights, losses, autocast_left_on) in found["plain"].items():
        assert not autocast_left_on
        assert weights == found["plain"][case.replace("True", "False")][0]
        for engine in [name for name in ENGINES if case in found[name]]:
            if engine == "3" and case.startswith("bert"):
                assert found[engine][case][1] == pytest.approx(losses, rel=1e-3)
            else:
                assert found[engine][case][:2] == [weights, losses], f"{engine}: {case}"
