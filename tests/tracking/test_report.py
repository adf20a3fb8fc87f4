"""The report: complete, self-contained, and never an exception for a run that is still going."""

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up_run import EVERY, KINDS, STEPS, TEXTS, make_language_run, make_recipe, make_run

from lmrecipes.problems import InputError
from lmrecipes.tracking.charts import Track, groups_of, smoothed, thin
from lmrecipes.tracking.record import read_metrics
from lmrecipes.tracking.report import write_report
from lmrecipes.tracking.run_record import read_run
from lmrecipes.tracking.samples import Sample, SamplesFile

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Text of the page by section, its charts' data, and every address that it refers to."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.plots = 0
        self.data: list[dict[str, Any]] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.stack == [], "every element is closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.stack.append(tag)
        values = dict(attributes)
        self.addresses += [value for name, value in values.items() if name in ("src", "href", "action") and value]
        self.plots += values.get("class") == "plot"

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.stack and self.stack[-1] == "script":
            if text.startswith("["):
                self.data = json.loads(text)
        elif self.stack and self.stack[-1] != "style":
            self.text += text
            if self.stack[-1] in ("h2", "h1"):
                self.headings.append(text)


def section_of(page: Path, title: str) -> str:
    """The text of one section."""
    (content,) = re.findall(rf"<section><h2>{title}</h2>(.*?)</section>", page.read_text(), re.S)
    return unescape(re.sub(r"<[^>]*>", "", content))


def changed_run(finished_run: Path, to: Path, **changes: Any) -> Path:
    """A copy of a run with other recipe fields."""
    shutil.copytree(finished_run, to)
    recipe = yaml.safe_load((to / "recipe.yaml").read_text()) | changes
    (to / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return to


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests must not change it."""
    return make_run(tmp_path_factory.mktemp("runs") / "bert_multitask-20261122-101530")


@pytest.fixture(scope="module")
def page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    target = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report([finished_run], target) == target
    return Page(target)


def test_results_come_first_and_name_the_baselines_with_their_date(page: Page, finished_run: Path) -> None:
    assert page.headings[:2] == [finished_run.name, "Results"]
    assert page.headings[-2:] == ["Environment", "Recipe"]
    for expected in ("0.772", "0.701", "0.861", "TF-IDF + linear", "stored, 2026-11-22", "1 min 58 s", "1,312"):
        assert expected in page.text
    for words in ("mean squared error", "balanced accuracy", "average precision"):
        assert words in page.text


def test_the_exact_command_and_the_environment_are_there(page: Page, finished_run: Path) -> None:
    environment = json.loads((finished_run / "environment.json").read_text())
    assert environment["command"] in page.text
    for value in (environment["commit"], environment["cpu"], environment["versions"]["deepspeed"]):
        assert value in page.text
    assert (finished_run / "recipe.yaml").read_text() in page.text


def test_the_page_refers_to_nothing_outside(page: Page, finished_run: Path, tmp_path: Path) -> None:
    assert page.addresses == []
    html = write_report([finished_run], tmp_path / "report.html").read_text()
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    assert html.count("plotly.js v") == 1, "inlined once"


def test_every_metric_of_the_record_is_drawn(page: Page, finished_run: Path) -> None:
    record = read_metrics(finished_run / "metrics.jsonl")
    keys = {key for row in record for key in row} - {"step"}
    lines = [line for chart in page.data for line in chart["lines"]]
    for key in keys:
        steps = [row["step"] for row in record if row.get(key) is not None]
        values = pytest.approx([row[key] for row in record if row.get(key) is not None], rel=1e-4)
        assert any(line["x"] == steps and line["y"] == values for line in lines), key
    assert page.plots == len(page.data)


def test_the_mixture_is_planned_asked_for_and_realised(page: Page, finished_run: Path) -> None:
    assert "Mixture, planned and realised" in page.headings
    text = page.text.partition("Mixture, planned and realised")[2]
    assert text.startswith("What was drawn was never as much as one example away from what the weights ask for (")
    assert "Share of examplesasked for" in text
    for words in ("party31.25%31.25%6,0006,000366,000366,0004.054.051,480", "valence18.75%18.75%3,6003,600"):
        assert words in text
    assert "Share of examples by task; dashed: target" in page.text
    assert "Share in force by task; by which each step is drawn" in page.text
    assert "Loss factor by task" in page.text


def test_the_mixtures_unit_is_named_and_its_deviation_measured(finished_run: Path, tmp_path: Path) -> None:
    run = changed_run(finished_run, tmp_path / "run", mixture={"unit": "tokens", "adaptive": {"method": "odm"}})
    lines = (run / "metrics.jsonl").read_text().splitlines()[:120]
    rows = [json.loads(line) for line in lines]
    rows[49]["share/hpo"] = rows[49]["target_share/hpo"] + 0.01
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = Page(write_report([run], tmp_path / "report.html")).text
    tokens = 0.01 * sum(rows[49][f"tokens/{task}"] for task in KINDS)
    assert f"never more than {tokens:,.1f} tokens away from what the weights ask for (hpo, step 50)" in text
    assert "Share of tokens by task; dashed: target" in text
    assert "The plan is of all 300 steps, of which 120 are done." in text
    assert "weights of the start, which odm then changed" in text
    both = Page(write_report([finished_run, run], tmp_path / "both.html")).text
    assert "Share, in each run's own unit" in both
    assert "Each run" in both


def test_a_run_without_a_plan_on_record(finished_run: Path, tmp_path: Path) -> None:
    run = changed_run(finished_run, tmp_path / "run")
    (run / "mixture.json").unlink()
    text = Page(write_report([run], tmp_path / "report.html")).text
    assert "holds no mixture.json" in text
    assert "valence18.75%18.75%3,60082,800" in text
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert "planned and realised" not in Page(write_report([run], tmp_path / "report.html")).text


def test_a_task_has_one_colour_everywhere(page: Page) -> None:
    series: dict[str, set[int]] = {task: set() for task in KINDS}
    for chart in page.data:
        for line in chart["lines"]:
            if (task := line["name"].split(",")[0]) in series:
                series[task].add(line["series"])
    assert series == {task: {at} for at, task in enumerate(KINDS)}


def test_runs_are_compared_and_their_differences_named(finished_run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "bert_multitask-20261122-120000", lr=1e-4, better_by=-0.03)
    going = make_run(tmp_path / "bert_multitask-20261122-130000", done=180, finished=False)
    page = Page(write_report([finished_run, other, going], tmp_path / "report.html"))
    assert page.headings[:3] == ["3 runs compared", "Results", "What differs"]
    assert "optimizer.lr" in page.text and "not finished" in page.text and "step 180 of 300" in page.text
    assert {line["series"] for chart in page.data for line in chart["lines"]} == {0, 1, 2}
    assert "101530" in {line["name"] for chart in page.data for line in chart["lines"]}, "without the common words"
    for name in (finished_run.name, other.name, going.name):
        assert name in page.text


def test_runs_of_different_tasks_and_of_the_same_name(finished_run: Path, tmp_path: Path) -> None:
    tasks = {"other": {"kind": "regression", "source": {"files": "x.jsonl"}}}
    other = changed_run(finished_run, tmp_path / finished_run.name, tasks=tasks)
    (other / "evaluation.json").unlink()
    page = Page(write_report([finished_run, other], tmp_path / "report.html"))
    assert f"{finished_run.name} (2)" in page.text
    assert "tasks.other.kind" in page.text


@pytest.mark.parametrize("missing", [["evaluation.json"], ["environment.json"], ["metrics.jsonl"], "all"])
def test_what_is_not_written_yet_is_shown_as_missing(finished_run: Path, tmp_path: Path, missing: Any) -> None:
    run = changed_run(finished_run, tmp_path / "run")
    names = ["evaluation.json", "environment.json", "metrics.jsonl"] if missing == "all" else missing
    for name in names:
        (run / name).unlink()
    page = Page(write_report([run], tmp_path / "report.html"))
    told = {
        "evaluation.json": "There is no final evaluation yet",
        "environment.json": "environment.json is not written yet",
        "metrics.jsonl": "No step is on record yet",
    }
    assert {name for name, words in told.items() if words in page.text} == set(names)
    assert Page(write_report([finished_run, run], tmp_path / "both.html")).plots > 0


def test_a_run_without_baselines_and_with_null_metrics(finished_run: Path, tmp_path: Path) -> None:
    run = changed_run(finished_run, tmp_path / "run")
    evaluation = json.loads((run / "evaluation.json").read_text())
    del evaluation["baselines"]
    evaluation["tasks"]["valence"]["metrics"]["spearman"] = None
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    page = Page(write_report([run], tmp_path / "report.html"))
    assert "TF-IDF" not in page.text
    assert Page(write_report([run, finished_run], tmp_path / "both.html")).text.count("TF-IDF") > 0


def test_a_torn_last_line_of_a_run_that_is_going_is_left_out(finished_run: Path, tmp_path: Path) -> None:
    run = changed_run(finished_run, tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 301, "lo')
    write_report([run], tmp_path / "report.html")
    assert read_run(run).step == STEPS


def test_folders_that_are_no_runs_are_all_named(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = changed_run(finished_run, tmp_path / "broken")
    (broken / "evaluation.json").write_text("{")
    with pytest.raises(InputError) as caught:
        write_report([finished_run, tmp_path / "empty", tmp_path / "none", broken], tmp_path / "report.html")
    assert len(caught.value.problems) == 3
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(InputError):
        write_report([], tmp_path / "report.html")
    (broken / "recipe.yaml").write_text("just text")
    with pytest.raises(InputError, match="no recipe"):
        read_run(broken)
    (broken / "recipe.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not YAML"):
        read_run(broken)


@pytest.fixture(scope="module")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of tasks of tokens and one with labels; tests must not change it."""
    return make_language_run(tmp_path_factory.mktemp("runs") / "gpt_mixture-20261122-101530")


def test_what_training_changed_is_said_in_percent(language_run: Path, tmp_path: Path) -> None:
    page = Page(write_report([language_run], tmp_path / "report.html"))
    assert page.headings[1:3] == ["Results", "What training changed"]
    text = section_of(tmp_path / "report.html", "What training changed")
    for words in (
        "speeches24.81 → 17.92\N{MINUS SIGN}27.8%0.941 → 0.846\N{MINUS SIGN}10.1%0.402 → 0.451+12.2%",
        "scripture38.20 → 14.03\N{MINUS SIGN}63.3%",
    ):
        assert words in text
    assert "party" not in text, "its label is not of tokens; before and after stand in the results"
    assert "17.92▲ 6.89024.81" in page.text, "lower is better: the fall is the gain"


def test_worse_is_red_and_unchanged_is_neither(language_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(language_run, run)
    evaluation = json.loads((run / "evaluation.json").read_text())
    start = evaluation["baselines"]["start"]["tasks"]
    start["speeches"] = {"perplexity": 10.0, "bits_per_byte": 0.8461, "token_accuracy": 0.9}
    start["scripture"] = {"perplexity": None}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    path = write_report([run], tmp_path / "report.html")
    for cell in ('"down">+79.2%', '"">+0.0%', '"down">\N{MINUS SIGN}49.9%'):
        assert cell in path.read_text()
    text = section_of(path, "What training changed")
    assert "scripture" not in text, "it is not known what a perplexity of null fell from"
    del evaluation["baselines"]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert "What training changed" not in Page(write_report([run], tmp_path / "report.html")).headings


def test_samples_show_how_a_continuation_came_about(language_run: Path, tmp_path: Path) -> None:
    path = write_report([language_run], tmp_path / "report.html")
    page = Page(path)
    assert page.headings.index("Samples") < page.headings.index("Mixture, planned and realised")
    text = page.text.partition("Samples")[2]
    assert "steps 0 to 150great importance to the country. The country issteps 175 to 300decision so far-" in text
    assert "<|im_start|>assistantthe text2\n3\n5steps 0 to 150nothing" in text
    assert "decree <b>from</b> the king" in text and "<b>from" not in path.read_text()
    folded = re.findall(r'<details class="long"><summary>(.*?)</summary>(.*?)</details>', path.read_text(), re.S)
    assert [len(part) - len(whole) < 0 for part, whole in folded] == [True, True]
    assert folded[0][0].startswith("… ") and folded[0][0].endswith("Today"), "of a prompt the end"
    assert folded[1][0].startswith("the work") and folded[1][0].endswith(" …")


def test_many_samples_are_folded_and_many_changes_thinned(language_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(language_run, run)
    with SamplesFile(run / "samples.jsonl") as file:
        for step in range(1, 101):
            file.write([Sample(step, "scripture", f"prompt {n}", f"{step}:{n}", "reference") for n in range(5)])
    page = Page(write_report([run], tmp_path / "report.html"))
    text = page.text.partition("Samples")[2]
    assert "2 more" in text and text.index("2 more") < text.index("prompt 3")
    steps = [int(step) for step in re.findall(r"step (\d+)\1:0", text)]
    assert len(steps) == 8 and (steps[0], steps[-1]) == (1, 100)


def test_samples_of_several_runs_stand_together(language_run: Path, tmp_path: Path) -> None:
    other = make_language_run(tmp_path / "gpt_mixture-20261122-111530", better_by=-1.0)
    page = Page(write_report([language_run, other], tmp_path / "report.html"))
    samples = page.text.partition("Samples")[2]
    assert "Augustus101530, step 300decree <b>from</b> the king111530, step 300decree" in samples
    changes = page.text.partition("What training changed")[2]
    assert "speeches10153024.81 → 17.92" in changes and "speeches11153024.81 → 16.92" in changes


def test_perplexities_have_charts_of_their_own(language_run: Path) -> None:
    record = read_metrics(language_run / "metrics.jsonl")
    tasks = [*TEXTS, "party"]
    headlines = {**dict.fromkeys(TEXTS, "perplexity"), "party": "accuracy"}
    for tracks, titles, folded in (
        (1, ["Headline metric of each task", "Perplexity", "Bits per byte"], ["Accuracy", "Macro F1"]),
        (2, ["Perplexity, speeches", "Bits per byte, speeches"], ["Token accuracy, speeches"]),
    ):
        groups = groups_of([Track(f"run {at}", record) for at in range(tracks)], tasks, headlines)
        (evaluation,) = [group for group in groups if group.title == "Evaluation"]
        shown = [chart.title for chart in evaluation.charts]
        assert [title for title in shown if title in titles] == titles
        assert [chart.title for chart in evaluation.more][: len(folded)] == folded
        if tracks == 1:
            assert [[line.name for line in chart.lines] for chart in evaluation.charts] == [
                ["party, accuracy"],
                *([f"{task}, {words}" for task in TEXTS] for words in ("perplexity", "bits per byte")),
            ]
            assert evaluation.charts[1].lines[0].x == list(range(EVERY, STEPS + 1, EVERY))


@pytest.mark.parametrize(("first", "log"), [(100.0, False), (50_000.0, True)])
def test_a_perplexity_that_falls_far_is_drawn_on_a_logarithmic_axis(first: float, log: bool) -> None:
    record = [
        {"step": step, "eval/a/perplexity": first / step, "eval/a/bits_per_byte": first / step} for step in (1, 9)
    ]
    record.append({"step": 90, "eval/a/perplexity": 10.0 if not log else 90.0, "eval/a/bits_per_byte": 1.0})
    (group,) = groups_of([Track("run", record)], ["a"], {"a": "perplexity"})
    assert [chart.log for chart in group.charts] == [log, False]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"pretrained": "smollm2"}, "toy, smollm2"),
        ({"pretrained": "smollm2", "lora": {"rank": 8}}, "toy, smollm2, LoRA of rank 8"),
        ({"pretrained": "smollm2", "initialization": "scratch"}, "toy, smollm2 from random weights"),
        ({"pretrained": "minilm", "config": {"model_type": "llama"}}, "toy, llama from random weights"),
    ],
)
def test_the_header_says_what_was_trained(finished_run: Path, tmp_path: Path, model: dict[str, Any], said: str) -> None:
    run = changed_run(finished_run, tmp_path / "run", model=model, name="toy")
    assert said + ", 2 x cpu" in Page(write_report([run], tmp_path / "report.html")).text


def test_the_scale_from_0_to_1_is_left_out_where_nothing_lies_on_it(language_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(language_run, run)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert ">0 to 1<" in write_report([run], tmp_path / "report.html").read_text()
    del evaluation["tasks"]["party"]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert ">0 to 1<" not in write_report([run], tmp_path / "report.html").read_text()


def test_names_from_files_cannot_change_the_page(finished_run: Path, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><b>&"
    run = changed_run(finished_run, tmp_path / "run", description=evil, name=evil)
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["tasks"]["valence"]["kind"] = evil
    evaluation["baselines"]["scratch"]["title"] = evil
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 301, f"eval/valence/{evil.replace('/', '')}": 1.0}) + "\n")
    html = write_report([run], tmp_path / "report.html").read_text()
    assert "alert(1)</script><b>" not in html
    assert evil in Page(tmp_path / "report.html").text


def test_long_lines_are_thinned_without_losing_peaks() -> None:
    x = list(range(100_000))
    y = [0.0] * len(x)
    y[54_321] = 7.0
    y[12_345] = -3.0
    few_x, few_y = thin(x, y)
    assert len(few_x) <= 1500 and max(few_y) == 7.0 and min(few_y) == -3.0
    assert few_x == sorted(few_x) and few_x[0] == 0
    assert thin([1, 2], [0.123456789, 1]) == ([1, 2], [0.12346, 1])


def test_smoothing_keeps_a_constant_and_follows_a_step() -> None:
    assert smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    line = smoothed([1.0] * 50 + [0.0] * 50)
    assert line[:50] == pytest.approx([1.0] * 50) and line[-1] < 1e-3
    assert smoothed([]) == []


def test_charts_of_an_empty_record_are_none() -> None:
    assert groups_of([Track("run", [])], ["valence"], {"valence": "spearman"}) == []
    assert groups_of([Track("run", [{"step": 1, "loss": None}])], ["valence"], {"valence": "spearman"}) == []


def test_the_fixture_is_a_recipe_that_the_project_accepts() -> None:
    assert set(make_recipe().tasks) == set(KINDS)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_draws_every_chart(finished_run: Path, tmp_path: Path) -> None:
    report = write_report([finished_run], tmp_path / "report.html")
    text = report.read_text().replace("<details>", "<details open>")
    report.write_text(text)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += [
        "--disable-component-update",
        "--disable-sync",
        "--virtual-time-budget=20000",
        "--enable-logging=stderr",
    ]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run(
        [str(CHROMIUM), *options, "--dump-dom", report.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    drawn = re.findall(r'class="plot js-plotly-plot" data-chart="(\d+)"', done.stdout)
    assert len(drawn) == len(set(drawn)) == text.count('class="plot"')
