"""What a step cost and what it drew, as metrics."""

from __future__ import annotations

import resource

import torch

from lmrecipes.adaptive.steering import Steering
from lmrecipes.data.stream import Step
from lmrecipes.recipe import Recipe
from lmrecipes.training.checkpoint import RunState


class Costs:
    """Of one run. flops_per_token: of training; peak: FLOP/s of all devices together, as measured."""

    def __init__(self, recipe: Recipe, device: torch.device, flops_per_token: float, peak: float) -> None:
        self.recipe, self.device = recipe, device
        self.flops_per_token, self.peak = flops_per_token, peak

    def of(self, step: Step, state: RunState, steering: Steering, seconds: float, waited: float) -> dict[str, float]:
        """Of the step that `state` ends with: it took so many seconds, for so many of which it waited for data."""
        tokens = sum(step.tokens.values())
        unit, mixture = self.recipe.mixture.unit, steering.mixture
        drawn = {"tokens": state.tokens, "supervised_tokens": state.supervised}.get(unit, state.examples)
        target = mixture.targets(state.step * self.recipe.batch.examples)
        on_device = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        peak = on_device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        costs = {
            "tokens_per_second": tokens / seconds,
            "model_flops_utilization": tokens * self.flops_per_token / seconds / self.peak,
            "memory/peak_gb": peak / 1e9,
            "time/step": seconds,
            "time/data": waited,
        }
        for name in self.recipe.tasks:
            costs[f"examples/{name}"] = state.examples[name]
            costs[f"tokens/{name}"] = state.tokens[name]
            if unit == "supervised_tokens":
                costs[f"supervised/{name}"] = drawn[name]
            costs[f"share/{name}"] = drawn[name] / sum(drawn.values())
            costs[f"target_share/{name}"] = target[name] / sum(target.values())
        if steering.changes_weights:
            in_force = mixture.shares_at((state.step - 1) * self.recipe.batch.examples)
            costs |= {f"weight/{name}": share for name, share in in_force.items()}
        return costs
