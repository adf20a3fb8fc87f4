"""A tiny Llama written as llama.cpp writes it, converted, and loaded by `transformers`: the same weights and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lmrecipes.gguf_llama import LAYER_NAMES, OTHER_NAMES, BadModelError, convert

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["1 9", "t h", "th e"]
TOKENS = [*CONTROL, *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
HEADS, KEY_HEADS = 4, 2


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's convert_hf_to_gguf.py does."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def made_model(*, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS, rms_norm_eps=1e-5, rope_theta=1e5, max_position_embeddings=128,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1)
    return model


def write_gguf(file: Path, model: LlamaForCausalLM, splitter: str = "smollm", architecture: str = "llama") -> Path:
    """Matrices of the layers quantised to 8 bits, as in the real file some are to 4."""
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e5)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in CONTROL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    theirs = {ours: name for name, ours in (LAYER_NAMES | OTHER_NAMES).items()}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        plain = name.removesuffix(".weight")
        layer, _, part = plain.removeprefix("model.layers.").partition(".")
        value = weight.numpy()
        if part.endswith(("q_proj", "k_proj")):
            value = permuted(value, HEADS if part.endswith("q_proj") else KEY_HEADS)
        short = f"blk.{layer}.{theirs[part]}" if plain.startswith("model.layers.") else theirs[plain]
        if value.ndim == 1:
            writer.add_tensor(f"{short}.weight", value)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{short}.weight", gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_same_model(tmp_path: Path, tied: bool) -> None:
    model = made_model(tied=tied)
    convert(write_gguf(tmp_path / "model.gguf", model), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert {**loaded.config.to_dict(), **_SET_BY_LOADING} == {
        **model.config.to_dict(), **_SET_BY_LOADING, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip
    assert (loaded.generation_config.eos_token_id, loaded.generation_config.pad_token_id) == (2, 2)
    for name, weight in model.state_dict().items():
        off = (loaded.state_dict()[name].float() - weight).abs().max()
        assert off <= weight.abs().max() * (1 / 127 + 1 / 256), name
    ids = torch.tensor([[5, 9, 70, 33, 12]])
    with torch.no_grad():
        ours, theirs = loaded.float()(ids).logits, model(ids).logits
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.99


_SET_BY_LOADING: dict[str, Any] = {"dtype": None, "_name_or_path": None, "architectures": None}


def test_the_tokenizer_has_its_special_tokens_template_and_single_digits(tmp_path: Path) -> None:
    convert(write_gguf(tmp_path / "model.gguf", made_model(tied=True)), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("the 1985\n") == ["the", "Ġ", "1", "9", "8", "5", "Ċ"]
    assert tokenizer.decode(tokenizer("the äöü 19 <|im_end|>").input_ids) == "the äöü 19 <|im_end|>"
    assert tokenizer("a<|im_end|>").input_ids[1:] == [2]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.model_max_length == 128
    said = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert said == "<|im_start|>user\nx<|im_end|>\n"


def test_gpt2_splits_keep_digits_together(tmp_path: Path) -> None:
    convert(write_gguf(tmp_path / "model.gguf", made_model(tied=True), splitter="gpt-2"), tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize("1985") == ["19", "8", "5"]


def test_the_same_bytes_again(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", made_model(tied=True))
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        convert(file, folder)
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second
    assert len(first) == 6
    assert (folders[0] / "model.safetensors").stat().st_mode == (folders[0] / "config.json").stat().st_mode


@pytest.mark.parametrize(("changes", "says"), [({"splitter": "qwen9"}, "'qwen9'"), ({"architecture": "phi3"}, "phi3")])
def test_what_is_not_known_is_refused(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    with pytest.raises(BadModelError, match=says):
        convert(write_gguf(tmp_path / "model.gguf", made_model(tied=True), **changes), tmp_path)
