"""Every layout gives the losses and gradients of the padded one: BERT, RoBERTa, ModernBERT, GPT-2 and Llama, tiny."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmrecipes.data.batches import Batcher
from lmrecipes.data.layout import Arrangement, deal
from lmrecipes.models import attention
from lmrecipes.models.attention import KERNEL, Choice
from lmrecipes.models.heads import head_spec
from lmrecipes.models.loading import load_trunk
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.models.trunk import Trunk
from lmrecipes.planning.batch import plan_batch
from lmrecipes.problems import InputError
from lmrecipes.recipe import Model

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
MODELS = ("bert", "roberta", "modernbert", "gpt2", "llama")
PADDED = Choice("padded")
GROUPED, ROWS = Arrangement("grouped", 3), Arrangement("packed", width=24, least=24)
LENGTHS = {"score": (1, 6), "pairs": (4, 24), "tags": (2, 12)}


def config(name: str) -> Any:
    """Windows, shared keys and initial weights large enough that every token's neighbours matter."""
    import transformers as t

    wide = {"initializer_range": 0.3}
    if name == "bert":
        return t.BertConfig(**SMALL, **wide, max_position_embeddings=40)
    if name == "roberta":
        return t.RobertaConfig(**SMALL, **wide, max_position_embeddings=40, pad_token_id=1, type_vocab_size=2)
    if name == "modernbert":
        return t.ModernBertConfig(
            **SMALL, **wide, max_position_embeddings=40, local_attention=8, initializer_cutoff_factor=3.0,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
        )  # fmt: skip
    if name == "gpt2":
        return t.GPT2Config(vocab_size=60, n_positions=40, n_embd=32, n_layer=2, n_head=4, **wide)
    return t.LlamaConfig(**SMALL, **wide, num_key_value_heads=2, max_position_embeddings=40, pad_token_id=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with random weights on disk."""
    from transformers import AutoModel

    folders = {name: tmp_path_factory.mktemp(name) for name in MODELS}
    for name, folder in folders.items():
        torch.manual_seed(0)
        AutoModel.from_config(config(name)).save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def batcher() -> Batcher:
    """Three tasks of different kinds and lengths, one of pairs."""
    rng = np.random.default_rng(0)
    splits: dict[str, Any] = {}
    for task, (least, most) in LENGTHS.items():
        lengths = rng.integers(least, most + 1, 40)
        types = np.concatenate([(np.arange(n) >= n // 2) for n in lengths]).astype(np.uint8)
        splits[task] = SimpleNamespace(
            tokens=rng.integers(5, 60, lengths.sum()).astype(np.int32), offsets=np.cumsum([0, *lengths]),
            types=types if task == "pairs" else None,
        )  # fmt: skip
    splits["score"].targets = rng.normal(size=40).astype(np.float32)
    splits["pairs"].targets = rng.integers(0, 3, 40).astype(np.int32)
    splits["tags"].targets = rng.integers(0, 2, (40, 4)).astype(np.uint8)
    specs = {
        "score": head_spec("regression", (), splits["score"].targets),
        "pairs": head_spec("classification", ("a", "b", "c"), splits["pairs"].targets),
        "tags": head_spec("multi_label", ("p", "q", "r", "s"), splits["tags"].targets),
    }
    return Batcher(splits, specs)


def model_of(folder: Path, batcher: Batcher, choice: Choice, pooling: Any = "mean") -> MultiTaskModel:
    """The stored trunk in a layout, with heads that are not zero."""
    trunk = load_trunk(Model(pretrained=str(folder), max_length=24, pooling=pooling, attention=choice.native), 0)  # type: ignore[arg-type]
    attention.register()
    model = MultiTaskModel(Trunk(trunk.model, pooling, choice), batcher.specs)
    torch.manual_seed(1)
    for head in model.heads.parameters():
        torch.nn.init.normal_(head)
    return model.train()


def computed(
    model: MultiTaskModel, batcher: Batcher, arrangement: Arrangement, examples: int = 18, micro: int = 7
) -> dict[str, Tensor]:
    """Loss, each task's loss and every gradient of one step of three micro-batches on one of two ranks, and an empty
    one."""
    tasks = np.repeat(
        np.array([0, 1, 2], np.int16), [examples // 2, examples // 3, examples - examples // 2 - examples // 3]
    )
    rows = np.arange(examples) % 40
    lengths = batcher.lengths(tasks, rows)
    scales = {"score": 0.5, "pairs": 2.0, "tags": 3.0}
    units = {name: scales[name] / max(1, count) for name, count in batcher.elements(tasks, rows).items()}
    total, sums = torch.zeros(()), torch.zeros(len(batcher.names))
    for micros in deal(lengths, plan_batch(examples, micro, 1)), [[np.zeros(0, np.int64)]]:
        for positions in micros[0]:
            parts = arrangement.parts(positions, lengths)
            loss, each = model(batcher.micro_batch(parts, tasks, rows, units, arrangement))
            loss.backward()
            total, sums = total + loss.detach(), sums + each
    found = {"loss": total, "sums": sums}
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """To a share of each tensor's largest entry, or of a hundredth of the largest of all: BERT's key biases have no
    gradient but rounding errors."""
    assert found.keys() == wanted.keys()
    least = 0.01 * max(float(tensor.abs().max()) for tensor in wanted.values())
    for name, tensor in wanted.items():
        scale = max(float(tensor.abs().max()), least)
        assert float((found[name] - tensor).abs().max()) <= tolerance * scale, name


@pytest.fixture(scope="module")
def padded(folders: dict[str, Path], batcher: Batcher) -> dict[tuple[str, str], dict[str, Tensor]]:
    """One rectangle a micro-batch, the model's own attention."""
    return {
        (name, pooling): computed(model_of(folders[name], batcher, PADDED, pooling), batcher, Arrangement("padded"))
        for name in MODELS
        for pooling in ("mean", "first", "last")
    }  # fmt: skip


CASES = {
    "buckets": (Choice("buckets"), Arrangement("buckets", 3)),
    "grouped": (Choice("grouped"), GROUPED),
    "grouped, sdpa": (Choice("grouped", products="sdpa"), GROUPED),
    "packed, eager": (Choice("packed"), ROWS),
    "packed, sdpa": (Choice("packed", products="sdpa"), ROWS),
    "packed, one row": (Choice("packed"), replace(ROWS, width=None)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", CASES)
def test_same_losses_and_gradients(
    name: str, case: str, folders: dict[str, Path], batcher: Batcher, padded: dict[tuple[str, str], dict[str, Tensor]]
) -> None:
    choice, arrangement = CASES[case]
    for pooling in ("mean", "first", "last"):
        model = model_of(folders[name], batcher, choice, pooling)
        assert (model.trunk.model.config._attn_implementation == KERNEL) == (choice.layout in ("grouped", "packed"))  # type: ignore[union-attr]
        assert_equal(computed(model, batcher, arrangement), padded[name, pooling])


@pytest.mark.parametrize("name", MODELS)
def test_flex_attention(name: str, folders: dict[str, Path], batcher: Batcher) -> None:
    """Forward only: on a CPU flex attention has no backward."""
    tasks, rows = np.repeat(np.array([0, 1, 2], np.int16), 4), np.arange(12)
    lengths = batcher.lengths(tasks, rows)
    order = np.argsort(-lengths, kind="stable")
    with torch.no_grad():
        own = model_of(folders[name], batcher, Choice("padded"))([batcher.bucket(order, tasks, rows)])
        parts = ROWS.parts(order, lengths)
        flex = model_of(folders[name], batcher, Choice("packed", products="flex_attention"))
        found = flex(batcher.packed(parts, tasks, rows, ROWS))
    assert torch.allclose(found, own[np.argsort(order)][np.concatenate(parts)], atol=1e-4)


def test_the_window_matters(folders: dict[str, Path], batcher: Batcher) -> None:
    """ModernBERT's window of 4 tokens each side is inside these texts: without it the vectors differ."""
    model = model_of(folders["modernbert"], batcher, Choice("grouped"))
    texts = [
        batcher.bucket(
            np.arange(1), np.ones(1, np.int16), np.array([int(np.argmax(np.diff(batcher.splits[1].offsets)))])
        )
    ]
    with torch.no_grad():
        near = model(texts)
        for module in model.modules():
            if hasattr(module, "sliding_window"):
                module.sliding_window = None
        assert not torch.allclose(near, model(texts), atol=1e-2)


def test_attention_of_another_kind_is_refused(folders: dict[str, Path], batcher: Batcher) -> None:
    """A cap on the scores would silently be left out."""
    model = model_of(folders["gpt2"], batcher, Choice("grouped"))
    texts = [batcher.bucket(np.arange(2), np.zeros(2, np.int16), np.arange(2))]
    trunk: Any = model.trunk
    with pytest.raises(InputError, match="buckets"):
        trunk.model(inputs_embeds=torch.randn(1, 5, 32), softcap=1.0)
    read = trunk._read
    trunk._read = lambda *args, **options: read(*args, softcap=30.0, **options)
    with pytest.raises(InputError, match=r"batch\.layout"):
        trunk(texts)


class TestChoose:
    """What `auto` takes, and what is refused."""

    def choose(self, folder: Path, layout: Any = "auto", half: bool = True, **model: Any) -> Choice:
        return load_trunk(Model(pretrained=str(folder), **model), 0, layout, half).choice

    def test_on_a_cpu(self, folders: dict[str, Path]) -> None:
        assert self.choose(folders["bert"]) == Choice("packed", "eager", "auto")
        assert self.choose(folders["bert"], "grouped") == Choice("grouped", "eager", "auto")
        assert self.choose(folders["bert"], max_length=512) == Choice("grouped", "sdpa", "auto")
        assert self.choose(folders["bert"], attention="sdpa") == Choice("grouped", "sdpa", "sdpa")
        assert self.choose(folders["bert"], "packed") == Choice("packed", "eager", "auto")
        assert self.choose(folders["bert"], "padded").attention == "eager"

    def test_on_a_gpu(self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert self.choose(folders["bert"]) == Choice("grouped", "sdpa", "auto"), "its heads are 8 wide"
        monkeypatch.setattr(attention, "_head_width", lambda module: 64)
        assert self.choose(folders["bert"]) == Choice("packed", "sdpa", "flex_attention")
        assert self.choose(folders["bert"], dropout=0.1) == Choice("grouped", "sdpa", "auto")
        assert self.choose(folders["bert"], attention="sdpa") == Choice("grouped", "sdpa", "sdpa")
        monkeypatch.setattr(attention, "find_spec", lambda name: object())
        module = load_trunk(Model(pretrained=str(folders["bert"])), 0).model
        assert attention.choose(Model(), "auto", module, True) == Choice("packed", "flash_attention_2")
        assert attention.choose(Model(), "auto", module, False).products == "flex_attention"

    def test_a_model_that_mixes_tokens_elsewhere(
        self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import BertModel

        monkeypatch.setattr(BertModel, "_supports_attention_backend", False)
        assert self.choose(folders["bert"]) == Choice("buckets", "eager")
        for layout in ("grouped", "packed"):
            with pytest.raises(InputError, match=r"BertModel(.|\n)*batch\.layout: buckets"):
                self.choose(folders["bert"], layout)

    def test_a_kernel_that_knows_no_groups(self, folders: dict[str, Path]) -> None:
        with pytest.raises(InputError, match=r"model\.attention"):
            self.choose(folders["bert"], "grouped", attention="flex_attention")
