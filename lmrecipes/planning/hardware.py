"""The machine a run is meant for, as a few numbers: what preflight and the memory plan ask of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self

from lmrecipes.problems import InputError, Problem, did_you_mean

Device = Literal["cpu", "cuda"]

GPUS: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "P100": ((6, 0), (16, 12)),
    "V100": ((7, 0), (16, 32)),
    "T4": ((7, 5), (16,)),
    "RTX2080Ti": ((7, 5), (11,)),
    "A100": ((8, 0), (80, 40)),
    "A10": ((8, 6), (24,)),
    "A40": ((8, 6), (48,)),
    "A6000": ((8, 6), (48,)),
    "RTX3090": ((8, 6), (24,)),
    "L4": ((8, 9), (24,)),
    "L40S": ((8, 9), (48,)),
    "RTX4090": ((8, 9), (24,)),
    "H100": ((9, 0), (80, 94)),
    "H200": ((9, 0), (141,)),
    "GH200": ((9, 0), (96, 144)),
    "B200": ((10, 0), (180, 192)),
    "RTX5090": ((12, 0), (32,)),
}
"""CUDA compute capability and memory sizes in GB (the first is meant when none is named)."""

BF16_CAPABILITY = (8, 0)
"""First compute capability with bf16 tensor cores (Ampere)."""

FP8_CAPABILITY = (8, 9)
"""First compute capability with fp8 tensor cores (Ada)."""


@dataclass(frozen=True)
class Hardware:
    """Where a run computes: `processes` devices of one kind.

    device: cpu or cuda.
    processes: ranks in all, one for each GPU; on a CPU, as many as are wanted.
    compute_capability: of the GPU; None where it is not known (a CPU, or a GPU that was not asked).
    memory_gb: of one GPU; None where it is not known.
    name: as in `GPUS`, for messages.
    """

    device: Device
    processes: int
    compute_capability: tuple[int, int] | None = None
    memory_gb: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise InputError(
                Problem("hardware", f"{self.processes} processes were asked for", "use 1 or more", id="hardware")
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `2xcpu`, `cpu`, `4xH100`, `8xA100-80GB` (case does not matter); raises InputError."""
        match = re.fullmatch(r"\s*(?:(\d+)\s*x\s*)?([a-z]\w*?)(?:-(\d+)\s*GB)?\s*", text, re.IGNORECASE)
        if match is None:
            fix = "write COUNTxDEVICE, for example 2xcpu, 4xH100 or 8xA100-80GB"
            raise InputError(Problem("hardware", f"{text!r} is not a machine", fix, id="hardware"))
        count, device, memory = int(match[1] or 1), match[2], match[3]
        if device.lower() == "cpu" and memory is None:
            return cls("cpu", count, name="cpu")
        by_lower = {name.lower(): name for name in GPUS}
        name = by_lower.get(device.lower())
        if name is None:
            known = ["cpu", *GPUS]
            hint = did_you_mean(device.upper(), known)
            fix = f"use one of {', '.join(known)}.{hint}"
            raise InputError(Problem("hardware", f"device {device!r} of {text!r} is not known", fix, id="hardware"))
        capability, sizes = GPUS[name]
        if memory is not None and int(memory) not in sizes:
            fix = "use one of " + ", ".join(f"{name}-{size}GB" for size in sizes)
            raise InputError(Problem("hardware", f"{name} has no {memory} GB version", fix, id="hardware"))
        return cls("cuda", count, capability, float(memory or sizes[0]), name)

    def __str__(self) -> str:
        memory = f"-{self.memory_gb:g}GB" if self.memory_gb is not None else ""
        return f"{self.processes}x{self.name or self.device}{memory}"

    def why_not(self, precision: str, deepspeed: bool = True) -> str:
        """Why `precision` (fp32, bf16, pure_bf16, fp16; fp8: natively) does not run here, or an empty string.

        deepspeed: whether DeepSpeed is the engine; plain torch has fp16 on a CPU too, though not a fast one.
        """
        if precision == "fp16" and self.device == "cpu" and deepspeed:
            return "fp16 under DeepSpeed needs a GPU: DeepSpeed refuses it on a CPU"
        if precision == "fp8" and self.device == "cpu":
            return "a CPU has no fp8 arithmetic"
        first = {"bf16": BF16_CAPABILITY, "pure_bf16": BF16_CAPABILITY, "fp8": FP8_CAPABILITY}.get(precision)
        if first is not None and self.compute_capability is not None and self.compute_capability < first:
            major, minor = self.compute_capability
            needed = f"{precision.removeprefix('pure_')} needs compute capability {first[0]}.{first[1]} or newer"
            return f"{needed}, {self.name or 'this GPU'} has {major}.{minor}"
        return ""
