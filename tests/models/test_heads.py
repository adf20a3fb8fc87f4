"""Heads: the best constant at the start, and loss sums that are the plain formulas."""

from __future__ import annotations

import json
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lmrecipes.data.batches import Bucket, MicroBatch, TaskRows
from lmrecipes.metrics import mean_loss, task_metrics
from lmrecipes.models.heads import Head, HeadSpec, head_spec
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.recipe import TaskKind, TaskLoss

RNG = np.random.default_rng(0)
TARGETS: dict[TaskKind, NDArray[Any]] = {
    "regression": (RNG.normal(40, 7, 3000)).astype(np.float32),
    "classification": RNG.choice(5, 3000, p=[0.6, 0.25, 0.1, 0.05, 0]).astype(np.int32),
    "multi_label": (RNG.random((3000, 4)) < [0.5, 0.1, 0.01, 0]).astype(np.uint8),
}
LABELS: dict[TaskKind, tuple[str, ...]] = {
    "regression": (),
    "classification": tuple("abcde"),
    "multi_label": tuple("wxyz"),
}
KINDS: list[TaskKind] = list(TARGETS)


def make(kind: TaskKind) -> tuple[HeadSpec, Head]:
    spec = head_spec(kind, LABELS[kind], TARGETS[kind])
    return spec, Head(6, spec)


@pytest.mark.parametrize("kind", KINDS)
def test_starts_with_the_loss_of_the_constant_predictor(kind: TaskKind) -> None:
    spec, head = make(kind)
    targets = torch.from_numpy(TARGETS[kind])
    outputs = head(torch.randn(len(targets), 6))
    assert outputs.shape == (3000, {"regression": 1, "classification": 5, "multi_label": 4}[kind])
    loss = head.loss_sum(outputs, targets).item() / spec.elements(3000)
    assert loss == pytest.approx(spec.constant_loss, rel=1e-5)
    assert loss / spec.constant_loss == pytest.approx(1, rel=1e-5), "normalised, every task starts at 1"
    assert mean_loss(spec, head.predictions(outputs).detach().numpy(), TARGETS[kind]) == pytest.approx(loss, rel=1e-5)


def test_no_other_constant_is_better() -> None:
    targets = TARGETS["regression"].astype(np.float64)
    spec = head_spec("regression", (), TARGETS["regression"])
    assert spec.constant_loss == pytest.approx(targets.var())
    assert (spec.mean, spec.std) == pytest.approx((targets.mean(), targets.std()))
    shares = np.bincount(TARGETS["classification"]) / 3000
    entropy = -(shares * np.log(shares)).sum()
    found = head_spec("classification", LABELS["classification"], TARGETS["classification"]).constant_loss
    assert entropy < found < entropy + 0.002, "one pseudo-count per class costs next to nothing"
    p = TARGETS["multi_label"].mean(0)
    entropy = -np.where(p > 0, p * np.log(np.maximum(p, 1e-9)) + (1 - p) * np.log1p(-p), 0).mean()
    found = head_spec("multi_label", LABELS["multi_label"], TARGETS["multi_label"]).constant_loss
    assert entropy < found < entropy + 0.002


@pytest.mark.parametrize("kind", KINDS)
def test_loss_sum_is_the_plain_formula(kind: TaskKind) -> None:
    head = make(kind)[1]
    torch.nn.init.normal_(head.linear.weight)
    outputs = head(torch.randn(50, 6)).double()
    targets = torch.from_numpy(TARGETS[kind][:50])
    if kind == "regression":
        wanted = (head.predictions(outputs) - targets).square().sum()
    elif kind == "classification":
        logs = outputs - outputs.exp().sum(1, keepdim=True).log()
        wanted = -logs[torch.arange(50), targets.long()].sum()
    else:
        wanted = -(targets * F.logsigmoid(outputs) + (1 - targets.double()) * F.logsigmoid(-outputs)).sum()
    assert head.loss_sum(outputs, targets).item() == pytest.approx(wanted.item(), rel=1e-6)
    halves = head.loss_sum(outputs[:20], targets[:20]) + head.loss_sum(outputs[20:], targets[20:])
    assert halves.item() == pytest.approx(wanted.item(), rel=1e-6), "a sum, so it can be taken in parts"


def test_predictions_are_in_the_targets_units() -> None:
    spec, head = make("regression")
    assert head.predictions(head(torch.zeros(3, 6))).tolist() == pytest.approx([spec.mean] * 3)
    _, head = make("classification")
    probabilities = head.predictions(head(torch.zeros(1, 6))).softmax(-1)[0]
    assert probabilities.tolist() == pytest.approx(
        ((np.bincount(TARGETS["classification"], minlength=5) + 1) / 3005).tolist()
    )


@pytest.mark.parametrize("loss", get_args(TaskLoss))
def test_classification_by_other_losses(loss: TaskLoss) -> None:
    targets = TARGETS["classification"]
    spec = head_spec("classification", LABELS["classification"], targets, loss)
    assert HeadSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
    head, hot = Head(6, spec), F.one_hot(torch.from_numpy(targets).long(), 5).double()
    start = head(torch.randn(3000, 6))
    first = head.loss_sum(start, torch.from_numpy(targets)).item() / spec.elements(3000)
    assert first == pytest.approx(spec.constant_loss, rel=1e-5), "normalised, every task starts at 1"
    torch.nn.init.normal_(head.linear.weight)
    outputs = head(torch.randn(3000, 6)).double()
    by_hand = {
        "auto": -outputs.log_softmax(1)[hot > 0].mean(),
        "cross_entropy": -outputs.log_softmax(1)[hot > 0].mean(),
        "binary_cross_entropy": -(hot * F.logsigmoid(outputs) + (1 - hot) * F.logsigmoid(-outputs)).mean(),
        "mean_squared_error": (outputs - hot).square().mean(),
    }[loss]
    found = head.loss_sum(outputs, torch.from_numpy(targets)).item() / spec.elements(3000)
    assert found == pytest.approx(by_hand.item(), rel=1e-6)
    predictions = head.predictions(outputs).detach().numpy()
    assert mean_loss(spec, predictions, targets) == pytest.approx(by_hand.item(), rel=1e-6)
    accuracy = task_metrics(("accuracy",), spec, predictions, targets)["accuracy"]
    assert accuracy == pytest.approx((outputs.argmax(1).numpy() == targets).mean(), rel=1e-6)
    other = torch.tensor(spec.prior) * 1.02 + 0.001
    assert head.loss_sum(other.expand(3000, 5), torch.from_numpy(targets)).item() / spec.elements(3000) > first


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_equal_targets(value: float) -> None:
    spec = head_spec("regression", (), np.full(1001, value, np.float32))
    assert (spec.std, spec.constant_loss) == (1.0, 1.0)
    assert spec.mean == pytest.approx(value)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_give_the_same_head(kind: TaskKind, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = head_spec(kind, LABELS[kind], TARGETS[kind]).as_dict()
    monkeypatch.setattr("lmrecipes.models.heads.CHUNK", 700)
    cut = head_spec(kind, LABELS[kind], TARGETS[kind]).as_dict()
    for name in ("prior", "constant_loss", "mean", "std"):
        assert cut[name] == pytest.approx(whole[name], rel=1e-12), name
    monkeypatch.setattr("lmrecipes.models.heads.CHUNK", 100)
    assert head_spec("regression", (), np.full(1001, 0.1, np.float32)).std == 1.0


def test_classes_and_labels_without_rows_stay_finite() -> None:
    spec = head_spec("classification", ("a", "b", "c"), np.zeros(10, np.int32))
    assert np.isfinite(spec.prior).all()
    assert spec.constant_loss > 0
    spec = head_spec("multi_label", ("a", "b"), np.array([[0, 1]] * 10, np.uint8))
    assert np.isfinite(spec.prior).all()
    assert spec.constant_loss > 0


@pytest.mark.parametrize("kind", KINDS)
def test_spec_survives_json(kind: TaskKind) -> None:
    spec, _ = make(kind)
    assert HeadSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


class Pooled(torch.nn.Module):
    """A trunk whose vector of a text is its first token, repeated."""

    hidden_size = 6

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(6))

    def forward(self, buckets: list[Bucket], inserted: Any = ()) -> torch.Tensor:
        return torch.cat([bucket.input_ids.reshape(-1, 1) * self.factor for bucket in buckets])

    def pool(self, buckets: list[Bucket], hidden: torch.Tensor) -> torch.Tensor:
        parts = hidden.split([bucket.input_ids.numel() for bucket in buckets])
        return torch.cat(
            [part.view(*bucket.input_ids.shape, 6)[:, 0] for part, bucket in zip(parts, buckets, strict=True)]
        )


def batch() -> MicroBatch:
    first = Bucket(torch.tensor([[1, 2], [3, 4]]), None, None)
    second = Bucket(torch.tensor([[5]]), None, None)
    tasks = {
        "score": TaskRows(torch.tensor([0, 2]), torch.tensor([40.0, 50.0]), 0.25, 2),
        "topic": TaskRows(torch.tensor([1]), torch.tensor([3]), 2.0, 1),
        "tags": TaskRows(torch.tensor([0]), torch.zeros(1, 4, dtype=torch.uint8), 0.0, 0),
    }
    return MicroBatch([first, second], tasks)


def test_multitask_loss_is_the_scaled_sum_of_the_tasks() -> None:
    torch.manual_seed(0)
    specs = {"score": make("regression")[0], "topic": make("classification")[0], "tags": make("multi_label")[0]}
    model = MultiTaskModel(Pooled(), specs)  # type: ignore[arg-type]
    for head in model.heads.values():
        torch.nn.init.normal_(head.linear.weight)  # type: ignore[arg-type, union-attr]
    micro = batch()
    total, sums = model(micro)
    vectors = torch.tensor([[1.0], [3], [5]]).expand(3, 6)
    heads = {name: head for name, head in model.heads.items() if isinstance(head, Head)}
    wanted = [
        heads[name].loss_sum(heads[name](vectors[task.rows]), task.targets).item() for name, task in micro.tasks.items()
    ]
    assert sums.tolist() == pytest.approx([wanted[0], wanted[1], 0])
    assert total.item() == pytest.approx(0.25 * wanted[0] + 2 * wanted[1], rel=1e-5)
    assert not sums.requires_grad
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters()), "every parameter on every rank"
    assert (heads["tags"].linear.weight.grad == 0).all()
    found = model(micro, "predictions")
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes == {"score": (2,), "topic": (1, 5), "tags": (1, 4)}, "of each task's own rows"
    assert torch.equal(model(micro.texts), vectors), "the trunk's vectors, for the probe"
    assert torch.allclose(found["score"], heads["score"].predictions(heads["score"](vectors[[0, 2]])))
