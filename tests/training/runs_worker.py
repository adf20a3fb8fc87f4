"""Started on every rank by made_runs: train, stop and resume several runs in one group of processes.

Argument: a JSON file with {"cases": [{name, run, recipe, deepspeed, until, resume, distort, plant}], "out": folder}.
Writes `said<world size>.json`, the outcome of each case, and of finished runs `<name>.predictions.json`: the live
model's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    from accelerate.state import AcceleratorState, PartialState

    from lmrecipes.launching import quieten

    quieten()
    order = json.loads(Path(sys.argv[1]).read_text())
    out, said = Path(order["out"]), {}
    for case in order["cases"]:
        said[case["name"]] = train(case, out)
        AcceleratorState._reset_state()
        PartialState._reset_state()
    import torch.distributed as dist

    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    if rank == 0:
        (out / f"said{world}.json").write_text(json.dumps(said))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def train(case: dict[str, Any], out: Path) -> dict[str, Any]:
    """One case: what came of it."""
    from lmrecipes.problems import InputError, RunFailed
    from lmrecipes.recipe import Recipe
    from lmrecipes.training.loop import Start, Training

    start = Start(case["deepspeed"], out / case["run"], case.get("resume", False), case.get("until"))
    try:
        training = Training(Recipe.model_validate(case["recipe"]), start)
        if "distort" in case:  # as if what is saved were not what was trained
            outputs = training.engine.outputs
            training.engine.outputs = lambda ids: outputs(ids) + case["distort"] * outputs(ids[::-1])
        if "plant" in case:
            plant(training, **case["plant"])
        result = training.fit()
    except (InputError, RunFailed) as error:
        left = sorted(path.name for path in (out / case["run"]).glob("*"))
        return {"failed": type(error).__name__, "message": str(error), "left": left}
    optimizer = training.engine.optimizer
    while hasattr(optimizer, "optimizer"):  # Accelerate's and DeepSpeed's wrappers
        optimizer = optimizer.optimizer
    formats = training.engine.gather(training.formats.state())
    said = {"state": vars(training.state), "optimizer": type(optimizer).__name__, "formats": formats}
    if result:
        found = predictions(training)
        if training.engine.is_main:
            (out / f"{case['name']}.predictions.json").write_text(json.dumps(found))
    return said


def plant(training: Any, layer: str, rank: int, tensor: str, steps: list[int], factor: float = float("inf")) -> None:
    """In these steps half of a layer's inputs, or its outputs, or their gradients are multiplied by a factor on one
    rank, also when the last step is repeated to find out why."""
    import torch

    from lmrecipes.precision.layers import canonical

    module = canonical(training.engine.module)[layer]

    def due() -> bool:
        repeated = training.state.skips_in_a_row == training.recipe.precision.skips
        return training.engine.rank == rank and (repeated or training.state.step + 1 in steps)

    def before(module: Any, inputs: Any) -> Any:
        x, every_other = inputs[0], torch.arange(inputs[0].shape[-1]) % 2
        spoilt = (x * torch.where(every_other == 0, 1.0, factor)).detach()
        return spoilt + (x - x.detach()) if due() else None  # the gradient is as it was

    def after(module: Any, inputs: Any, output: Any) -> Any:
        if tensor == "gradients" and due() and output.requires_grad:
            output.register_hook(lambda gradient: gradient * factor)
        return output * factor if tensor == "activations" and due() else None

    module.register_forward_pre_hook(before) if tensor == "inputs" else module.register_forward_hook(after)


def predictions(training: Any) -> dict[str, list[Any]]:
    """The live model's predictions for the first 8 texts of each task's test split."""
    from lmrecipes.data.batches import Batcher
    from lmrecipes.data.layout import Arrangement

    found = {}
    batcher = Batcher({name: task.splits["test"] for name, task in training.tasks.items()}, training.specs)
    for number, name in enumerate(training.tasks):
        count = min(8, len(training.tasks[name].splits["test"]))
        rows, units = np.arange(count), dict.fromkeys(training.tasks, 1.0)
        batch = batcher.micro_batch([rows], np.full(count, number, np.int16), rows, units, Arrangement("padded"))
        found[name] = training.engine.predict(batch)[name].float().cpu().tolist()
    return found


if __name__ == "__main__":
    main()
