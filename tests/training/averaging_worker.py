"""Started on every rank by test_averaging: train with an average of the weights, and compare it with one by hand.

Argument: a JSON file with {"cases": {name: {"recipe": ..., "deepspeed": ... or null}}, "out": folder, "steps": n}.
Writes `<name>.json` on rank 0, and leaves the run in `<name>/`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    from accelerate.state import AcceleratorState, PartialState

    from lmrecipes.launching import quieten

    quieten()
    order = json.loads(Path(sys.argv[1]).read_text())
    out = Path(order["out"])
    for name, case in order["cases"].items():
        found, training = look(case, out / name, out / f"{name}-again", order["steps"])
        if training.engine.is_main:
            (out / f"{name}.json").write_text(json.dumps(found))
        training.engine.barrier()
        AcceleratorState._reset_state()
        PartialState._reset_state()
    training.engine.close()


def weights(engine: Any) -> dict[str, torch.Tensor]:
    """What the optimizer updates, whole, fp32."""
    return {name: tensor.clone() for name, tensor in engine.full_parameters(trained_only=True)}


def live(engine: Any) -> list[torch.Tensor]:
    """What this rank computes with."""
    from lmrecipes.training import holdings

    return [part.detach().clone() for parts in holdings.weights(engine).values() for part in parts]


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def look(case: dict[str, Any], run: Path, again: Path, steps: int) -> tuple[dict[str, Any], Any]:
    """A whole run, watched at every update; and one that is cut in the middle."""
    from lmrecipes.precision import proof
    from lmrecipes.recipe import Recipe
    from lmrecipes.training.loop import Start, Training

    recipe = Recipe.model_validate(case["recipe"])
    decay = recipe.averaging.ema_decay
    training = Training(recipe, Start(case["deepspeed"], run))
    engine = training.engine
    average, updates = weights(engine), 0
    apply, skipped = engine.apply, 2

    def watched(rates: Any) -> Any:
        """Step `skipped` meets a gradient that is not finite, on the last rank."""
        nonlocal average, updates
        result = apply(rates)
        if result.applied:
            updates += 1
            kept = min(decay, (1 + updates) / (10 + updates))
            average = {name: kept * average[name] + (1 - kept) * now for name, now in weights(engine).items()}
        return result

    engine.apply = watched
    losses = []
    for number, step in enumerate(training.stream.steps(0, steps)):
        if number == skipped:
            for task in step.micro_batches[0].tasks.values():
                task.scale = float("nan") if engine.rank == engine.world_size - 1 else task.scale
        losses.append(training.one_step(step)[0]["grad_norm"])
    before, held = weights(engine), live(engine)
    with engine.averaged():
        inside = weights(engine)
    rows = proof.inspect(engine, after_step=True)
    proof.require(rows)
    found = {
        "updates": [updates, engine.average.updates],
        "apart": apart(inside, average),
        "moved": apart(inside, before),
        "restored": apart(weights(engine), before),
        "restored_live": all(torch.equal(a, b) for a, b in zip(live(engine), held, strict=True)),
        "bytes": sum(row.bytes for row in rows if row.what == "average"),
        "trained": sum(tensor.numel() for tensor in average.values()),
        "some": {name: tensor.flatten()[::97].tolist() for name, tensor in inside.items()},
    }
    engine.save(folder := made(engine, again))
    for step in list(training.stream.steps(steps, steps + 2)):
        training.one_step(step)
    on = (weights(engine), [value.clone() for value in engine.average.values])
    engine.load(folder)
    training.state.step = steps
    for step in list(training.stream.steps(steps, steps + 2)):
        training.one_step(step)
    averages = [float((a - b).abs().max()) for a, b in zip(on[1], engine.average.values, strict=True)]
    found["resumed"] = max(*averages, apart(weights(engine), on[0]))
    with engine.averaged():
        final = {name: tensor.clone() for name, tensor in engine.full_parameters()}
    training._finish()
    if engine.is_main:
        from safetensors.torch import load_file

        names = engine.module.saved_names()
        saved = {**load_file(run / "model" / "model.safetensors"), **load_file(run / "model" / "heads.safetensors")}
        found["exported"] = max(
            float((saved[names.get(name, name.removeprefix("heads."))] - tensor).abs().max())
            for name, tensor in final.items()
            if names.get(name, name.removeprefix("heads.")) in saved
        )
        found["said"] = json.loads((run / "model" / "heads.json").read_text())["average_of_updates"]
    return found, training


def made(engine: Any, folder: Path) -> Path:
    if engine.is_main:
        folder.mkdir(parents=True)
    engine.barrier()
    return folder


if __name__ == "__main__":
    main()
