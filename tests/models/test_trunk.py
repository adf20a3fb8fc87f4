"""The trunk: padding and neighbours change nothing, unused weights are kept, mistakes have names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmrecipes.data.batches import Bucket
from lmrecipes.models.loading import load_trunk
from lmrecipes.models.trunk import Trunk
from lmrecipes.problems import InputError
from lmrecipes.recipe import Model

TEXTS = [[2, 5, 6, 7, 8, 9, 3], [2, 10, 3], [2, 11, 12, 13, 3]]


def trunk_of(folder: Path, seed: int = 0, **changes: Any) -> Trunk:
    return load_trunk(Model(pretrained=str(folder), max_length=48, **changes), seed).eval()


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import GPT2Config, GPT2Model

    folder = tmp_path_factory.mktemp("gpt")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
    GPT2Model(config).save_pretrained(folder)
    return folder


def padded(texts: list[list[int]]) -> Bucket:
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    return Bucket(ids, mask, None)


def alone(text: list[int], segments: list[int] | None = None) -> Bucket:
    return Bucket(torch.tensor([text]), None, None if segments is None else torch.tensor([segments]))


def read(trunk: Trunk, texts: list[Bucket]) -> Tensor:
    """A vector for each text."""
    return trunk.pool(texts, trunk(texts))


@pytest.mark.parametrize("model", ["bert", "gpt"])
@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_padding_and_neighbours_change_nothing(model: str, pooling: str, tiny: Path, gpt: Path) -> None:
    trunk = trunk_of({"bert": tiny / "model", "gpt": gpt}[model], pooling=pooling)
    with torch.inference_mode():
        together = read(trunk, [padded(TEXTS)])
        apart = torch.cat([read(trunk, [alone(text)]) for text in TEXTS])
        buckets = read(trunk, [alone(TEXTS[0]), padded(TEXTS[1:])])
    assert together.shape == (3, trunk.hidden_size) == (3, 32)
    assert torch.allclose(together, apart, atol=1e-5)
    assert torch.allclose(together, buckets, atol=1e-5)
    alike = model == "gpt" and pooling == "first"  # a decoder's first token has seen nothing else
    assert torch.allclose(together[0], together[1], atol=0.1) == alike


@pytest.mark.parametrize("model", ["bert", "gpt"])
def test_pooling_is_what_it_says_of_the_plain_model(model: str, tiny: Path, gpt: Path) -> None:
    from transformers import AutoModel

    folder = {"bert": tiny / "model", "gpt": gpt}[model]
    plain = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        hidden = plain(input_ids=torch.tensor([TEXTS[0]])).last_hidden_state[0]
        wanted: dict[str, Tensor] = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1]}
        for pooling, vector in wanted.items():
            found = read(trunk_of(folder, pooling=pooling), [padded(TEXTS)])[0]
            assert torch.allclose(found, vector, atol=1e-5), pooling


def test_bf16_mean_is_exact_in_the_count() -> None:
    """301 tokens: in bf16 the count would be 302, and a constant would not be its own mean."""

    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(2, 8, dtype=torch.bfloat16)
            torch.nn.init.constant_(self.table.weight, 1.5)

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.table

        def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Any:
            from types import SimpleNamespace

            return SimpleNamespace(last_hidden_state=inputs_embeds)

    trunk = Trunk(Constant(), "mean")
    for bucket in (padded([[1] * 301, [1] * 400]), alone([1] * 301)):
        found = read(trunk, [bucket])
        assert found.dtype == torch.bfloat16
        assert (found == 1.5).all()


def test_segments_are_read_where_the_model_has_them(tiny: Path, gpt: Path) -> None:
    """GPT-2 takes `token_type_ids` too, but looks them up as words: beside a pair a text would not be itself."""
    for folder, differs in ((tiny / "model", True), (gpt, False)):
        trunk = trunk_of(folder)
        with torch.inference_mode():
            none, zero = read(trunk, [alone(TEXTS[0])]), read(trunk, [alone(TEXTS[0], [0] * 7)])
            second = read(trunk, [alone(TEXTS[0], [0, 0, 0, 1, 1, 1, 1])])
        assert torch.allclose(none, zero, atol=1e-6)
        assert torch.allclose(zero, second, atol=1e-3) != differs


def test_the_unused_pooler_is_kept_apart(tiny: Path, gpt: Path) -> None:
    from transformers import AutoModel

    trunk = trunk_of(tiny / "model")
    pooler = AutoModel.from_pretrained(tiny / "model").pooler.state_dict()
    assert trunk.unused.keys() == {f"pooler.{name}" for name in pooler}
    assert all(torch.equal(trunk.unused[f"pooler.{name}"], weight) for name, weight in pooler.items())
    assert not any("pooler" in name for name, _ in trunk.named_parameters())
    read(trunk, [padded(TEXTS)]).sum().backward()
    assert [name for name, parameter in trunk.named_parameters() if parameter.grad is None] == []
    assert trunk_of(gpt).unused == {}


def dropouts(trunk: Trunk) -> set[float]:
    return {module.p for module in trunk.modules() if isinstance(module, torch.nn.Dropout)}


def test_dropout(tiny: Path, gpt: Path, tmp_path: Path) -> None:
    for folder in (tiny / "model", gpt):
        assert dropouts(trunk_of(folder)) == {0.0}
        assert dropouts(trunk_of(folder, dropout=0.3)) == {0.3}
        assert dropouts(trunk_of(folder, dropout=None)) == {0.1}
        trunk = load_trunk(Model(pretrained=str(folder)), 0).train()
        assert torch.equal(read(trunk, [padded(TEXTS)]), read(trunk, [padded(TEXTS)]))
    shutil.copytree(tiny / "model", tmp_path / "whole")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    (tmp_path / "whole" / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0}))
    assert dropouts(trunk_of(tmp_path / "whole", dropout=0.3)) == {0.3}, "a rate written as the integer 0"


def test_scratch_depends_on_the_seed_and_on_nothing_before(tiny: Path) -> None:
    def weights(seed: int, initialization: str = "scratch") -> Tensor:
        torch.rand(3)
        trunk = trunk_of(tiny / "model", seed, initialization=initialization)
        return torch.cat([parameter.detach().flatten() for parameter in trunk.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    pretrained = weights(1, "pretrained")
    assert torch.equal(pretrained, weights(2, "pretrained"))
    assert pretrained.shape == weights(1).shape
    assert pretrained.dtype == torch.float32


def said(folder: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        load_trunk(Model(pretrained=str(folder)), 0)
    (problem,) = caught.value.problems
    assert (problem.where, problem.id) == ("model.pretrained", "model-missing")
    return problem.what


def test_a_folder_without_a_model(tiny: Path, tmp_path: Path) -> None:
    assert str(tmp_path) in said(tmp_path)
    shutil.copy(tiny / "model" / "config.json", tmp_path)
    assert "model.safetensors" in said(tmp_path)
    assert "HF_HUB_OFFLINE is set" in said("nobody/no-such-model")


def test_weights_that_are_absent_are_not_made_up(tiny: Path, tmp_path: Path) -> None:
    """`transformers` would fill them with random numbers and warn."""
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny / "model" / "model.safetensors")
    shutil.copy(tiny / "model" / "config.json", tmp_path)
    layer = {name: weight for name, weight in weights.items() if not name.startswith("encoder.layer.1.attention.self")}
    save_file(layer, tmp_path / "model.safetensors", {"format": "pt"})
    what = said(tmp_path)
    assert "lacks 6 weights of the model" in what
    assert "encoder.layer.1.attention.self.key.bias" in what
    bare = {name: weight for name, weight in weights.items() if not name.startswith("pooler.")}
    save_file(bare, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_trunk(Model(pretrained=str(tmp_path)), 0), "no task needs the pooler"


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    assert "encoder-decoder" in said(tmp_path)
