"""Seconds of an optimizer's update on the weights of a BERT, fp32 beside bf16 with each rounding.

python benchmarks/precision/update_time.py            rounds of all
python benchmarks/precision/update_time.py --write    the table into README.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from pairs import Pairs, in_turn, markdown_table, measured_on  # noqa: E402

from lmrecipes.machine import cores  # noqa: E402
from lmrecipes.precision.optimizers import AdamW  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402

FUSED = "torch's fused AdamW, fp32"
FOREACH = "torch's AdamW (foreach), bf16, nearest"
OURS = {f"ours, bf16, {rounding}": rounding for rounding in ("nearest", "stochastic", "kahan")}


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    args = parser.parse_args()
    torch.set_num_threads(cores())
    shapes = shapes_of(args.vocabulary, args.width, args.layers)
    measures = {name: partial(seconds, step) for name, step in sides(shapes).items()}
    for measure in measures.values():
        measure()  # makes the states
    taken = in_turn(args.rounds, measures, say)
    count = sum(torch.Size(shape).numel() for shape in shapes)
    measured = f"{measured_on(('torch',))} {count:,} parameters, {args.rounds} rounds."
    text = f"{table(taken)}\n\n{measured}"
    say(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text, "update_time")
    return 0


def shapes_of(vocabulary: int, width: int, layers: int) -> list[tuple[int, ...]]:
    """Of a BERT's parameters."""
    square, vector = (width, width), (width,)
    layer = [*[square, vector] * 4, vector, vector, (4 * width, width), (4 * width,), (width, 4 * width), *[vector] * 3]
    return [(vocabulary, width), (512, width), (2, width), vector, vector, *layer * layers]


def sides(shapes: Sequence[tuple[int, ...]]) -> dict[str, Callable[[], object]]:
    """An update of each, on gradients that stay."""
    found: dict[str, Callable[[], object]] = {
        FUSED: torch.optim.AdamW(weights(shapes, torch.float32), lr=1e-4, fused=True).step,
        FOREACH: torch.optim.AdamW(weights(shapes, torch.bfloat16), lr=1e-4, foreach=True).step,
    }
    for name, rounding in OURS.items():
        found[name] = AdamW(weights(shapes, torch.bfloat16), lr=1e-4, weight_decay=0.01, rounding=rounding).step  # type: ignore[arg-type]
    return found


def weights(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Random ones with gradients."""
    made = torch.Generator().manual_seed(0)
    found = [torch.randn(shape, generator=made).to(dtype).requires_grad_() for shape in shapes]
    for weight in found:
        weight.grad = (torch.randn(weight.shape, generator=made) / 1000).to(dtype)
    return found


def seconds(step: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def table(taken: Mapping[str, tuple[float, ...]]) -> str:
    """Time and its ratio to torch's, as Markdown."""
    rows = []
    for name, values in taken.items():
        pairs = Pairs(values, taken[FUSED])
        ratio, spread = f"{pairs.ratio:.1f}", f"{min(pairs.ratios):.1f} to {max(pairs.ratios):.1f}"
        compared = ["", ""] if name == FUSED else [ratio, spread]
        rows.append([name, f"{1000 * statistics.median(values):.1f}", *compared])
    return markdown_table(["", "ms", "over torch's fused fp32", "ratios of the rounds"], rows)


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
