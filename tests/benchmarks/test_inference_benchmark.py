"""The benchmark of precisions on a tiny model: every side is the same model, and all take turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_benchmarks import load
from tiny import WORDS
from tiny_run import make_run


def test_sides(tiny: Path, tmp_path: Path) -> None:
    bench, run = load("inference/run"), make_run(tiny, tmp_path / "run")
    before = torch.get_num_threads()
    try:
        sides = bench.sides_of(run, "long")
    finally:
        torch.set_num_threads(before)
    assert list(sides) == [bench.PIPELINE, "fp32", "bf16", "int8, ONNX Runtime", "int8, torch"]
    texts = [" ".join(WORDS[at : at + 5]) for at in range(12)]
    bench.require_same_logits(sides, texts)
    joined = bench.texts_of(run, texts, 20)
    assert len(joined) == 3 and all(len(text.split()) >= 18 for text in joined)
    bench.measure(sides, joined, calls=3, batch=4, batches=2)
    for side in sides.values():
        assert len(side.single) == 3 and len(side.rates) == 2
        side.logits = side.predict(texts)
        assert side.logits.shape == (12, 3)
    classes = sides["fp32"].logits.argmax(1)
    assert bench.accuracy(sides["fp32"], classes) == 1
    assert len(bench.table(sides, classes).splitlines()) == 2 + len(sides)
    assert [target.wanted for target in bench.targets(sides, classes)] == [4.0, 1.8, 0.0]
    sides["fp32"].predict = lambda texts: np.zeros((len(texts), 3))
    with pytest.raises(AssertionError):
        bench.require_same_logits(sides, texts)
