"""Rules about precision: the recipe says it, launch files repeat it, and engine and machine can do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from lmrecipes.planning.deepspeed_keys import KINDS
from lmrecipes.planning.launch_view import LaunchView, is_kind
from lmrecipes.planning.pair_precision import LIMITS, limits, loss_scale_settings, pair_word
from lmrecipes.problems import Problem
from lmrecipes.recipe import Precision

MASTERS = ("bf16.bf16_master_weights_and_grads", "bf16.bf16_optimizer_states")
"""Keys of a JSON without fp32 master weights."""


def precision_mismatch(view: LaunchView) -> Iterator[Problem]:
    """The recipe says the precision; the launch files may only repeat it."""
    precision = view.recipe.precision
    wanted, found = precision.section, view.json_precision
    if found is not None and found != wanted:
        on = next((s for s in ("bf16", "fp16", "torch_autocast") if view.enabled(s)), None)
        path = f"{on}.enabled" if on else f"{'bf16' if wanted == 'fp32' else wanted}.enabled"
        said = f"the recipe says precision.compute = {wanted}"
        fix = f"use a JSON for {wanted} (`lmrecipes configure --precision {pair_word(precision)}`)"
        if precision.by_layer and not precision.pure:
            said = "formats by layer stand on fp32 weights: each layer sees to its own arithmetic"
        elif not precision.pure:
            fix += f", or --precision.compute {found}"
        yield view.json_problem(path, f"the JSON trains in {found}, {said}", fix)
    in_yaml = view.yaml_precision
    beside_json = view.yaml_names_json and view.under_deepspeed  # then yaml_vs_json speaks about it
    if in_yaml in ("fp32", "bf16", "fp16", "fp8") and in_yaml != precision.compute and not beside_json:
        what = f"the YAML says {in_yaml}, the recipe says precision.compute = {precision.compute}"
        yield view.yaml_problem("mixed_precision", what, "remove it; the recipe says the precision")


def two_precisions(view: LaunchView) -> Iterator[Problem]:
    """At most one of the precision sections is on."""
    on = [section for section in ("bf16", "fp16", "torch_autocast") if view.enabled(section)]
    if len(on) > 1:
        what = f"{' and '.join(on)} are enabled together"
        yield view.json_problem(f"{on[1]}.enabled", what, f"keep {view.recipe.precision.section} only")


def precision_hardware(view: LaunchView) -> Iterator[Problem]:
    """The device can compute in the precision that is asked for."""
    precision, deepspeed = view.recipe.precision, view.has_json or view.under_deepspeed
    asked = view.json_precision or precision.compute
    reason = view.hardware.why_not(asked, deepspeed)
    fix = f"use {'fp16 or fp32' if asked == 'bf16' else 'bf16 or fp32'} in the recipe and in the launch files"
    on = next((s for s in ("bf16", "fp16", "torch_autocast") if view.enabled(s)), None)
    if reason and view.json_precision and on:
        yield view.json_problem(f"{on}.enabled", reason, fix)
    elif reason:
        yield Problem("precision.compute", reason, fix)
    elif precision.by_layer and (reason := view.hardware.why_not("bf16")):
        where = "precision.compute" if precision.compute == "bf16" else "precision.layers"
        if precision.compute == "bf16" or "bf16" in _layer_formats(precision):
            yield Problem(where, reason, "use fp32 or fp16 layers on compute fp32")


def fp8_hardware(view: LaunchView) -> Iterator[Problem]:
    """fp8 products save time only where the hardware has them."""
    precision = view.recipe.precision
    used = any(name.startswith("fp8") for name in _layer_formats(precision))
    if not used or precision.fp8 == "emulated" or not (reason := view.hardware.why_not("fp8")):
        return
    if precision.fp8 == "native":
        yield Problem("precision.fp8", reason, "set it to emulated or auto, or use an H100, L40S or newer")
    else:
        what = f"{reason}: products are rounded to fp8 and multiplied in {precision.compute}, which saves no time"
        fix = "set it to emulated if accuracy is what you are after, or use an H100, L40S or newer"
        yield Problem("precision.fp8", what, fix, severity="warning")


def fp16_on_a_cpu(view: LaunchView) -> Iterator[Problem]:
    """Right, but slow: for tests of loss scaling, not for training. A step of a 4-layer perceptron took 162 ms in fp16
    by emulation, 13 in fp32, 6 in bf16; with AVX512-FP16 a BERT took as long as in fp32."""
    precision = view.recipe.precision
    plain = precision.scales_loss and not view.has_json and not view.under_deepspeed
    if view.hardware.device == "cpu" and (plain or "fp16" in _layer_formats(precision)):
        what = "a CPU computes fp16 rightly, but no faster than fp32, and without AVX512-FP16 twelve times slower"
        where = "precision.compute" if plain else "precision.layers"
        yield Problem(where, what, "use bf16 or fp32 here, unless fp16 itself is what you study", severity="warning")


def masters(view: LaunchView) -> Iterator[Problem]:
    """The JSON keeps fp32 master weights, or none, as the recipe says."""
    pure = view.recipe.precision.pure
    if pure and view.json_precision == "bf16" and view.enabled("torch_autocast"):
        what = "autocast keeps fp32 weights, the recipe says precision.master_weights = none"
        fix = f'use the section `"bf16"` with {" and ".join(MASTERS)} true, or set precision.master_weights to fp32'
        yield view.json_problem("torch_autocast.enabled", what, fix)
    for path in MASTERS if view.enabled("bf16") and view.recipe.precision.section == "bf16" else ():
        value = view.json(path, False)
        if isinstance(value, bool) and value != pure:
            declared = "none" if pure else "fp32"
            what = f"{str(value).lower()}, the recipe says precision.master_weights = {declared}"
            fix = "write true, or set precision.master_weights to fp32"
            yield view.json_problem(path, what, fix if pure else "remove it, or set precision.master_weights to none")
    if view.json("fp16.fp16_master_weights_and_grads", False) is True:
        what = "it keeps master weights in fp16, which no recipe asks for"
        yield view.json_problem("fp16.fp16_master_weights_and_grads", what, "remove it")


def loss_scale(view: LaunchView) -> Iterator[Problem]:
    """The recipe says how the loss is scaled."""
    precision = view.recipe.precision
    if not view.enabled("fp16") or not precision.scales_loss:
        return
    wanted = loss_scale_settings(precision)
    if precision.loss_scaling.kind == "static":
        wanted = {"loss_scale": wanted["loss_scale"]}
    missing_means = {"loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000}
    for key, value in wanted.items():
        path = f"fp16.{key}"
        found = view.json(path, missing_means[key])
        if path in KINDS and is_kind(found, path) and found != value:
            scaling = precision.loss_scaling
            what = f"{found:g}, the recipe says loss_scaling = {scaling.kind}, {scaling.initial:g} at the start"
            what += f", {scaling.growth_interval} steps to grow" if key == "loss_scale_window" else ""
            yield view.json_problem(path, what, f"write {value:g}")


def engine_limit(id: str, view: LaunchView) -> Iterator[Problem]:
    """The limit of that id where it holds for this run."""
    if view.stage is None if view.has_json else view.under_deepspeed:
        return  # stage_type, zero_missing and json_path speak about these
    offload = view.offloads("offload_optimizer") or view.offloads("offload_param")
    for limit in limits(view.recipe.precision, view.stage if view.has_json else None, offload):
        if limit.id == id and view.has_json:
            yield view.json_problem(limit.path, limit.what, limit.fix)
        elif limit.id == id:
            yield Problem(limit.field, limit.what, limit.fix)


def bf16_zero0(view: LaunchView) -> Iterator[Problem]:
    """DeepSpeed's own bf16 at stage 0 runs an Adam step on zero gradients before the first; a run refuses that."""
    if view.enabled("bf16") and view.stage == 0 and not view.recipe.precision.pure:
        what = "at stage 0 DeepSpeed's bf16 starts Adam at step 2: the first update is 0.74 of the others'"
        if view.json("data_types.grad_accum_dtype", None) == "fp32":
            what = "bf16 at stage 0 with fp32 gradient accumulation is refused by DeepSpeed"
        fix = 'switch bf16 off and write `"torch_autocast": {"enabled": true, "dtype": "bfloat16"}`, or use stage 1'
        yield view.json_problem("bf16.enabled", what, fix)


def fp16_zero0(view: LaunchView) -> Iterator[Problem]:
    """fp16 at stage 0 divides gradients by a scale that was never applied."""
    if view.enabled("fp16") and view.stage == 0:
        what = "at stage 0 backward does not scale the loss but the step divides by the scale (DeepSpeed#8393)"
        yield view.json_problem("fp16.enabled", what, "use stage 1, 2 or 3, or bf16")


def autocast_fp16(view: LaunchView) -> Iterator[Problem]:
    """torch_autocast in fp16 is broken under ZeRO 1-3: it clips scaled gradients, and the scale never falls."""
    if view.json_precision == "fp16" and view.enabled("torch_autocast") and view.stage in (1, 2, 3):
        what = f"fp16 autocast at stage {view.stage} clips scaled gradients, and after an overflow skips every step"
        fix = 'use the section `"fp16": {"enabled": true}` instead, or bf16'
        yield view.json_problem("torch_autocast.dtype", what, fix)


def bf16_accumulation(view: LaunchView) -> Iterator[Problem]:
    """Gradients are accumulated and reduced as the recipe says: in fp32, unless it says otherwise."""
    yield from _accumulation(view, "bf16")
    autocast = view.json_precision == "bf16" and view.enabled("torch_autocast")
    if autocast and view.stage in (1, 2, 3) and not view.recipe.precision.pure:
        what = f"at stage {view.stage} autocast reduces the gradients of linear layers in bf16, whatever else is set"
        fix = 'use the section `"bf16": {"enabled": true}` with fp32 accumulation and communication'
        yield view.json_problem("torch_autocast.enabled", what, fix)


def fp16_accumulation(view: LaunchView) -> Iterator[Problem]:
    """As `bf16_accumulation`, in fp16."""
    yield from _accumulation(view, "fp16")


def _accumulation(view: LaunchView, section: str) -> Iterator[Problem]:
    precision = view.recipe.precision
    if not view.enabled(section) or view.stage not in (1, 2, 3) or precision.section != section:
        return
    if (view.json(MASTERS[0], False) is True) != precision.pure:
        return  # masters speaks about the cause
    for path, field, declared in (
        ("data_types.grad_accum_dtype", "accumulation", precision.accumulated),
        ("communication_data_type", "reduction", precision.reduced),
    ):
        found = view.json(path, section)
        if found == declared or found not in ("fp32", "bf16", "fp16"):
            continue
        verb = "accumulated" if field == "accumulation" else "reduced"
        what = f"gradients are {verb} in {found}, the recipe says precision.{field} = {declared}"
        if declared == "fp32":
            what += f": in {found} they are 1% off at 64 micro-batches, with both in fp32 exact to 1e-6"
        yield view.json_problem(path, what, f'write "{declared}", or set precision.{field} to {found}')


def _layer_formats(precision: Precision) -> set[str]:
    """Formats that rules of layers name, at any time of the run."""
    rules = (precision.layers, *(change.layers for change in precision.changes))
    return {name for layers in rules for name in layers.values()}


LIMIT_RULES: tuple[tuple[str, Callable[[LaunchView], Iterator[Problem]]], ...] = tuple(
    (id, partial(engine_limit, id)) for id in LIMITS
)

RULES = (
    ("precision-mismatch", precision_mismatch),
    ("fp16-and-bf16", two_precisions),
    ("precision-hw", precision_hardware),
    ("bf16-zero0", bf16_zero0),
    ("fp16-zero0", fp16_zero0),
    ("autocast-fp16", autocast_fp16),
    ("bf16-grad-accum", bf16_accumulation),
    ("fp16-grad-accum", fp16_accumulation),
    ("masters-mismatch", masters),
    ("loss-scale", loss_scale),
    *LIMIT_RULES,
    ("fp8-hw", fp8_hardware),
    ("fp16-cpu", fp16_on_a_cpu),
)
"""(id, rule) of every rule in this module."""
