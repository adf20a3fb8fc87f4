"""Started on every rank by test_invariant: train under several configurations, write what each step gave.

Arguments: a JSON file with {"cases": {name: {"recipe": ..., "deepspeed": ... or null}}, "out": folder}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from accelerate.state import AcceleratorState, PartialState

    from lmrecipes.launching import quieten
    from lmrecipes.recipe import Recipe
    from lmrecipes.training.loop import Start, Training

    quieten()
    order = json.loads(Path(sys.argv[1]).read_text())
    for name, case in order["cases"].items():
        training = Training(Recipe.model_validate(case["recipe"]), Start(case["deepspeed"], Path(order["out"]) / "run"))
        rows = []
        for step in training.stream.steps(0, training.until):
            metrics, outcome = training.one_step(step)
            empty = sum(task.examples == 0 for micro in step.micro_batches for task in micro.tasks.values())
            rows.append({**metrics, "applied": outcome.applied, "idle_heads": empty, "examples": step.examples})
        if training.engine.is_main:
            (Path(order["out"]) / f"{name}.json").write_text(json.dumps(rows))
        training.engine.barrier()
        AcceleratorState._reset_state()
        PartialState._reset_state()
    training.engine.close()


if __name__ == "__main__":
    main()
