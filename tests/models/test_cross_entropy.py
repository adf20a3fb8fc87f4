"""The chunked loss is the plain one, whatever the chunks, dtypes and sizes, in values and in gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmrecipes.models import cross_entropy
from lmrecipes.models.cross_entropy import chunked_cross_entropy, score_tokens

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.03, torch.float16: 0.004}
"""Of gradients and losses, relative to their largest value, or to 1 where all are smaller."""

Sizes = st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(2, 60))


class Problem:
    """Random hidden states, head and targets."""

    def __init__(self, sizes: tuple[int, int, int], dtype: torch.dtype, seed: int = 0, bias: bool = False) -> None:
        k, h, v = sizes
        generator = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(k, h, generator=generator).to(dtype).requires_grad_()
        self.weight = torch.randn(v, h, generator=generator).to(dtype).requires_grad_()
        self.bias = torch.randn(v, generator=generator).to(dtype).requires_grad_() if bias else None
        self.targets = torch.randint(0, v, (k,), generator=generator)
        self.weights = torch.rand(k, generator=generator)

    @property
    def inputs(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    def plain(self, scale: float = 1.0, softcap: float | None = None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Loss, losses of tokens, and gradients, in fp64 with all logits at once."""
        hidden, weight, *bias = [x.detach().double().requires_grad_() for x in self.inputs]
        logits = F.linear(hidden, weight, *bias) * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        nll = F.cross_entropy(logits, self.targets, reduction="none")
        loss = (nll * self.weights).sum()
        return loss.detach(), nll.detach(), list(torch.autograd.grad(loss, [hidden, weight, *bias]))

    def ours(self, **options: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
        loss, nll = chunked_cross_entropy(
            self.hidden, self.weight, self.targets, self.weights, bias=self.bias, **options
        )
        return loss.detach(), nll, list(torch.autograd.grad(loss, self.inputs))


def cut(monkeypatch: pytest.MonkeyPatch, chunk: int, block: int) -> None:
    """Bytes of a chunk, logits of a block; few words at once."""
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    monkeypatch.setattr(cross_entropy, "SLICE", 7)
    monkeypatch.setattr(cross_entropy, "BLOCK", {"cpu": block, "cuda": block})


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, least: float = 1.0) -> None:
    largest = max(float(wanted.abs().max()), least)
    assert found.shape == wanted.shape
    assert torch.allclose(found.double(), wanted, rtol=0, atol=tolerance * largest)


@settings(max_examples=80, deadline=None)
@given(
    sizes=Sizes,
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 1000),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.125, 3.0]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    chunk=st.sampled_from([1, 400, 1600, 1 << 27]),
    block=st.sampled_from([1, 90, 1 << 19]),
)
def test_is_the_plain_loss(
    sizes: tuple[int, int, int], dtype: torch.dtype, seed: int, bias: bool, scale: float, softcap: float | None,
    chunk: int, block: int,
) -> None:  # fmt: skip
    problem = Problem(sizes, dtype, seed, bias)
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, chunk, block)
        loss, nll, gradients = problem.ours(scale=scale, softcap=softcap)
        scores = score_tokens(
            problem.hidden, problem.weight, problem.targets, scale=scale, softcap=softcap, bias=problem.bias
        )
    wanted_loss, wanted_nll, wanted = problem.plain(scale, softcap)
    assert not nll.requires_grad
    assert not scores.requires_grad
    assert_close(loss, wanted_loss, TOLERANCE[dtype])
    assert_close(nll, wanted_nll, TOLERANCE[dtype])
    assert_close(scores[:, 0], wanted_nll, TOLERANCE[dtype])
    for found, right in zip(gradients, wanted, strict=True):
        assert found.dtype == dtype
        assert_close(found, right, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_sixteen_bits(dtype: torch.dtype, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 2 * 64 * 200, 8 * 200)
    problem = Problem((300, 16, 200), torch.float32 if autocast else dtype)
    with torch.no_grad():
        problem.weight.mul_(0.3)
    with torch.autocast("cpu", dtype, enabled=autocast):
        loss, nll, gradients = problem.ours()
    wanted_loss, wanted_nll, wanted = problem.plain()
    assert loss.dtype == nll.dtype == torch.float32
    assert_close(loss, wanted_loss, TOLERANCE[dtype])
    assert_close(nll, wanted_nll, TOLERANCE[dtype])
    for found, right in zip(gradients, wanted, strict=True):
        assert found.dtype == problem.hidden.dtype
        assert_close(found, right, TOLERANCE[dtype])
        assert F.cosine_similarity(found.double().flatten(), right.flatten(), dim=0) > 0.9999


def test_sums_over_chunks_are_not_rounded_to_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 chunks, each of which adds the same to the gradient of a weight: bf16 would stop counting."""
    k, v = 1024, 4
    hidden, targets, weights = torch.ones(k, 1).bfloat16(), torch.zeros(k, dtype=torch.int64), torch.ones(k)
    weight = torch.zeros(v, 1).bfloat16().requires_grad_()
    cut(monkeypatch, 2 * 4 * v, 4 * v)
    loss, _ = chunked_cross_entropy(hidden, weight, targets, weights)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad[:, 0].tolist() == [-0.75 * k, *[0.25 * k] * 3]


def test_small_weights_and_a_loss_scale_keep_the_gradients() -> None:
    """As with 100,000 tokens in a step and fp16's loss scale: nothing vanishes in the forward pass, nothing overflows
    in the backward pass."""
    problem = Problem((40, 8, 50), torch.float16)
    problem.weights *= 1e-8
    loss, _ = chunked_cross_entropy(problem.hidden, problem.weight, problem.targets, problem.weights)
    found = torch.autograd.grad(loss * 65536.0 * 100, problem.inputs)
    for one, right in zip(found, problem.plain()[2], strict=True):
        assert_close(one, right * 65536 * 100, TOLERANCE[torch.float16], least=0)


def test_products_are_in_the_dtype_of_autocast() -> None:
    problem = Problem((20, 4, 30), torch.float32)
    half = [x.bfloat16() for x in problem.inputs]
    with torch.autocast("cpu", torch.bfloat16):
        scores = score_tokens(*problem.inputs, problem.targets)
        _, nll = chunked_cross_entropy(*problem.inputs, problem.targets, problem.weights)
    assert torch.equal(scores, score_tokens(half[0], half[1], problem.targets))
    assert torch.equal(nll, scores[:, 0])
    assert not torch.equal(nll, problem.ours()[1])


def test_a_frequent_word_does_not_overflow() -> None:
    k = 2048
    hidden, targets = torch.full((k, 1), 30.0).half(), torch.zeros(k, dtype=torch.int64)
    weight = torch.zeros(3, 1).half().requires_grad_()
    loss, _ = chunked_cross_entropy(hidden, weight, targets, torch.full((k,), 1 / k))
    loss.backward()
    assert weight.grad is not None
    assert weight.grad[:, 0].tolist() == pytest.approx([-20, 10, 10], rel=1e-3)


def test_improbable_words_keep_their_gradient_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in fp16, as on a GPU. Probabilities of 2e-8 are below its smallest number."""
    monkeypatch.setattr(cross_entropy._Head, "in_products_dtype", lambda self: self)
    hidden, targets = torch.ones(4, 1).half(), torch.zeros(4, dtype=torch.int64)
    weight = torch.tensor([[17.75], *[[0.0]] * 50]).half().requires_grad_()
    loss, _ = chunked_cross_entropy(hidden, weight, targets, torch.full((4,), 0.25))
    (gradient,) = torch.autograd.grad(loss * 2.0**20, [weight])
    assert gradient[1:, 0].tolist() == pytest.approx([math.exp(-17.75) * 2**20] * 50, rel=0.01)


@pytest.mark.parametrize(("hidden", "weight"), [(True, False), (False, True), (False, False)])
def test_only_what_is_trained_has_a_gradient(hidden: bool, weight: bool) -> None:
    problem = Problem((20, 4, 30), torch.float32)
    problem.hidden.requires_grad_(hidden)
    problem.weight.requires_grad_(weight)
    loss, nll = chunked_cross_entropy(problem.hidden, problem.weight, problem.targets, problem.weights)
    wanted_loss, wanted_nll, wanted = problem.plain()
    assert_close(loss.detach(), wanted_loss, 1e-5)
    assert_close(nll, wanted_nll, 1e-5)
    assert loss.requires_grad == (hidden or weight)
    if loss.requires_grad:
        loss.backward()
    for on, x, right in zip((hidden, weight), problem.inputs, wanted, strict=True):
        assert (x.grad is not None) == on
        if x.grad is not None:
            assert_close(x.grad, right, 1e-5)


def test_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, kept = Problem((20, 4, 30), torch.float32), []
    monkeypatch.setattr(cross_entropy, "_accumulate", lambda gradients, *rest: kept.extend(gradients))
    with torch.no_grad():
        loss, nll = chunked_cross_entropy(problem.hidden, problem.weight, problem.targets, problem.weights)
    assert not loss.requires_grad
    assert kept == [None] * 3, "nothing is computed in vain"
    assert_close(loss, problem.plain()[0], 1e-5)
    assert_close(nll, problem.plain()[1], 1e-5)


def test_a_token_of_weight_nothing_still_tells_its_loss() -> None:
    problem = Problem((6, 4, 30), torch.float32)
    problem.weights[2:] = 0
    _, nll, (of_hidden, of_weight) = problem.ours()
    assert_close(nll, problem.plain()[1], 1e-5)
    assert (of_hidden[2:] == 0).all()
    assert (of_hidden[:2] != 0).all()
    problem.weights[:] = 0  # an idle task
    loss, nll, (of_hidden, of_weight) = problem.ours()
    assert float(loss) == 0
    assert_close(nll, problem.plain()[1], 1e-5)
    assert (of_hidden == 0).all()
    assert (of_weight == 0).all()


def test_no_tokens_at_all() -> None:
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss, nll = chunked_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    loss.backward()
    assert (float(loss.detach()), nll.shape) == (0, (0,))
    assert weight.grad is not None
    assert (weight.grad == 0).all()
    assert score_tokens(hidden, weight, torch.zeros(0, dtype=torch.int64)).shape == (0, 2)


def test_scores_say_whether_the_target_is_the_likeliest() -> None:
    weight = torch.eye(4)
    hidden = torch.tensor([[1.0, 2, 3, 0], [5, 1, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]])
    scores = score_tokens(hidden, weight, torch.tensor([2, 1, 0, 1]))
    assert scores[:, 1].tolist() == [1, 0, 1, 0], "of equals the first"
    wanted = F.cross_entropy(hidden, torch.tensor([2, 1, 0, 1]), reduction="none")
    assert torch.allclose(scores[:, 0], wanted)


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [0], [-1]], requires_grad=True)
    loss, nll = chunked_cross_entropy(hidden, weight, torch.tensor([2, 2]), torch.ones(2))
    loss.backward()
    assert nll.tolist() == [2e4, 0]
    assert hidden.grad is not None
    assert hidden.grad[:, 0].tolist() == [2, 0]


def test_is_differentiated_once() -> None:
    problem = Problem((6, 4, 30), torch.float32)
    loss, _ = chunked_cross_entropy(problem.hidden, problem.weight, problem.targets, problem.weights)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already differentiated"):
        loss.backward()


def test_chunks_change_nothing_and_runs_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem((100, 8, 50), torch.float32)
    whole = problem.ours()
    again = problem.ours()
    assert torch.equal(whole[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(whole[2], again[2], strict=True))
    for chunk, block in ((4 * 7 * 50, 3 * 50), (4 * 50, 50), (4 * 99 * 50, 10 * 50)):
        cut(monkeypatch, chunk, block)
        cutted = problem.ours()
        assert torch.allclose(cutted[1], whole[1], rtol=1e-5, atol=1e-6)
        for a, b in zip(cutted[2], whole[2], strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_logits_of_all_tokens_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *size, **kw: sizes.append(size) or real(self, *size, **kw)
    )
    cut(monkeypatch, 4 * 10 * 50, 5 * 50)
    Problem((95, 8, 50), torch.float32).ours()
    assert (10, 50) in sizes
    assert max(size[0] for size in sizes if len(size) == 2) == 10
