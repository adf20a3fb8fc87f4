"""The model card: what a model is, how to use it, what it was trained on, how well it does and where it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmrecipes.catalogue import ASSETS, Asset
from lmrecipes.files import write_text_atomically
from lmrecipes.publishing.combined_card import combination_card, made_of
from lmrecipes.publishing.metadata import adapters, base_on_hub, front_matter, hub_dataset
from lmrecipes.publishing.usage import usage, usage_of_mlp
from lmrecipes.recipe import TOKEN_KINDS
from lmrecipes.recipe_inputs import MEDIA
from lmrecipes.run_folder import RunFolder
from lmrecipes.tracking.results import duration, hardware, markdown_results, markdown_row, number, words
from lmrecipes.tracking.run_record import RunRecord, read_run

README = "README.md"
MEMBERS = "combination.json"
"""In a model's folder: it holds whole models, see `lmrecipes.combine.combination`."""


def write_card(run: RunFolder) -> None:
    """Write the card of a finished run into its model folder, where it has exported one."""
    if (run.model / "heads.json").is_file() or (run.model / MEMBERS).is_file():
        write_text_atomically(run.model / README, model_card(run, str(run.model)))


def model_card(run: RunFolder, name: str, adapter: bool = False, on_hub: bool = False) -> str:
    """The card of a run's model as Markdown with front matter. name: what `from_pretrained` is given."""
    record = read_run(run.path)
    if (run.model / MEMBERS).is_file():
        return combination_card(record, name if on_hub else record.name, name)
    exported = json.loads((run.model / "heads.json").read_text(encoding="utf-8"))
    base = record.recipe["model"]["pretrained"] if adapter else None
    sections = {
        "": _about(record),
        "Use": usage_of_mlp(exported, mlp, name, on_hub)
        if (mlp := _mlp(record))
        else usage(exported, name, base and (base_on_hub(record) or base), on_hub),
        "Results": _results(record, run),
        "Members": made_of(record),
        "Training data": _data(record),
        "Training": _training(record, exported),
        "Limits": _limits(record, exported, adapter),
    }
    title = name if on_hub else record.name
    text = "\n".join(f"## {head}\n\n{part}" if head else part for head, part in sections.items() if part)
    return f"{front_matter(record, title, adapter)}\n# {title}\n\n{text}"


def _about(record: RunRecord) -> str:
    recipe, model = record.recipe, record.recipe["model"]
    kinds = {task["kind"] for task in record.tasks.values()}
    said = [f"{recipe['description']}\n\n"] if recipe.get("description") else []
    what = "A causal language model" if kinds & set(TOKEN_KINDS) else "A text encoder with task heads"
    if media := {modality for task in recipe["tasks"].values() for modality in MEDIA if task["source"].get(modality)}:
        what += f" and front ends for {' and '.join(modality for modality in MEDIA if modality in media)}"
    if mlp := _mlp(record):
        what = f"A multi-layer perceptron ({' - '.join(map(str, (mlp['inputs'], *mlp['hidden'])))}) with task heads"
        start = "trained from random weights"
    elif model.get("config"):
        start = f"trained from random weights (`{model['config']['model_type']}`)"
    elif model.get("initialization") == "scratch":
        start = f"trained from random weights (the architecture of {_model_name(record)})"
    elif rank := adapters(record):
        start = f"fine-tuned from {_model_name(record)} with {_adapter_kind(model['lora'])} of rank {rank}"
    else:
        start = f"fine-tuned from {_model_name(record)}"
    tasks = ", ".join(f"`{name}` ({words(task['kind'])})" for name, task in record.tasks.items())
    how_many = "one task" if len(record.tasks) == 1 else f"{len(record.tasks)} tasks at once"
    return "".join(said) + f"{what}, {start} on {how_many}: {tasks}. Trained with lmrecipes.\n"


def _mlp(record: RunRecord) -> Mapping[str, Any]:
    """`model.mlp` of a run whose trunk it is, else nothing."""
    mlp: Mapping[str, Any] = record.recipe["model"].get("mlp") or {}
    return mlp if mlp.get("hidden") else {}


def _model_name(record: RunRecord) -> str:
    name = record.recipe["model"]["pretrained"]
    shown = f"[{hub}](https://huggingface.co/{hub})" if (hub := base_on_hub(record)) else f"`{name}`"
    asset = _asset(name)
    return f"{shown} (asset `{name}`: {asset.notice.rstrip('.')}; {asset.licence})" if asset else shown


def _asset(name: str) -> Asset | None:
    return next((asset for asset in ASSETS if asset.name == name), None)


def _adapter_kind(lora: Mapping[str, Any]) -> str:
    return "DoRA adapters" if lora.get("dora") else "rsLoRA adapters" if lora.get("rslora") else "LoRA adapters"


def _results(record: RunRecord, run: RunFolder) -> str:
    if record.evaluation is None:
        return ""
    text = markdown_results(record.evaluation, record.environment)
    if run.lm_eval.is_file():
        found = json.loads(run.lm_eval.read_text(encoding="utf-8"))
        rows = [
            f"| `{row['task']}` | {words(row['metric'])} | {number(row['value'])} | {number(row['stderr'])} |"
            for row in found["rows"]
        ]
        how = f"lm-eval {found['lm_eval']}" + (", with the chat template" if found["chat_template"] else "")
        limit = f", the first {found['limit']:g} of each task" if found["limit"] else ""
        text += "\n| benchmark | metric | value | standard error |\n|-|-|-:|-:|\n" + "\n".join(rows)
        text += f"\n\n{how}{limit}.\n"
    return text


def _data(record: RunRecord) -> str:
    """The mixture as it was drawn, from the last line of metrics; without one, nothing."""
    last = record.metrics[-1] if record.metrics else {}
    heads = ["task", "source", "rows", "examples", "epochs", "tokens", f"share of {words(record.unit)}"]
    lines = [markdown_row(heads), "|-|-|" + "-:|" * (len(heads) - 2)]
    for name, task in record.tasks.items():
        examples, rows = last.get(f"examples/{name}"), (record.mixture.get(name) or {}).get("rows")
        if examples is None:
            continue
        epochs = f"{examples / rows:.2f}" if rows else ""
        share = f"{last.get(f'share/{name}') or 0:.1%}"
        counts = [f"{value:,.0f}" if value is not None else "" for value in (rows, examples)]
        tokens = f"{last[f'tokens/{name}']:,.0f}"
        lines.append(markdown_row([f"`{name}`", _source(task), *counts, epochs, tokens, share]))
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _source(task: Mapping[str, Any]) -> str:
    source = task["source"]
    if found := hub_dataset(task):
        return f"[{source['dataset']}](https://huggingface.co/datasets/{found[0]})"
    if name := source.get("offline"):
        asset = _asset(name)
        return f"{asset.title} ({asset.licence})" if asset else f"`{name}`"
    if source.get("function"):
        return f"`{source['function']}`"
    files = [source["files"]] if source.get("files") else list((source.get("splits") or {}).values())
    return ", ".join(f"`{Path(file).name}`" for file in files or [source.get("dataset") or ""])


def _precision(record: RunRecord, exported: Mapping[str, Any]) -> str:
    """In which formats it was trained."""
    said, half = record.recipe["precision"], exported["compute"]
    if said.get("master_weights") == "none":
        return (
            f"{half} weights, gradients and optimizer states without fp32 master weights, {said['rounding']} rounding"
        )
    if rules := {**said.get("layers", {}), **{k: v for c in said.get("changes", ()) for k, v in c["layers"].items()}}:
        formats = ", ".join(dict.fromkeys([half, *rules.values()]))
        return f"products in {formats} by layer, weights cast at each product; optimizer states in fp32"
    held = "cast at each product" if exported["autocast"] else "beside fp32 master weights"
    return "fp32" if half == "fp32" else f"{half} products, weights {held}; optimizer states in fp32"


def _training(record: RunRecord, exported: Mapping[str, Any]) -> str:
    environment, evaluation = record.environment, record.evaluation or {}
    last = record.metrics[-1] if record.metrics else {}
    tokens = sum(value for key, value in last.items() if key.startswith("tokens/") and value)
    seconds = evaluation.get("seconds_of_training")
    batch = record.recipe["batch"]["examples"]
    versions = [f"{name} {version}" for name, version in (environment.get("versions") or {}).items()]
    items = {
        "Length": f"{record.step:,} steps of {batch:,} examples, {tokens:,.0f} tokens"
        + (f", {duration(seconds)}" if seconds is not None else "")
        if record.metrics
        else "",
        "Precision": f"{_precision(record, exported)}. Stored in {exported['weights']}, as trained.",
        "Hardware": hardware(environment),
        "Versions": ", ".join(versions + ([f"commit {c}"] if (c := environment.get("commit")) else [])),
        "Started": environment.get("started", ""),
    }
    listed = "".join(f"- {name}: {value}\n" for name, value in items.items() if value)
    return (
        f"{listed}\n<details>\n<summary>Recipe</summary>\n\n```yaml\n{record.recipe_text.strip()}\n```\n\n</details>\n"
    )


def _limits(record: RunRecord, exported: Mapping[str, Any], adapter: bool) -> str:
    kinds = {task["kind"] for task in record.tasks.values()}
    said = [
        f"It reads rows of exactly {mlp['inputs']:,} intensities; `transformers` cannot load it, lmrecipes does."
        if (mlp := _mlp(record))
        else f"It was trained on texts of up to {exported['max_length']:,} tokens.",
        *_reads(exported),
        "Results are on held-out rows of the sources above; of other texts they say little.",
    ]
    if base := base_on_hub(record):
        said.append(f"What {base} is known to get wrong, and the terms of its licence, hold here too.")
    asset = _asset(record.recipe["model"]["pretrained"])
    if adapter and asset is not None and asset.converted is not None:
        said.append(f"It was trained beside the asset `{asset.name}`, whose weights differ from {base}'s by rounding.")
    if kinds & set(TOKEN_KINDS):
        said.append("It continues texts with what is likely, true or not, and was not trained to refuse anything.")
    leaks = [name for name, fact in record.mixture.items() if sum((fact.get("duplicates") or {}).values())]
    if leaks:
        said.append(f"Some held-out texts also stand in the training rows of {', '.join(leaks)}.")
    return "".join(f"- {line}\n" for line in said)


def _reads(exported: Mapping[str, Any]) -> list[str]:
    """What `transformers` alone cannot do with a model that reads more than texts."""
    inputs = " and ".join("images" if modality == "image" else modality for modality in exported.get("inputs", {}))
    how = "`lmrecipes.inference.exported.load_exported(folder)` loads it whole, with the front ends"
    return [f"`transformers` loads its trunk, which reads texts; for {inputs} {how}."] if inputs else []
