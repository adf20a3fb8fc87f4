"""Rules about a DeepSpeed JSON by itself: keys, value kinds, placeholders, what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmrecipes.planning.deepspeed_keys import (
    AUTO_ALLOWED,
    CHOICES,
    DEPRECATED,
    KINDS,
    OPEN_SECTIONS,
    REMOVED,
    SECTIONS,
    SILENT_SECTIONS,
    TOP,
    UNSUPPORTED,
    VERSION,
)
from lmrecipes.planning.launch_view import MISSING, LaunchView, is_count, is_kind, join, leaves, mappings
from lmrecipes.problems import Problem, did_you_mean, listing

PRECISION_SECTIONS = ("bf16", "fp16", "torch_autocast")


def unknown_keys(view: LaunchView) -> Iterator[Problem]:
    """Keys that this version of DeepSpeed does not know, at every depth."""
    for section, content in mappings(view.deepspeed.data if view.deepspeed else {}):
        if _is_open(section) or section in REMOVED or section in DEPRECATED:
            continue
        parent, _, own = section.rpartition(".")
        if section not in SECTIONS:
            if own in SECTIONS.get(parent, ()) and section not in KINDS:
                what = f"{own} takes a value, found a section with {listing(list(content)) or 'nothing'}"
                yield view.json_problem(section, what, "write one value")
            continue
        for key in content:
            path = join(section, key)
            if key in SECTIONS[section] or path in REMOVED:
                continue
            consequence = "ignores it silently" if section in SILENT_SECTIONS else "refuses to start"
            what = f"DeepSpeed {VERSION} does not know this key and {consequence}"
            yield view.json_problem(path, what, f"correct or remove it.{_hint(key, section)}")


def removed_keys(view: LaunchView) -> Iterator[Problem]:
    """Keys of features that DeepSpeed has removed."""
    for path, fix in REMOVED.items():
        if view.json(path) is not MISSING:
            what = f"this feature was removed; DeepSpeed {VERSION} refuses to start (DeepSpeed#8489)"
            yield view.json_problem(path, what, fix)


def deprecated_keys(view: LaunchView) -> Iterator[Problem]:
    """Keys with a newer name; an error where DeepSpeed or Accelerate then does something else."""
    for old, (new, fix) in DEPRECATED.items():
        if view.json(old) is MISSING:
            continue
        if old == "bfloat16":
            what = "Accelerate adds a section `bf16`, and DeepSpeed then ignores `bfloat16`: a silent fp32 run"
            yield view.json_problem(old, what, f"rename it to {fix}")
        elif view.json(new) is not MISSING:
            what = f"the old key stands beside {new}, DeepSpeed refuses both together"
            yield view.json_problem(old, what, f"remove it and keep {fix}")
        else:
            yield view.json_problem(old, "this key is deprecated", f"write {fix} instead", "warning")
    value = view.json("zero_optimization")
    if isinstance(value, bool):
        what = f"`{str(value).lower()}` is the old form: DeepSpeed runs stage {int(value)}, Accelerate fails"
        yield view.json_problem("zero_optimization", what, '`"zero_optimization": {"stage": 2}` or another stage')


def unsupported_features(view: LaunchView) -> Iterator[Problem]:
    """Features of DeepSpeed that would change what a step of the recipe means."""
    for path, why in UNSUPPORTED.items():
        value = view.json(path)
        if value is not MISSING and not _is_off(value):
            yield view.json_problem(path, f"it is switched on; {why}", "remove it")
    for path, wanted in (
        ("gradient_allreduce_op", "mean"),
        ("managed_gradient_accumulation", True),
        ("prescale_gradients", False),
        ("gradient_predivide_factor", 1),
        ("zero_optimization.ignore_unused_parameters", True),
    ):
        value = view.json(path, wanted)
        if value != wanted:
            what = f"{value!r} changes how gradients or states are kept; the recipe's exact step needs {wanted!r}"
            yield view.json_problem(path, what, "remove it")


def value_kinds(view: LaunchView) -> Iterator[Problem]:
    """Values of the wrong kind, which DeepSpeed refuses or reads in another way than Accelerate."""
    for section in SECTIONS:
        value = view.json(section) if section != TOP else {}
        if section == "zero_optimization" and isinstance(value, bool):
            continue  # deprecated_keys speaks about it
        if value is not MISSING and not isinstance(value, dict):
            parent_known = section.rpartition(".")[0]
            if parent_known == TOP or isinstance(view.json(parent_known), dict):
                fix = f'`"{section.rpartition(".")[2]}": {{...}}`, or remove it'
                yield view.json_problem(section, f"{value!r} is not a section of keys and values", fix)
    for path, kind in KINDS.items():
        value = view.json(path)
        if value is MISSING or value == "auto":
            continue
        if not is_kind(value, path):
            yield view.json_problem(path, f"{value!r} is not of kind {kind}", _example(path))
        elif path in CHOICES and value not in CHOICES[path]:
            fix = f"use one of {', '.join(CHOICES[path])}.{did_you_mean(str(value), CHOICES[path])}"
            yield view.json_problem(path, f"{value!r} is not known", fix)


def auto_placeholders(view: LaunchView) -> Iterator[Problem]:
    """ "auto" is filled by some launchers only, so the same file would mean different runs."""
    for path, value in leaves(view.deepspeed.data if view.deepspeed else {}):
        if value != "auto" or path in AUTO_ALLOWED or _is_open(path.rpartition(".")[0]) or path in OPEN_SECTIONS:
            continue
        if path.partition(".")[0] in PRECISION_SECTIONS:
            continue
        what = '"auto" is a placeholder: under `deepspeed` it fails or becomes a default, only Accelerate fills some'
        yield view.json_problem(path, what, "write the value, or `lmrecipes configure RECIPE --write DIR`")


def auto_precision(view: LaunchView) -> Iterator[Problem]:
    """ "auto" in a precision section is a silent fp32 run wherever nobody fills it."""
    for section in PRECISION_SECTIONS:
        content = view.json(section, {})
        for path, value in leaves(content if isinstance(content, dict) else {}, section):
            if value == "auto":
                what = '"auto" becomes false wherever nobody fills it: a silent fp32 run'
                yield view.json_problem(
                    path, what, f"the recipe's JSON is one for {view.recipe.precision.section}: write true or false"
                )


def zero_missing(view: LaunchView) -> Iterator[Problem]:
    """Accelerate needs a ZeRO section; DeepSpeed runs stage 0 without one."""
    if not view.has_json:
        return
    fix = '`"zero_optimization": {"stage": 2}` or another stage'
    if view.json("zero_optimization") is MISSING:
        what = "the section is missing: DeepSpeed runs stage 0, Accelerate fails"
        yield view.json_problem("zero_optimization", what, fix)
    elif view.json("zero_optimization.stage", 0) is None or (
        isinstance(view.json("zero_optimization"), dict) and view.json("zero_optimization.stage") is MISSING
    ):
        yield view.json_problem(
            "zero_optimization.stage", "the stage is missing: DeepSpeed runs stage 0, Accelerate takes 2", fix
        )


def stage_type(view: LaunchView) -> Iterator[Problem]:
    """The stage is a whole number: DeepSpeed reads "3" as 3, transformers as not ZeRO-3."""
    stage = view.json("zero_optimization.stage", 0)
    if stage is None or stage == "auto":
        return  # zero_missing and auto_placeholders speak about these
    if isinstance(stage, bool) or not isinstance(stage, int) or not 0 <= stage <= 3:
        what = f"{stage!r} is not a whole number from 0 to 3; programs read such values differently"
        yield view.json_problem("zero_optimization.stage", what, "write 0, 1, 2 or 3, without quotes")


def batch_identity(view: LaunchView) -> Iterator[Problem]:
    """train_batch_size = micro-batch x accumulation x ranks, in whole numbers, with the micro-batch of the recipe."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    values = [view.json(name) for name in names]
    wrong = [(n, v) for n, v in zip(names, values, strict=True) if v not in (MISSING, "auto") and not is_count(v)]
    for name, value in wrong:
        yield view.json_problem(name, f"{value!r} is not a whole number of 1 or more", f"write {_planned(view, name)}")
    if wrong or "auto" in values or not view.has_json:
        return
    batch, micro, accumulation = values
    plan = view.plan
    if micro is MISSING:
        yield view.json_problem(
            names[1], f"it is missing, the recipe's batch is {plan}", f"write {plan.micro_examples}"
        )
        return
    if micro != plan.micro_examples:
        what = f"{micro}, the recipe's batch is {plan}"
        yield view.json_problem(names[1], what, f"write {plan.micro_examples}")
    if batch is not MISSING:
        steps = 1 if accumulation is MISSING else accumulation
        product = micro * steps * view.world_size
        if product != batch:
            what = f"{batch} is not micro-batch {micro} x accumulation {steps} x {view.world_size} rank(s) = {product}"
            yield view.json_problem(names[0], what, "remove it; DeepSpeed derives it from the other two")


def z3_save(view: LaunchView) -> Iterator[Problem]:
    """Without gathering, a stage-3 run cannot export its model, and finds out at the end."""
    names = (
        "stage3_gather_16bit_weights_on_model_save",
        "gather_16bit_weights_on_model_save",
        "stage3_gather_fp16_weights_on_model_save",
    )
    if view.stage == 3 and not any(view.json(f"zero_optimization.{name}", False) is True for name in names):
        what = "it is not true: the export at the end of the run fails at stage 3"
        yield view.json_problem(f"zero_optimization.{names[0]}", what, "write true")


def offload_noop(view: LaunchView) -> Iterator[Problem]:
    """Offload that DeepSpeed accepts and does nothing about, or cannot do."""
    for section, first_stage in (("offload_optimizer", 1), ("offload_param", 3)):
        path = f"zero_optimization.{section}"
        device = view.json(f"{path}.device", "none")
        if not view.offloads(section) or view.stage is None:
            continue
        if device == "nvme" and view.stage != 3:
            what = f"nvme is for stage 3, the stage is {view.stage}"
            yield view.json_problem(f"{path}.device", what, 'write "cpu", or stage 3')
        elif view.stage < first_stage:
            what = f"stage {view.stage} has nothing to offload here: DeepSpeed accepts it and does nothing"
            yield view.json_problem(path, what, f"remove it, or use stage {first_stage} or higher")
        elif device == "nvme" and view.json(f"{path}.nvme_path", None) is None:
            yield view.json_problem(f"{path}.nvme_path", "it is missing", "write the path of a folder on the NVMe disk")


def optimizer_twice(view: LaunchView) -> Iterator[Problem]:
    """The recipe owns the optimizer."""
    yield from _owned(view, "optimizer", f"{view.recipe.optimizer.name} with lr {view.recipe.optimizer.lr:g}")


def scheduler_twice(view: LaunchView) -> Iterator[Problem]:
    """The recipe owns the learning-rate schedule."""
    yield from _owned(view, "scheduler", f"{view.recipe.schedule.decay} over {view.recipe.schedule.steps} steps")


def _owned(view: LaunchView, section: str, recipe_says: str) -> Iterator[Problem]:
    if view.json(section) is not MISSING:
        what = f"the recipe has the {section} already ({recipe_says}): Accelerate fails, DeepSpeed ignores this one"
        yield view.json_problem(section, what, "remove the section")


def _is_open(section: str) -> bool:
    return any(section == known or section.startswith(f"{known}.") for known in OPEN_SECTIONS)


def _is_off(value: Any) -> bool:
    """false, 0, 1, null and empty; a section that says enabled: false, or in which all is off."""
    if isinstance(value, dict):
        return value.get("enabled") is False or all(_is_off(item) for item in value.values())
    return value is None or value is False or (not isinstance(value, bool) and value in (0, 1, ""))


def _hint(key: str, section: str) -> str:
    """Nearest key of the section, else a section in which the key is known."""
    near = did_you_mean(key, sorted(SECTIONS[section]))
    if near:
        return near
    homes = sorted(other or "the top level" for other, keys in SECTIONS.items() if key in keys)
    return f" It belongs in {homes[0]}." if len(homes) == 1 else ""


def _planned(view: LaunchView, name: str) -> str:
    plan = view.plan
    if name == "train_micro_batch_size_per_gpu":
        return str(plan.micro_examples)
    return str(plan.accumulation) if name == "gradient_accumulation_steps" else "nothing: remove it"


def _example(path: str) -> str:
    examples = {"bool": "write true or false", "int": "write a whole number", "number": "write a number"}
    return examples.get(KINDS[path], f"use one of {', '.join(CHOICES.get(path, ('a word',)))}")


RULES = (
    ("ds-unknown-key", unknown_keys),
    ("ds-removed-key", removed_keys),
    ("ds-deprecated", deprecated_keys),
    ("ds-unsupported", unsupported_features),
    ("ds-value", value_kinds),
    ("auto-raw", auto_placeholders),
    ("auto-precision", auto_precision),
    ("zero-missing", zero_missing),
    ("stage-type", stage_type),
    ("batch-identity", batch_identity),
    ("z3-save", z3_save),
    ("offload-noop", offload_noop),
    ("optimizer-twice", optimizer_twice),
    ("scheduler-twice", scheduler_twice),
)
"""(id, rule) of every rule in this module."""
