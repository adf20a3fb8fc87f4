"""Rules about agreement: recipe, DeepSpeed JSON, Accelerate YAML and machine say the same thing about one run."""

from __future__ import annotations

from collections.abc import Iterator

from lmrecipes.planning.launch_view import MISSING, LaunchView, is_count
from lmrecipes.problems import Problem


def precision_mismatch(view: LaunchView) -> Iterator[Problem]:
    """The recipe says the precision; the launch files may only repeat it."""
    wanted = view.recipe.precision.compute
    found = view.json_precision
    if found is not None and found != wanted:
        on = next((s for s in ("bf16", "fp16", "torch_autocast") if view.enabled(s)), None)
        path = f"{on}.enabled" if on else f"{'bf16' if wanted == 'fp32' else wanted}.enabled"
        what = f"the JSON trains in {found}, the recipe says precision.compute = {wanted}"
        fix = f"use a JSON for {wanted} (`lmrecipes configure --precision {wanted}`), or --precision.compute {found}"
        yield view.json_problem(path, what, fix)
    said = view.yaml_precision
    beside_json = view.yaml_names_json and view.under_deepspeed  # then yaml_vs_json speaks about it
    if said in ("fp32", "bf16", "fp16", "fp8") and said != wanted and not beside_json:
        what = f"the YAML says {said}, the recipe says precision.compute = {wanted}"
        yield view.yaml_problem("mixed_precision", what, "remove it; the recipe says the precision")


def two_precisions(view: LaunchView) -> Iterator[Problem]:
    """At most one of the precision sections is on."""
    on = [section for section in ("bf16", "fp16", "torch_autocast") if view.enabled(section)]
    if len(on) > 1:
        what = f"{' and '.join(on)} are enabled together"
        yield view.json_problem(f"{on[1]}.enabled", what, f"keep {view.recipe.precision.compute} only")


def precision_hardware(view: LaunchView) -> Iterator[Problem]:
    """The device can compute in the precision that is asked for."""
    asked = view.json_precision or view.recipe.precision.compute
    reason = view.hardware.why_not(asked)
    if reason:
        fix = f"use {'fp16 or fp32' if asked == 'bf16' else 'bf16 or fp32'} in the recipe and in the launch files"
        if view.json_precision:
            on = next(s for s in ("bf16", "fp16", "torch_autocast") if view.enabled(s))
            yield view.json_problem(f"{on}.enabled", reason, fix)
        else:
            yield Problem("precision.compute", reason, fix)


def bf16_zero0(view: LaunchView) -> Iterator[Problem]:
    """DeepSpeed's own bf16 at stage 0 runs an Adam step on zero gradients before the first."""
    if view.enabled("bf16") and view.stage == 0:
        fix = 'switch bf16 off and write `"torch_autocast": {"enabled": true, "dtype": "bfloat16"}`, or use stage 1'
        if view.json("data_types.grad_accum_dtype", None) == "fp32":
            what = "bf16 at stage 0 with fp32 gradient accumulation is refused by DeepSpeed"
            yield view.json_problem("bf16.enabled", what, fix)
        else:
            what = "at stage 0 DeepSpeed's bf16 starts Adam at step 2: the first update is 0.74 of the others'"
            yield view.json_problem("bf16.enabled", what, fix, "warning")


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
    """The recipe promises gradients that are accumulated and reduced in fp32."""
    yield from _accumulation(view, "bf16")
    if view.json_precision == "bf16" and view.enabled("torch_autocast") and view.stage in (1, 2, 3):
        what = f"at stage {view.stage} autocast reduces the gradients of linear layers in bf16, whatever else is set"
        fix = 'use the section `"bf16": {"enabled": true}` with fp32 accumulation and communication'
        yield view.json_problem("torch_autocast.enabled", what, fix, "warning")


def fp16_accumulation(view: LaunchView) -> Iterator[Problem]:
    """As `bf16_accumulation`, in fp16."""
    yield from _accumulation(view, "fp16")


def _accumulation(view: LaunchView, precision: str) -> Iterator[Problem]:
    if not view.enabled(precision) or view.stage not in (1, 2, 3):
        return
    for path in ("data_types.grad_accum_dtype", "communication_data_type"):
        found = view.json(path, precision)
        if found in ("bf16", "fp16"):
            verb = "accumulated" if path.startswith("data_types") else "reduced"
            what = f"gradients are {verb} in {found}: 1% off at 64 micro-batches, with both in fp32 exact to 1e-6"
            yield view.json_problem(path, what, 'write "fp32"', "warning")


def clip_mismatch(view: LaunchView) -> Iterator[Problem]:
    """The recipe says the largest gradient norm; without the key DeepSpeed clips at 1.0."""
    wanted = view.recipe.optimizer.gradient_clipping
    value = view.json("gradient_clipping")
    if view.has_json and value is MISSING:
        what = f"it is missing: DeepSpeed clips at 1.0, the recipe says optimizer.gradient_clipping = {wanted:g}"
        yield view.json_problem("gradient_clipping", what, f"write {wanted:g}", "warning" if wanted == 1 else "error")
    elif isinstance(value, int | float) and not isinstance(value, bool) and value != wanted:
        what = f"{value:g}, the recipe says optimizer.gradient_clipping = {wanted:g}, which DeepSpeed would ignore"
        yield view.json_problem("gradient_clipping", what, f"write {wanted:g}")
    said = view.yaml("deepspeed_config.gradient_clipping", None)
    if said is not None and not view.yaml_names_json and said != wanted:
        what = f"{said}, the recipe says optimizer.gradient_clipping = {wanted:g}"
        yield view.yaml_problem("deepspeed_config.gradient_clipping", what, "remove it")


def accumulation_mismatch(view: LaunchView) -> Iterator[Problem]:
    """Accumulation follows from the recipe's global batch and the number of ranks; a JSON without it means 1."""
    value = view.json("gradient_accumulation_steps", 1)
    plan = view.plan
    if view.has_json and is_count(value) and value != plan.accumulation:
        found = value if view.json("gradient_accumulation_steps") is not MISSING else "missing, which means 1"
        yield view.json_problem(
            "gradient_accumulation_steps", f"{found}, the recipe's batch is {plan}", f"write {plan.accumulation}"
        )
    said = view.yaml("deepspeed_config.gradient_accumulation_steps", None)
    if said is not None and not view.yaml_names_json and said != plan.accumulation:
        path = "deepspeed_config.gradient_accumulation_steps"
        yield view.yaml_problem(path, f"{said}, the recipe's batch is {plan}", "remove it")


def offload_swaps_optimizer(view: LaunchView) -> Iterator[Problem]:
    """With offload, Accelerate rebuilds the optimizer for the host unless it is told not to, and not faithfully.

    `map_pytorch_optim_to_deepspeed` makes a DeepSpeedCPUAdam of all it does not know: of SGD, and of the run's own
    DeepSpeedCPUAdam one without `adamw_mode`.
    """
    if view.offloads("offload_optimizer") and view.json("zero_force_ds_cpu_optimizer", True) is not False:
        name = view.recipe.optimizer.name
        became = "Adam" if name == "sgd" else "Adam with L2 instead of decoupled weight decay"
        what = f"with offload and without `false` here, the recipe's {name} silently becomes {became}"
        yield view.json_problem("zero_force_ds_cpu_optimizer", what, "write false")


RULES = (
    ("precision-mismatch", precision_mismatch),
    ("fp16-and-bf16", two_precisions),
    ("precision-hw", precision_hardware),
    ("bf16-zero0", bf16_zero0),
    ("fp16-zero0", fp16_zero0),
    ("autocast-fp16", autocast_fp16),
    ("bf16-grad-accum", bf16_accumulation),
    ("fp16-grad-accum", fp16_accumulation),
    ("clip-mismatch", clip_mismatch),
    ("ga-mismatch", accumulation_mismatch),
    ("offload-swaps-opt", offload_swaps_optimizer),
)
"""(id, rule) of every rule in this module."""
