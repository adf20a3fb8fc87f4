"""The weights and the optimizer's state in a checkpoint: what DeepSpeed writes, or one file of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lmrecipes.training.engine import Engine


def save_state(engine: Engine, folder: Path) -> None:
    """Write the trained weights, the optimizer's state and the average into `folder`; every rank takes part."""
    frozen = _frozen(engine)
    if engine.deepspeed is not None:
        engine.model.save_checkpoint(
            str(folder), tag="engine", save_latest=False, exclude_frozen_parameters=bool(frozen)
        )
    elif engine.is_main:
        state = {
            "model": {name: weight for name, weight in engine.module.state_dict().items() if name not in frozen},
            "optimizer": engine.optimizer.state_dict(),
            "scale": engine.scale.state_dict() if engine.scale is not None else None,
        }
        torch.save(state, folder / "engine.pt")
    if engine.average is not None:
        engine.average.save(folder)


def load_state(engine: Engine, folder: Path) -> None:
    """Read what `save_state` wrote; every rank takes part."""
    engine.fresh = False
    frozen = _frozen(engine)
    if engine.average is not None:
        engine.average.load(folder)
    if engine.deepspeed is not None:
        engine.model.load_checkpoint(str(folder), tag="engine", load_module_strict=not frozen)
        return
    state = torch.load(folder / "engine.pt", map_location="cpu", weights_only=True)
    missing, unknown = engine.module.load_state_dict(state["model"], strict=False)
    if lost := [*unknown, *(set(missing) - frozen)]:
        raise RuntimeError(f"{folder} is of another model: {', '.join(sorted(lost)[:3])}")
    engine.optimizer.load_state_dict(state["optimizer"])
    if engine.scale is not None:
        engine.scale.load_state_dict(state["scale"])


def _frozen(engine: Engine) -> set[str]:
    """Names of the state dict that training does not change; a checkpoint need not hold them."""
    return {name for name, p in engine.module.named_parameters(remove_duplicate=False) if not p.requires_grad}
