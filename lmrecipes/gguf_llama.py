"""A Llama in llama.cpp's GGUF format -> a folder that `transformers` loads: safetensors in bf16, tokenizer, template.

Every byte that is written depends on the GGUF file alone, not on the machine or on a library's version, so that the
results can be pinned by their hashes. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLITTERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
}
"""How a text is cut into words, by the name that GGUF gives it. SmolLM's takes each digit by itself."""

CONTROL = 3
"""Type of the tokens that only mark structure (`<|im_start|>`)."""

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class BadModelError(Exception):
    """The file is not a Llama of a kind that is known here."""


def convert(gguf_file: Path, folder: Path) -> None:
    """Write the model into `folder`; raises BadModelError, and ImportError where `gguf` is not installed."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    about = {name: field.contents() for name, field in reader.fields.items()}
    if about.get("general.architecture") != "llama" or about.get("tokenizer.ggml.model") != "gpt2":
        found = f"{about.get('general.architecture')}, {about.get('tokenizer.ggml.model')}"
        raise BadModelError(f"{gguf_file.name} is not a llama with a gpt2 tokenizer: {found}")
    config = _config(about, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {name: config[name] for name in config if name.endswith("_token_id")})
    _write(folder / "tokenizer.json", _tokenizer(about))
    tokens = about["tokenizer.ggml.tokens"]
    special = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {f"{ours}_token": tokens[about[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in special.items()}
    more = {"clean_up_tokenization_spaces": False, "model_max_length": config["max_position_embeddings"]}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named, **more})
    (folder / "chat_template.jinja").write_text(about["tokenizer.chat_template"], encoding="utf-8", newline="")
    _write_weights(reader, config, folder / "model.safetensors")


def _config(about: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    heads = about["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": about["llama.vocab_size"],
        "hidden_size": about["llama.embedding_length"],
        "intermediate_size": about["llama.feed_forward_length"],
        "num_hidden_layers": about["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": about.get("llama.attention.head_count_kv", heads),
        "max_position_embeddings": about["llama.context_length"],
        "rope_theta": about["llama.rope.freq_base"],
        "rms_norm_eps": float(f"{about['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # it was rounded to fp32
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": about["tokenizer.ggml.bos_token_id"],
        "eos_token_id": about["tokenizer.ggml.eos_token_id"],
        "pad_token_id": about["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
    }


def _tokenizer(about: dict[str, Any]) -> dict[str, Any]:
    """Byte-level BPE in the format of `tokenizers`."""
    splitter = about["tokenizer.ggml.pre"]
    if splitter not in SPLITTERS:
        raise BadModelError(f"how its tokenizer cuts a text into words is not known here: {splitter!r}")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens = about["tokenizer.ggml.tokens"]
    control = [number for number, kind in enumerate(about["tokenizer.ggml.token_type"]) if kind == CONTROL]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": tokens[number], **flags} for number in control],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITTERS[splitter]},
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": about["tokenizer.ggml.merges"],
        },
    }


def _write_weights(reader: GGUFReader, config: dict[str, Any], file: Path) -> None:
    import torch
    from safetensors.torch import save_file

    weights = {name: torch.from_numpy(weight).to(torch.bfloat16) for name, weight in _weights(reader, config)}
    save_file(weights, file, {"format": "pt"})
    file.chmod((file.parent / "config.json").stat().st_mode)  # safetensors lets the owner alone read it


def _weights(reader: GGUFReader, config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Names as `transformers` has them, and weights in fp32."""
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        *layer, name, _ = tensor.name.split(".")  # blk.0.attn_q.weight, token_embd.weight
        prefix, names = (f"model.layers.{layer[1]}.", LAYER_NAMES) if layer else ("", OTHER_NAMES)
        if name not in names:
            raise BadModelError(f"a tensor that this Llama should not have: {tensor.name}")
        weight = dequantize(tensor.data, tensor.tensor_type)
        if name in heads:
            weight = _rotary_halves(weight, heads[name])
        yield f"{prefix}{names[name]}.weight", weight.copy()


def _rotary_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """[heads * width, hidden]: rows of the pairs that rotate together from neighbours (llama.cpp) to the two halves of
    a head (`transformers`)."""
    width = weight.shape[0] // heads
    return weight.reshape(heads, width // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="")
