"""Finished runs combined into runs: what is printed, written, evaluated, exported, combined again, and refused."""

from __future__ import annotations

import json
import math
import shutil
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from made_members import BERTS, GPT, case, made_members, train
from safetensors.torch import load_file
from tiny import make_recipe

from lmrecipes.cli import run as command
from lmrecipes.combine.checkpoints import weights_in
from lmrecipes.combine.combination import Combination, require_same_rows
from lmrecipes.combine.members import ask
from lmrecipes.combine.soup import different_starts, greedy, write_soup
from lmrecipes.combine.values import probabilities
from lmrecipes.inference.own_tasks import evaluate_run, outputs_of, tasks_of
from lmrecipes.planning.launch_pair import launch_pair
from lmrecipes.planning.pair_precision import pair_word
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe
from lmrecipes.run_folder import RunFolder, open_run
from lmrecipes.training.evaluation import Outputs

TASKS = ["short", "long", "rare"]


def engine_config(recipe: dict[str, Any], zero: Any) -> dict[str, Any]:
    """The DeepSpeed configuration that `lmrecipes configure` would write for two processes."""
    checked = Recipe.model_validate(recipe)
    return launch_pair(checked, zero, pair_word(checked.precision), 2, "cpu").deepspeed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_members(tmp_path_factory.mktemp("members"))


@pytest.fixture(scope="module")
def made(runs: Path) -> dict[str, dict[str, Any]]:
    """Every method once: what `--json` says; the runs lie in `out/<method>`."""
    said = {}
    of = {"average": (*BERTS, GPT), "stack": ("bert0", GPT), "soup": BERTS, "checkpoints": ("bert0",)}
    for method, names in of.items():
        said[method] = combined(runs, method, *(runs / name for name in names))
    return said


def combined(runs: Path, name: str, *members: Path, method: str | None = None, flags: tuple[str, ...] = ()) -> Any:
    """The facts of a combination that is written to out/NAME."""
    from lmrecipes.combine.options import CombineOptions
    from lmrecipes.combine.start import combine

    options = CombineOptions(members, method or name, runs / "out" / name, **dict(flags))  # type: ignore[arg-type]
    return json.loads(json.dumps(combine(options)))


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in ("model.safetensors", "heads.safetensors"):
        found |= load_file(run / "model" / file)
    return found


def said_of(facts: dict[str, Any], name: str) -> dict[str, Any]:
    return next(model for model in facts["models"] if model["name"] == name)


def test_the_average_is_the_mean_of_probabilities(runs: Path, made: dict[str, Any]) -> None:
    average = open_run(runs / "out" / "average")
    tasks = tasks_of(average)
    assert list(tasks) == TASKS
    of_members = [outputs_of(open_run(runs / name), tasks) for name in (*BERTS, GPT)]
    found = outputs_of(average, tasks)
    spec = Combination.load(average.model).specs
    long = np.mean([probabilities(spec["long"], o["long"].values) for o in of_members], axis=0)
    sharpened = long ** (1 / Combination.load(average.model).blends["long"].temperature)
    wanted = sharpened / sharpened.sum(axis=1, keepdims=True)
    assert probabilities(spec["long"], found["long"].values) == pytest.approx(wanted, abs=1e-5)
    assert found["short"].values == pytest.approx(np.mean([o["short"].values for o in of_members], axis=0), rel=1e-5)


def test_a_combined_run_evaluates_to_what_was_printed(runs: Path, made: dict[str, Any]) -> None:
    for method, facts in made.items():
        run = open_run(runs / "out" / method)
        written = json.loads(run.evaluation.read_text())
        again = evaluate_run(run)
        assert again["tasks"] == written["tasks"], method
        assert list(written["baselines"]) == ["best_member"]
        for task, of_task in facts["tasks"].items():
            assert of_task["metric"] == written["tasks"][task]["headline"]
            value = said_of(of_task, method)["value"]
            assert value == pytest.approx(written["tasks"][task]["metrics"][of_task["metric"]], abs=1e-6)


def test_times_are_of_the_tasks_own_calls(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    ticking = SimpleNamespace(perf_counter=lambda: float(next(clock)))
    monkeypatch.setattr("lmrecipes.combine.members.time", ticking)
    run = open_run(runs / "bert0")
    said = ask(run, "bert0", tasks_of(run), None)
    for task, speed in said.speeds.items():
        rows = len(said.test[task].rows)
        assert speed.p50_ms == 1000, "every call takes a second"
        assert speed.ms_per_row == pytest.approx(1000 * math.ceil(rows / 32) / rows)


def test_every_number_is_there(made: dict[str, Any]) -> None:
    facts = made["average"]
    assert facts["of"] == [*BERTS, GPT]
    assert facts["notes"][0] == "not combined, gpt: law"
    assert "the soup is without gpt: another model (bert and llama)" in facts["notes"][1]
    for task in facts["tasks"].values():
        assert [model["name"] for model in task["models"]] == [*BERTS, GPT, "average", "stack", "soup"]
        by_name = {model["name"]: model for model in task["models"]}
        best = task["best"]["validation"]
        values = [by_name[name]["validation_value"] for name in (*BERTS, GPT)]
        assert by_name[best]["validation_value"] == max(values)
        assert by_name[best]["against"]["validation"]["value"] == 0
        assert by_name[best]["against"]["validation"]["interval"] == [0, 0]
        for model in task["models"]:
            assert model["p50_ms"] > 0
            assert model["bytes"] > 0
            low, high = model["interval"]
            assert low <= model["value"] <= high or np.isnan(low)
            difference = model["value"] - by_name[best]["value"]
            assert model["against"]["validation"]["value"] == pytest.approx(difference)
        assert by_name["average"]["bytes"] == sum(by_name[name]["bytes"] for name in (*BERTS, GPT))
        assert by_name["soup"]["bytes"] == by_name["bert0"]["bytes"]
        assert sum(by_name["stack"]["weights"]) == pytest.approx(1)
        grouped = task is facts["tasks"]["long"]
        assert (task["groups"] is not None) == grouped
        assert not grouped or 1 < task["groups"] < task["rows"], "four rows each"
        apart = np.array(task["disagreement"]["pairs"])
        assert (apart == apart.T).all()
        assert not apart.diagonal().any()
        mean_of_members = np.mean([by_name[name]["loss"]["before"] for name in (*BERTS, GPT)])
        assert by_name["average"]["loss"]["before"] <= mean_of_members + 1e-6 or task["kind"] == "regression"


def test_a_soup_is_the_mean_of_weights(runs: Path, made: dict[str, Any]) -> None:
    members = [weights(runs / name) for name in BERTS]
    soup = weights(runs / "out" / "soup")
    assert set(soup) == set(members[0])
    for name, tensor in soup.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, torch.stack([m[name].double() for m in members]).mean(0).float())
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(runs / "out" / "soup" / "model")
    AutoTokenizer.from_pretrained(runs / "out" / "soup" / "model")


def test_a_soup_of_equal_models_is_the_model(runs: Path, tmp_path: Path) -> None:
    write_soup([runs / "bert0" / "model"] * 3, tmp_path / "model", TASKS)
    same = weights(runs / "bert0")
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights(tmp_path).items())


def test_members_of_a_soup_that_did_not_start_alike_are_named(tiny: Path) -> None:
    def of(seed: int, pretrained: str, **model: str) -> Recipe:
        return Recipe.model_validate(make_recipe(tiny, seed=seed, model={"pretrained": pretrained, **model}))

    random = {"initialization": "scratch"}
    assert different_starts({"one": of(1, "minilm"), "two": of(2, "minilm")}) is None
    assert different_starts({"one": of(1, "minilm", **random), "two": of(1, "minilm", **random)}) is None
    scratch = different_starts({"one": of(1, "minilm", **random), "two": of(2, "minilm", **random)}) or ""
    assert "one from random weights of seed 1; two from random weights of seed 2" in scratch
    mixed = different_starts({"one": of(1, "minilm"), "two": of(2, "other"), "three": of(3, "minilm")}) or ""
    assert "one, three from minilm; two from other" in mixed


def test_a_greedy_soup_is_never_worse_than_its_best_member() -> None:
    losses = {(2,): 0.5, (2, 0): 0.6, (2, 1): 0.4, (2, 1, 3): 0.4, (2, 1, 3, 4): 0.41}
    assert greedy([2, 0, 1, 3, 4], losses.__getitem__) == (2, 1, 3)


def test_greedy_on_runs(runs: Path) -> None:
    facts = combined(runs, "greedy", *(runs / name for name in BERTS), method="soup", flags=(("weights", "greedy"),))
    assert facts["weights"] == "greedy"
    assert set(facts["soup_of"]) <= set(BERTS)
    chosen = [weights(runs / name) for name in facts["soup_of"]]
    soup = weights(runs / "out" / "greedy")
    torch.testing.assert_close(soup["short.linear.bias"], sum(m["short.linear.bias"] for m in chosen) / len(chosen))


def test_checkpoints_are_averaged_with_the_final_weights(runs: Path, made: dict[str, Any]) -> None:
    assert made["checkpoints"]["of"] == ["bert0", "step-00000004", "step-00000008"]
    saved = [weights_in(runs / "bert0" / "checkpoints" / f"step-{step:08d}") for step in (4, 8)]
    final, mean = weights(runs / "bert0"), weights(runs / "out" / "checkpoints")
    for name in ("trunk.model.encoder.layer.0.output.dense.weight", "heads.long.linear.weight"):
        short = name.removeprefix("trunk.model.").removeprefix("heads.")
        torch.testing.assert_close(mean[short], (final[short] + saved[0][name] + saved[1][name]) / 3)
        assert not torch.equal(saved[0][name], saved[1][name])


def test_a_combination_of_combinations(runs: Path, made: dict[str, Any]) -> None:
    facts = combined(runs, "nested", runs / "out" / "average", runs / "bert1", method="average")
    nested = open_run(runs / "out" / "nested")
    assert evaluate_run(nested)["tasks"] == json.loads(nested.evaluation.read_text())["tasks"]
    assert "no soup: a combination has members in place of weights" in facts["notes"]
    members = Combination.load(nested.model).members
    assert Combination.load(members[0].model).method == "average"


def test_a_combined_run_is_exported_reported_and_printed(
    runs: Path, made: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = runs / "out" / "stack"
    assert command(["export", str(run), "--to", str(tmp_path / "exported")]) == 0
    from transformers import AutoModel

    AutoModel.from_pretrained(tmp_path / "exported" / "members" / "0" / "model")
    assert (tmp_path / "exported" / "README.md").is_file()
    assert Combination.load(tmp_path / "exported").names == ("bert0", "gpt")
    assert command(["report", str(run), str(runs / "bert0"), "--to", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<h2>Combination</h2>" in page
    assert page.count("<svg") >= 3
    capfd.readouterr()
    members = [str(runs / name) for name in ("bert0", "bert1")]
    assert command(["combine", *members, "--to", str(tmp_path / "printed")]) == 0
    printed = capfd.readouterr().out
    facts = made["average"]["tasks"]["long"]
    assert f"long: accuracy, {facts['rows']} rows of the test split" in printed
    assert f"whole groups ({facts['groups']} of long) and of other tasks' rows" in " ".join(printed.split())
    assert all(word in printed for word in ("bert0", "average", "stack", "soup", "temperature"))
    assert command(["audit", str(run)]) == 2
    assert "audit-combined" in capfd.readouterr().err


def test_what_cannot_be_combined_is_refused(
    runs: Path, made: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(*args: str) -> str:
        assert command(["combine", *args]) == 2
        return capfd.readouterr().err

    one, two, gpt = (str(runs / name) for name in ("bert0", "bert1", "gpt"))
    new = ("--to", str(tmp_path / "new"))
    assert "another model (bert and llama)" in refused(one, gpt, "--method", "soup", *new)
    assert "needs two runs or more, found 1" in refused(one, *new)
    assert "checkpoints are of one run, found 2" in refused(one, two, "--method", "checkpoints", *new)
    assert "no complete checkpoint to average" in refused(two, "--method", "checkpoints", *new)
    assert "names a run twice" in refused(one, one, *new)
    assert "is about soups, not average" in refused(one, two, "--weights", "greedy", *new)
    assert "exists already" in refused(one, two, "--to", one)
    assert "not a run folder" in refused(one, str(runs / "data"), *new)
    other = Path(shutil.copytree(runs / "bert1", tmp_path / "other"))
    heads = json.loads((other / "model" / "heads.json").read_text())
    heads["tasks"]["long"]["labels"] = ["politics", "medicine", "other"]
    (other / "model" / "heads.json").write_text(json.dumps(heads))
    assert "tasks.long.labels" in refused(one, str(other), *new)
    assert not (tmp_path / "new").exists()


def test_members_that_read_other_rows_are_refused() -> None:
    rows = np.arange(3)
    one = Outputs(rows, np.zeros((3, 2)), np.array([0, 1, 1]))
    require_same_rows("topic", ["a", "b"], [one, one])
    for other, why in (
        (Outputs(rows[:2], one.values[:2], one.targets[:2]), "3 rows and 2"),
        (Outputs(rows + 1, one.values, one.targets), "numbers differ"),
        (Outputs(rows, one.values, np.array([0, 0, 1])), "1 of 3 rows have other labels, the first is row 1"),
    ):
        with pytest.raises(InputError, match=why):
            require_same_rows("topic", ["a", "b"], [one, other])


def test_checkpoints_of_deepspeed_and_of_adapters(runs: Path) -> None:
    """DeepSpeed's, with and without partitions, hold the weights of plain torch; an adapter's are merged."""
    every = {"checkpoint.every": 2, "checkpoint.keep": 3, "schedule.steps": 4, "evaluation.examples": 20}
    recipe = make_recipe(runs, **every, mixture={})
    adapted = make_recipe(runs, **every, mixture={}, **{"model.lora": {"rank": 2}})
    train(runs, [case("plain", recipe), case("lora", adapted)])
    train(runs, [case(f"zero{stage}", recipe, engine_config(recipe, stage)) for stage in (0, 3)], world=2)
    plain = weights_in(runs / "plain" / "checkpoints" / "step-00000002")
    for stage in (0, 3):
        found = weights_in(runs / f"zero{stage}" / "checkpoints" / "step-00000002")
        for name in plain:
            torch.testing.assert_close(found[name].float(), plain[name], rtol=1e-3, atol=1e-4)
    facts = combined(runs, "of_zero3", runs / "zero3", method="checkpoints")
    assert facts["of"] == ["zero3", "step-00000002"]
    assert evaluate_run(RunFolder(runs / "out" / "of_zero3"))["tasks"]
    combined(runs, "of_lora", runs / "lora", method="checkpoints")
    final, mean = weights(runs / "lora"), weights(runs / "out" / "of_lora")
    base = load_file(runs / "model" / "model.safetensors")
    moved = [name for name in mean if name in base and not torch.equal(mean[name], base[name])]
    assert moved
    assert all("lora" not in name for name in mean)
    assert not torch.equal(mean[moved[0]], final[moved[0]])
