"""One recipe file, started by every launcher, gives one run.

fp32 losses agree to 1e-5 (relative) between plain torch and DDP; the bf16 runs are the same computation (ZeRO-2 on two
ranks, the same JSON) and agree exactly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Run
from tiny import make_recipe

from lmrecipes.planning.launch_pair import launch_pair, write_ddp_yaml, write_pair
from lmrecipes.recipe import Recipe
from lmrecipes.tracking.record import read_metrics

RECIPE = '''"""A small recipe."""

from pathlib import Path

from lmrecipes.launching import main
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import recipe_from_yaml


def recipe() -> Recipe:
    return recipe_from_yaml(Path(__file__).with_name("content.yaml"))


if __name__ == "__main__":
    main(recipe)
'''

SCRIPT = "small/recipe.py"
BF16 = ["--precision.compute", "bf16"]
LAUNCHES: dict[str, tuple[list[str], str, int, int | None]] = {
    "python": ([sys.executable, SCRIPT], "python", 1, None),
    "torchrun": (["torchrun", "--nproc_per_node", "2", SCRIPT], "torchrun", 2, None),
    "accelerate_ddp": (["accelerate", "launch", "--config_file", "small/ddp.yaml", SCRIPT], "accelerate", 2, None),
    "accelerate_zero2": (
        ["accelerate", "launch", "--config_file", "small/zero2_bf16.yaml", SCRIPT, *BF16], "accelerate", 2, 2,
    ),
    "deepspeed": (
        ["deepspeed", "--num_gpus", "2", SCRIPT, "--deepspeed", "small/zero2_bf16.json", *BF16], "deepspeed", 2, 2,
    ),
    "lmrecipes": (["lmrecipes", "train", SCRIPT, "--processes", "2", "--zero", "2", *BF16], "lmrecipes train", 2, 2),
}  # fmt: skip
"""Command, and what environment.json says of it: launcher, world size, ZeRO stage."""


@pytest.fixture(scope="module")
def launched(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe `small/`, in which every launch has made the run of its name."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "small").mkdir()
    content = make_recipe(tiny, **{"schedule.steps": 5, "batch.micro_examples": 8, "evaluation.examples": 20})
    (folder / SCRIPT).write_text(RECIPE)
    (folder / "small" / "content.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    recipe = Recipe.model_validate(content)
    pair = launch_pair(recipe, 2, "bf16", 2, "cpu", json_path="small/zero2_bf16.json")
    write_pair(pair, folder / "small")
    write_ddp_yaml(2, "cpu", folder / "small")
    for name, (command, *_) in LAUNCHES.items():
        done = run(*command, "--run-folder", name, cwd=folder)
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
    return folder


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "environment.json").read_text())
    return found


@pytest.mark.parametrize("name", list(LAUNCHES))
def test_every_launcher_makes_a_whole_run_folder(name: str, launched: Path) -> None:
    run = launched / name
    for part in ("recipe.yaml", "environment.json", "evaluation.json", "report.html", "model/config.json"):
        assert (run / part).is_file(), part
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4, 5], "one rank writes, once"


@pytest.mark.parametrize("name", list(LAUNCHES))
def test_the_environment_names_how_it_was_started(name: str, launched: Path) -> None:
    command, launcher, world, zero = LAUNCHES[name]
    found = facts(launched / name)
    assert (found["launcher"], found["world_size"], found["zero"]) == (launcher, world, zero)
    assert found["precision"] == ("bf16" if zero else "fp32")
    typed = " ".join(["python", *command[1:]] if name == "python" else command)
    if name == "lmrecipes":
        typed = "python -m torch.distributed.run --standalone --nproc_per_node=2"
    said = found["command"].replace(sys.executable, "python")
    assert said.startswith(typed)
    assert said.endswith(f"--run-folder {name}") or name == "lmrecipes"


def test_the_launchers_agree(launched: Path) -> None:
    def losses(name: str) -> list[float]:
        return [row[key] for row in read_metrics(launched / name / "metrics.jsonl") for key in ("loss", "grad_norm")]

    plain, half = losses("python"), losses("accelerate_zero2")
    assert losses("torchrun") == pytest.approx(plain, rel=1e-5)
    assert losses("accelerate_ddp") == losses("torchrun")
    assert losses("deepspeed") == half
    assert losses("lmrecipes") == half
    assert half == pytest.approx(plain, rel=0.05)
    assert half != pytest.approx(plain, rel=1e-5), "bf16 is at work"
