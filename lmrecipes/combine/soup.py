"""Averages of weights: one model of the size and speed of a member (arXiv 2203.05482).

Exported models are averaged file by file, tensor by tensor, in fp64, whatever they are: encoders, decoders,
perceptrons, front ends, heads. Adapters are merged in them already.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from filecmp import cmp
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmrecipes.combine.combination import is_combination
from lmrecipes.files import write_json
from lmrecipes.problems import InputError, Problem, listing
from lmrecipes.recipe import Recipe

WEIGHTS = "*.safetensors"
NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
"""What a configuration says besides the model."""
NOT_KEPT = ("README.md", "adapter", WEIGHTS)
VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip
"""Files that decide what a token is."""
OF_HEADS = ("kind", "labels", "loss", "mean", "std")
"""What must be the same of two heads, that their average means something."""


def difference(one: Path, other: Path, tasks: Sequence[str]) -> str | None:
    """Why the weights of two exported models cannot be averaged, in words; None where they can."""
    if is_combination(one) or is_combination(other):
        return "a combination has members in place of weights"
    for file, read in (("config.json", _architecture), ("heads.json", lambda folder: _heads(folder, tasks))):
        mine, yours = read(one), read(other)
        if mine.get("model_type") != yours.get("model_type"):
            return f"another model ({mine['model_type']} and {yours['model_type']})"
        if keys := sorted(key for key in {**mine, **yours} if mine.get(key) != yours.get(key)):
            return f"other {listing([f'{key} ({mine.get(key)} and {yours.get(key)})' for key in keys], 3)} in {file}"
    for name in VOCABULARIES:
        mine_at, yours_at = one / name, other / name
        if mine_at.is_file() != yours_at.is_file() or (mine_at.is_file() and not cmp(mine_at, yours_at, shallow=False)):
            return f"another tokenizer ({name})"
    shapes, theirs = _shapes(one, tasks), _shapes(other, tasks)
    if apart := sorted(name for name in {**shapes, **theirs} if shapes.get(name) != theirs.get(name)):
        return f"other weights ({listing(apart, 3)})"
    return None


def require_soup(folders: Sequence[Path], names: Sequence[str], tasks: Sequence[str]) -> None:
    """Raise InputError, which names what differs, where the weights of exported models cannot be averaged."""
    problems = []
    for folder, name in zip(folders[1:], names[1:], strict=True):
        if (why := difference(folders[0], folder, tasks)) is not None:
            fix = f"leave {name} out, or combine predictions: --method average"
            problems.append(Problem(name, f"not the architecture of {names[0]}: {why}", fix, "soup-architecture"))
    if problems:
        raise InputError(problems)


def different_starts(recipes: Mapping[str, Recipe]) -> str | None:
    """A note, where models of these recipes, by name, did not start from the same weights: these lie in different
    valleys, and their mean in none (arXiv 1912.05671). None where they did."""
    starts: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        model = recipe.model
        start = f"random weights of seed {recipe.seed}" if model.from_scratch else model.pretrained
        starts.setdefault(start, []).append(name)
    if len(starts) < 2:
        return None
    said = "; ".join(f"{listing(names)} from {start}" for start, names in starts.items())
    return f"the soup's members did not start from the same weights, so it may be worse than each: {said}"


def write_soup(folders: Sequence[Path], to: Path, tasks: Sequence[str]) -> None:
    """Write the exported model whose weights are the mean of those of `folders`, into the new folder `to`.

    All but the weights is as in the first; the heads are those of `tasks`. Integers, which are no weights, stay as in
    the first. One file of weights is in memory at a time.
    """
    shutil.copytree(folders[0], to, ignore=shutil.ignore_patterns(*NOT_KEPT))
    homes = [
        {name: file for file in _weight_files(folder) for name in _names(folder, file, tasks)} for folder in folders
    ]
    for file in _weight_files(folders[0]):
        mean = {name.tensor: _mean(name, homes) for name in _names(folders[0], file, tasks)}
        save_file(mean, to / file.relative_to(folders[0]), {"format": "pt"})
    facts = _read(to / "heads.json")
    facts.pop("verified", None)
    write_json(to / "heads.json", {**facts, "tasks": {task: facts["tasks"][task] for task in tasks}})


def greedy(order: Sequence[int], loss_of: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """Members of a greedy soup (arXiv 2203.05482, recipe 1): from the best on, each is kept if with it the soup
    loses no more on held-out rows.

    order: members, best first. loss_of: of the soup of some of them; of one, its own.
    """
    chosen: tuple[int, ...] = (order[0],)
    best = loss_of(chosen)
    for member in order[1:]:
        loss = loss_of((*chosen, member))
        if loss <= best:
            chosen, best = (*chosen, member), loss
    return chosen


class Name(NamedTuple):
    """A tensor of an exported model. part: which of its models (heads, a front end's encoder) holds it, however that is
    cut into files."""

    part: str
    tensor: str


def _mean(name: Name, homes: Sequence[dict[Name, Path]]) -> Tensor:
    tensors = (_tensor(files[name], name.tensor) for files in homes)
    first = next(tensors)
    if not first.is_floating_point():
        return first
    total = first.double()
    for tensor in tensors:
        total += tensor.double()
    return (total / len(homes)).to(first.dtype)


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        found: Tensor = file.get_tensor(name)
    return found


def _weight_files(folder: Path) -> list[Path]:
    """All files of weights, without the adapter's, which is merged into the model."""
    return sorted(file for file in folder.rglob(WEIGHTS) if "adapter" not in file.relative_to(folder).parts)


def _names(folder: Path, path: Path, tasks: Sequence[str]) -> list[Name]:
    """The tensors of a file; of other heads than those of the tasks none."""
    part = str(path.relative_to(folder).parent / path.name.removesuffix(".safetensors").partition("-")[0])
    with safe_open(path, "pt") as file:
        return [Name(part, key) for key in file.keys() if part != "heads" or key.partition(".")[0] in tasks]  # noqa: SIM118


def _shapes(folder: Path, tasks: Sequence[str]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder):
        names = _names(folder, path, tasks)
        with safe_open(path, "pt") as file:
            found |= {f"{name.part}: {name.tensor}": tuple(file.get_slice(name.tensor).get_shape()) for name in names}
    return found


def _architecture(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in _read(folder / "config.json").items() if key not in NOT_OF_THE_MODEL}


def _heads(folder: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """What decides what the weights mean: pooling, front ends, and of each task's head kind, labels and units."""
    facts = _read(folder / "heads.json")
    of_tasks = {f"{key} of {task}": facts["tasks"].get(task, {}).get(key) for task in tasks for key in OF_HEADS}
    return {"pooling": facts.get("pooling"), "inputs": facts.get("inputs"), **of_tasks}


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
