"""The bar at several widths, with an evaluation below it, and its plain twin where there is no terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from lmrecipes.tracking import progress

TASKS = ["valence", "icd10", "hpo", "party", "a_task_with_a_long_name"]
METRICS = {"loss": 0.5, "tokens_per_second": 12345.6, "time/step": 0.8, **{f"loss/{task}": 0.25 for task in TASKS}}


def drawn(bar: progress.TrainingBar) -> str:
    """What the bar draws now."""
    assert bar.live is not None
    with bar.console.capture() as capture:
        bar.console.print(bar.live.renderable)
    return capture.get()


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_the_bar_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(stderr=True, width=width, force_terminal=True, color_system=None, force_interactive=False)
    monkeypatch.setattr(progress, "terminal", lambda: console)
    with progress.TrainingBar(1700, 0, TASKS) as bar:
        bar.move(60, METRICS)
        with progress.evaluation_bar() as moved:  # shares the terminal with the training's bar
            moved(1, 2)
        text = drawn(bar)
    assert max(map(len, text.splitlines())) <= width
    for part in ("60/1700", "loss 0.5000", "0:00 < 21:52", *(f"{task} 0.250" for task in TASKS)):
        assert part in text or width < 60
    assert ("12,346 tokens/s" in text) == (width >= 80)


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.TrainingBar(2, 0, TASKS) as bar:
        bar.move(1, METRICS)
        bar.move(2, {"loss": 0.3})
    with progress.evaluation_bar() as moved:
        moved(1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 1/2  loss 0.5000  12,346 tokens/s  0:00 left",
        "step 2/2  loss 0.4000  12,346 tokens/s  0:00 left",
    ]


def test_nothing_from_other_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.TrainingBar(1, 0, TASKS, show=False) as bar:
        bar.move(1, METRICS)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "text"), [(75, "1:15"), (3675, "1:01:15"), (0.4, "0:00"), (float("nan"), "-")])
def test_clock(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text
