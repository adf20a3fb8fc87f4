"""One rank of memory.py: trains to just before an update, then looks at what the process holds.

    python benchmarks/precision/held.py RECIPE.yaml DEEPSPEED.json|- FOLDER

Rank 0 writes FOLDER/held.json: bytes by class, of all live tensors, and what the process gives back to the system when
it drops them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

from lmrecipes.launching import quieten
from lmrecipes.precision import proof
from lmrecipes.recipe_files import find_recipe
from lmrecipes.training import holdings
from lmrecipes.training.loop import Start, Training


def main() -> None:
    """Look, and write."""
    recipe_file, deepspeed_file, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    quieten()
    deepspeed = None if deepspeed_file == "-" else json.loads(Path(deepspeed_file).read_text(encoding="utf-8"))
    recipe = find_recipe(recipe_file).build()
    training = Training(recipe, Start(deepspeed, folder / "run"))
    engine, parameters = training.engine, training.parameters[1]
    training.one_step(training.stream.step(0))
    ahead = training.stream.step(1)
    for number, micro in enumerate(ahead.micro_batches):
        engine.micro_step(micro, last=number == len(ahead.micro_batches) - 1)
    engine.gradients = holdings.gradients(engine)
    found: dict[str, Any] = proof.bytes_by_class(proof.inspect(engine, after_step=True))
    del ahead, micro
    found |= {"parameters": parameters, "live": live_bytes(engine.module)}
    before, main_rank, world = resident(), engine.is_main, engine.world_size
    engine.barrier()
    engine.release()
    del training, engine
    found["resident"] = before - resident()
    if main_rank:
        (folder / "held.json").write_text(json.dumps(found), encoding="utf-8")
    if world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def live_bytes(model: torch.nn.Module) -> int:
    """Of all tensors that the interpreter can reach, each storage once."""
    gradients = [p.grad for p in model.parameters()]  # makes those known to the interpreter that only C++ knew
    gc.collect()
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.layout is torch.strided}
    del gradients
    return sum(sizes.values())


def resident() -> int:
    """Bytes of this process in memory, after what was freed was given back; 0 where the system does not say."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        return 0
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)


if __name__ == "__main__":
    main()
