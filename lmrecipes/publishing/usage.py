"""How to use an exported model, as code that runs as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmrecipes.recipe import TOKEN_KINDS

_LOAD = """from transformers import {kind}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {kind}.from_pretrained("{name}")
"""
_LOAD_ADAPTER = """from peft import PeftModel
from transformers import {kind}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
base = {kind}.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{name}")
"""
_CHAT = """
messages = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
"""
_CONTINUE = """
inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
"""
_POOL = {
    "mean": "mask = inputs.attention_mask[..., None]\npooled = (hidden * mask).sum(1) / mask.sum(1)",
    "first": "pooled = hidden[:, 0]",
    "last": "pooled = hidden[range(len(hidden)), inputs.attention_mask.sum(1) - 1]",
}
_HEADS = """
from pathlib import Path

{download}from safetensors.torch import load_file

folder = {folder}
heads = load_file(folder / "heads.safetensors")
tokenizer.padding_side = "right"
inputs = tokenizer(["A text", "Another one"], return_tensors="pt", padding=True)
hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
{pool}
print(pooled @ heads["{task}.linear.weight"].T + heads["{task}.linear.bias"])  # {meaning}
"""
_MEANING = {
    "regression": "predictions, to be multiplied by {std:.4g} and raised by {mean:.4g}",
    "classification": "logits of {labels}",
    "probability": "estimated probabilities of {labels}",
    "multi_label": "logits of {labels}, each by itself",
}

_MLP = """
from pathlib import Path

import torch
{download}from lmrecipes.inference.exported import load_exported

model = load_exported({folder}).model
row = torch.randint({levels}, (1, {inputs}))  # intensities
print(model.heads["{task}"](model.trunk.model(row)[0]))  # {meaning}
"""


def usage_of_mlp(exported: Mapping[str, Any], mlp: Mapping[str, Any], name: str, on_hub: bool) -> str:
    """The same of a multi-layer perceptron, which `transformers` does not know. mlp: `model.mlp` of the recipe."""
    task, spec = next(iter(exported["tasks"].items()))
    labels = ", ".join(spec["labels"])
    code = _MLP.format(**_place(name, on_hub), **mlp, task=task, meaning=_meaning(spec, labels))
    return f"```python\n{code.strip()}\n```\n"


def _place(name: str, on_hub: bool) -> dict[str, str]:
    """How code comes to a model's files."""
    download = "from huggingface_hub import snapshot_download\n" if on_hub else ""
    return {"download": download, "folder": f'Path(snapshot_download("{name}"))' if on_hub else f'Path("{name}")'}


def _meaning(spec: Mapping[str, Any], labels: str) -> str:
    """What a head's outputs are."""
    said = _MEANING["probability" if spec.get("loss") == "mean_squared_error" else spec["kind"]]
    return said.format(**{**spec, "labels": labels})


def usage(exported: Mapping[str, Any], name: str, base: str | None, on_hub: bool) -> str:
    """Python that loads a model and uses it once. exported: the content of `heads.json`. base: of an adapter, what it
    belongs to. name: a folder, or on the hub OWNER/NAME."""
    tasks = exported["tasks"]
    token_kinds = [task["kind"] for task in tasks.values() if task["kind"] in TOKEN_KINDS]
    kind = "AutoModelForCausalLM" if token_kinds else "AutoModel"
    code = (_LOAD_ADAPTER if base else _LOAD).format(kind=kind, name=name, base=base)
    if token_kinds:
        code += _CHAT if "chat" in token_kinds else _CONTINUE
    headed = [(task, spec) for task, spec in tasks.items() if spec["kind"] not in TOKEN_KINDS]
    if headed:
        task, spec = headed[0]
        labels = ", ".join(spec["labels"][:4]) + (", ..." if len(spec["labels"]) > 4 else "")
        code += _HEADS.format(
            **_place(name, on_hub),
            pool=_POOL[exported["pooling"]],
            task=task,
            meaning=_meaning(spec, labels),
        )
    return f"```python\n{code.strip()}\n```\n"
