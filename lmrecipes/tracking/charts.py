"""What the report draws: lines made of the record, without knowing how they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Style = Literal["line", "raw", "target", "points"]
Points = tuple[list[int], list[float]]

NEUTRAL = -1
"""Series of a line that belongs to no task and no run: it has the colour of the text."""
MOST_POINTS = 1500
"""Points of one line in the page; longer ones are thinned, about two for each pixel of a wide chart."""
OF_TOKENS = ("perplexity", "bits_per_byte")
"""Metrics that are always shown, and each in its own chart: they have no common scale with others."""
LOGARITHMIC = 20
"""A perplexity that falls by this factor or more is drawn on a logarithmic axis."""
SMOOTHING = 30
"""The smoothed line averages over about this fraction of the run (1/30), at least 5 steps."""


@dataclass(frozen=True)
class Line:
    """One line. series: number of the task or run, gives the colour; style: "raw" is faint, "target" dashed."""

    name: str
    series: int
    x: list[int]
    y: list[float]
    style: Style = "line"


@dataclass(frozen=True)
class Chart:
    """One chart; its title, note and legend are set as text around it."""

    title: str
    lines: list[Line]
    note: str = ""
    percent: bool = False
    from_zero: bool = False
    log: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, for the page's script."""
        look = {"percent": self.percent, "from_zero": self.from_zero, "log": self.log}
        return {**look, "lines": [asdict(line) for line in self.lines]}


@dataclass(frozen=True)
class Group:
    """Charts under one heading. more: further ones that are folded away under `more_title`."""

    title: str
    note: str
    charts: list[Chart]
    more: list[Chart] = field(default_factory=list)
    more_title: str = "All metrics"


@dataclass(frozen=True)
class Track:
    """The record of one run: its name, the lines of its metrics.jsonl, and what shares of its mixture count."""

    name: str
    metrics: Sequence[Mapping[str, Any]]
    unit: str = "examples"

    def points(self, key: str) -> Points:
        """Steps and values of a metric, without the lines in which it is missing or null."""
        found = [(row["step"], row[key]) for row in self.metrics if row.get(key) is not None and "step" in row]
        return [step for step, _ in found], [value for _, value in found]


def groups_of(tracks: Sequence[Track], tasks: Sequence[str], headlines: Mapping[str, str]) -> list[Group]:
    """All charts of the report. One run: a chart compares its tasks. Several runs: a chart compares the runs."""
    compare = _Comparison(tracks, tasks)
    units = {track.unit for track in tracks}
    share = f"Share of {_words(units.pop())}" if len(units) == 1 else "Share, in each run's own unit"
    loss = compare.overall("loss", "Loss", "all tasks together", smooth=True)
    task_loss = compare.by_task("loss/{task}", "Loss", smooth=True)
    metrics = compare.evaluations(headlines)
    seen = [
        *compare.by_task("tokens/{task}", "Tokens seen", from_zero=True),
        *compare.by_task("examples/{task}", "Examples seen", from_zero=True),
    ]
    # Of several runs this is two charts for each task, which mostly look the same.
    shown, folded = (seen, []) if compare.single else ([], seen)
    groups = [
        Group(
            "Learning",
            "Every chart is over the optimizer steps. Faint: each logged step; strong: smoothed.",
            [*loss, *task_loss],
        ),
        Group("Evaluation", "On the validation split.", metrics.charts, metrics.more),
        Group(
            "Optimizer",
            "",
            [
                *compare.overall("lr", "Learning rate", "of the trunk"),
                *compare.overall("grad_norm", "Gradient norm", "before clipping", smooth=True),
                *compare.overall("loss_scale", "Loss scale", "fp16"),
            ],
        ),
        Group(
            "Mixture",
            "What the model has really seen, from the start of the run to each step; padding is not counted.",
            [
                *compare.by_task("share/{task}", share, target="target_share/{task}", percent=True),
                *compare.by_task("weight/{task}", "Share in force", percent=True, note="by which each step is drawn"),
                *compare.by_task("loss_factor/{task}", "Loss factor", from_zero=True),
                *shown,
            ],
            folded,
            "Tokens and examples seen",
        ),
        Group(
            "Speed",
            "",
            [
                *compare.overall("tokens_per_second", "Tokens per second", "padding not counted", True, from_zero=True),
                *compare.overall("time/step", "Seconds per step", "", True, from_zero=True),
                *compare.overall("time/data", "Seconds waiting for data", "part of each step", True, from_zero=True),
                *compare.overall("model_flops_utilization", "Model FLOPs utilization", "", True, percent=True),
                *compare.overall("memory/peak_gb", "Peak memory, GB", "", from_zero=True),
            ],
        ),
    ]
    return [group for group in groups if group.charts or group.more]


class _Comparison:
    """Makes charts that compare the tasks of one run, or several runs."""

    def __init__(self, tracks: Sequence[Track], tasks: Sequence[str]) -> None:
        self.tracks = tracks
        self.tasks = tasks
        self.single = len(tracks) == 1

    def overall(self, key: str, title: str, note: str, smooth: bool = False, **look: bool) -> list[Chart]:
        """One chart with a line for each run."""
        lines = [
            line
            for at, track in enumerate(self.tracks)
            for line in _lines(title if self.single else track.name, NEUTRAL if self.single else at, track, key, smooth)
        ]
        return [Chart(title, lines, note, **look)] if lines else []

    def by_task(
        self, key: str, title: str, smooth: bool = False, target: str | None = None, note: str = "", **look: bool
    ) -> list[Chart]:
        """One run: one chart with a line for each task. Several: a chart for each task, with a line for each run."""
        members = [
            (task, at if self.single else number, track)
            for at, task in enumerate(self.tasks)
            for number, track in enumerate(self.tracks)
        ]
        charts: dict[str, list[Line]] = {}
        for task, series, track in members:
            name = task if self.single else track.name
            lines = _lines(name, series, track, key.format(task=task), smooth)
            if target is not None and lines:
                lines += _lines(f"{name}, target", series, track, target.format(task=task), False, "target")
            charts.setdefault("" if self.single else task, []).extend(lines)
        said = ["by task" if self.single else "", note, "dashed: target" if target is not None else ""]
        note = "; ".join(part for part in said if part)
        return [
            Chart(f"{title}, {task}" if task else title, lines, note, **look) for task, lines in charts.items() if lines
        ]

    def evaluations(self, headlines: Mapping[str, str]) -> Group:
        """The headline metric of each task, and all other metrics."""
        found = {key for track in self.tracks for row in track.metrics for key in row if key.startswith("eval/")}
        names = list(dict.fromkeys(key.rsplit("/", 1)[1] for key in _ordered(found, self.tracks)))
        charts: list[Chart] = []
        rest: list[Chart] = []
        if not self.single:
            for task in self.tasks:
                first = dict.fromkeys((headlines.get(task, ""), *OF_TOKENS))
                for name in (*first, *(name for name in names if name not in first)):
                    (charts if name in first else rest).extend(self._metric([task], [name], f"{name}, {task}"))
            return Group("", "", charts, rest)
        best = {task: name for task in self.tasks if (name := headlines.get(task, "")) not in OF_TOKENS}
        charts += self._metric(list(best), list(best.values()), "Headline metric of each task")
        for name in (*OF_TOKENS, *(name for name in names if name not in OF_TOKENS)):
            (charts if name in OF_TOKENS else rest).extend(self._metric(self.tasks, [name] * len(self.tasks), name))
        return Group("", "", charts, rest)

    def _metric(self, tasks: Sequence[str], metrics: Sequence[str], title: str) -> list[Chart]:
        lines = []
        for task, metric in zip(tasks, metrics, strict=True):
            for number, track in enumerate(self.tracks):
                x, y = track.points(f"eval/{task}/{metric}")
                if x:
                    series = self.tasks.index(task) if self.single else number
                    name = f"{task}, {_words(metric)}" if self.single else track.name
                    lines.append(Line(name, series, *thin(x, y), "points"))
        title = _words(title)
        values = [value for line in lines for value in line.y]
        log = "perplexity" in metrics and max(values, default=0) > LOGARITHMIC * min(values, default=0)
        return [Chart(title[:1].upper() + title[1:], lines, log=log)] if lines else []


def _lines(name: str, series: int, track: Track, key: str, smooth: bool, style: Style = "line") -> list[Line]:
    x, y = track.points(key)
    if not x:
        return []
    if not smooth:
        return [Line(name, series, *thin(x, y), style)]
    return [Line(name, series, *thin(x, y), "raw"), Line(name, series, *thin(x, smoothed(y)), "line")]


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average, its start corrected as Adam corrects its moments (arXiv 1412.6980, section 3)."""
    keep = 1 - 1 / max(5, len(values) / SMOOTHING)
    total = weight = 0.0
    result = []
    for value in values:
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def thin(x: Sequence[int], y: Sequence[float], most: int = MOST_POINTS) -> Points:
    """At most `most` points that show the same line: of each stretch the lowest and the highest, in their order."""
    if len(x) <= most:
        return list(x), [_rounded(value) for value in y]
    stretches = most // 2
    kept: list[int] = []
    for at in range(stretches):
        stretch = range(at * len(x) // stretches, (at + 1) * len(x) // stretches)
        kept += sorted({min(stretch, key=y.__getitem__), max(stretch, key=y.__getitem__)})
    return [x[at] for at in kept], [_rounded(y[at]) for at in kept]


def _rounded(value: float) -> float:
    # 5 digits are more than a chart shows and halve the page's data.
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _ordered(keys: set[str], tracks: Iterable[Track]) -> list[str]:
    """The keys in the order in which the record has them."""
    seen = dict.fromkeys(key for track in tracks for row in track.metrics for key in row)
    return [key for key in seen if key in keys]


def _words(text: str) -> str:
    return text.replace("_", " ").replace("f1", "F1")
