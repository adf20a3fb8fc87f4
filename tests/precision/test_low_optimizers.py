"""Optimizers of bf16 weights: torch's arithmetic, roundings that lose nothing on average, exact resumes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lmrecipes.precision import optimizers
from lmrecipes.precision.optimizers import SGD, AdamW, LowPrecision, RMSprop

SHAPES = ((5, 7), (3,), (1,), (4, 2, 6))
ROUNDINGS = ("nearest", "stochastic", "kahan")
Make = Callable[..., torch.optim.Optimizer]


def parameters(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> list[nn.Parameter]:
    made = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=made).to(dtype)) for shape in SHAPES]


def train(optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> list[Tensor]:
    """Steps on gradients that depend on the step alone; returns the weights."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(first, first + steps):
        made = torch.Generator().manual_seed(100 + step)
        for p in weights:
            p.grad = torch.randn(p.shape, generator=made).to(p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in weights]


@pytest.mark.parametrize("chunk", [4, 1 << 16])
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (AdamW, torch.optim.AdamW, {"betas": (0.9, 0.98), "eps": 1e-3, "weight_decay": 0.1}),
        (RMSprop, torch.optim.RMSprop, {"alpha": 0.97, "eps": 1e-3, "weight_decay": 0.1}),
        (RMSprop, torch.optim.RMSprop, {}),
        (SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (SGD, torch.optim.SGD, {"momentum": 0.0}),
    ],
)  # fmt: skip
def test_update_rules_are_torchs(
    ours: Any, theirs: Any, options: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(optimizers.CHUNK, "cpu", chunk)
    one = train(ours(parameters(torch.float32), lr=0.01, rounding="nearest", **options), 5)
    other = train(theirs(parameters(torch.float32), lr=0.01, **options), 5)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


def test_groups_have_their_own_rate_and_decay() -> None:
    many = parameters()
    groups = [{"params": many[:2], "weight_decay": 0.5, "lr": 0.0}, {"params": many[2:], "lr": 0.1}]
    before = [p.detach().clone() for p in many]
    optimizer = AdamW(groups, lr=0.2)
    train(optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(many[:2], before[:2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(many[2:], before[2:], strict=True))
    optimizer.param_groups[0]["lr"] = 0.1
    train(optimizer, 1)
    assert not torch.equal(many[0], before[0])


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 60), st.sampled_from(["stochastic", "kahan"]))
def test_chunks_do_not_change_the_result(chunk: int, rounding: Any) -> None:
    whole = train(AdamW(parameters(), lr=0.01, rounding=rounding), 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(optimizers.CHUNK, "cpu", chunk)
        cut = train(AdamW(parameters(), lr=0.01, rounding=rounding), 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))


@pytest.mark.parametrize(
    ("make", "names"),
    [(AdamW, {"exp_avg", "exp_avg_sq"}), (RMSprop, {"square_avg"}), (SGD, set()), (SGD, {"momentum_buffer"})],
)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_states_are_bf16_two_bytes_each(make: Make, names: set[str], rounding: Any) -> None:
    options = {"momentum": 0.9} if names == {"momentum_buffer"} else {}
    optimizer = make(parameters(), lr=0.01, rounding=rounding, **options)
    train(optimizer, 1)
    wanted = names | ({"compensation"} if rounding == "kahan" else set())
    for p, state in optimizer.state.items():
        assert set(state) == wanted | {"step", "number"}
        assert all(state[name].dtype == torch.bfloat16 and state[name].shape == p.shape for name in wanted)


def problem(make: Make, dtype: torch.dtype, steps: int = 150) -> float:
    """Mean squared error of a small network that follows another one, at a small learning rate."""
    made = torch.Generator().manual_seed(1)
    x = torch.randn(64, 16, generator=made)
    weights = [torch.randn(shape, generator=made) / 4 for shape in ((16, 32), (32, 4))]
    y = (x @ (weights[0] + 0.05)).tanh() @ (weights[1] - 0.05)
    model = [nn.Parameter(weight.to(dtype)) for weight in weights]
    optimizer = make(model)

    def loss() -> Tensor:
        hidden = (x @ model[0].float()).tanh()
        return (hidden @ model[1].float() - y).square().mean()

    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return loss().item()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p, **k: AdamW(p, lr=1e-4, **k), lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0)),
        (lambda p, **k: RMSprop(p, lr=1e-4, **k), lambda p: torch.optim.RMSprop(p, lr=1e-4)),
        (lambda p, **k: SGD(p, lr=1e-4, momentum=0.9, **k), lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.9)),
    ],
    ids=["adamw", "rmsprop", "sgd"],
)
def test_at_a_small_rate_nearest_stalls_while_stochastic_and_kahan_keep_up_with_fp32(ours: Any, theirs: Any) -> None:
    start = problem(theirs, torch.float32, 0)
    exact = problem(theirs, torch.float32)
    nearest, stochastic, kahan = (
        problem(lambda p, r=r: ours(p, rounding=r, seed=3), torch.bfloat16) for r in ROUNDINGS
    )
    gained = start - exact
    assert start - nearest < 0.5 * gained
    assert stochastic == pytest.approx(exact, abs=0.1 * gained)
    assert kahan == pytest.approx(exact, abs=0.02 * gained)


def test_stochastic_rounding_is_right_on_average() -> None:
    weight = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    optimizer = SGD([weight], lr=1.0, seed=5)
    steps, change = 20, 0.001  # a unit of the last place of 1 is 0.0078
    for _ in range(steps):
        weight.grad = torch.full_like(weight, -change)
        optimizer.step()
    moved = weight.detach().double() - 1
    given_ = torch.tensor(change).bfloat16().double().item()
    deviation = (2.0**-7 * given_ * steps / len(weight)) ** 0.5
    assert abs(moved.mean().item() - steps * given_) < 5 * deviation
    assert moved.min() == 0 and moved.max() < 0.12, "elements go their own ways"


def test_kahan_holds_weight_decay_that_is_smaller_than_its_last_place() -> None:
    weight = nn.Parameter(torch.full((4000,), 1.25, dtype=torch.bfloat16))
    optimizer = AdamW([weight], lr=1e-3, weight_decay=1e-3, rounding="kahan")
    for _ in range(2000):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    held = weight.detach().double() + optimizer.state[weight]["compensation"].double()
    assert 1.25 - held.mean().item() == pytest.approx(0.0025, rel=0.06), "fp32 itself is 5% off here"
    assert (weight.detach().double() - 1.25).abs().max() <= 2**-7


def test_the_second_moment_stands_still_only_when_rounded_to_the_nearest() -> None:
    found = {}
    for rounding in ROUNDINGS:
        weight = nn.Parameter(torch.zeros(2000, dtype=torch.bfloat16))
        optimizer = AdamW([weight], lr=1e-4, betas=(0.9, 0.999), rounding=rounding)  # type: ignore[arg-type]
        for size in (1.0, *[0.0] * 300):
            weight.grad = torch.full_like(weight, size)
            optimizer.step()
        found[rounding] = optimizer.state[weight]["exp_avg_sq"].double().mean().item()
    exact = 0.001 * 0.999**300
    assert found["nearest"] == pytest.approx(0.001, rel=0.01)
    assert found["stochastic"] == pytest.approx(exact, rel=0.01)
    assert found["kahan"] == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("make", [AdamW, RMSprop, lambda p, **k: SGD(p, momentum=0.9, **k)])
def test_a_resumed_run_goes_on_bit_for_bit(make: Make, rounding: Any, tmp_path: Any) -> None:
    whole = make(parameters(), lr=0.01, rounding=rounding, seed=7)
    train(whole, 3)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    kept = [p.detach().clone() for p in whole.param_groups[0]["params"]]
    expected = train(whole, 3, first=3)
    again = make([nn.Parameter(p) for p in kept], lr=0.01, rounding=rounding, seed=7)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(state["step"] == 3 for state in again.state.values())
    assert all(torch.equal(a, b) for a, b in zip(train(again, 3, first=3), expected, strict=True))


def test_ranks_draw_the_same_bits_and_seeds_steps_and_tensors_others() -> None:
    def noise(seed: int, steps: int = 1, size: int = 4096, numbers: int = 1) -> list[Tensor]:
        weights = [nn.Parameter(torch.zeros(size, dtype=torch.bfloat16)) for _ in range(numbers)]
        optimizer = SGD([{"params": [weight]} for weight in weights], lr=1.0, seed=seed)
        for _ in range(steps):
            for weight in weights:
                weight.data.fill_(1.0)
                weight.grad = torch.full_like(weight, -(2.0**-8))
            optimizer.step()
        return [weight.detach() > 1 for weight in weights]

    def alike(a: Tensor, b: Tensor) -> float:
        return (a == b).double().mean().item()

    (first,) = noise(seed=0)
    assert torch.equal(first, noise(seed=0)[0])
    assert 0.45 < alike(first, noise(seed=1)[0]) < 0.55
    assert 0.45 < alike(first, noise(seed=0, steps=2)[0]) < 0.55
    assert 0.45 < alike(*noise(seed=0, numbers=2)) < 0.55
    assert torch.equal(first[:100], noise(seed=0, size=100)[0])


def test_groups_handed_over_one_by_one_have_bits_of_their_own() -> None:
    """As DeepSpeed does: it steps with one group in `param_groups`, or with one tensor in the group."""
    weights = [nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = SGD([{"params": [weight]} for weight in weights], lr=1.0)
    groups = optimizer.param_groups
    for _ in range(2):
        for number, weight in enumerate(weights):
            weight.data.fill_(1.0)
            weight.grad = torch.full_like(weight, -(2.0**-8))
            optimizer.param_groups = [groups[number]]
            optimizer.step()
            weight.grad = None
        optimizer.param_groups = groups
    assert [optimizer.state[weight]["number"] for weight in weights] == [0, 1]
    same = (weights[0] == weights[1]).double().mean().item()
    assert 0.45 < same < 0.55


def test_a_parameter_without_gradient_stays_and_keeps_its_own_count() -> None:
    one, other = (nn.Parameter(torch.ones(8, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = AdamW([one, other], lr=0.1, rounding="kahan")
    one.grad = torch.ones_like(one)
    optimizer.step()
    assert other not in optimizer.state or not optimizer.state[other]
    assert torch.equal(other, torch.ones_like(other))
    other.grad = torch.ones_like(other)
    optimizer.step()
    assert (optimizer.state[one]["step"], optimizer.state[other]["step"]) == (2, 1)
    assert other[0].item() == pytest.approx(0.9, abs=0.01), "its first step, corrected as such"


def test_no_fp32_copy_of_a_large_parameter_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizers.CHUNK, "cpu", 64)
    largest = [0]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = call(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.element_size() > 2:
                largest[0] = max(largest[0], out.untyped_storage().nbytes())
            return out

    for make in (AdamW, RMSprop, SGD):
        weight = nn.Parameter(torch.ones(5000, dtype=torch.bfloat16))
        weight.grad = torch.ones_like(weight)
        with Sizes():
            make([weight], lr=0.1, rounding="kahan").step()  # type: ignore[operator]
    assert 0 < largest[0] <= 5 * 64 * 4


def test_a_closure_is_called_with_gradients() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = SGD([weight], lr=0.5, rounding="nearest")

    def closure() -> Tensor:
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3
    assert torch.equal(weight, torch.full_like(weight, 0.5))


def test_only_contiguous_parameters() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        AdamW([nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16).T)], lr=0.1)


def test_it_is_an_ordinary_optimizer() -> None:
    optimizer: LowPrecision = AdamW(parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    train(optimizer, 1)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert copy.deepcopy(optimizer).state_dict()["param_groups"][0]["rounding"] == "stochastic"


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "sgd"])
@pytest.mark.parametrize("pure", [True, False])
def test_a_recipes_optimizer_takes_its_settings(name: str, pure: bool) -> None:
    from lmrecipes.recipe import Recipe
    from lmrecipes.training.optimizers import make_optimizer

    precision = {"master_weights": "none", "rounding": "kahan"} if pure else {}
    task = {"kind": "regression", "source": {"files": "x.jsonl"}}
    recipe = Recipe.model_validate({
        "name": "a", "tasks": {"t": task}, "seed": 9, "precision": precision,
        "optimizer": {"name": name, "lr": 0.01, "betas": [0.8, 0.97], "eps": 1e-5},
    })  # fmt: skip
    groups = [{"params": parameters(), "weight_decay": 0.25, "owner": "trunk"}]
    made = make_optimizer(groups, recipe, torch.device("cpu"), offload=False)
    assert isinstance(made, LowPrecision) == pure and type(made).__name__.lower() == name
    group = made.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["owner"]) == (0.01, 0.25, "trunk")
    wanted = {"adamw": ("betas", (0.8, 0.97)), "rmsprop": ("alpha", 0.97), "sgd": ("momentum", 0.8)}[name]
    assert group[wanted[0]] == wanted[1] and (name == "sgd" or group["eps"] == 1e-5)
    if pure:
        assert (group["rounding"], group["seed"]) == ("kahan", 9)
