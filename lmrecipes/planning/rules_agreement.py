"""Rules about agreement: recipe, DeepSpeed JSON and Accelerate YAML say the same thing about one run.

Precision has rules of its own (`rules_precision`)."""

from __future__ import annotations

from collections.abc import Iterator

from lmrecipes.planning.launch_view import MISSING, LaunchView, is_count
from lmrecipes.problems import Problem


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

    `map_pytorch_optim_to_deepspeed` makes a DeepSpeedCPUAdam of all it does not know: of SGD and RMSprop, and of the
    run's own DeepSpeedCPUAdam one without `adamw_mode`.
    """
    if view.offloads("offload_optimizer") and view.json("zero_force_ds_cpu_optimizer", True) is not False:
        name = view.recipe.optimizer.name
        became = "Adam with L2 instead of decoupled weight decay" if name == "adamw" else "Adam"
        what = f"with offload and without `false` here, the recipe's {name} silently becomes {became}"
        yield view.json_problem("zero_force_ds_cpu_optimizer", what, "write false")


RULES = (
    ("clip-mismatch", clip_mismatch),
    ("ga-mismatch", accumulation_mismatch),
    ("offload-swaps-opt", offload_swaps_optimizer),
)
"""(id, rule) of every rule in this module."""
