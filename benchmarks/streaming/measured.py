"""One part of the benchmark in a process of its own, so that its memory is its own. Prints its numbers as JSON.

python measured.py corpus|encode|stream|prepare|read FOLDER ROWS [STEPS]
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH = 256
"""Examples of a step."""
ROW_GROUP = 100_000
CLASSES = ("spring", "autumn", "winter")

Numbers = dict[str, float]


def memory() -> dict[str, float]:
    """MB of this process that no file backs (RssAnon), and that files back (RssFile)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


class Peak(threading.Thread):
    """The largest RssAnon since the start, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.largest = memory()["RssAnon"]
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.largest = max(self.largest, memory()["RssAnon"])

    def stop(self) -> Numbers:
        """MB before, at the peak, and mapped from files at the end."""
        self._done.set()
        self.join()
        now = memory()
        return {"before": self.before, "peak": max(self.largest, now["RssAnon"]), "mapped": now["RssFile"]}


def corpus(folder: Path, rows: int) -> Numbers:
    """A Parquet file of distinct texts of 2 to 21 words, and a tokenizer with a token for each word."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import parquet
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from lmrecipes.data.permutation import hash_uniform

    words = [f"{a}{b}{c}" for a in ("ba", "do", "ki", "lu") for b in "aeiou" for c in ("n", "r", "st", "mp", "th")]
    special = ["[PAD]", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder / "model")
    draws = (hash_uniform(0, np.arange(2**15 * 20)) * len(words)).astype(int).reshape(2**15, 20)
    pool = pa.array([" ".join(words[w] for w in row[: 1 + i % 20]) for i, row in enumerate(draws)])
    began = time.perf_counter()
    schema = pa.schema({"text": pa.string(), "label": pa.string()})
    with parquet.ParquetWriter(folder / "corpus.parquet", schema) as writer:
        for start in range(0, rows, ROW_GROUP):
            numbers = np.arange(start, min(start + ROW_GROUP, rows))
            texts = pool.take(pa.array((hash_uniform(1, numbers) * len(pool)).astype(int)))
            texts = pc.binary_join_element_wise(texts, pc.cast(pa.array(numbers), pa.string()), " ")
            labels = pa.array(CLASSES).take(pa.array((hash_uniform(2, numbers) * len(CLASSES)).astype(int)))
            writer.write_table(pa.table({"text": texts, "label": labels}, schema))
    return {"seconds": time.perf_counter() - began, "size": megabytes(folder / "corpus.parquet")}


def megabytes(path: Path) -> float:
    """Size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20


def encoded(folder: Path):
    """The corpus as an encoded task, from the cache or encoded now."""
    from lmrecipes.data.encode import encode_tasks
    from lmrecipes.recipe import Recipe

    task = {"kind": "classification", "source": {"files": str(folder / "corpus.parquet")}}
    model = {"pretrained": str(folder / "model")}
    return encode_tasks(Recipe.model_validate({"name": "streaming", "tasks": {"t": task}, "model": model}))["t"]


def encode(folder: Path, rows: int) -> Numbers:
    """Parquet to token files: reading, checking, splitting, tokenising, counting duplicates."""
    import pyarrow.parquet  # noqa: F401 - imports are not what is measured

    from lmrecipes.data.tokenizer import load_tokenizer

    load_tokenizer(str(folder / "model"))
    peak = Peak()
    peak.start()
    began = time.perf_counter()
    task = encoded(folder)
    seconds = time.perf_counter() - began
    assert sum(counts["rows"] for counts in task.counts.values()) == rows
    return {"seconds": seconds, "size": megabytes(task.train.folder), **peak.stop()}


def stream(folder: Path, rows: int, steps: int) -> Numbers:
    """Batches of the shuffled training split, from TrainingStream: token rectangles, targets, loss denominators."""
    from lmrecipes.data.batches import Batcher
    from lmrecipes.data.layout import Arrangement
    from lmrecipes.data.loss_scales import LossScales
    from lmrecipes.data.mixture import Mixture
    from lmrecipes.data.stream import TrainingStream
    from lmrecipes.models.heads import head_spec
    from lmrecipes.planning.batch import plan_batch
    from lmrecipes.recipe import Loader

    peak = Peak()
    peak.start()
    began = time.perf_counter()
    task = encoded(folder)
    split = task.train
    batcher = Batcher({"t": split}, {"t": head_spec("classification", task.labels, split.targets)})
    mixture = Mixture.fixed(("t",), (len(split),), (1.0,), seed=0)
    scales, plan, arrangement = LossScales({"t": 1.0}), plan_batch(BATCH, BATCH, 1), Arrangement("buckets", 8)
    feed = TrainingStream(batcher, scales, mixture, plan, arrangement, 0, Loader())
    steps_made = feed.steps(0, steps + 1)
    next(steps_made)
    opened = time.perf_counter() - began
    began = time.perf_counter()
    seen = sum(step.examples["t"] for step in steps_made)
    assert seen == steps * BATCH
    return {"seconds": time.perf_counter() - began, "opened": opened, **peak.stop()}


def dataset(folder: Path):
    """The same Parquet file as a memory-mapped `datasets.Dataset`, converted at the first call."""
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_parquet(str(folder / "corpus.parquet"), cache_dir=str(folder / "datasets"))


def prepare(folder: Path, rows: int) -> Numbers:
    """`datasets`: Parquet to its Arrow cache, and the shuffled order. Texts are not tokenised."""
    import datasets  # noqa: F401

    peak = Peak()
    peak.start()
    began = time.perf_counter()
    shuffled = dataset(folder).shuffle(seed=0)
    assert len(shuffled) == rows
    return {"seconds": time.perf_counter() - began, "size": megabytes(folder / "datasets"), **peak.stop()}


def read(folder: Path, rows: int, steps: int) -> Numbers:
    """`datasets`: batches of texts in the shuffled order."""
    import datasets  # noqa: F401

    peak = Peak()
    peak.start()
    began = time.perf_counter()
    shuffled = dataset(folder).shuffle(seed=0)
    shuffled[:BATCH]
    opened = time.perf_counter() - began
    began = time.perf_counter()
    starts = [(number * BATCH) % (rows - BATCH) for number in range(1, steps + 1)]
    seen = sum(len(shuffled[start : start + BATCH]["text"]) for start in starts)
    assert seen == steps * BATCH
    return {"seconds": time.perf_counter() - began, "opened": opened, **peak.stop()}


PARTS: dict[str, Callable[..., Numbers]] = {
    "corpus": corpus, "encode": encode, "stream": stream, "prepare": prepare, "read": read,
}  # fmt: skip

if __name__ == "__main__":
    part, folder, *counts = sys.argv[1:]
    print(json.dumps(PARTS[part](Path(folder), *map(int, counts))))
