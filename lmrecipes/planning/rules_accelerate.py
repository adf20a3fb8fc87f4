"""Rules about an Accelerate YAML by itself, beside the DeepSpeed JSON it names, and on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from lmrecipes.planning.accelerate_keys import (
    DISTRIBUTED_TYPES,
    IGNORED_WITH_CONFIG_FILE,
    MIXED_PRECISION,
    PREFIXES,
    SECTIONS,
    TOP,
    VERSION,
)
from lmrecipes.planning.launch_view import MISSING, LaunchView, is_count
from lmrecipes.problems import Problem, did_you_mean


def unknown_keys(view: LaunchView) -> Iterator[Problem]:
    """Keys that this version of Accelerate does not know, at the top level and in every section."""
    for section, known in SECTIONS.items():
        content = (view.accelerate.data if view.accelerate else {}) if section == TOP else view.yaml(section, {})
        if not isinstance(content, dict):
            yield view.yaml_problem(section, f"{content!r} is not a section of keys and values", "write `key: value`")
            continue
        prefix = PREFIXES.get(section, "")
        consequence = "refuses to start" if section == TOP else "ignores it silently"
        for key in content:
            if key.removeprefix(prefix) not in known:
                what = f"Accelerate {VERSION} does not know this key and {consequence}"
                fix = f"correct or remove it.{did_you_mean(key, sorted(known))}"
                yield view.yaml_problem(f"{section}.{key}" if section else key, what, fix)


def distributed_type(view: LaunchView) -> Iterator[Problem]:
    """The YAML says that DeepSpeed runs, when a DeepSpeed JSON is meant."""
    if not view.has_yaml:
        return
    value = view.yaml("distributed_type", None)
    if value is None:
        yield view.yaml_problem("distributed_type", "it is missing, Accelerate fails", "write DEEPSPEED or MULTI_GPU")
    elif not isinstance(value, str) or value not in DISTRIBUTED_TYPES:
        hint = did_you_mean(str(value), sorted(DISTRIBUTED_TYPES))
        yield view.yaml_problem("distributed_type", f"{value!r} is not known", f"write DEEPSPEED or MULTI_GPU.{hint}")
    elif value in ("DEEPSPEED", "MULTI_GPU", "MULTI_CPU", "NO"):
        if value != "DEEPSPEED" and (view.yaml_names_json or view.deepspeed is not None):
            what = f"{value} leaves the DeepSpeed JSON unread: the run is plain data parallel"
            yield view.yaml_problem("distributed_type", what, "write DEEPSPEED, or leave the JSON away")
    else:
        what = f"{value} is not a way in which recipes run"
        yield view.yaml_problem("distributed_type", what, "write DEEPSPEED or MULTI_GPU")


def yaml_vs_json(view: LaunchView) -> Iterator[Problem]:
    """Nine fields that may not stand beside `deepspeed_config_file`: the script raises when it starts."""
    if not view.yaml_names_json or not view.under_deepspeed:
        return
    for field in sorted(IGNORED_WITH_CONFIG_FILE):
        path = field if field == "mixed_precision" else f"deepspeed_config.{field}"
        value = view.yaml(path)
        # inside deepspeed_config even an empty field counts: Accelerate looks at the names only
        section = view.yaml("deepspeed_config", {})
        if value is not MISSING or (isinstance(section, dict) and path != field and field in section):
            what = f"{value!r} may not stand beside deepspeed_config_file: every rank fails at its start"
            shown = what if value is not MISSING else what.replace(repr(MISSING), "an empty field")
            yield view.yaml_problem(path, shown, "remove it; the JSON and the recipe say it")


def json_path(view: LaunchView) -> Iterator[Problem]:
    """The YAML and the caller mean the same DeepSpeed JSON, and there is one."""
    path = view.yaml("deepspeed_config.deepspeed_config_file", None)
    if path is None:
        if view.under_deepspeed and view.deepspeed is None:
            what = "no DeepSpeed JSON is named: Accelerate makes one up from its own defaults"
            fix = "name one: `deepspeed_config_file: recipes/NAME/zero2_bf16.json`"
            yield view.yaml_problem("deepspeed_config.deepspeed_config_file", what, fix)
    elif view.deepspeed is not None and PurePath(str(path)).name != view.deepspeed.name:
        what = f"{path} is another file than {view.deepspeed.path}, which is checked here"
        yield view.yaml_problem("deepspeed_config.deepspeed_config_file", what, f"name {view.deepspeed.path}")


def processes(view: LaunchView) -> Iterator[Problem]:
    """Ranks fit the machines: one for each GPU, and as many as the launcher really starts."""
    if not view.has_yaml:
        return
    count, machines, wanted = view.yaml("num_processes", None), view.yaml("num_machines", 1), view.hardware.processes
    if view.yaml("distributed_type", None) == "NO" and count is None:
        count = 1
    if not is_count(count):
        found = "it is missing" if count is None else f"{count!r} is not a whole number of 1 or more"
        yield view.yaml_problem("num_processes", found, f"write {wanted}")
    elif not is_count(machines):
        yield view.yaml_problem("num_machines", f"{machines!r} is not a whole number of 1 or more", "write 1")
    elif count % machines:
        what = (
            f"{count} processes do not divide over {machines} machines: Accelerate starts {count // machines} on each"
        )
        yield view.yaml_problem("num_processes", what, f"write a multiple of {machines}")
    elif view.yaml("distributed_type", None) == "MULTI_CPU" and count > 1 and not view.yaml("mpirun_config", {}):
        what = f"of MULTI_CPU Accelerate starts one process, not {count}, unless mpirun is configured"
        yield view.yaml_problem("distributed_type", what, "write MULTI_GPU, which starts all of them on a CPU too")
    elif count > wanted and view.hardware.device == "cuda":
        what = f"{count} processes on {view.hardware}: two ranks cannot share a GPU"
        yield view.yaml_problem("num_processes", what, f"write {wanted}")
    elif count != wanted:
        what = f"{count} processes, the hardware is {view.hardware}"
        yield view.yaml_problem("num_processes", what, f"write {wanted}", "warning")


def use_cpu(view: LaunchView) -> Iterator[Problem]:
    """`use_cpu` is not passed on by the launchers that start several processes."""
    if view.yaml("use_cpu", False) is True and view.hardware.device == "cuda":
        what = "Accelerate does not pass it on to the processes: they train on the GPUs of this machine"
        yield view.yaml_problem("use_cpu", what, "write false, or hide the GPUs: CUDA_VISIBLE_DEVICES=", "warning")


def z3_init(view: LaunchView) -> Iterator[Problem]:
    """zero.Init splits parameters while the model is built; loading, tying and resizing must then all know it."""
    path = "deepspeed_config.zero3_init_flag"
    if not view.under_deepspeed or view.stage != 3 or not view.has_json:
        return
    flag = view.yaml(path, None)
    if flag is None:
        what = "it is not set: at stage 3 Accelerate then takes true and splits parameters while the model is built"
        yield view.yaml_problem(path, what, "write false", "warning")
    elif flag is not False:
        what = f"{flag!r} splits parameters while the model is built; recipes load the whole model, then split it"
        yield view.yaml_problem(path, what, "write false")


def mixed_precision_word(view: LaunchView) -> Iterator[Problem]:
    """`mixed_precision` is one of Accelerate's words."""
    value = view.yaml_precision
    if value is not None and value not in MIXED_PRECISION.values():
        hint = did_you_mean(value, list(MIXED_PRECISION))
        fix = f"write no, bf16 or fp16.{hint}"
        yield view.yaml_problem("mixed_precision", f"{value!r} is not known", fix)


RULES = (
    ("yaml-unknown", unknown_keys),
    ("yaml-distributed-type", distributed_type),
    ("yaml-vs-json", yaml_vs_json),
    ("yaml-json-path", json_path),
    ("nproc", processes),
    ("yaml-use-cpu", use_cpu),
    ("z3-init", z3_init),
    ("yaml-value", mixed_precision_word),
)
"""(id, rule) of every rule in this module."""
