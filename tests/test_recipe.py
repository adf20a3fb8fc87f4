"""The typed recipe: closed at every depth, checked at once, and the same after YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from lmrecipes import recipe as module
from lmrecipes.recipe import METRICS, Config, Recipe, Source, Task, TaskKind
from lmrecipes.recipe_files import problems_of, recipe_from_yaml
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


NESTED = ["mixture.adaptive", "model.lora", "model.mlp", "precision.loss_scaling", "precision.raising"]
NESTED += ["model.image", "model.audio", "model.image.rates"]
OF_TASKS = [
    "tasks.t",
    *(f"tasks.t.{part}" for part in ("source", "source.chat", "augment", "augment.image", "augment.audio")),
]
PARTS = [*OF_TASKS, *NESTED] + [
    name
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
]


def test_every_part_is_tried() -> None:
    listed = {
        "mixture.schedule": {"at": 0, "weights": {}},
        "precision.changes": {"at": 0.5, "layers": {"*": "bf16"}},
    }
    named = ["gates", "latency"]
    for part in named:
        assert errors(changed(f"{part}.g", {"lrr": 1})) == [(f"{part}.g.lrr", "Extra inputs are not permitted")]
    assert len(PARTS) + len(listed) + len(named) == len(CONFIGS) - 1, "each class but Recipe itself stands in the tree"
    for path, item in listed.items():
        assert errors(changed(path, [{**item, "lrr": 1}])) == [(f"{path}.0.lrr", "Extra inputs are not permitted")]


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
        ("tasks.t.rates", {"start": 0.5}),
        ("tasks.t.augment", {"image": {"flip": True}}),
        ("tasks.t.source", {"files": "x.csv", "ids": "a", "image": "b"}),
        ("tasks.t.source", {"files": "x.csv", "image": "a", "text_pair": "b"}),
        ("model.image.height", 30),
        ("distillation.weight", 1.5),
        ("averaging.ema_decay", 1),
        ("tracking.cosines_every", 10),
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
        ("mixture.unit", "rows"),
        ("mixture.law", "equal"),
        ("mixture.max_epochs", 0),
        ("mixture.max_epochs", float("inf")),
        ("mixture.size_cap", -1),
        ("mixture.schedule", [{"at": 1, "weights": {}}]),
        ("mixture.schedule", [{"at": 0, "weights": {"t": -1}}]),
        ("mixture.schedule", [{"at": 0, "weights": {"t": float("nan")}}]),
        ("mixture.between", "cubic"),
        ("mixture.adaptive.every", 0),
        ("mixture.adaptive.floor", 1),
        ("tasks.t.max_epochs", 0),
        ("loss_weighting.temperature", 0),
        ("batch.layout", "rows"),
        ("loader.prefetch", 0),
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
        ("precision.loss_scaling.initial", 1000),
        ("precision.loss_scaling.initial", 0.5),
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


def broken(content: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(field, what, fix) of the rules between fields that do not hold."""
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(content)
    found = problems_of(caught.value, "r.yaml")
    assert {problem.id for problem in found} == {"recipe-rule"}
    return [(problem.where.removeprefix("r.yaml: "), problem.what, problem.fix) for problem in found]


def with_mixture(**mixture: Any) -> dict[str, Any]:
    return changed("mixture", mixture)


def test_messages_of_the_rules_name_what_was_found() -> None:
    assert "found files, function" in errors(changed("tasks.t.source.function", "m:f"))[0][1]
    assert "found none" in errors(changed("tasks.t.source", {}))[0][1]
    assert "['accuracy'] are not among ['spearman'" in errors(changed("tasks.t.metrics", ["accuracy"]))[0][1]
    labels = {"kind": "classification", "source": {"files": "x"}, "labels": ["a", "a"]}
    assert "repeat" in errors(changed("tasks.t", labels))[0][1]
    assert broken(changed("tasks.t", {**labels, "metrics": ["f2"]})) == [
        ("tasks.t.metrics", f"['f2'] are not among {list(METRICS['classification'])} of kind classification",
         "name metrics of that kind"),
        ("tasks.t.labels", "names repeat in ['a', 'a']", "name each class once"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mixture", "field", "says", "fix"),
    [
        ({"law": "temperature"}, "temperature", "needs one", "set mixture.temperature to 1"),
        ({"law": "unimax", "temperature": 2}, "temperature", "mixture.law is unimax", "remove mixture.temperature"),
        ({"size_cap": 9}, "size_cap", "mixture.law is explicit", "or set mixture.temperature"),
        ({"law": "unimax"}, "max_epochs", "passes over a small task", "set mixture.max_epochs"),
        ({"law": "unimax", "max_epochs": 1, "schedule": [{"at": 0, "weights": {}}]}, "schedule",
         "fixes the shares", "remove mixture.schedule"),
        ({"law": "unimax", "max_epochs": 1, "adaptive": {"method": "ado"}}, "adaptive.method",
         "fixes the shares", "remove mixture.adaptive.method"),
        ({"replay": "p", "adaptive": {"method": "ado"}}, "replay", "adaptive.method and replay", "remove mixture."),
        ({"replay": "p", "schedule": [{"at": 0, "weights": {}}]}, "replay", "schedule and replay", "remove mixture."),
        ({"schedule": [{"at": 0.5, "weights": {}}, {"at": 0.5, "weights": {}}]}, "schedule.1.at",
         "0.5 comes after 0.5", "set mixture.schedule.1.at above 0.5"),
        ({"schedule": [{"at": 0.2, "weights": {}}, {"at": 0.5, "weights": {}}, {"at": 0.1, "weights": {}}]},
         "schedule.2.at", "0.1 comes after 0.5", "above 0.5"),
        ({"schedule": [{"at": 0.5, "weights": {"tt": 1}}]}, "schedule.0.weights.tt",
         "no task 'tt'. Did you mean `t`?", "name one of t"),
        ({"schedule": [{"at": 0.5, "weights": {"t": 0}}]}, "schedule.0.weights", "every weight is 0", "above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_in_a_mixture(mixture: dict[str, Any], field: str, says: str, fix: str) -> None:
    found = [rule for rule in broken(with_mixture(**mixture)) if rule[0] == f"mixture.{field}"]
    assert len(found) == 1
    assert says in found[0][1]
    assert fix in found[0][2]


def test_rules_of_a_mixture_are_collected() -> None:
    rules = broken(with_mixture(law="proportional", temperature=2, size_cap=9, replay="p", adaptive={"method": "odm"}))
    assert [field for field, _, _ in rules] == ["mixture.temperature", "mixture.size_cap", "mixture.replay"]
    waypoints = [{"at": 0, "weights": {"x": 1}}, {"at": 0.5, "weights": {"t": 0, "y": 1}}]
    rules = broken(with_mixture(schedule=waypoints))
    assert [field.removeprefix("mixture.schedule.") for field, _, _ in rules] == ["0.weights.x", "1.weights.y"]


def test_rules_between_the_mixture_and_the_rest() -> None:
    zero = changed("tasks.t.weight", 0)
    assert broken(zero) == [
        ("tasks", "every weight is 0, so there is nothing to draw", "set tasks.t.weight, or another task's, above 0")
    ]
    zero["mixture"] = {"schedule": [{"at": 0, "weights": {"t": 1}}]}
    Recipe.model_validate(zero)
    zero["mixture"]["schedule"][0]["at"] = 0.5
    assert [field for field, _, _ in broken(zero)] == ["tasks"]
    weighted = {**changed("tasks.t.weight", 2), "mixture": {"law": "unimax", "max_epochs": 1}}
    ((field, what, fix),) = broken(weighted)
    assert (field, fix) == ("tasks.t.weight", "remove tasks.t.weight, or choose another mixture.law")
    assert what.endswith("found 2")
    adaptive = {**with_mixture(adaptive={"method": "odm"}), "loader": {"prefetch": 9}}
    assert broken(adaptive)[0][0::2] == ("loader.prefetch", "set loader.prefetch to 8 or less")
    replay = {**with_mixture(replay="p"), "loss_weighting": {"method": "famo"}}
    assert broken(replay)[0][0::2] == ("loss_weighting.method", "set loss_weighting.method to static")


def test_layers_are_not_both_compiled_and_given_formats() -> None:
    rules = {"layers": {"*": "fp8"}}, {"changes": [{"at": 0.5, "layers": {"*": "bf16"}}]}
    for precision in rules:
        ((field, what, fix),) = broken({**changed("model.compile", True), "precision": precision})
        assert (field, fix) == ("model.compile", "set it to false, or remove precision.layers and changes")
        assert what.startswith("true, ")
        assert Recipe.model_validate({**SMALL, "precision": precision})
    assert Recipe.model_validate({**changed("model.compile", True), "precision": {"master_weights": "none"}})


def test_fixes_name_the_bound() -> None:
    content = changed("tasks.t.weight", float("nan"))
    content["mixture"] = {"max_epochs": 0, "temperature": 0.5, "schedule": [{"at": 1.5, "weights": {}}]}
    content["batch"] = {"examples": "many"}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(content)
    assert [problem.fix for problem in problems_of(caught.value, None)] == [
        "set tasks.t.weight to a finite number",
        "set mixture.temperature to 1 or more",
        "set mixture.max_epochs above 0",
        "set mixture.schedule.0.at below 1",
        "set batch.examples to a whole number",
    ]


def test_parts_of_a_recipe_are_not_single_values() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({**SMALL, "optimizer": "sgd", "precision": {"layers": ["fp8"]}})
    optimizer, layers = problems_of(caught.value, "r.yaml")
    assert optimizer.what == "must be fields with values, found 'sgd'"
    assert optimizer.fix.startswith("write some of its fields: name, lr, ")
    assert layers.where == "r.yaml: precision.layers"
    assert layers.fix == "write precision.layers as names with values: {name: value}"


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
            "mixture": {
                "temperature": 2.5,
                "schedule": [{"at": 0.25, "weights": {"on": 1e-7, "2": 0}}, {"at": 0.5, "weights": {"on": 0}}],
                "between": "linear",
            },
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


TALK = {"kind": "chat", "source": {"files": "x.jsonl"}}


@pytest.mark.parametrize(
    ("changes", "where", "said"),
    [
        ({"model": {"lora": {"targets": ["q_proj"]}}}, "model", "with rank 0 there are none"),
        ({"model": {"lora": {"rank": 8}, "initialization": "scratch"}}, "model", "weights that are never trained"),
        ({"model": {"lora": {"rank": 8}, "freeze": ["x"]}}, "model", "the whole trunk is frozen"),
        ({"model": {"config": {"hidden_size": 8}, "tokenizer": "t"}}, "model", "which kind of model"),
        ({"model": {"config": {"model_type": "llama"}}}, "model", "no tokenizer of its own"),
        ({"model": {"config": {"model_type": "llama"}, "tokenizer": "t", "pretrained": "x"}}, "model", "together with"),
        ({"model": {"tokenizer": "t"}}, "model", "tokens of their own tokenizer only"),
        ({"model": {"initialization": "scratch", "tokenizer_vocabulary": 300}}, "model", "256 tokens for the bytes"),
        ({"model": {"chat_template": "t"}}, "", "no task is of kind chat"),
        ({"evaluation": {"samples": 1}}, "", "continued by a language model"),
        ({"tasks": {"t": {**TALK, "labels": ["a"]}}}, "tasks.t", "a chat task has none"),
        ({"tasks": {"t": {**TALK, "learning_rate_factor": 2}}}, "tasks.t", "none of its own"),
        ({"tasks": {"t": {**TALK, "source": {"files": "x", "text_pair": "y"}}}}, "tasks.t", "reads one text"),
        ({"tasks": {"t": {**TALK, "kind": "language_modelling", "supervise": "last_assistant"}}}, "tasks.t",
         "which turns"),
        ({"tasks": {"t": {**TALK, "kind": "regression", "source": {"files": "x", "chat": {"turns": "y"}}}}}, "tasks.t",
         "how conversations are written"),
        ({"tasks": {"t": {"kind": "multi_label", "source": {"files": "x"}, "loss": "mean_squared_error"}}}, "tasks.t",
         "is a choice of classification tasks"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(changes: dict[str, Any], where: str, said: str) -> None:
    ((found, message),) = errors({**SMALL, **changes})
    assert found == where
    assert said in message


def test_token_tasks_are_settings_that_go_together() -> None:
    for changes in (
        {"tasks": {"t": TALK}, "model": {"lora": {"rank": 8, "dora": True}, "chat_template": "x"}},
        {"tasks": {"t": TALK}, "model": {"config": {"model_type": "llama"}, "tokenizer_vocabulary": 1024}},
        {"model": {"initialization": "scratch", "lora": {"alpha": 8}}},
    ):
        assert Recipe.model_validate({**SMALL, **changes})
