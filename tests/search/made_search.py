"""Searches whose proxies are computed rather than trained: the truth is known, and a search takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lmrecipes.recipe import Recipe
from lmrecipes.search.plan import Answer, Proxy, Question, Result, answer, next_proxy, proxy_base

Losses = Callable[[np.ndarray, Proxy], np.ndarray]


def made_recipe(**weights: float) -> Recipe:
    """A recipe over tasks with these weights, as proxies share it."""
    tasks = {name: {"kind": "regression", "source": {"files": "none"}, "weight": w} for name, w in weights.items()}
    return proxy_base(Recipe.model_validate({"name": "made", "tasks": tasks}), 40, 500)


def made_result(base: Recipe, proxy: Proxy, losses: Losses) -> Result:
    """What a proxy gave: `losses(shares, proxy)` for the drawn tasks, 1 for the others."""
    drawn = [name for name, task in base.tasks.items() if task.weight]
    found = dict(zip(drawn, losses(np.array(proxy.shares), proxy).tolist(), strict=True))
    scores: dict[str, dict[str, Any]] = {
        name: {"loss": 2.0 * found.get(name, 1.0), "constant_loss": 2.0, "headline": "spearman",
               "metrics": {"spearman": 1 - found.get(name, 1.0) ** 2}} for name in base.tasks
    }  # fmt: skip
    return Result(proxy, 1.0, scores)


def searched(
    base: Recipe, question: Question, losses: Losses, results: list[Result] | None = None
) -> tuple[list[Result], Answer]:
    """A search from its start (or from `results`) to its end."""
    results = list(results or [])
    while (proxy := next_proxy(base, question, results)) is not None:
        results.append(made_result(base, proxy, losses))
    return results, answer(base, question, results)


def power_law(a: list[float], noise: float, seed: int = 0) -> Losses:
    """Each task's loss is 0.2 + a / sqrt(share), with noise that the proxy's kind, number and the seed decide."""

    def losses(shares: np.ndarray, proxy: Proxy) -> np.ndarray:
        rng = np.random.default_rng([seed, proxy.number, len(proxy.kind), ord(proxy.kind[0])])
        return 0.2 + np.array(a) / np.sqrt(shares) + noise * rng.normal(size=len(shares))

    return losses


def only_noise(noise: float, seed: int = 0) -> Losses:
    """Losses that do not depend on the shares."""
    flat = power_law([0.0, 0.0, 0.0, 0.0], noise, seed)
    return lambda shares, proxy: 0.7 + flat(np.ones(4), proxy)[: len(shares)]
