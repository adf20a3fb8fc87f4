"""The machine that this process runs on, asked without importing torch."""

from __future__ import annotations

import os
import subprocess
from functools import cache

from lmrecipes.planning.hardware import Hardware


@cache
def gpus() -> tuple[tuple[str, tuple[int, int], float], ...]:
    """Name, compute capability and memory (GB) of each visible NVIDIA GPU, by `nvidia-smi`; empty without one."""
    query = ["nvidia-smi", "--query-gpu=index,name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = None if visible is None else [part.strip() for part in visible.split(",") if part.strip()]
    found = []
    for line in answer.strip().splitlines():
        index, name, capability, memory = (part.strip() for part in line.split(","))
        major, minor = (int(part) for part in capability.split("."))
        if wanted is None or index in wanted or not all(part.isdigit() for part in wanted):
            found.append((name, (major, minor), float(memory) / 1000))
    return tuple(found)


def this_machine(processes: int | None = None) -> Hardware:
    """Its GPUs, else its CPU. processes: how many ranks; None: every GPU, or one on a CPU."""
    if found := gpus():
        name, capability, memory = found[0]
        return Hardware("cuda", len(found) if processes is None else processes, capability, memory, name)
    return Hardware("cpu", 1 if processes is None else processes, name="cpu")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
