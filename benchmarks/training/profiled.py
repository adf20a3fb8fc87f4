"""Where a training step goes (run.py starts it): shares of the step's time by kind of operation.

    python benchmarks/training/profiled.py RECIPE.yaml RUN_FOLDER RESULT.json

Steps of the real loop run under `torch.profiler`. An operation's own time, without that of operations inside it, goes
to the first of KINDS that has a part of its name; what reads a tensor with an axis as long as the vocabulary is of the
language-model head; what lies between operations (Python) is `other`. The profiler slows small operations down more
than large ones, so small shares are upper bounds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from lmrecipes.launching import quieten
from lmrecipes.recipe_files import find_recipe
from lmrecipes.training.loop import Start, Training

WARMUP, STEPS = 2, 6
WAITING = "data"
OTHER = "other"
HEAD = "language-model head and embeddings"
KINDS = {
    HEAD: (HEAD,),
    "attention": ("bmm", "softmax", "scaled_dot_product", "flash_attention", "masked_fill"),
    "matrix products": ("addmm", "aten::mm", "linear", "matmul", "mkldnn"),
    "GELU, SiLU": ("gelu", "silu"),
    "LayerNorm": ("layer_norm", "rms_norm"),
    "optimizer": ("adam", "sgd", "Optimizer.step"),
    "clipping": ("_foreach_norm", "linalg_vector_norm", "_foreach_mul", "get_total_norm", "clip"),
    "casts and copies": ("copy", "aten::to", "cat", "clone", "contiguous", "stack"),
    "embedding": ("embedding", "index"),
    "elementwise and sums": ("aten::",),
}
"""Parts of operations' names, in the order in which they are asked."""


def kind_of(operation: str) -> str:
    """The kind of an operation of `torch.profiler`."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), OTHER)


def name_of(event: Any, vocabulary: int | None) -> str:
    """The operation of an event that was recorded with its shapes, or HEAD where one is as long as the vocabulary."""
    shapes = [shape for shape in event.input_shapes if isinstance(shape, list)]
    return HEAD if vocabulary is not None and any(vocabulary in shape for shape in shapes) else str(event.key)


def shares(own: Iterable[tuple[str, float]], waited: float, whole: float) -> dict[str, float]:
    """Shares of `whole` seconds by kind, largest first: of (operation, its own seconds) and of waiting for data."""
    found = dict.fromkeys([*KINDS, WAITING], 0.0)
    for operation, seconds in own:
        if (kind := kind_of(operation)) != OTHER:
            found[kind] += seconds / whole
    found[WAITING] = waited / whole
    found = dict(sorted(found.items(), key=lambda item: -item[1]))
    return {**found, OTHER: max(0.0, 1 - sum(found.values()))}


def main() -> None:
    """Profile steps of the loop."""
    recipe_file, run_folder, result_file = sys.argv[1:]
    quieten()
    training = Training(find_recipe(recipe_file).build(), Start(run=Path(run_folder)))
    steps = training.stream.steps(0, WARMUP + STEPS)
    for _ in range(WARMUP):
        training.one_step(next(steps))
    waited = 0.0
    with torch_profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        began = time.perf_counter()
        for _ in range(STEPS):
            asked = time.perf_counter()
            step = next(steps)
            waited += time.perf_counter() - asked
            training.one_step(step)
        whole = time.perf_counter() - began
    language = training.engine.module.language
    vocabulary = None if language is None else len(language.weight)
    events = profiler.key_averages(group_by_input_shape=True)
    own = [(name_of(event, vocabulary), event.self_cpu_time_total / 1e6) for event in events]
    Path(result_file).write_text(json.dumps(shares(own, waited, whole)), encoding="utf-8")
    training.engine.close()


if __name__ == "__main__":
    main()
