"""The tables of known keys are those of the installed DeepSpeed and Accelerate, so that an upgrade is noticed."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from lmrecipes.planning import accelerate_keys, deepspeed_keys

MODELS = {
    "zero_optimization": "deepspeed.runtime.zero.config:DeepSpeedZeroConfig",
    "zero_optimization.offload_param": "deepspeed.runtime.zero.offload_config:DeepSpeedZeroOffloadParamConfig",
    "zero_optimization.offload_optimizer": "deepspeed.runtime.zero.offload_config:DeepSpeedZeroOffloadOptimizerConfig",
    "zero_optimization.leaf_module": "deepspeed.runtime.zero.leaf_module_config:DeepSpeedZeroLeafModuleConfig",
    "zero_optimization.zenflow": "deepspeed.runtime.zenflow.zenflow_config:ZenFlowConfig",
    "fp16": "deepspeed.runtime.precision_config:DeepSpeedFP16Config",
    "bf16": "deepspeed.runtime.precision_config:DeepSpeedBF16Config",
    "comms_logger": "deepspeed.comm.config:CommsLoggerConfig",
    "tensorboard": "deepspeed.monitor.config:TensorBoardConfig",
    "csv_monitor": "deepspeed.monitor.config:CSVConfig",
    "wandb": "deepspeed.monitor.config:WandbConfig",
    "comet": "deepspeed.monitor.config:CometConfig",
    "timers.throughput": "deepspeed.utils.config:DeepSpeedThroughputTimerConfig",
    "compile": "deepspeed.compile.config:CompileConfig",
    "hybrid_engine": "deepspeed.runtime.config:HybridEngineConfig",
    "weight_quantization": "deepspeed.inference.config:WeightQuantConfig",
    "tensor_parallel": "deepspeed.runtime.tensor_parallel.config:TPTrainingConfig",
    "tensor_parallel.tp": "deepspeed.runtime.tensor_parallel.config:TPConfig",
    "tensor_parallel.tensor_parallel": "deepspeed.runtime.tensor_parallel.config:TPConfig",
}
"""Sections that DeepSpeed parses with a pydantic model."""

READ_AS_DICTIONARIES = {
    "optimizer": {"type": "AdamW"},
    "scheduler": {"type": "WarmupLR"},
    "activation_checkpointing": {},
    "aio": {},
    "checkpoint": {},
    "checkpoint.parallel_write": {},
    "checkpoint.writer": {},
    "data_types": {},
    "flops_profiler": {},
    "timers": {},
    "torch_autocast": {},
}
"""Sections that DeepSpeed reads key by key, and what they must hold for it to look at all keys."""

READ_INSTALLED = """
import importlib, inspect, json, sys
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.dataclasses import DeepSpeedPlugin
import deepspeed.runtime.config as config

def load(path):
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)

models, dictionaries = json.loads(sys.argv[1])
fields = {section: load(path).model_fields for section, path in models.items()}
groups = {group.title: [a.dest for a in group._group_actions] for group in launch_command_parser()._action_groups}
seen = {}
class Recorder(dict):  # notes every key that DeepSpeed looks for
    def __init__(self, path, content):
        super().__init__(content)
        self.path = path
    def note(self, key):
        seen.setdefault(self.path, set()).add(key)
    def get(self, key, default=None):
        self.note(key)
        return super().get(key, default)
    def __getitem__(self, key):
        self.note(key)
        return super().__getitem__(key)
    def __contains__(self, key):
        self.note(key)
        return super().__contains__(key)
    def keys(self):
        return self  # `in` then comes back to __contains__
    def __copy__(self):
        return self
recorders = {"": Recorder("", {"train_micro_batch_size_per_gpu": 1})}
for path, content in dictionaries.items():
    recorders[path] = Recorder(path, content)
    parent, _, key = path.rpartition(".")
    dict.__setitem__(recorders[parent], key, recorders[path])
config.DeepSpeedConfig(recorders[""])
out = {
    "fields": {s: sorted({n for k, f in m.items() for n in (k, f.alias) if n}) for s, m in fields.items()},
    "deprecated": {s: sorted(k for k, f in m.items() if (f.json_schema_extra or {}).get("deprecated"))
                   for s, m in fields.items()},
    "kinds": {f"{s}.{n}": str(f.annotation) for s, m in fields.items() for k, f in m.items() for n in (k, f.alias)},
    "seen": {path: sorted(keys) for path, keys in seen.items()},
    "removed": sorted([*config._REMOVED_TOP_LEVEL_CONFIG_KEYS]
                      + ["zero_optimization." + k for k in config._REMOVED_ZERO_CONFIG_KEYS]),
    "cluster": sorted(ClusterConfig.__dataclass_fields__),
    "groups": groups,
    "types": sorted(t.value for t in DistributedType),
    "checks": inspect.getsource(DeepSpeedPlugin._deepspeed_config_checks),
}
print("RESULT" + json.dumps(out))
"""


@pytest.fixture(scope="module")
def installed() -> dict:
    """What the installed packages say about their keys (read in a process of its own: the import is slow)."""
    command = [sys.executable, "-c", READ_INSTALLED, json.dumps([MODELS, READ_AS_DICTIONARIES])]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "DS_ACCELERATOR": "cpu"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT")[1])


def test_tables_are_of_the_installed_versions():
    assert importlib.metadata.version("deepspeed") == deepspeed_keys.VERSION
    assert importlib.metadata.version("accelerate") == accelerate_keys.VERSION


def test_sections_hold_the_keys_of_the_models(installed):
    for section in MODELS:
        assert deepspeed_keys.SECTIONS[section] == set(installed["fields"][section]), section


def test_sections_hold_the_keys_that_deepspeed_looks_for(installed):
    for section in READ_AS_DICTIONARIES:
        assert deepspeed_keys.SECTIONS[section] == set(installed["seen"][section]), section


def test_top_level_holds_what_deepspeed_looks_for(installed):
    looked_for = set(installed["seen"][""]) - set(deepspeed_keys.REMOVED)
    read_elsewhere = {
        "data_parallel_size",
        "sequence_parallel_size",
    }  # by deepspeed.initialize and with a process group
    assert deepspeed_keys.SECTIONS[""] - read_elsewhere == looked_for - read_elsewhere


def test_every_section_is_compared():
    compared = {"", *MODELS, *READ_AS_DICTIONARIES}
    assert set(deepspeed_keys.SECTIONS) == compared


def test_removed_and_deprecated_keys(installed):
    assert set(deepspeed_keys.REMOVED) == set(installed["removed"])
    models = {f"{section}.{key}" for section, keys in installed["deprecated"].items() for key in keys}
    assert {key for key in deepspeed_keys.DEPRECATED if "." in key} == models


def test_kinds_are_those_of_the_models(installed):
    words = {"bool": ("bool",), "int": ("int",), "number": ("float",), "text": ("Enum", "str")}
    for path, kind in deepspeed_keys.KINDS.items():
        annotation = installed["kinds"].get(path)
        assert annotation is None or any(word in annotation for word in words[kind]), (path, annotation)


def test_every_path_of_the_tables_is_a_known_key():
    paths = [*deepspeed_keys.SECTIONS, *deepspeed_keys.OPEN_SECTIONS, *deepspeed_keys.UNSUPPORTED]
    paths += [*deepspeed_keys.KINDS, *deepspeed_keys.CHOICES, *deepspeed_keys.DEPRECATED, *deepspeed_keys.AUTO_ALLOWED]
    for path in filter(None, paths):
        section, _, key = path.rpartition(".")
        assert key in deepspeed_keys.SECTIONS[section], path
    assert set(deepspeed_keys.SECTIONS) >= deepspeed_keys.SILENT_SECTIONS
    assert set(deepspeed_keys.CHOICES) <= set(deepspeed_keys.KINDS)


def test_accelerate_top_level(installed):
    legacy = {"fp16", "dynamo_backend"}  # converted when the file is read
    assert accelerate_keys.SECTIONS[""] - legacy == set(installed["cluster"])


def test_accelerate_sections(installed):
    tables, groups = accelerate_keys.SECTIONS, installed["groups"]
    assert tables["deepspeed_config"] == set(groups["DeepSpeed Arguments"])
    assert tables["megatron_lm_config"] == set(groups["Megatron-LM Arguments"])
    assert tables["parallelism_config"] == set(groups["ParallelismConfig Arguments"])
    assert tables["mpirun_config"] == set(groups["MPI Arguments"])
    assert {"fsdp_" + key for key in tables["fsdp_config"]} == set(groups["FSDP Arguments"])
    assert {"fp8_" + key for key in tables["fp8_config"]} == set(groups["FP8 Arguments"])
    dynamo = {key for key in groups["Resource Selection Arguments"] if key.startswith("dynamo_")}
    assert {"dynamo_" + key for key in tables["dynamo_config"]} == dynamo


def test_accelerate_values(installed):
    assert set(installed["types"]) == accelerate_keys.DISTRIBUTED_TYPES
    for field in accelerate_keys.IGNORED_WITH_CONFIG_FILE:
        assert field.upper() in installed["checks"], field
