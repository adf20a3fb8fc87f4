"""What an audit measures on models whose numbers are known: healthy ones, and ones with a planted bad layer."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmrecipes.precision.audit.judge import Budget, findings, lowest_safe
from lmrecipes.precision.audit.measure import GRADIENTS, NONE, ROWS, Audit, Sampling
from lmrecipes.precision.audit.numbers import LayerNumbers
from lmrecipes.precision.audit.tally import Tally
from lmrecipes.precision.audit.updates import Moved, last_place
from lmrecipes.precision.formats import BF16, FP16

NORMAL = Budget()
WANTED = ("fp8", "bf16")


class Block(nn.Module):
    """Two products with nothing but ReLU between them, so that a factor can be moved from one to the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(self.up(x).relu()))


class Model(nn.Module):
    """Blocks and an output layer."""

    def __init__(self, blocks: int = 3, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.out = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def audited(model: nn.Module, factor: float = 1.0, lr: float = 1e-3, rows: int = 128) -> dict[str, LayerNumbers]:
    """One measured step on random numbers, its loss multiplied by a factor."""
    torch.manual_seed(1)
    x, y = torch.randn(256, 64), torch.randint(8, (256,))
    audit = Audit(model, Sampling(rows=rows))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    audit.weights()
    with audit.watching(1):
        (factor * nn.functional.cross_entropy(model(x), y)).backward()
    audit.gradients()
    optimizer.step()
    audit.updates(1.0)
    return {layer.name: layer for layer in audit.numbers([1.0, 0.5])}


def lowest(found: dict[str, LayerNumbers], budget: Budget = NORMAL) -> dict[str, str]:
    return {name: lowest_safe(layer, WANTED, budget) for name, layer in found.items() if layer.kind == "product"}


@pytest.fixture(scope="module")
def healthy() -> dict[str, LayerNumbers]:
    return audited(Model())


def test_a_healthy_model_reaches_the_plateaus_of_the_formats(healthy: dict[str, LayerNumbers]) -> None:
    assert list(healthy) == [
        *(f"blocks.{i}.{part}" for i in range(3) for part in ("up", "down", "norm")), "out",
    ]  # fmt: skip
    product = healthy["blocks.1.up"]
    for tensor in ("weight", "input"):
        formats = product.tensors[tensor].formats
        assert formats["fp8_e4m3"].sqnr == pytest.approx(31.5, abs=1.5)
        assert formats["bf16"].sqnr == pytest.approx(55.6, abs=1.5)
    assert product.tensors["gradient"].formats["fp8_e5m2"].sqnr == pytest.approx(25.6, abs=1.5)
    assert product.tensors["input"].largest < 10 and 2 < product.tensors["input"].kurtosis < 5
    assert set(lowest(healthy).values()) == {"fp8"}
    assert not [finding for finding in findings(list(healthy.values())) if finding.kind != "small gradient"]


def test_a_layer_scaled_by_1e5_is_found_and_kept_high(healthy: dict[str, LayerNumbers]) -> None:
    model = Model()
    block = model.blocks[1]
    assert isinstance(block, Block)
    before = model(torch.ones(2, 64))
    with torch.no_grad():
        block.up.weight *= 1e5
        block.up.bias *= 1e5
        block.down.weight /= 1e5
    torch.testing.assert_close(model(torch.ones(2, 64)), before)
    found = audited(model)
    assert lowest(found)["blocks.1.up"] == "bf16" and lowest(found)["blocks.1.down"] == "fp32"
    others = {name: format for name, format in lowest(found).items() if not name.startswith("blocks.1.")}
    assert set(others.values()) == {"fp8"}
    said = {(finding.layer, finding.kind) for finding in findings(list(found.values()))}
    assert {("blocks.1.up", "range"), ("blocks.1.down", "range"), ("blocks.1.down", "update")} <= said
    assert found["blocks.1.down"].tensors["input"].formats["fp16"].losses.overflow > 0.1
    assert found["blocks.1.down"].tensors["weight"].formats["fp16"].sqnr < 35  # of 73


def test_channels_that_drown_the_others_are_found_by_the_median_channel(healthy: dict[str, LayerNumbers]) -> None:
    model = Model()
    block = model.blocks[1]
    assert isinstance(block, Block)
    with torch.no_grad():
        block.up.weight[:2] *= 1e6
        block.up.bias[:2] *= 1e6
        block.down.weight[:, :2] /= 1e6
    found = audited(model)
    product = found["blocks.1.down"].tensors["input"]
    assert product.outlier > 1e3 and product.formats["fp8_e4m3"].sqnr < 20 < product.formats["bf16"].sqnr
    assert lowest(found)["blocks.1.down"] != "fp8" and lowest(found)["blocks.0.down"] == "fp8"


def test_gradients_of_1e_6_are_found_and_kept_high_where_nothing_scales_them(healthy: dict[str, LayerNumbers]) -> None:
    found = audited(Model(), factor=1e-6)
    small = {finding.layer for finding in findings(list(found.values())) if finding.kind == "small gradient"}
    assert {name for name, layer in found.items() if layer.kind == "product"} <= small
    gradient = found["blocks.0.up"].tensors["gradient"]
    assert gradient.formats["fp16"].plain.underflow > 0.9 and gradient.formats["fp16"].losses.underflow < 0.01
    unscaled = Budget(scaling="none", underflow=0.05)
    assert set(lowest(found, unscaled).values()) == {"bf16"}
    assert set(lowest(found).values()) == {"fp8"}  # with the scales of its own


def test_the_noise_in_a_weights_gradient_is_that_of_rounded_operands() -> None:
    model = nn.ModuleDict({"only": nn.Linear(64, 32)})
    torch.manual_seed(0)
    x, g = torch.randn(512, 64), torch.randn(512, 32)
    audit = Audit(model, Sampling(rows=256))
    audit.weights()
    with audit.watching(1):
        (model["only"](x) * g).sum().backward()
    audit.gradients()
    (layer,) = audit.numbers([1.0])
    exact = g.T @ x
    rounded = g.bfloat16().float().T @ x.bfloat16().float()
    expected = 10 * torch.log10(exact.square().sum() / (rounded - exact).square().sum())
    assert layer.gradient_snr["bf16"] == pytest.approx(float(expected), abs=1.0)
    assert layer.gradient_snr["fp8"] < layer.gradient_snr["bf16"] - 15


def test_largest_values_are_of_all_rows_and_statistics_of_few() -> None:
    model = nn.ModuleDict({"only": nn.Linear(8, 4)})
    x = torch.randn(4096, 8)
    x[1234, 5] = 7e4
    audit = Audit(model, Sampling(rows=16))
    audit.weights()
    with audit.watching(1):
        model["only"](x).sum().backward()
    audit.gradients()
    (layer,) = audit.numbers([1.0])
    assert layer.tensors["input"].largest == 7e4 and layer.tensors["input"].values == x.numel()
    assert layer.tensors["input"].sampled == 16 * 8


def test_rows_without_a_gradient_are_not_sampled() -> None:
    model = nn.ModuleDict({"only": nn.Linear(8, 4)})
    audit = Audit(model, Sampling(rows=16))
    audit.weights()
    with audit.watching(1):
        model["only"](torch.randn(1000, 8))[500].sum().backward()
    audit.gradients()
    (layer,) = audit.numbers([1.0])
    assert layer.tensors["gradient"].sampled == 4 and layer.tensors["gradient"].rms == 1.0


def test_what_is_frozen_has_no_updates_and_is_measured_all_the_same() -> None:
    model = Model()
    model.blocks[1].up.requires_grad_(False)
    found = audited(model)
    assert found["blocks.1.up"].update is None and "weight" in found["blocks.1.up"].tensors
    assert found["blocks.1.down"].update is not None


def test_an_audit_changes_nothing() -> None:
    plain, watched = Model(), Model()
    other = copy.deepcopy(watched)
    audited(watched)
    torch.manual_seed(1)
    x, y = torch.randn(256, 64), torch.randint(8, (256,))
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    nn.functional.cross_entropy(plain(x), y).backward()
    optimizer.step()
    for one, two, start in zip(plain.parameters(), watched.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two) and not torch.equal(one, start)
    assert not any(module._forward_hooks for module in watched.modules())


@pytest.mark.parametrize("scaling", [NONE, ROWS, GRADIENTS])
def test_shares_of_lost_values_are_those_of_the_casts(scaling: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 32) * torch.exp2(torch.randint(-30, 8, (64, 32)).float())
    tally = Tally(NONE)
    tally.see(x)
    tally.add(x)
    for name, dtype in (("fp16", torch.float16), ("fp8_e5m2", torch.float8_e5m2)):
        lost = float((x.to(dtype).float() == 0).float().mean())
        assert tally.numbers().formats[name].plain.underflow == pytest.approx(lost, abs=1e-3)
    scaled = Tally(scaling)
    scaled.see(x)
    scaled.add(x)
    for name, kind in scaling.items():
        losses = scaled.numbers().formats[name].losses
        assert losses.underflow <= losses.no_bits
        if kind != "none":
            assert losses.overflow == 0.0


def test_the_last_place_is_the_distance_to_the_next_number() -> None:
    weights = torch.tensor([1.0, 1.5, 0.3, 2.0**-14, 2.0**-20, 100.0], dtype=torch.float64)
    for number, dtype in ((BF16, torch.bfloat16), (FP16, torch.float16)):
        stored = weights.to(dtype)
        following = torch.nextafter(stored, torch.full_like(stored, 1e4))
        assert torch.equal(last_place(stored.double(), number), following.double() - stored.double())


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5])
def test_lost_updates_are_those_that_rounding_to_nearest_loses(size: float) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4000).bfloat16().float())
    moved = Moved({"weight": weight}, {"weight": torch.arange(4000)})
    update = size * torch.randn(4000)
    moved.remember()
    with torch.no_grad():
        before = weight.clone()
        weight += update / 4
    moved.see(4.0)  # the step's learning rate was a quarter of the peak
    found = moved.update([1.0])
    assert found is not None
    lost = float(((before + update).bfloat16().float() == before).float().mean())
    assert found.lost["bf16"] == pytest.approx(lost, abs=0.02)
    assert found.lost_on_average == pytest.approx(found.lost["bf16"], abs=0.1)
    assert found.ratio == pytest.approx(size, rel=0.1)


def test_smaller_learning_rates_of_the_schedule_lose_more() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(1000))
    moved = Moved({"weight": weight}, {"weight": torch.arange(1000)})
    moved.remember()
    with torch.no_grad():
        weight += 3e-3 * torch.randn(1000)
    moved.see(1.0)
    shares = [found.lost_on_average for rates in ([1.0], [1.0, 0.1], [0.01]) if (found := moved.update(rates))]
    assert shares[0] < shares[1] < shares[2]
    assert moved.update([1.0, 0.0]) == moved.update([1.0])
