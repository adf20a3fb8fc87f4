"""A run folder as training writes it, made up: 4 tasks, 300 steps."""

import hashlib
import math
from pathlib import Path
from typing import Any

import yaml

from lmrecipes.files import write_json
from lmrecipes.recipe import Model, Recipe, Schedule, Source, Task
from lmrecipes.tracking.record import MetricsFile, read_metrics
from lmrecipes.tracking.samples import Sample, SamplesFile

STEPS = 300
EVERY = 25
KINDS = {"valence": "regression", "icd10": "classification", "hpo": "multi_label", "party": "classification"}
WEIGHTS = {"valence": 2.0, "icd10": 3.0, "hpo": 2.0, "party": 1.0}
LATER = {"valence": 1.0, "icd10": 1.0, "hpo": 2.0, "party": 4.0}
ROWS = {"valence": 18_908, "icd10": 46_589, "hpo": 12_562, "party": 1_480}
TOKENS = {"valence": 23, "icd10": 14, "hpo": 11, "party": 61}
FINAL = {
    "valence": {"spearman": 0.772, "pearson": 0.781, "mean_squared_error": 0.392, "mean_absolute_error": 0.487},
    "icd10": {"accuracy": 0.861, "macro_f1": 0.742, "balanced_accuracy": 0.731},
    "hpo": {"micro_f1": 0.688, "macro_f1": 0.513, "average_precision": 0.604},
    "party": {"accuracy": 0.694, "macro_f1": 0.671, "balanced_accuracy": 0.669},
}
TFIDF = {
    "valence": {"spearman": 0.701, "pearson": 0.712, "mean_squared_error": 0.497, "mean_absolute_error": 0.561},
    "icd10": {"accuracy": 0.838, "macro_f1": 0.705, "balanced_accuracy": 0.688},
    "hpo": {"micro_f1": 0.612, "macro_f1": 0.401, "average_precision": 0.497},
    "party": {"accuracy": 0.701, "macro_f1": 0.679, "balanced_accuracy": 0.676},
}
SCRATCH = {
    task: {name: 0.72 * value if "error" not in name else 1.6 * value for name, value in scores.items()}
    for task, scores in FINAL.items()
}


def noise(*key: object) -> float:
    """A number in [-1, 1) that only depends on the key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:6]) / 2**47 - 1


def make_recipe(lr: float = 3e-4, steps: int = STEPS) -> Recipe:
    return Recipe(
        name="bert_multitask",
        description="Four tasks, one BERT: feelings, diagnoses, phenotypes & parties.",
        tasks={
            name: Task(kind=kind, weight=WEIGHTS[name], source=Source(offline=name))  # type: ignore[arg-type]
            for name, kind in KINDS.items()
        },
        model=Model(),
        schedule=Schedule(steps=steps),
    ).model_copy(update={"optimizer": Recipe.model_fields["optimizer"].default.model_copy(update={"lr": lr})})


def make_evaluation(run: str, better_by: float = 0.0) -> dict[str, Any]:
    rows = {"valence": 1500, "icd10": 1500, "hpo": 1312, "party": 480}
    metrics = {
        task: {name: value + (better_by if "error" not in name else -better_by) for name, value in scores.items()}
        for task, scores in FINAL.items()
    }
    return {
        "run": run,
        "step": STEPS,
        "split": "test",
        "seconds_of_training": 118.2,
        "tasks": {
            task: {
                "kind": KINDS[task],
                "headline": next(iter(scores)),
                "rows": rows[task],
                "loss": 0.4,
                "metrics": scores,
            }
            for task, scores in metrics.items()
        },
        "baselines": {
            "linear": {"title": "TF-IDF + linear", "date": "2026-11-22", "measured": "stored", "tasks": TFIDF},
            "scratch": {
                "title": "same BERT from scratch",
                "date": "2026-11-22",
                "measured": "with this run",
                "tasks": SCRATCH,
            },
        },
    }


def share_in_force(step: int, steps: int) -> dict[str, float]:
    """Of each task: weights change after half of the run."""
    weights = WEIGHTS if step <= steps // 2 else LATER
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def target_share(step: int, steps: int) -> dict[str, float]:
    """Of all that was drawn up to a step."""
    early, late = share_in_force(1, steps), share_in_force(steps, steps)
    part = min(1.0, steps // 2 / step)
    return {name: part * early[name] + (1 - part) * late[name] for name in KINDS}


def make_mixture() -> dict[str, dict[str, Any]]:
    """What the run's `mixture.json` says."""
    target = target_share(STEPS, STEPS)
    return {
        name: {
            "rows": ROWS[name],
            "share": target[name],
            "examples": round(64 * STEPS * target[name]),
            "planned_tokens": round(64 * STEPS * target[name]) * TOKENS[name],
            "epochs": 64 * STEPS * target[name] / ROWS[name],
        }
        for name in KINDS
    }


def make_metrics(step: int, steps: int, lr: float, better_by: float) -> dict[str, float | None]:
    warmup = 0.06 * steps
    share, target = share_in_force(step, steps), target_share(step, steps)
    seen = {name: round(64 * step * target[name] + 0.4 * noise(step, name)) for name in KINDS}
    metrics: dict[str, float | None] = {}
    for at, name in enumerate(KINDS):
        floor = 0.32 + 0.1 * at - better_by
        fall = math.exp(-step / (40 + 25 * at))
        metrics[f"loss/{name}"] = max(0.02, floor + (1 - floor) * fall + (0.05 + 0.05 * at) * noise(name, step, lr))
        metrics[f"examples/{name}"] = seen[name]
        metrics[f"tokens/{name}"] = TOKENS[name] * seen[name]
        metrics[f"share/{name}"] = seen[name] / sum(seen.values())
        metrics[f"target_share/{name}"] = target[name]
        metrics[f"weight/{name}"] = share[name]
        metrics[f"loss_factor/{name}"] = 1 + 0.3 * math.sin(step // 10 / 9 + at)
        if step % 7 == 3 and name == "party":
            metrics[f"loss/{name}"] = None  # no example of this task in the step
        if step % EVERY == 0:
            for metric, final in FINAL[name].items():
                gain = 1 - math.exp(-step / (50 + 20 * at)) + 0.015 * noise(metric, step)
                value = final * gain if "error" not in metric else final * (2 - gain)
                metrics[f"eval/{name}/{metric}"] = value + better_by
    losses = [value for name in KINDS if (value := metrics[f"loss/{name}"]) is not None]
    seconds = 0.36 + 0.03 * noise("time", step) + (0.5 if step == 1 else 0.0) + (0.25 if step % 97 == 0 else 0.0)
    tokens = sum(TOKENS[name] * 64 * share[name] for name in KINDS)
    return {
        "loss": sum(losses) / len(losses),
        **metrics,
        "lr": lr * min(1.0, step / warmup) * (1 - max(0.0, step - warmup) / (steps - warmup)),
        "grad_norm": 0.6 + 1.4 * math.exp(-step / 30) + 0.25 * abs(noise("norm", step)),
        "tokens_per_second": tokens / seconds,
        "model_flops_utilization": 0.31 + 0.02 * noise("mfu", step),
        "memory/peak_gb": 2.1,
        "time/step": seconds,
        "time/data": 0.008 + 0.004 * abs(noise("data", step)) + (0.2 if step % 97 == 0 else 0.0),
    }


def make_run(folder: Path, lr: float = 3e-4, better_by: float = 0.0, done: int = STEPS, finished: bool = True) -> Path:
    """Write a run folder that looks like a real one."""
    folder.mkdir(parents=True)
    recipe = make_recipe(lr)
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False)
    )
    write_json(
        folder / "environment.json",
        {
            "versions": {"torch": "2.13.0", "deepspeed": "0.20.1", "accelerate": "1.15.0", "transformers": "5.3.0"},
            "python": "3.11.7",
            "commit": "1537f98a2b3c",
            "device": "cpu",
            "cpu": "Intel(R) Xeon(R) Processor @ 2.60GHz",
            "cores": 16,
            "world_size": 2,
            "zero": 2,
            "precision": "bf16",
            "command": "accelerate launch --config_file recipes/bert_multitask/zero2_bf16.yaml "
            f"recipes/bert_multitask/recipe.py --optimizer.lr {lr}",
            "launcher": "accelerate",
            "started": "2026-11-22T10:15:30+0000",
        },
    )
    write_json(folder / "mixture.json", make_mixture())
    with MetricsFile(folder / "metrics.jsonl") as record:
        for step in range(1, done + 1):
            record.write(step, make_metrics(step, STEPS, lr, better_by))
    if finished:
        write_json(folder / "evaluation.json", make_evaluation(folder.name, better_by))
    return folder


TEXTS = {
    "speeches": {"perplexity": (24.81, 17.92), "bits_per_byte": (0.9413, 0.8461), "token_accuracy": (0.402, 0.451)},
    "scripture": {"perplexity": (38.2, 14.03), "bits_per_byte": (1.213, 0.8802), "token_accuracy": (0.334, 0.472)},
    "assistant": {"perplexity": (7.02, 4.31), "bits_per_byte": (0.6121, 0.4592), "token_accuracy": (0.561, 0.641)},
}
"""Of the token tasks: each metric before and after training."""
SAMPLED = {
    "speeches": [
        (
            "Mr. President, Members of the Congress: I come before you tonight at a moment of ",
            ["great importance to the country. The country is", "decision so far-reaching that the people"],
            "decision for the many peoples of Indochina and for our own Nation.",
        ),
        (
            "When I took office, I promised the American people that we would put our house in order. " * 5 + "Today ",
            ["I am going to tell you about the house. The house is", "I can report to you that the state of our"],
            "the work that we began together is bearing fruit. " * 9,
        ),
    ],
    "scripture": [
        (
            "And it came to pass in those days, that there went out a ",
            ["man.", "decree <b>from</b> the king"],
            "decree from Caesar Augustus",
        ),
    ],
    "assistant": [
        (
            "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n"
            "<|im_start|>user\nName three primes, one a line.<|im_end|>\n<|im_start|>assistant\n",
            ["", "2\n3\n5"],
            "2\n3\n5",
        ),
    ],
}
"""Of a task: prompt, continuations (before training, after it) and reference."""


def make_language_run(folder: Path, better_by: float = 0.0) -> Path:
    """A finished run of three tasks of tokens and one with labels, sampled at the start, in between and at the end."""
    make_run(folder, better_by=better_by)
    tasks: dict[str, Task] = {
        name: Task(kind="chat" if name == "assistant" else "language_modelling", source=Source(files=f"{name}.jsonl"))
        for name in TEXTS
    }
    tasks["party"] = Task(kind="classification", source=Source(offline="party"))
    recipe = make_recipe().model_copy(update={"tasks": tasks, "name": "gpt_mixture", "description": ""})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    rows = read_metrics(folder / "metrics.jsonl")
    with MetricsFile(folder / "metrics.jsonl") as record:
        for row in rows:
            kept = {key: value for key, value in row.items() if "/" not in key or key.endswith("/party")}
            if (step := row["step"]) % EVERY == 0:
                kept |= {key: value for key, value in row.items() if key.startswith("eval/party/")}
                for task, metrics in TEXTS.items():
                    far = math.exp(-step / 60)
                    kept |= {f"eval/{task}/{name}": b + (a - b) * far for name, (a, b) in metrics.items()}
            record.write(step, {key: value for key, value in kept.items() if key != "step"})
    evaluation = make_evaluation(folder.name)
    evaluation["tasks"] = {"party": evaluation["tasks"]["party"]} | {
        task: {
            "kind": tasks[task].kind,
            "headline": "perplexity",
            "rows": 600,
            "loss": math.log(metrics["perplexity"][1]),
            "metrics": {name: after + better_by for name, (_, after) in metrics.items()},
        }
        for task, metrics in TEXTS.items()
    }
    start = {task: {name: before for name, (before, _) in metrics.items()} for task, metrics in TEXTS.items()}
    start["party"] = {"accuracy": 0.21, "macro_f1": 0.04, "balanced_accuracy": 0.1}
    evaluation["baselines"] = {
        "start": {"title": "before training", "date": "2026-11-22", "measured": "with this run", "tasks": start}
    }
    write_json(folder / "evaluation.json", evaluation)
    with SamplesFile(folder / "samples.jsonl") as file:
        for step in range(0, STEPS + 1, EVERY):
            file.write(
                [
                    Sample(step, task, prompt, found[step > STEPS // 2], reference)
                    for task, texts in SAMPLED.items()
                    for prompt, found, reference in texts
                ]
            )
    return folder
