"""The typed recipe: closed at every depth, checked at once, and the same after YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from lmrecipes import recipe as module
from lmrecipes.recipe import METRICS, Config, Recipe, Source, Task, TaskKind
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.run_folder import recipe_yaml

SMALL: dict[str, Any] = {"name": "r", "tasks": {"t": {"kind": "regression", "source": {"files": "x.jsonl"}}}}
CONFIGS = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Config) and c is not Config]


def changed(path: str, value: Any) -> dict[str, Any]:
    """SMALL with one field set; the dictionaries on the way are copied."""

    def put(tree: dict[str, Any], keys: list[str]) -> dict[str, Any]:
        if len(keys) == 1:
            return {**tree, keys[0]: value}
        return {**tree, keys[0]: put(tree.get(keys[0], {}), keys[1:])}

    return put(SMALL, path.split("."))


def errors(content: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(content)
    return [(".".join(map(str, error["loc"])), error["msg"]) for error in caught.value.errors()]


PARTS = ["tasks.t", "tasks.t.source"] + [
    name
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
]


def test_every_part_is_tried() -> None:
    assert len(PARTS) == len(CONFIGS) - 1, "each class but Recipe itself stands in the tree"


@pytest.mark.parametrize("part", ["", *PARTS])
def test_an_unknown_key_is_an_error_at_any_depth(part: str) -> None:
    path = f"{part}.lrr".lstrip(".")
    ((where, message),) = errors(changed(path, 1))
    assert where == path
    assert message == "Extra inputs are not permitted"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", ""),
        ("name", "../up"),
        ("name", "a b"),
        ("tasks", {}),
        ("tasks.t.kind", "regresion"),
        ("tasks.t.weight", 0),
        ("tasks.t.weight", float("inf")),
        ("tasks.t.weight", float("nan")),
        ("tasks.t.weight", "much"),
        ("tasks.t.loss_factor", -1),
        ("tasks.t.max_length", 0),
        ("tasks.t.metrics", ["accuracy"]),
        ("tasks.t.labels", ["a", "b"]),
        ("tasks.t.source", {}),
        ("tasks.t.source.function", "m:f"),
        ("tasks.t.source", {"splits": {"test": "x"}}),
        ("tasks.t.source", {"splits": {"train": "x", "dev": "y"}}),
        ("tasks.t.source.test_fraction", 1),
        ("tasks.t.source.test_fraction", 0.95),
        ("tasks.t.source.on_bad_row", "drop"),
        ("model.max_length", 3),
        ("model.pooling", "max"),
        ("model.dropout", 1),
        ("mixture.temperature", 0.5),
        ("mixture.temperature", float("nan")),
        ("batch.examples", 0),
        ("batch.examples", 1.5),
        ("batch.micro_examples", 0),
        ("optimizer.lr", 0),
        ("optimizer.lr", float("nan")),
        ("optimizer.betas", [0.9]),
        ("optimizer.betas", [0.9, 1.0]),
        ("optimizer.name", "adam"),
        ("optimizer.gradient_clipping", 0),
        ("schedule.steps", 0),
        ("schedule.warmup_fraction", 1),
        ("schedule.final_fraction", 1.1),
        ("precision.compute", "fp8"),
        ("evaluation.every", -1),
        ("checkpoint.keep", 0),
        ("tracking.wandb", "yes"),
        ("loss_normalization", "std"),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_wrong_values(path: str, value: Any) -> None:
    assert all(
        where == "" or path.startswith(where) or where.startswith(path) for where, _ in errors(changed(path, value))
    )


def test_all_mistakes_are_found_at_once() -> None:
    content = changed("optimizer.lr", -1)
    content["batch"] = {"examples": 0, "micro": 3}
    content["tasks"] = {"t": {"kind": "x", "source": {"files": "a", "lable": "y"}}}
    found = {where for where, _ in errors(content)}
    assert found == {"optimizer.lr", "batch.examples", "batch.micro", "tasks.t.kind", "tasks.t.source.lable"}


@pytest.mark.parametrize("name", ["a/b", "a b", "a.b", "", "ü!"])
def test_task_names_that_cannot_be_metric_names(name: str) -> None:
    ((_, message),) = errors({**SMALL, "tasks": {name: SMALL["tasks"]["t"]}})
    assert "letters, digits" in message


def test_messages_of_the_rules_name_what_was_found() -> None:
    assert "found files, function" in errors(changed("tasks.t.source.function", "m:f"))[0][1]
    assert "found none" in errors(changed("tasks.t.source", {}))[0][1]
    assert "['accuracy'] are not among ['spearman'" in errors(changed("tasks.t.metrics", ["accuracy"]))[0][1]
    labels = {"kind": "classification", "source": {"files": "x"}, "labels": ["a", "a"]}
    assert "repeat" in errors(changed("tasks.t", labels))[0][1]


def test_a_recipe_does_not_change() -> None:
    recipe = Recipe.model_validate(SMALL)
    for part, field in ((recipe, "seed"), (recipe.optimizer, "lr"), (recipe.tasks["t"], "weight")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, field, 1)


def full() -> Recipe:
    """Fields away from their defaults, of every type; text that YAML could take for something else."""
    return Recipe.model_validate(
        {
            "name": "full-1.2",
            "description": "yes: #1 'quoted' ü\nsecond line",
            "tasks": {
                "on": {
                    "kind": "multi_label",
                    "source": {
                        "splits": {"train": "a*.jsonl", "test": "b.csv"},
                        "label_separator": ",",
                        "text_pair": "no",
                    },
                    "labels": ["yes", "no", "1", "null", "1e3"],
                    "metrics": ["average_precision"],
                    "max_length": 7,
                },
                "2": {
                    "kind": "classification",
                    "source": {"dataset": "owner/name:config", "group": "g"},
                    "weight": 1e-7,
                },
            },
            "model": {"dropout": None, "pooling": "last"},
            "mixture": {"temperature": 2.5},
            "optimizer": {"lr": 3e-5, "betas": [0.8, 0.95]},
            "evaluation": {"examples": None},
            "seed": 2**32 - 1,
        }
    )


@pytest.mark.parametrize("recipe", [Recipe.model_validate(SMALL), full()], ids=["small", "full"])
def test_yaml_is_the_same_recipe(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "other-name.yaml"
    path.write_text(recipe_yaml(recipe), encoding="utf-8")
    again = recipe_from_yaml(path)
    assert again == recipe
    assert recipe_yaml(again) == recipe_yaml(recipe)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["schedule"] == {"steps": 500, "warmup_fraction": 0.06, "decay": "linear", "final_fraction": 0.0}


def test_json_is_the_same_recipe() -> None:
    assert Recipe.model_validate_json(full().model_dump_json()) == full()


def test_every_field_has_help() -> None:
    """The docstring under a field is its `--help` text."""
    assert len(CONFIGS) > 10
    missing = [
        f"{c.__name__}.{name}" for c in CONFIGS for name, field in c.model_fields.items() if not field.description
    ]
    assert missing == []
    assert all(config.__doc__ for config in CONFIGS)


def test_metrics_of_a_task() -> None:
    assert set(METRICS) == set(get_args(TaskKind))
    task = Task(kind="classification", source=Source(files="x"))
    assert task.metric_names == METRICS["classification"]
    assert task.model_copy(update={"metrics": ("macro_f1",)}).metric_names == ("macro_f1",)
