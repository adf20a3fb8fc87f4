"""Started by test_loss_scale_under_zero: steps in fp16 under each engine, on a CPU whose DeepSpeed is told that it can.

Argument: a JSON file with {"cases": {name: {"recipe": ..., "deepspeed": ... or null}}, "poisoned": [steps],
"out": folder}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def able() -> None:
    """Let DeepSpeed's accelerator and ours take fp16: the arithmetic is there, only slow."""
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    from lmrecipes.training import accelerator

    class Able(CPU_Accelerator):
        def is_fp16_supported(self) -> bool:
            return True

    set_accelerator(Able())
    accelerator._hardware = lambda *_: iter(())


def main() -> None:
    from engines_worker import leave, start, train

    from lmrecipes.launching import quieten
    from lmrecipes.training import loop
    from lmrecipes.training.accelerator import prepare_environment

    quieten()
    prepare_environment()
    able()
    loop.measured_peak = lambda *_: 1.0
    order = json.loads(Path(sys.argv[1]).read_text())
    out, said = Path(order["out"]), dict[str, list[dict[str, Any]]]()
    for name, case in order["cases"].items():
        training = start(case, out / name)
        steps = training.stream.steps(0, training.recipe.schedule.steps)
        said[name] = [train(training.engine, step, number in order["poisoned"]) for number, step in enumerate(steps)]
        leave()
    (out / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
