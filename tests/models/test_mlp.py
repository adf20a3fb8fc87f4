"""The perceptron as a trunk: the plain formula, named layers, one length of rows, files that lmrecipes reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lmrecipes.data.batches import Batcher, Bucket, MicroBatch
from lmrecipes.data.layout import Arrangement
from lmrecipes.inference.exported import load_exported
from lmrecipes.models.acceleration import use_liger
from lmrecipes.models.heads import head_spec
from lmrecipes.models.loading import accelerate, load_trunk, require_positions
from lmrecipes.models.mlp import MlpTrunk, Perceptron, is_perceptron, load_perceptron
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.models.saving import load_whole, save_whole
from lmrecipes.problems import InputError
from lmrecipes.recipe import Batch, Mlp, Model, Recipe
from lmrecipes.training.flops import training_flops_per_token

MODEL = Model(mlp=Mlp(hidden=(7, 5), inputs=6, levels=17))
ROWS = torch.tensor([[0, 16, 8, 4, 1, 2], [3, 3, 3, 3, 3, 3], [16, 0, 0, 0, 0, 16]])


def trunk_of(seed: int = 0, **changes: Any) -> MlpTrunk:
    found = load_trunk(MODEL.model_copy(update=changes), seed)
    assert isinstance(found, MlpTrunk)
    return found


def test_vectors_are_the_plain_formula() -> None:
    trunk = trunk_of()
    texts = [Bucket(ROWS, None, None)]
    hidden = trunk(texts)
    layers = dict(trunk.model.named_modules())
    one, two = layers["layers.0"], layers["layers.1"]
    assert isinstance(one, nn.Linear)
    assert isinstance(two, nn.Linear)
    first = torch.clamp(ROWS / 16 @ one.weight.T + one.bias, min=0)
    assert torch.allclose(trunk.pool(texts, hidden), torch.clamp(first @ two.weight.T + two.bias, min=0))
    assert hidden.shape == (3, trunk.hidden_size)
    assert trunk.model(ROWS)[0].equal(hidden), "what is exported is what the trunk reads with"


def test_weights_follow_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = trunk_of(3).state_dict()
    torch.manual_seed(2)
    again, other = trunk_of(3).state_dict(), trunk_of(4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.layers.0.weight"], other["model.layers.0.weight"])
    wide = load_trunk(Model(mlp=Mlp(hidden=(400,))), 0).model.get_parameter("layers.0.weight")
    assert float(wide.detach().std()) == pytest.approx((2 / 784) ** 0.5, rel=0.02), "He: variance 2 / inputs"


def test_micro_batches_with_and_without_rows() -> None:
    class Split:
        tokens, offsets, types, loss = ROWS.numpy().astype(np.int32).ravel(), np.arange(4) * 6, None, None
        targets = np.array([0, 1, 1], np.int32)

    spec = head_spec("classification", ("a", "b"), Split.targets)
    model = MultiTaskModel(trunk_of(), {"t": spec})
    batcher = Batcher({"t": Split}, {"t": spec})

    def micro(rows: list[int]) -> MicroBatch:
        parts = [np.arange(len(rows))]
        return batcher.micro_batch(parts, np.zeros(len(rows), np.int16), np.array(rows, np.int64), {"t": 1.0},
                                   Arrangement("padded"))  # fmt: skip

    nn.init.normal_(model.heads["t"].linear.weight)  # type: ignore[union-attr, arg-type]
    whole, _ = model(micro([0, 1, 2]))
    parts = [model(micro(rows))[0] for rows in ([2], [0, 1], [])]
    assert parts[-1].item() == 0, "an empty micro-batch has a pass of its own, which counts for nothing"
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-6)
    assert model(micro([1]), "predictions")["t"].shape == (1, 2)


def test_what_the_loop_asks_of_a_trunk() -> None:
    trunk = trunk_of()
    require_positions(trunk.model, 6, trunk.first_position)
    assert accelerate(trunk, MODEL, torch.device("cpu")) == "no Liger kernels (not a model of transformers)"
    assert use_liger(trunk.whole, "auto", torch.device("cuda")) == "no Liger kernels (not a model of transformers)"
    assert str(trunk.choice) == "padded (no attention)"
    with trunk.native():
        assert trunk([Bucket(ROWS, None, None)]).shape == (3, 5)
    model = MultiTaskModel(trunk, {"t": head_spec("classification", ("a", "b"), np.array([0, 1]))})
    assert model.saved_names()["trunk.model.layers.1.bias"] == "layers.1.bias"
    products = 6 * 7 + 7 * 5
    assert training_flops_per_token(model) * 6 == 6 * (products + 7 + 5), "six a weight and row, which has six tokens"


def test_layers_can_be_frozen() -> None:
    names = {name: weight.requires_grad for name, weight in trunk_of(freeze=("layers.0.*",)).model.named_parameters()}
    assert names == {"layers.0.weight": False, "layers.0.bias": False, "layers.1.weight": True, "layers.1.bias": True}
    with pytest.raises(InputError, match="layers"):
        trunk_of(freeze=("embeddings.*",))


def test_files_are_read_back(tmp_path: Path, tiny: Path) -> None:
    trunk = trunk_of(9)
    save_whole(trunk.whole, dict(trunk.whole.state_dict()), tmp_path)
    assert is_perceptron(tmp_path)
    assert not is_perceptron(tiny / "model")
    for found in (load_perceptron(tmp_path), load_whole(tmp_path, False, "sdpa")):
        assert isinstance(found, Perceptron)
        assert found(ROWS)[0].equal(trunk.model(ROWS)[0])
        assert found.config == trunk.model.config
    with pytest.raises(InputError, match="no heads"):
        load_exported(tmp_path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pretrained": "smollm2"}, "pretrained"),
        ({"config": {"model_type": "bert"}, "tokenizer": "t"}, "config"),
        ({"tokenizer": "t"}, "tokenizer"),
        ({"pooling": "last"}, "pooling"),
        ({"max_length": 784}, "max_length"),
        ({"attention": "sdpa"}, "attention"),
        ({"activation_checkpointing": True}, "activation_checkpointing"),
        ({"compile": True}, "compile"),
        ({"liger": "on"}, "liger"),
        ({"dropout": 0.1}, "dropout"),
        ({"lora": {"rank": 4}}, "lora"),
        ({"chat_template": "x"}, "chat_template"),
    ],
)
def test_what_a_perceptron_has_no_use_for(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: is of a model of `transformers`, and the trunk is model.mlp"):
        Model.model_validate({"mlp": {"hidden": [4]}, **changes})


def test_a_perceptron_without_layers_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="without hidden layers there is no multi-layer perceptron"):
        Model(mlp=Mlp(inputs=10))
    assert not Model().mlp.hidden


@pytest.mark.parametrize(
    ("task", "batch", "said"),
    [
        ({"source": {"files": "x.jsonl"}}, {}, "reads rows of intensities, and the task has texts"),
        ({"kind": "language_modelling"}, {}, "has no language-model head"),
        ({"max_length": 9}, {}, "have exactly model.mlp.inputs"),
        *(({}, {"layout": layout}, "they are one rectangle") for layout in ("buckets", "grouped", "packed")),
    ],
)
def test_recipes_that_a_perceptron_cannot_run(task: dict[str, Any], batch: dict[str, Any], said: str) -> None:
    good = {"kind": "classification", "source": {"files": "x.jsonl", "ids": "ids"}}
    content = {"name": "r", "tasks": {"t": {**good, **task}}, "model": {"mlp": {"hidden": [4]}}, "batch": batch}
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate(content)
    assert Recipe.model_validate({**content, "tasks": {"t": good}, "batch": {"layout": "padded"}}).batch == Batch(
        layout="padded"
    )
