"""Checkpoints: complete or absent, and found by looking.

Every rank writes into `step-N.tmp`; after a barrier rank 0 writes the manifest (sizes, SHA-256, what the state fits
to), syncs and renames. The newest folder whose manifest verifies is the one to resume from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmrecipes.files import write_json
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe_precision import Precision
from lmrecipes.run_folder import replace_folder
from lmrecipes.training.engine import Engine


@dataclass
class RunState:
    """All that a run remembers besides weights and optimizer: the one place for it.

    step: optimizer steps done, which is also the cursor of the data. skips_in_a_row: how many of the last ones were
    skipped. examples, tokens, supervised (tokens with loss): seen so far by task. steering: of `Steering`, the plan so
    far and what the next decisions depend on. precision: of `Control`, likewise. cosines: of `Cosines`, its sums. All
    empty in checkpoints of before there was one.
    """

    step: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    skips_in_a_row: int = 0
    examples: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    supervised: dict[str, int] = field(default_factory=dict)
    trackers: dict[str, Any] = field(default_factory=dict)
    steering: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, Any] = field(default_factory=dict)
    cosines: dict[str, Any] = field(default_factory=dict)


def fits_to(engine: Engine) -> dict[str, Any]:
    """What the engine's state depends on: a checkpoint resumes only where these are the same."""
    zero = engine.zero_stage
    return {
        "ZeRO stage": zero if zero is not None else "none",
        "precision": kept_in(engine.recipe.precision),
        "world size": engine.world_size if zero is not None else "any",
    }


def kept_in(precision: Precision) -> str:
    """What a run's weights and optimizer are kept in, in words."""
    if precision.pure:
        return f"{precision.compute} without master weights, {precision.rounding} rounding"
    return precision.section


def save_checkpoint(engine: Engine, folder: Path, state: RunState, keep: int) -> Path:
    """Write `folder/step-N`; prune other ones after it stands. Every rank takes part."""
    final = folder / f"step-{state.step:08d}"
    partial = folder / f"{final.name}.tmp"
    if engine.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    engine.barrier()
    engine.save(partial)
    engine.barrier()
    if engine.is_main:
        write_json(partial / "state.json", asdict(state))
        files = {str(p.relative_to(partial)): _describe(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        write_json(partial / "manifest.json", {"step": state.step, "fits_to": fits_to(engine), "files": files})
        replace_folder(partial, final)
        _prune(folder, final, keep)
    engine.barrier()
    return final


def left_behind(engine: Engine, folder: Path, before: RunState | None, keep: int) -> str:
    """What a run that fails leaves to go on from, in words. before: the run as it stood before the steps that it
    skipped, None where it is spoilt: its checkpoint is written where there is none, later ones are removed."""
    if before is None or not before.step:
        kept = _folders(folder)
        return f"the newest checkpoint is {kept[0].name}" if kept else "there is no checkpoint yet"
    final = folder / f"step-{before.step:08d}"
    if not engine.broadcast(_verifies(final)):
        save_checkpoint(engine, folder, before, keep)
    elif engine.is_main:
        _prune(folder, final, keep)
    engine.barrier()
    return f"saved {final}: from before the first of them"


def find_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest, or None."""
    return next(iter(complete_checkpoints(folder, 1)), None)


def complete_checkpoints(folder: Path, most: int) -> list[Path]:
    """The newest checkpoints whose files match their manifests, newest first."""
    return list(itertools.islice(filter(_verifies, _folders(folder)), most))


def load_checkpoint(engine: Engine, checkpoint: Path) -> RunState:
    """Load into the engine. Raises InputError where the launch differs from the one that saved it."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    saved, now = manifest["fits_to"], fits_to(engine)
    differing = [key for key in now if saved.get(key) != now[key]]
    if differing:
        raise InputError(
            Problem(
                str(checkpoint),
                "; ".join(f"saved with {key} {saved.get(key)}, resumed with {key} {now[key]}" for key in differing),
                "resume with the launch that started the run",
                "resume-mismatch",
            )
        )
    engine.load(checkpoint)
    return RunState(**json.loads((checkpoint / "state.json").read_text()))


def _folders(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first."""
    return sorted((p for p in folder.glob("step-*") if p.suffix != ".tmp"), reverse=True)


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove all but the `keep` checkpoints up to `newest`.

    Later steps belong to an attempt whose checkpoint did not verify, or the run would have continued from it.
    """
    kept = [found for found in _folders(folder) if found.name <= newest.name][:keep]
    for old in folder.glob("step-*"):
        if old not in kept:
            shutil.rmtree(old)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _verifies(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
        return all(_describe(checkpoint / name) == expected for name, expected in files.items())
    except (OSError, ValueError, KeyError):
        return False
