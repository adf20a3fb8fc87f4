"""The maths of the benchmarks; the measurements themselves are run by hand."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.data.stream import TrainingStream
from lmrecipes.recipe import Recipe
from lmrecipes.tracking.results import write_results_into

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A file of the benchmarks as a module: they are scripts, not a package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name.replace('/', '_')}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    before = list(sys.path)
    sys.path.insert(0, str((BENCHMARKS / name).parent))  # as for a script
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


pairs = load("pairs")


def test_ratio_is_the_median_of_the_pairs_and_not_of_the_times() -> None:
    # The machine was twice as slow in the last two pairs.
    taken = pairs.Pairs(ours=(1.2, 2.6, 2.4), bare=(1.0, 2.0, 2.0))
    assert taken.ratios == pytest.approx([1.2, 1.3, 1.2])
    assert taken.ratio == pytest.approx(1.2)


def test_pairs_are_interleaved_and_change_who_goes_first() -> None:
    order: list[str] = []

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value

    said: list[str] = []
    taken = pairs.interleave(3, lambda: measure("ours", 2.0), lambda: measure("bare", 1.0), said.append)
    assert order == ["ours", "bare", "bare", "ours", "ours", "bare"]
    assert taken.ours == (2.0,) * 3 and taken.bare == (1.0,) * 3
    assert len(said) == 3 and "ratio 2.000" in said[-1]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.0), (0.75, 3.0), (0.95, 4.0), (1.0, 4.0)])
def test_quantile_is_a_value_that_was_measured(share: float, expected: float) -> None:
    assert pairs.quantile([3.0, 1.0, 4.0, 2.0], share) == expected


def test_tables_have_a_rule_and_equal_rows() -> None:
    lines = pairs.markdown_table(["", "s"], [["a", "1"], ["b", "2"]]).splitlines()
    assert lines == ["|  | s |", "| - | -: |", "| a | 1 |", "| b | 2 |"]


def test_loop_summary_separates_the_loop_from_the_computation() -> None:
    run = load("loop/run")
    real = [{"whole": 0.2, "compute": 0.19, "all-reduce": 0.002, "data": 0.004} for _ in range(19)]
    real.append({"whole": 0.4, "compute": 0.2, "all-reduce": 0.0, "data": 0.2})
    bare = [{"whole": 0.19, "compute": 0.19}] * 20
    found = run.summarize(real, bare)
    assert found.step == pytest.approx(0.2)
    assert found.median == pytest.approx(0.05) and found.p95 == pytest.approx(0.05)
    assert found.data == pytest.approx(0.02) and found.all_reduce == pytest.approx(0.01)
    assert found.longer == pytest.approx(0.2 / 0.19 - 1)
    assert "5.0%" in run.table({"bf16": found})


def test_first_step_of_the_bare_script_holds_the_whole_batch_once(tiny: Path, no_assets: Path, tmp_path: Path) -> None:
    from tiny import make_recipe

    from lmrecipes.recipe import Recipe

    run = load("startup/run")
    recipe = Recipe.model_validate(make_recipe(tiny))
    work = run.first_step(recipe, run.CASES["zero2"], tmp_path)
    texts = [tuple(text) for rank in work["ranks"] for micro in rank for bucket in micro for text in bucket]
    assert len(work["ranks"]) == 2 and len(texts) == recipe.batch.examples
    assert Path(work["deepspeed"]).is_file() and all(Path(task["folder"]).is_dir() for task in work["tasks"])


def test_streaming_says_which_part_takes_too_much_memory() -> None:
    run = load("streaming/run")
    part = {"seconds": 2.0, "size": 30.0, "before": 100.0, "peak": 101.0, "mapped": 5.0, "opened": 0.5}
    results = dict.fromkeys(("encode", "prepare", "stream", "read"), part)
    assert run.too_much(results) == []
    large = part | {"peak": 101.0 + run.BOUNDS["stream"]}
    assert run.worst(large, part)["peak"] == large["peak"]
    (line,) = run.too_much(results | {"stream": large})
    assert line.startswith("stream took") and f"more than {run.BOUNDS['stream']:.0f}" in line
    rates = pairs.Pairs(ours=(9000.0, 7000.0, 8000.0), bare=(10.0, 30.0, 20.0))
    lines = run.table(1000, results, rates).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["500", "500", "8,000", "20"]


def test_streaming_reads_what_it_encoded(tmp_path: Path, no_assets: Path) -> None:
    measured = load("streaming/measured")
    assert measured.corpus(tmp_path, 5000)["size"] > 0
    assert measured.encode(tmp_path, 5000)["peak"] > 0
    assert measured.stream(tmp_path, 5000, 20)["seconds"] > 0
    task = measured.encoded(tmp_path)
    assert task.labels == tuple(sorted(measured.CLASSES)) and not any(task.duplicates.values())
    assert measured.prepare(tmp_path, 5000)["size"] > 0
    assert measured.read(tmp_path, 5000, 20)["seconds"] > 0


def test_measures_in_turn_change_who_goes_first() -> None:
    order: list[str] = []
    said: list[str] = []
    measures = {name: lambda name=name: float(order.append(name) or len(order)) for name in "abc"}
    taken = pairs.in_turn(2, measures, said.append)
    assert order == ["a", "b", "c", "c", "b", "a"]
    assert taken == {"a": (1.0, 6.0), "b": (2.0, 5.0), "c": (3.0, 4.0)}
    assert len(said) == 2 and "a 6, b 5, c 4" in said[-1]


def test_a_target_is_met_from_its_value_on() -> None:
    targets = [pairs.Target("fast", reached, 5) for reached in (4.99, 5.0)]
    assert [target.met for target in targets] == [False, True]
    assert [line.split(" | ")[-1] for line in pairs.targets_table(targets).splitlines()[2:]] == ["missed |", "met |"]


def test_largest_deviation_is_that_of_the_worst_prefix() -> None:
    workload = load("mixing/workload")
    sources = np.array([0, 0, 1, 1, 0, 1])
    assert workload.largest_deviation(sources, (0.5, 0.5)) == 1.0  # after the second sample
    assert workload.largest_deviation(sources, (0.5, 0.5), every=4) == 0.0
    assert workload.largest_deviation(sources, (0.5, 0.5), before=10, counts=(7, 3)) == 3.0
    assert workload.largest_deviation(np.zeros(100, int), (0.9, 0.1)) == pytest.approx(10)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 4))
def test_largest_deviation_agrees_with_counting(drawn: list[int], every: int) -> None:
    workload, weights = load("mixing/workload"), (0.5, 0.3, 0.2)
    prefixes = [drawn[:n] for n in range(every, len(drawn) + 1, every)]
    slow = max((abs(p.count(s) - w * len(p)) for p in prefixes for s, w in enumerate(weights)), default=0.0)
    assert workload.largest_deviation(np.array(drawn), weights, every) == pytest.approx(slow)


def test_token_error_weighs_samples_by_their_length() -> None:
    workload = load("mixing/workload")
    found = workload.token_error(np.array([0, 1, 0, 1]), np.array([30, 10, 10, 10]), (0.5, 0.5))
    assert found.share == pytest.approx(40 / 60 - 0.5) and found.tokens == 15.0


def test_a_workload_knows_its_rows_and_corrects_weights_by_length() -> None:
    workload = load("mixing/workload")
    work = workload.Workload((2, 3), (0.5, 0.5))
    assert work.sources(np.arange(5)).tolist() == [0, 0, 1, 1, 1]
    assert work.corrected(np.array([30, 30, 10, 10, 10])).weights == pytest.approx((0.25, 0.75))
    lengths = workload.lengths_of((20_000, 100), (50.0, 3.0), 200)
    assert lengths.min() >= 1 and lengths.max() == 200
    assert lengths[:20_000].mean() == pytest.approx(50, rel=0.05) and lengths[20_000:].mean() < 10
    assert sum(workload.many(7, 10).weights) == pytest.approx(1)


def test_batches_of_ranks_are_compared_as_sets() -> None:
    workload = load("mixing/workload")
    reference = [np.array([1, 2, 3, 4]), np.array([5, 6, 7, 8])]
    ranks = [[np.array([4, 2]), np.array([5, 6])], [np.array([1, 3]), np.array([7, 9])]]
    assert workload.same_batches(workload.union(ranks), reference) == 1


def test_our_global_batches_hold_the_rows_of_the_mixture_for_any_number_of_ranks_and_workers() -> None:
    workload, ours = load("mixing/workload"), load("mixing/with_lmrecipes")
    work = workload.Workload((50, 200, 700), (0.5, 0.3, 0.2))
    rows = ours.ids(ours.mixture(work), work, 3 * ours.BATCH).reshape(3, -1)
    for world, workers in ((1, 0), (2, 0), (4, 2)):
        ranks = ours.Stream(work).batches(3, world, workers)
        assert len(ranks) == world and {len(batch) for rank in ranks for batch in rank} == {ours.BATCH // world}
        assert workload.same_batches(workload.union(ranks), list(rows)) == 3


def test_token_shares_hold_where_corrected_weights_stray() -> None:
    workload, ours = load("mixing/workload"), load("mixing/with_lmrecipes")
    work = workload.Workload((500, 500), (0.7, 0.3))
    lengths = workload.lengths_of(work.rows, (200.0, 10.0), 2000)
    corrected = work.corrected(lengths)
    errors = [
        workload.token_error(work.sources(rows), lengths[rows], work.weights)
        for rows in (
            ours.ids(ours.token_mixture(work, lengths), work, 4000),
            ours.ids(ours.mixture(corrected), work, 4000),
        )
    ]
    assert errors[0].tokens < 2 * ours.BATCH * 200 and errors[0].share < errors[1].share


def test_trainer_steps_are_whole_rounds_of_its_sorting() -> None:
    trainer = load("training/trainer")
    assert trainer.steps_for(3200, 32, 19_000, grouped=True) == 100
    assert trainer.steps_for(3200, 128, 19_000, grouped=True) == 37  # 19,000 rows are four rounds of 37 batches
    assert trainer.steps_for(800, 8, 19_000, grouped=False) == 100
    assert trainer.steps_for(1, 32, 50, grouped=True) == 1


def test_our_speed_is_that_of_the_steps_after_the_warm_up() -> None:
    run = load("training/run")
    sides = sys.modules["sides"]
    seconds = [60.0] * sides.WARMUP + [1.0, 3.0]
    lines = [{"tokens/a": 100.0 * n, "time/step": s} for n, s in enumerate(seconds, 1)]
    found = sides.counted(lines)
    assert (found.tokens, found.seconds, found.steps, found.rate) == (200.0, 4.0, 2, 50.0)
    assert "| a | 40.0% |" in run.profile_table({"a": 0.4})


def test_one_task_of_a_recipe_is_left(tiny: Path) -> None:
    from tiny import make_recipe

    from lmrecipes.recipe import Recipe

    load("training/run")
    recipe = sys.modules["sides"].only(Recipe.model_validate(make_recipe(tiny)), "short")
    assert list(recipe.tasks) == ["short"] and recipe.tracking.wandb == "off"


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix products"), ("aten::mm", "matrix products"), ("aten::bmm", "attention"),
        ("aten::_softmax_backward_data", "attention"), ("aten::gelu_backward", "GELU, SiLU"),
        ("aten::native_layer_norm", "LayerNorm"), ("aten::_fused_adamw_", "optimizer"),
        ("aten::_foreach_norm", "clipping"), ("aten::copy_", "casts and copies"),
        ("aten::add_", "elementwise and sums"), ("AddmmBackward0", "other"),
    ],
)  # fmt: skip
def test_operations_of_a_step_are_told_apart(operation: str, kind: str) -> None:
    assert load("training/profiled").kind_of(operation) == kind


def test_shares_of_a_step_sum_to_one() -> None:
    found = load("training/profiled").shares([("aten::mm", 5.0), ("aten::addmm", 1.0), ("python", 9.0)], 1.0, 10.0)
    assert found["matrix products"] == pytest.approx(0.6) and found["data"] == pytest.approx(0.1)
    assert sum(found.values()) == pytest.approx(1) and found["other"] == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["startup", "loop", "streaming", "mixing", "training"])
def test_a_written_table_replaces_the_former_one(name: str, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((BENCHMARKS / name / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    write_results_into(readme, "| one |")
    write_results_into(readme, "| two |")
    text = readme.read_text(encoding="utf-8")
    assert "| two |" in text and "| one |" not in text


def tiny_gpt_recipe(folder: Path, **changes: Any) -> Recipe:
    """The tiny GPT on tasks of tokens alone."""
    from tiny_gpt import make_gpt_recipe

    content = make_gpt_recipe(folder, **changes)
    del content["tasks"]["topic"]
    return Recipe.model_validate(content)


@pytest.fixture
def stream(tiny_gpt: Path, no_assets: Path) -> Callable[[str], TrainingStream]:
    """The stream of the tiny GPT in a layout."""
    from lmrecipes.data.batches import Batcher
    from lmrecipes.data.encode import encode_tasks
    from lmrecipes.data.facts import mixture_of
    from lmrecipes.models.attention import Choice, arrangement
    from lmrecipes.planning.batch import plan_batch
    from lmrecipes.training.losses import head_specs, loss_scales

    def make(layout: str) -> TrainingStream:
        recipe = tiny_gpt_recipe(tiny_gpt, **{"batch.micro_examples": 8})
        tasks = encode_tasks(recipe)
        specs = head_specs(tasks)
        batcher = Batcher({name: task.train for name, task in tasks.items()}, specs)
        plan = plan_batch(recipe.batch.examples, recipe.batch.micro_examples, 1)
        cut = arrangement(recipe, Choice(layout), recipe.longest_text)
        return TrainingStream(
            batcher, loss_scales(recipe, specs), mixture_of(recipe, tasks), plan, cut, 0, recipe.loader
        )

    return make


@pytest.mark.parametrize("layout", ["packed", "buckets", "padded"])
def test_dumped_steps_hold_the_texts_and_what_of_them_carries_loss(stream: Any, layout: str) -> None:
    dumped, made = load("training/dumped"), stream(layout)
    wanted = sorted((text["input_ids"], text["labels"][1:]) for text in dumped.texts_of(made, 0))
    assert any(dumped.IGNORED in labels for _, labels in wanted), "the chat task leaves tokens out"
    micros, found = [dumped.rectangle(micro) for micro in made.step(0).micro_batches], []
    assert len(micros) == 2 and len({micro["scale"] for micro in micros}) == 1
    for micro in micros:
        for number in range(int(micro["documents"].max()) + 1):
            mine = micro["documents"] == number
            assert micro["positions"][mine].tolist() == list(range(int(mine.sum())))
            labels = micro["labels"][mine].tolist()
            assert labels.pop() == dumped.IGNORED, "the last token of a text predicts nothing"
            found.append((micro["ids"][mine].tolist(), labels))
        assert (micro["labels"][micro["documents"] < 0] == dumped.IGNORED).all()
    assert sorted(found) == wanted
    step = made.step(0)
    assert dumped.tokens_of(step) == sum(len(ids) for ids, _ in wanted) <= dumped.positions_of(step)


def test_a_loop_by_hand_and_sft_trainer_take_the_same_steps_as_ours(
    tiny_gpt: Path, no_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chat = load("training/gpt_chat")
    mixture, turns = sys.modules["gpt_mixture"], sys.modules["turns"]
    recipe, said, steps = chat.plain_mean(mixture.quiet(tiny_gpt_recipe(tiny_gpt))), list[str](), 3
    starts = {name: partial(mixture.bare_side, recipe, tmp_path, name) for name in (mixture.BARE, mixture.EAGER)}
    starts[mixture.PLAIN] = partial(mixture.bare_side, recipe, tmp_path, mixture.PLAIN)
    if find_spec("trl") is not None:
        starts |= {name: partial(chat.trl_side, recipe, tmp_path, name) for name in chat.SAME}
    with mixture.our_side(recipe, tmp_path, steps) as ours:
        turns.warm_up("ours", ours, 1, said.append)
        for name, begin in starts.items():
            with begin() as side:
                turns.warm_up(name, side, 1, said.append)
                while len(ours.taken) < steps:
                    ours.step()
                side.step(), side.step()
                far = turns.largest_difference(ours.taken, side.taken)
                assert far > 0.01 if name == mixture.PLAIN else far < 1e-4, (name, far)
                with pytest.raises(RuntimeError, match="ended"):
                    side.step()
    assert ours.taken[-1].loss < ours.taken[0].loss and min(step.seconds for step in ours.taken) > 0


def test_rounds_compare_tokens_a_second_and_tell_padding() -> None:
    load("training/gpt_mixture")
    turns = sys.modules["turns"]
    quick, slow = turns.Taken(90, 100, 2.0, 1.0, 5), turns.Taken(90, 120, 2.5, 3.0, 9)
    rounds = turns.Rounds({"a": [[quick, quick], [quick, slow]], "b": [[slow, slow], [slow, slow]]})
    assert rounds.rates("a") == (90.0, 45.0) and rounds.rates("b") == (30.0, 30.0)
    assert rounds.padding("b") == pytest.approx(0.25) and rounds.peak("a") == 9 and rounds.seconds("a") == 1.0
    assert turns.largest_difference([quick], [slow]) == 0.5
    with pytest.raises(ValueError, match="same texts"):
        turns.largest_difference([quick], [turns.Taken(91, 100, 2.0, 1.0)])


def test_turns_change_who_goes_first_and_leave_the_warm_up_out() -> None:
    load("training/gpt_mixture")
    turns, order, said = sys.modules["turns"], list[str](), list[str]()

    class Scripted:
        def __init__(self, name: str) -> None:
            self.name = name

        def step(self) -> Any:
            order.append(self.name)
            return turns.Taken(10, 10, 1.0, 2.0)

    sides = {name: Scripted(name) for name in "ab"}
    turns.warm_up("a", sides["a"], 2, said.append)
    rounds = turns.take_turns(sides, 2, 1, said.append)
    assert order == ["a", "a", "a", "b", "b", "a"]
    assert len(rounds.steps("a")) == len(rounds.steps("b")) == 2


def test_gpt_tables_judge_by_the_faster_loop_that_computes_the_same(tiny_gpt: Path) -> None:
    chat = load("training/gpt_chat")
    mixture, turns = sys.modules["gpt_mixture"], sys.modules["turns"]

    def at(rate: int) -> list[list[Any]]:
        return [[turns.Taken(rate, rate, 1.0, 1.0)]] * 3

    rates = {mixture.OURS: 100, mixture.BARE: 90, mixture.EAGER: 95, mixture.PLAIN: 200}
    rounds = turns.Rounds({name: at(rate) for name, rate in rates.items()})
    text, (target,) = mixture.report(rounds, dict.fromkeys(rates, 0.001))
    assert target.reached == pytest.approx(100 / 95) and target.met and "eager" in target.what
    assert len(text.splitlines()) == 8
    recipe, rates = tiny_gpt_recipe(tiny_gpt), {chat.OURS: 100, chat.DEFAULTS: 50, chat.PLAIN: 80}
    rounds = turns.Rounds({name: at(rate) for name, rate in rates.items()})
    _, targets = chat.report(recipe, 8, rounds, {chat.PLAIN: 0.0})
    assert [target.met for target in targets] == [True, False]
    savers = load("training/memory_savers")
    variants = savers.variants(recipe, 4)
    assert [(one.model.lora.rank, one.model.activation_checkpointing) for one in variants.values()] == [
        (0, False), (0, True), (4, False), (4, True),
    ]  # fmt: skip
    rounds = turns.Rounds({name: at(100 if name == savers.FULL else 50) for name in variants})
    assert "| 2.00 |" in savers.table(rounds).splitlines()[-1]


@pytest.mark.parametrize("name", ["defaults", "no checkpointing", "grouped", "packed", "wrapped"])
def test_sft_trainer_takes_as_many_conversations_a_step_as_we_do(tiny_gpt: Path, name: str) -> None:
    chat, recipe = load("training/gpt_chat"), tiny_gpt_recipe(tiny_gpt)
    found = chat.arguments(recipe, name, 8)
    step = found["per_device_train_batch_size"] * found["gradient_accumulation_steps"]
    assert step == (8 if "packing" in found else recipe.batch.examples)
    assert chat.arguments(recipe, name, 99)["per_device_train_batch_size"] <= recipe.batch.examples
    assert ("gradient_checkpointing" in found) == (name != "defaults")


def test_what_is_as_long_as_the_vocabulary_belongs_to_the_head() -> None:
    profiled = load("training/profiled")
    event = SimpleNamespace(key="aten::mm", input_shapes=[[8, 4], [4, 320], []])
    assert profiled.name_of(event, 320) == profiled.HEAD == profiled.kind_of(profiled.HEAD)
    assert profiled.name_of(event, None) == profiled.name_of(event, 321) == "aten::mm"


@pytest.mark.parametrize("block", ["gpt_mixture", "gpt_chat", "memory_savers", "loss memory"])
def test_the_page_on_training_has_a_place_for_each_table(block: str, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((BENCHMARKS / "training" / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    write_results_into(readme, "| one |", block)
    assert f"<!-- {block} -->\n| one |\n" in readme.read_text(encoding="utf-8")
