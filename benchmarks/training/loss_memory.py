"""Peak memory and time of the loss of a language model, forward and backward, from hidden states to gradients.

python benchmarks/training/loss_memory.py              ours beside the logits of all tokens and two other ways
python benchmarks/training/loss_memory.py --write      the table into README.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from pairs import Target, in_turn, markdown_table, measured_on, targets_table  # noqa: E402

from lmrecipes.machine import cores  # noqa: E402
from lmrecipes.models.cross_entropy import chunked_cross_entropy  # noqa: E402
from lmrecipes.tracking.results import write_results_into  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
OURS, NAIVE, CHECKPOINTED, TORCH = "ours", "naive", "checkpointed", "torch"
TITLES = {
    OURS: "lmrecipes",
    NAIVE: "logits of all tokens, `F.cross_entropy`",
    CHECKPOINTED: "the same in 8 chunks by `torch.utils.checkpoint`",
    TORCH: "`F.linear_cross_entropy`, its own choice of chunks",
}
DTYPES = ("bf16", "fp32")
PASSES = 3
"""Timed passes after the first, which is the one whose memory counts."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """With the weights of a mean."""
    weights = torch.full_like(targets, 1 / len(targets), dtype=torch.float32)
    return chunked_cross_entropy(hidden, weight, targets, weights)[0]


def naive(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As models of `transformers` compute it."""
    return F.cross_entropy((hidden @ weight.T).float(), targets)


def checkpointed(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The logits of a chunk are computed again in the backward pass."""
    parts = zip(hidden.chunk(8), targets.chunk(8), strict=True)
    sums = [checkpoint(naive, part, weight, aims, use_reentrant=False) * len(aims) for part, aims in parts]
    return torch.stack(sums).sum() / len(targets)


def of_torch(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Autocast does not know it."""
    if torch.is_autocast_enabled(DEVICE.type):
        dtype = torch.get_autocast_dtype(DEVICE.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return F.linear_cross_entropy(hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions())


LOSSES: dict[str, Loss] = {OURS: ours, NAIVE: naive, CHECKPOINTED: checkpointed, TORCH: of_torch}


def measure(name: str, dtype: str, tokens: int, vocabulary: int, width: int) -> dict[str, float]:
    """In this process: bytes at the peak above the inputs, the gradients counted; seconds; and the loss."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=DEVICE, requires_grad=True)
    weight = torch.nn.Parameter(0.05 * torch.randn(vocabulary, width, device=DEVICE))
    targets = torch.randint(vocabulary, (tokens,), device=DEVICE)

    def once(count: int) -> tuple[float, float]:
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == "bf16"):
            loss = LOSSES[name](hidden[:count], weight, targets[:count])
        loss.backward()
        value = float(loss.detach())
        if CUDA:
            torch.cuda.synchronize()
        return time.perf_counter() - start, value

    once(8)  # libraries take memory of their own at the first use
    hidden.grad = weight.grad = None
    before = reset_peak()
    _, value = once(tokens)
    grown = peak() - before
    seconds = statistics.median(once(tokens)[0] for _ in range(PASSES))
    return {"bytes": grown, "seconds": seconds, "loss": value}


def reset_peak() -> float:
    """Bytes in use now, from which on `peak` counts."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> float:
    """Bytes at the peak since `reset_peak`."""
    return float(torch.cuda.max_memory_allocated()) if CUDA else _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> int:
    """Measure; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure, args.tokens, args.vocabulary, args.width)))
        return 0
    sizes = [f"--{name}={getattr(args, name)}" for name in ("tokens", "vocabulary", "width")]
    taken: dict[tuple[str, str], list[dict[str, float]]] = {}

    def seconds(name: str, dtype: str) -> float:
        taken.setdefault((name, dtype), []).append(apart(["--measure", name, dtype, *sizes]))
        return taken[name, dtype][-1]["seconds"]

    measures = {f"{name} {dtype}": lambda n=name, d=dtype: seconds(n, d) for dtype in DTYPES for name in LOSSES}
    in_turn(args.rounds, measures, lambda line: print(line, flush=True))
    middle = {
        at: {key: statistics.median(one[key] for one in found) for key in found[0]} for at, found in taken.items()
    }
    text = report(middle, args.tokens, args.vocabulary, args.width, args.rounds)
    print(f"\n{text}")
    if args.write:
        write_results_into(HERE / "README.md", text, "loss memory")
    return 0 if all(target.met for target in targets(middle)) else 1


def apart(arguments: list[str]) -> dict[str, float]:
    """A measurement in a process of its own."""
    environment = {"OMP_NUM_THREADS": str(cores()), **os.environ}
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def targets(found: dict[tuple[str, str], dict[str, float]]) -> list[Target]:
    """What is promised in bf16."""
    naive, own = found[NAIVE, "bf16"], found[OURS, "bf16"]
    return [
        Target("peak memory of all logits over ours, bf16", naive["bytes"] / own["bytes"], 4),
        Target("seconds of all logits over ours, bf16", naive["seconds"] / own["seconds"], 1),
    ]


def report(
    found: dict[tuple[str, str], dict[str, float]], tokens: int, vocabulary: int, width: int, rounds: int
) -> str:
    """Targets and numbers, as Markdown."""
    rows = []
    for dtype in DTYPES:
        naive = found[NAIVE, dtype]
        for name, title in TITLES.items():
            one = found[name, dtype]
            memory, time_ = (f"{one[key] / naive[key]:.2f}" for key in ("bytes", "seconds"))
            rows.append([
                f"{title}, {dtype}", f"{one['bytes'] / 2**20:,.0f}", memory, f"{1000 * one['seconds']:,.0f}", time_,
                f"{one['loss']:.4f}",
            ])  # fmt: skip
    head = ["", "peak, MiB", "over all logits", "ms", "over all logits", "loss"]
    note = (
        f"{tokens:,} tokens, vocabulary {vocabulary:,}, width {width}, bf16 by autocast. Part of each peak are the "
        f"gradients of hidden states and weight, {4 * (tokens + vocabulary) * width / 2**20:,.0f} MiB in fp32."
    )
    measured = f"{measured_on(('torch',))} Medians of {rounds} rounds."
    return "\n\n".join([targets_table(targets(found)), markdown_table(head, rows), note, measured])


if __name__ == "__main__":
    sys.exit(main())
