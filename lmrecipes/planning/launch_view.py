"""What a preflight rule sees: recipe, launch files and machine, with the few readings that several rules share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lmrecipes.planning.accelerate_keys import MIXED_PRECISION
from lmrecipes.planning.batch import BatchPlan, plan_batch
from lmrecipes.planning.deepspeed_keys import KINDS
from lmrecipes.planning.hardware import Hardware
from lmrecipes.planning.launch_files import LoadedFile
from lmrecipes.problems import Problem, Severity
from lmrecipes.recipe import Recipe

MISSING: Any = object()
"""What `LaunchView.json` returns for a key that is not there."""

AUTOCAST_DTYPES = {"bfloat16": "bf16", "torch.bfloat16": "bf16", "float16": "fp16", "torch.float16": "fp16"}


@dataclass(frozen=True)
class LaunchView:
    """One run as it would start. A file that is absent or unreadable has no content, and no rule speaks about it."""

    recipe: Recipe
    deepspeed: LoadedFile | None
    accelerate: LoadedFile | None
    hardware: Hardware
    has_json: bool = field(init=False)
    has_yaml: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "has_json", self.deepspeed is not None and self.deepspeed.readable)
        object.__setattr__(self, "has_yaml", self.accelerate is not None and self.accelerate.readable)

    def json(self, path: str, default: Any = MISSING) -> Any:
        """The value at a dotted path of the DeepSpeed JSON."""
        return _at(self.deepspeed.data if self.deepspeed else {}, path, default)

    def yaml(self, path: str, default: Any = MISSING) -> Any:
        """The value at a dotted path of the Accelerate YAML; `null` there is the same as absent."""
        value = _at(self.accelerate.data if self.accelerate else {}, path, default)
        return default if value is None else value

    def json_problem(self, path: str, what: str, fix: str, severity: Severity = "error") -> Problem:
        """A problem at a dotted path of the DeepSpeed JSON."""
        return Problem(_where(self.deepspeed, "DeepSpeed JSON", path), what, fix, severity=severity)

    def yaml_problem(self, path: str, what: str, fix: str, severity: Severity = "error") -> Problem:
        """A problem at a dotted path of the Accelerate YAML."""
        return Problem(_where(self.accelerate, "Accelerate YAML", path), what, fix, severity=severity)

    def enabled(self, section: str) -> bool:
        """Whether a section of the JSON is switched on (`"true"` counts, as it does for DeepSpeed)."""
        return _true(self.json(f"{section}.enabled", False))

    @property
    def stage(self) -> int | None:
        """ZeRO stage that DeepSpeed would use; None where the JSON does not say it in a usable way."""
        value = self.json("zero_optimization.stage", None)
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3 else None

    @property
    def autocast_precision(self) -> str:
        """The 16-bit format of `torch_autocast`; without a dtype, torch's default for the device."""
        dtype = self.json("torch_autocast.dtype", "float16" if self.hardware.device == "cuda" else "bfloat16")
        return AUTOCAST_DTYPES.get(str(dtype), str(dtype))

    @property
    def json_precision(self) -> str | None:
        """fp32, bf16 or fp16 as the JSON says it; None where it is contradictory or a placeholder."""
        on = [section for section in ("bf16", "fp16", "torch_autocast") if self.enabled(section)]
        placeholders = [s for s in ("bf16", "fp16", "torch_autocast") if self.json(f"{s}.enabled", False) == "auto"]
        unclear = placeholders or len(on) > 1 or self.json("bfloat16") is not MISSING
        if unclear or not self.has_json:
            return None
        if not on:
            return "fp32"
        return self.autocast_precision if on[0] == "torch_autocast" else on[0]

    @property
    def yaml_precision(self) -> str | None:
        """`mixed_precision` of the YAML in the recipe's words; None where the YAML does not say it."""
        value = self.yaml("mixed_precision", None)
        value = "no" if value is False else value  # YAML reads a bare `no` as false
        return None if value is None else MIXED_PRECISION.get(str(value), str(value))

    @property
    def world_size(self) -> int:
        """Ranks: `num_processes` of the YAML, else those of the hardware."""
        processes = self.yaml("num_processes", None)
        return processes if is_count(processes) else self.hardware.processes

    @property
    def plan(self) -> BatchPlan:
        """The recipe's global batch over this many ranks."""
        return plan_batch(self.recipe.batch.examples, self.recipe.batch.micro_examples, self.world_size)

    @property
    def under_deepspeed(self) -> bool:
        """Whether the YAML starts DeepSpeed."""
        return self.yaml("distributed_type", None) == "DEEPSPEED"

    @property
    def yaml_names_json(self) -> bool:
        """Whether the YAML names a DeepSpeed JSON."""
        return self.yaml("deepspeed_config.deepspeed_config_file", None) is not None

    def offloads(self, section: str) -> bool:
        """Whether `offload_optimizer` or `offload_param` moves anything."""
        return self.json(f"zero_optimization.{section}.device", "none") in ("cpu", "nvme")


def is_count(value: Any) -> bool:
    """A whole number of 1 or more (`true` is none)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_kind(value: Any, path: str) -> bool:
    """Whether the value at a dotted path of the JSON has the kind that `KINDS` asks for."""
    kind = KINDS.get(path)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    checks = {
        None: True,
        "bool": isinstance(value, bool),
        "int": number and value == int(value) if number and abs(value) != float("inf") else False,
        "number": number,
        "text": isinstance(value, str),
    }
    return bool(checks[kind])


def mappings(data: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping of a configuration with its dotted path, outermost first."""
    yield path, data
    for key, value in data.items():
        if isinstance(value, dict):
            yield from mappings(value, join(path, key))


def leaves(data: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a configuration that is no mapping, with its dotted path; the items of lists one by one."""
    for key, value in data.items():
        here = join(path, key)
        if isinstance(value, dict):
            yield from leaves(value, here)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from leaves(item, f"{here}[{index}]") if isinstance(item, dict) else [(f"{here}[{index}]", item)]
        else:
            yield here, value


def join(path: str, key: str) -> str:
    """Dotted path of a key inside the section at `path`."""
    return f"{path}.{key}" if path else key


def _true(value: Any) -> bool:
    return value is True or (isinstance(value, str) and value.lower() == "true") or (value == 1 and value is not False)


def _at(data: dict[str, Any], path: str, default: Any) -> Any:
    value: Any = data
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return default
        value = value[key]
    return value


def _where(file: LoadedFile | None, fallback: str, path: str) -> str:
    name = file.name if file else fallback
    return f"{name}: {path}" if path else name
