"""One model in each precision beside the pipeline of `transformers`: time for a row and for many, accuracy, memory.

python benchmarks/inference/run.py RUN --task icd10            one line a precision
python benchmarks/inference/run.py RUN --task icd10 --write    the table into README.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from pairs import Target, markdown_table, measured_on, targets_table  # noqa: E402

from lmrecipes.data.encode import encode_tasks, task_texts  # noqa: E402
from lmrecipes.inference.exported import load_exported  # noqa: E402
from lmrecipes.inference.row_predictor import open_predictor  # noqa: E402
from lmrecipes.inference.torch_rows import TorchRows  # noqa: E402
from lmrecipes.recipe_files import recipe_from_yaml  # noqa: E402
from lmrecipes.run_folder import RunFolder, open_run  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402

PIPELINE = "`transformers` pipeline, fp32"
WANTED = {"int8, ONNX Runtime": 4.0, "bf16": 1.8}
"""How much faster than the pipeline a single row is to be, at the median."""
BLOCK = 20
"""Rows that a side is timed on before the next one's turn."""
Predict = Callable[[list[str]], NDArray[Any]]
"""Texts -> logits [texts, classes]."""


@dataclass
class Side:
    """One of those that take turns. single: wall and CPU milliseconds of each row; rates: rows a second in batches."""

    predict: Predict
    megabytes: float
    single: list[tuple[float, float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    logits: NDArray[Any] | None = None

    @property
    def p50(self) -> float:
        """Median milliseconds of a row."""
        return statistics.median(wall for wall, _ in self.single)


def main() -> int:
    """Measure; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--task", required=True, help="a classification task of the run, read from one text")
    parser.add_argument("--rows", type=int, default=1500, help="of the test split, for accuracy")
    parser.add_argument("--calls", type=int, default=200, help="rows timed one by one")
    parser.add_argument("--tokens", type=int, default=64, help="length of the texts that are timed")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = open_run(args.run)
    recipe = recipe_from_yaml(run.recipe)
    test = task_texts(recipe)[args.task].splits["test"]
    rows = encode_tasks(recipe)[args.task].splits["test"].sample(args.rows, "evaluation")  # those of evaluation.json
    texts, classes = [test.texts[row] for row in rows.tolist()], test.targets[rows]
    sides = sides_of(run, args.task)
    require_same_logits(sides, texts[:8])
    timed = texts_of(run, texts, args.tokens)
    measure(sides, timed, args.calls, args.batch, args.batches)
    for name, side in sides.items():
        side.logits = side.predict(texts)
        print(f"{name}: p50 {side.p50:.2f} ms", flush=True)
    promised = targets(sides, classes)
    setting = f"{len(texts):,} rows; {args.calls} calls of {args.tokens} tokens; one thread; batches of {args.batch}"
    measured = f"{measured_on(('torch', 'transformers', 'onnxruntime'))} {setting}."
    text = "\n\n".join([targets_table(promised), table(sides, classes), measured])
    print(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text, "inference")
    return 0 if all(target.met for target in promised) else 1


def sides_of(run: RunFolder, task: str) -> dict[str, Side]:
    """The pipeline, and ours in every precision; torch's own int8 too."""
    sides = {PIPELINE: pipeline_of(run, task)}
    ours: dict[str, Any] = {"fp32": open_predictor(run, "fp32", 1), "bf16": open_predictor(run, "bf16", 1)}
    ours["int8, ONNX Runtime"] = open_predictor(run, "int8", 1)
    ours["int8, torch"] = TorchRows(run, "int8", 1, None, None)
    column = ours["fp32"].columns(task).text
    for name, predictor in ours.items():

        def predict(texts: list[str], predictor: Any = predictor) -> NDArray[Any]:
            return np.asarray(predictor.predict([{column: text} for text in texts], [task])[task])

        sides[name] = Side(predict, predictor.bytes / 1e6)
    return sides


def pipeline_of(run: RunFolder, task: str) -> Side:
    """The same weights as `transformers` serves a text classifier: a model with our head behind our pooling."""
    from transformers import AutoTokenizer, pipeline
    from transformers.modeling_outputs import SequenceClassifierOutput
    from transformers.models.bert.modeling_bert import BertForSequenceClassification

    exported = load_exported(run.model)
    trunk, head = exported.model.trunk, exported.model.heads[task]

    class Pooled(BertForSequenceClassification):  # type: ignore[misc]
        """`BertForSequenceClassification`, whose pooler is the run's mean over the tokens."""

        def forward(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, **_: Any) -> Any:
            hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
            weights = attention_mask.unsqueeze(-1)
            return SequenceClassifierOutput(logits=self.classifier((hidden * weights).sum(1) / weights.sum(1)))

    Pooled.__name__ = BertForSequenceClassification.__name__  # pipelines look at it
    names = {number: f"LABEL_{number}" for number in range(head.spec.outputs)}
    numbers = {name: number for number, name in names.items()}
    named = {"id2label": names, "label2id": numbers}
    config = type(trunk.whole.config).from_dict({**trunk.whole.config.to_dict(), **named})
    config._attn_implementation = "sdpa"
    model = Pooled(config).eval()
    absent, unknown = model.bert.load_state_dict(trunk.model.state_dict(), strict=False)
    assert not unknown and all(name.startswith("pooler.") for name in absent), (absent, unknown)
    model.bert.pooler = None
    model.classifier.load_state_dict(head.linear.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    call = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    options = {"truncation": True, "max_length": exported.max_length, "top_k": None, "function_to_apply": "none"}

    def predict(texts: list[str]) -> NDArray[Any]:
        found = call(texts, batch_size=min(32, len(texts)), **options)
        place = model.config.label2id
        rows = np.empty((len(texts), head.spec.outputs), np.float32)
        for row, scores in zip(rows, found, strict=True):
            row[[place[score["label"]] for score in scores]] = [score["score"] for score in scores]
        return rows

    return Side(predict, sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6)


def require_same_logits(sides: dict[str, Side], texts: list[str]) -> None:
    """The pipeline and our fp32 are one model."""
    np.testing.assert_allclose(sides["fp32"].predict(texts), sides[PIPELINE].predict(texts), rtol=1e-3, atol=1e-3)


def texts_of(run: RunFolder, texts: Sequence[str], tokens: int) -> list[str]:
    """Texts of about so many tokens: test rows put together."""
    from lmrecipes.data.tokenizer import load_tokenizer

    tokenizer, found, words = load_tokenizer(str(run.model)), [], ""
    for text in texts:
        words = f"{words} {text}".strip()
        if len(tokenizer(words)["input_ids"]) >= tokens:
            found.append(words)
            words = ""
    return found or [words]


def measure(sides: dict[str, Side], texts: list[str], calls: int, batch: int, batches: int) -> None:
    """All sides in turn on `BLOCK` rows, one by one, then on a batch; every second time in reverse. The first row of a
    block is not timed: it finds the weights of another side in the caches."""
    many = [texts[at % len(texts)] for at in range(batch)]
    for side in sides.values():
        for text in texts[:10]:
            side.predict([text])
        side.predict(many)
    for first in range(0, calls, BLOCK):
        for side in list(sides.values()) if first // BLOCK % 2 else reversed(list(sides.values())):
            side.predict([texts[first % len(texts)]])
            for number in range(first, min(first + BLOCK, calls)):
                wall, cpu = time.perf_counter(), time.process_time()
                side.predict([texts[number % len(texts)]])
                side.single.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    for number in range(batches):
        for side in list(sides.values()) if number % 2 else reversed(list(sides.values())):
            began = time.perf_counter()
            side.predict(many)
            side.rates.append(batch / (time.perf_counter() - began))


def targets(sides: dict[str, Side], classes: NDArray[Any]) -> list[Target]:
    """What is promised."""
    found = [
        Target(f"speed of {name} over the pipeline, p50 of one row", sides[PIPELINE].p50 / sides[name].p50, wanted)
        for name, wanted in WANTED.items()
    ]
    lost = max(accuracy(sides["fp32"], classes) - accuracy(sides[name], classes) for name in WANTED)
    return [*found, Target("points of accuracy left of the 0.5 that may be lost to fp32", 0.5 - 100 * lost, 0.0)]


def accuracy(side: Side, classes: NDArray[Any]) -> float:
    """Share of the rows whose class is right."""
    assert side.logits is not None
    return float((side.logits.argmax(1) == classes).mean())


def table(sides: dict[str, Side], classes: NDArray[Any]) -> str:
    """All numbers, as Markdown."""
    rows = []
    fp32 = sides["fp32"].logits
    for name, side in sides.items():
        assert side.logits is not None and fp32 is not None
        walls = [wall for wall, _ in side.single]
        rows.append([
            name,
            f"{side.p50:.2f}",
            f"{np.quantile(walls, 0.95):.2f}",
            f"{statistics.median(cpu for _, cpu in side.single):.2f}",
            f"{sides[PIPELINE].p50 / side.p50:.2f}",
            f"{statistics.median(side.rates):,.0f}",
            f"{accuracy(side, classes):.4f}",
            f"{(side.logits.argmax(1) == fp32.argmax(1)).mean():.4f}",
            f"{side.megabytes:.0f}",
        ])  # fmt: skip
    head = ["", "p50, ms", "p95, ms", "CPU, ms", "times the pipeline", "rows/s in batches", "accuracy",
            "agrees with fp32", "MB"]  # fmt: skip
    return markdown_table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
