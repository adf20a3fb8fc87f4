"""The results of a run beside its baselines: as a table for terminals and as Markdown for READMEs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lmrecipes.files import write_text_atomically
from lmrecipes.problems import InputError, Problem

Evaluation = Mapping[str, Any]
"""The content of `evaluation.json`."""


@dataclass(frozen=True)
class Result:
    """One metric of one task: what the run reached and what each baseline reached (None: not measured)."""

    task: str
    kind: str
    metric: str
    ours: float | None
    baselines: tuple[float | None, ...]
    rows: int | None

    @property
    def best(self) -> int | None:
        """Who is best: 0 is the run, 1 the first baseline and so on. None where there is nothing to compare."""
        values = [self.ours, *self.baselines]
        known = [(value, at) for at, value in enumerate(values) if value is not None]
        if len(known) < 2:
            return None
        sign = -1 if lower_is_better(self.metric) else 1
        return max(known, key=lambda pair: (sign * pair[0], -pair[1]))[1]


@dataclass(frozen=True)
class Baseline:
    """A model that the run is compared with, when it was measured, and what more must be said of it."""

    name: str
    title: str
    origin: str
    note: str = ""


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of this metric is the better one."""
    return metric.endswith(("error", "loss", "perplexity", "bits_per_byte"))


def baselines_of(evaluation: Evaluation) -> list[Baseline]:
    """The baselines in their order."""
    found = []
    for name, baseline in (evaluation.get("baselines") or {}).items():
        words = [str(baseline[key]) for key in ("measured", "date") if baseline.get(key)]
        origin, note = ", ".join(words) or "date unknown", str(baseline.get("note") or "")
        found.append(Baseline(name, str(baseline.get("title") or name), origin, note))
    return found


def results_of(evaluation: Evaluation, headline_only: bool = True) -> list[Result]:
    """One result per task (its headline metric), or one per metric of each task, headline first."""
    baselines = (evaluation.get("baselines") or {}).values()
    results = []
    for task, scores in (evaluation.get("tasks") or {}).items():
        metrics = scores.get("metrics") or {}
        headline = scores.get("headline") or next(iter(metrics), "")
        others = [] if headline_only else [name for name in metrics if name != headline]
        for metric in (headline, *others):
            theirs = tuple((((b.get("tasks") or {}).get(task)) or {}).get(metric) for b in baselines)
            results.append(
                Result(task, scores.get("kind", ""), metric, metrics.get(metric), theirs, scores.get("rows"))
            )
    return results


def number(value: float | None) -> str:
    """A metric for people: three decimals, fewer where it is large; a dash where it is missing."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash, as it is set in tables
    if abs(value) < 100:
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.3g}"


def words(name: str) -> str:
    """`macro_f1` -> `macro F1`: a metric's or a kind's name as a person writes it."""
    return name.replace("_", " ").replace("f1", "F1")


def results_table(evaluation: Evaluation) -> Table:
    """One row per task for a terminal; the best value of a row is bold."""
    baselines = baselines_of(evaluation)
    title, caption = Text(_title(evaluation)), Text(_origins(baselines))  # Text: no markup in names
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for header in ("task", "metric"):
        table.add_column(header, no_wrap=True)
    for header in ("this run", *(baseline.title for baseline in baselines), "rows"):
        table.add_column(header, justify="right")
    for result in results_of(evaluation):
        values = [
            Text(number(value), style="bold" if at == result.best else "")
            for at, value in enumerate((result.ours, *result.baselines))
        ]
        head = (Text(word) for word in (result.task, words(result.metric)))
        table.add_row(*head, *values, "" if result.rows is None else f"{result.rows:,}")
    return table


def markdown_results(evaluation: Evaluation, environment: Mapping[str, Any] | None = None) -> str:
    """The same as a Markdown table, and a line that says what it was measured on.

    environment: the content of `environment.json`; adds the hardware.
    """
    baselines = baselines_of(evaluation)
    headers = ["task", "kind", "metric", "this run", *(baseline.title for baseline in baselines), "rows"]
    lines = [markdown_row(headers), "|" + "-|" * 3 + "-:|" * (len(headers) - 3)]
    for result in results_of(evaluation):
        values = [
            f"**{number(value)}**" if at == result.best else number(value)
            for at, value in enumerate((result.ours, *result.baselines))
        ]
        rows = "" if result.rows is None else f"{result.rows:,}"
        lines.append(markdown_row([f"`{result.task}`", words(result.kind), words(result.metric), *values, rows]))
    notes = [_title(evaluation), hardware(environment or {}), _origins(baselines)]
    return "\n".join(lines) + "\n\n" + " ".join(f"{note}." for note in notes if note) + "\n"


def write_results_into(readme: Path, text: str, name: str = "results") -> None:
    """Put `text` between the markers `<!-- NAME -->` and `<!-- /NAME -->` of a README.

    Raises InputError where the file or one of the markers is missing, or where they are not one pair in this order.
    """
    before, after = place_in(readme, name)
    write_text_atomically(readme, f"{before}\n{text.strip()}\n{after}")


def has_place(readme: Path, name: str) -> bool:
    """Whether a README has a place for the text `name`."""
    return readme.is_file() and f"<!-- {name} -->" in readme.read_text(encoding="utf-8")


def place_in(readme: Path, name: str) -> tuple[str, str]:
    """What stands before and after the place of a text in a README, markers included. Raises InputError as above."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if not readme.is_file():
        raise InputError(
            Problem(str(readme), "there is no such file", f"make it, with {begin} and {end} in it", "readme")
        )
    page = readme.read_text(encoding="utf-8")
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed) or page.count(begin) != 1 or page.count(end) != 1:
        what = f"needs one {begin} and after it one {end}; found {page.count(begin)} and {page.count(end)}"
        raise InputError(Problem(str(readme), what, "put one pair where the table belongs", "readme"))
    return before + begin, end + after


def hardware(environment: Mapping[str, Any]) -> str:
    """`2 x NVIDIA H100, ZeRO 2, bf16`, from `environment.json`."""
    device = environment.get("device") or ""
    if device == "cpu" and environment.get("cpu"):
        device = f"cpu ({environment['cpu']})"
    world_size = environment.get("world_size") or 1
    parts = [f"{world_size} x {device}" if device and world_size > 1 else device]
    if environment.get("zero") is not None:
        parts.append(f"ZeRO {environment['zero']}")
    parts.append(environment.get("precision") or "")
    return ", ".join(str(part) for part in parts if part)


def _title(evaluation: Evaluation) -> str:
    seconds = evaluation.get("seconds_of_training")
    parts = [
        str(evaluation.get("run", "")),
        f"{evaluation.get('split', 'test')} split",
        f"after step {evaluation['step']:,}" if evaluation.get("step") is not None else "",
        f"{duration(seconds)} of training" if seconds is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """118.2 -> `1 min 58 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _origins(baselines: list[Baseline]) -> str:
    notes = (f" ({baseline.note})" if baseline.note else "" for baseline in baselines)
    return "; ".join(f"{one.title}{note}: {one.origin}" for one, note in zip(baselines, notes, strict=True))


def markdown_row(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
