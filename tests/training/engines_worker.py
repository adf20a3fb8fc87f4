"""Started on every rank by test_precision_engines: a few steps of each case, and what the engine held meanwhile.

Arguments: a JSON file with {"cases": {name: {"recipe": ..., "deepspeed": ... or null, "again": resumed in an engine of
its own too, "planted": it must be refused, "cast": a module whose weights are cast behind the engine's back}},
"out": folder}.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch


def digest(engine: Any) -> str:
    """Of all bits that this rank trains: weights (under ZeRO-3 its part of them), masters, the optimizer's states."""
    from lmrecipes.training import holdings

    weights = [parts[0] for parts in holdings.weights(engine).values()]
    states = [tensor for tensors in holdings.states(engine).values() for tensor in tensors]
    found = hashlib.sha256(str(holdings.updates(engine)).encode())
    for tensor in (*weights, *holdings.masters(engine), *states):
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def poisoned(batch: Any) -> Any:
    """A micro-batch whose loss is not a number."""
    return replace(batch, tasks={name: replace(task, scale=float("nan")) for name, task in batch.tasks.items()})


def train(engine: Any, step: Any, poison: bool = False) -> dict[str, Any]:
    """One step; `poison`: the last rank's first micro-batch is."""
    sums = 0.0
    for i, batch in enumerate(step.micro_batches):
        bad = poison and i == 0 and engine.rank == engine.world_size - 1
        sums += engine.micro_step(poisoned(batch) if bad else batch, last=i == len(step.micro_batches) - 1)
    from lmrecipes.training.schedule import rates_beside

    result = engine.apply(rates_beside(engine.recipe, 0.01))
    totals = engine.sum_over_ranks(sums).tolist()
    return {**asdict(result), "sums": totals, "digest": digest(engine)}


def start(case: dict[str, Any], out: Path) -> Any:
    """A run, not trained yet."""
    from lmrecipes.recipe import Recipe
    from lmrecipes.training.loop import Start, Training

    return Training(Recipe.model_validate(case["recipe"]), Start(case["deepspeed"], out / "run"))


def look(case: dict[str, Any], out: Path) -> dict[str, Any]:
    """What one case gives."""
    from lmrecipes.precision import proof

    training = start(case, out)
    engine, steps = training.engine, [training.stream.step(number) for number in range(3)]
    said: dict[str, Any] = {"start": [asdict(row) for row in proof.inspect(engine, after_step=False)]}
    said["first"] = train(engine, steps[0])
    rows = proof.inspect(engine, after_step=True)
    proof.require(rows)
    said |= {"after": [asdict(row) for row in rows], "held": proof.bytes_by_class(rows)}
    if engine.is_main:
        out.mkdir(parents=True, exist_ok=True)
    engine.barrier()
    engine.save(out)
    engine.barrier()
    said["trained"] = [train(engine, step) for step in steps[1:]]
    said["weights"] = {name: float(tensor.double().sum()) for name, tensor in engine.full_parameters()}
    engine.load(out)
    said["loaded"] = digest(engine)
    said["poisoned"] = train(engine, steps[1], poison=True)
    engine.micro_step(poisoned(steps[0].micro_batches[0]), last=False)
    engine.clear_gradients()
    engine.micro_step(poisoned(steps[0].micro_batches[1]), last=True)
    engine.clear_gradients()
    said["after_drops"] = [train(engine, step) for step in steps[1:]]
    said["ranks"] = engine.gather({name: said[name] for name in ("held", "loaded", "poisoned", "first")})
    leave()
    if case.get("again"):
        engine = start(case, out).engine
        engine.load(out)
        said["resumed"] = [train(engine, step) for step in steps[1:]]
        leave()
    return said


def refused(case: dict[str, Any], out: Path) -> str:
    """Why a planted case does not run; empty where it does."""
    from lmrecipes.precision import proof
    from lmrecipes.problems import InputError

    try:
        training = start(case, out)
        if "cast" in case:
            training.engine.module.get_submodule(case["cast"]).to(torch.bfloat16)
            proof.require(proof.inspect(training.engine, after_step=False))
        train(training.engine, training.stream.step(0))
        proof.require(proof.inspect(training.engine, after_step=True))
    except InputError as error:
        return str(error)
    finally:
        leave()
    return ""


def leave() -> None:
    """Let another engine start in this process."""
    from accelerate.state import AcceleratorState, PartialState

    torch.distributed.barrier()
    AcceleratorState._reset_state()
    PartialState._reset_state()


def main() -> None:
    from lmrecipes.launching import quieten
    from lmrecipes.training import loop

    quieten()
    loop.measured_peak = lambda *_: 1.0  # seconds of large products that nothing here asks for
    order = json.loads(Path(sys.argv[1]).read_text())
    out = Path(order["out"])
    said = {name: (refused if "planted" in case else look)(case, out / name) for name, case in order["cases"].items()}
    if torch.distributed.get_rank() == 0:
        (out / "said.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
